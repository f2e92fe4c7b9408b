"""The digest of weight files: what its samples see, and that no header makes it fail."""

import json
import os

import pytest

from kvferry.vllm import weights
from kvferry.vllm.weights import SAMPLE_BYTES, SAMPLES_A_FILE, weights_digest

TENSORS = 300
TENSOR_BYTES = 16 * 1024


def safetensors(folder, data, lengths, header=None):
    """A file as safetensors writes it: the tensors of these lengths, one behind the other."""
    if header is None:
        named, begin = {"__metadata__": {"format": "pt"}}, 0
        for number, length in enumerate(lengths):
            named[f"layers.{number}.weight"] = {
                "dtype": "U8",
                "shape": [length],
                "data_offsets": [begin, begin + length],
            }
            begin += length
        header = json.dumps(named).encode()
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)
    return str(folder)


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_one_changed_tensor_of_many_is_seen_wherever_it_lies(tmp_path, place):
    data = bytes(TENSORS * TENSOR_BYTES)
    assert len(data) > 4 * SAMPLES_A_FILE * SAMPLE_BYTES, "else samples of the file would see all of it"
    lengths = [TENSOR_BYTES] * TENSORS
    seen = {weights_digest(safetensors(tmp_path / "m", data, lengths))}
    offset = {"first": 0, "middle": TENSOR_BYTES // 2, "last": TENSOR_BYTES - 1}[place]
    for tensor in range(0, TENSORS, 7):
        changed = bytearray(data)
        changed[tensor * TENSOR_BYTES + offset] = 1
        seen.add(weights_digest(safetensors(tmp_path / "m", changed, lengths)))
    assert len(seen) == 1 + len(range(0, TENSORS, 7))


def test_tensors_of_any_length(tmp_path):
    lengths = [0, 1, 4095, 4096, 4097, 12288, 12289]
    data = bytes(sum(lengths))
    seen = {weights_digest(safetensors(tmp_path / "m", data, lengths))}
    begin = 0
    for length in lengths[1:]:
        for offset in {begin, begin + length - 1}:
            changed = data[:offset] + b"\1" + data[offset + 1 :]
            seen.add(weights_digest(safetensors(tmp_path / "m", changed, lengths)))
        begin += length
    assert len(seen) == 1 + 1 + 2 * (len(lengths) - 2)


def test_names_and_shapes_count(tmp_path):
    one, other = ({name: {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}} for name in "ab")
    digests = {
        weights_digest(safetensors(tmp_path / name, b"same", (), json.dumps(header).encode()))
        for name, header in (("one", one), ("other", other))
    }
    assert len(digests) == 2


def test_a_file_of_very_many_tensors_has_one_sample_of_each(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "TENSORS_SAMPLED_THRICE_MAX", 2)
    lengths = [TENSOR_BYTES] * 3
    data = bytes(sum(lengths))
    plain = weights_digest(safetensors(tmp_path / "m", data, lengths))
    for tensor in range(3):
        changed = bytearray(data)
        changed[(tensor + 1) * TENSOR_BYTES - 1] = 1
        assert weights_digest(safetensors(tmp_path / "m", changed, lengths)) != plain


def tensor(*offsets):
    return json.dumps({"a": {"dtype": "U8", "shape": [1], "data_offsets": list(offsets)}}).encode()


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"no json",
        b"\xff\xfe\xfd",
        b"[" * 100_000,
        b"[]",
        b"17",
        b'{"a": 1}',
        b'{"a": {}}',
        b'{"a": {"data_offsets": 7}}',
        tensor(1),
        tensor(0, True),
        tensor(0, 1.5),
        tensor(0, "1"),
        tensor(2, 1),
        tensor(-1, 1),
        tensor(0, 10**30),
        tensor(0, SAMPLE_BYTES + 1),
    ],
    ids=lambda header: str(header[:40]),
)
def test_a_header_that_is_none_is_a_part_of_the_file(tmp_path, header):
    one, other = bytes(SAMPLE_BYTES), b"\1" + bytes(SAMPLE_BYTES - 1)
    digests = {
        weights_digest(safetensors(tmp_path / name, data, (), header)) for name, data in (("a", one), ("b", other))
    }
    assert len(digests) == 2


@pytest.mark.parametrize("length", [0, 1, 2, 100, 2**31, 2**63, 2**64 - 1])
def test_a_header_s_length_is_not_believed(tmp_path, length):
    file = tmp_path / "model.safetensors"
    file.write_bytes(length.to_bytes(8, "little") + b"{}")
    assert len(weights_digest(str(tmp_path))) == 64
    file.write_bytes(length.to_bytes(8, "little")[:5])
    assert len(weights_digest(str(tmp_path))) == 64


def test_headers_beyond_the_limits_are_a_part_of_the_file(tmp_path, monkeypatch):
    data, lengths = bytes(64), [32, 32]
    path = safetensors(tmp_path / "m", data, lengths)
    known = weights_digest(path)
    for limit in ("HEADER_BYTES_MAX", "TENSORS_MAX"):
        with monkeypatch.context() as changed:
            changed.setattr(weights, limit, 2)
            assert weights_digest(path) != known


def test_shards_count_by_name(tmp_path):
    for name, contents in (("one", b"ab"), ("two", b"ba")):
        folder = tmp_path / name
        folder.mkdir()
        for shard in range(2):
            (folder / f"model-{shard}.bin").write_bytes(contents[shard : shard + 1])
    assert weights_digest(str(tmp_path / "one")) != weights_digest(str(tmp_path / "two"))
    os.rename(tmp_path / "one" / "model-1.bin", tmp_path / "one" / "model-2.bin")
    os.rename(tmp_path / "one" / "model-0.bin", tmp_path / "one" / "model-1.bin")
    os.rename(tmp_path / "one" / "model-2.bin", tmp_path / "one" / "model-0.bin")
    assert weights_digest(str(tmp_path / "one")) == weights_digest(str(tmp_path / "two"))
