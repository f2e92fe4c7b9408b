"""A digest of a model's weight files that is quick to make, because engines wait for it when they start.

::

    folder -> its weight files, some at once -> name, size, header, samples of each -> SHA-256

A safetensors file says in its header where its tensors are. All of the header counts, and of each tensor its first,
middle and last 4 KiB: models that differ in a few layers, as after a LoRA was merged into some of them, differ there.
With many tensors the first two are left out, so that a file costs a bounded number of reads. A file of another kind, or
whose header is not one, is sampled at 16 places, which such models may agree at.

What no sample sees is a change of a tensor that spares its beginning, middle and end: some rows of an embedding, say.
The bytes come from people's disks, so a header is read with limits, and nothing in it makes this fail.
"""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor

WEIGHT_SUFFIXES = (".bin", ".gguf", ".pt", ".safetensors")
# Chosen: enough that two trainings of one model differ in some sample, and little beside loading the model.
SAMPLES_A_FILE = 16
SAMPLE_BYTES = 64 * 1024
# Chosen: a page, which is the least that a file system reads.
TENSOR_SAMPLE_BYTES = 4096
# Chosen: a file of more tensors than this has one sample of each; a file of more than the second is none that we know.
# The largest models come in shards of about a thousand.
TENSORS_SAMPLED_THRICE_MAX = 4096
TENSORS_MAX = 131_072
# Chosen: a header takes some 150 bytes a tensor.
HEADER_BYTES_MAX = 32 << 20
# Chosen: disks and file servers answer several reads as fast as one.
READERS = 8


def weights_digest(path: str) -> str:
    """Of the weight files of a folder, or of one file: names, sizes and samples."""
    if os.path.isdir(path):
        files = [os.path.join(path, name) for name in os.listdir(path) if name.endswith(WEIGHT_SUFFIXES)]
    else:
        files = [path]
    with ThreadPoolExecutor(READERS) as readers:
        digests = list(readers.map(_file_digest, sorted(files)))
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _file_digest(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        place = file.fileno()
        size = os.fstat(place).st_size
        # The kernel would read ahead of each sample, which is most of what it costs.
        os.posix_fadvise(place, 0, 0, os.POSIX_FADV_RANDOM)
        digest = hashlib.sha256(f"{os.path.basename(path)} {size}\0".encode("utf-8", "surrogateescape"))
        header = _header(place, size) if path.endswith(".safetensors") else None
        tensors = _tensors(header, size) if header is not None else None
        if header is None or tensors is None:
            step = max(1, (size - SAMPLE_BYTES) // (SAMPLES_A_FILE - 1))
            for sample in range(SAMPLES_A_FILE):
                offset = min(sample * step, max(0, size - SAMPLE_BYTES))
                digest.update(os.pread(place, SAMPLE_BYTES, offset))
            return digest.digest()
        digest.update(header)
        for begin, end in tensors:
            for offset in _samples(begin, end, len(tensors)):
                digest.update(os.pread(place, min(TENSOR_SAMPLE_BYTES, end - offset), offset))
        return digest.digest()


def _samples(begin: int, end: int, count: int) -> list[int]:
    """Where the samples of one of ``count`` tensors begin."""
    last = max(begin, end - TENSOR_SAMPLE_BYTES)
    if count > TENSORS_SAMPLED_THRICE_MAX:
        return [last]
    return sorted({begin, (begin + last) // 2, last})


def _header(place: int, size: int) -> bytes | None:
    """A safetensors file's header; None: it has none that we can read."""
    length = int.from_bytes(os.pread(place, 8, 0), "little")
    if not 2 <= length <= min(HEADER_BYTES_MAX, size - 8):
        return None
    header = os.pread(place, length, 8)
    return header if len(header) == length else None


def _tensors(header: bytes, size: int) -> list[tuple[int, int]] | None:
    """Where in its file each tensor begins and ends, in order; None: the header is not as safetensors has it."""
    try:
        named = json.loads(header)
    except (ValueError, RecursionError):
        return None
    if not isinstance(named, dict) or len(named) > TENSORS_MAX:
        return None
    data = 8 + len(header)
    tensors = []
    for name, tensor in named.items():
        if name == "__metadata__":
            continue
        offsets = tensor.get("data_offsets") if isinstance(tensor, dict) else None
        if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(offset) is int for offset in offsets):
            return None
        begin, end = offsets
        if not 0 <= begin <= end <= size - data:
            return None
        tensors.append((data + begin, data + end))
    return sorted(tensors)
