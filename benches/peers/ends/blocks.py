"""The memory of one end of a rival: what blocks hold, in which order they move, and whether they arrived.

Every 64-bit word of a source is different, so a block that landed in a wrong place is seen. Memory is mapped shared,
as an engine's cache that a daemon maps is: the same pages for every peer.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass

import numpy as np

# The same as in programs/measure.h: word i of a source holds (i + 1) times it.
CONTENT = 0x9E3779B97F4A7C15
WORD_BYTES = 8
# How much is filled or compared at a time.
CHUNK_BYTES = 8 << 20
# Of a cell that is not checked in full, one block in so many is.
SAMPLED = 16

# So many places are shuffled at most.
SLOTS_MAX = 1 << 16

SOURCE_SEED = 11
LANDING_SEED = 22


@dataclass(frozen=True)
class Batch:
    """The blocks of one transfer: offsets in the source and in the landing, pair by pair."""

    source: np.ndarray
    landing: np.ndarray


def batches(region_bytes: int, blocks: int, block_bytes: int, count_max: int) -> list[Batch]:
    """Transfers of ``blocks`` blocks in random order, no block in two of them, as many as the region holds."""
    slots = region_bytes // block_bytes
    if blocks > min(slots, SLOTS_MAX):
        raise ValueError(f"{blocks} blocks of {block_bytes} bytes do not fit a region of {region_bytes} bytes")
    # Tiny blocks are spread over the whole region, not packed at its start.
    drawn = min(slots, SLOTS_MAX)
    stride = slots // drawn * block_bytes
    # One order for each side: neighbours at one end are no neighbours at the other.
    source = np.random.default_rng(SOURCE_SEED).permutation(drawn) * stride
    landing = np.random.default_rng(LANDING_SEED).permutation(drawn) * stride
    count = min(count_max, drawn // blocks)
    cuts = [slice(i * blocks, (i + 1) * blocks) for i in range(count)]
    return [Batch(source[cut], landing[cut]) for cut in cuts]


class Region:
    """Mapped memory, as bytes and as words."""

    def __init__(self, size: int) -> None:
        self._mapped = mmap.mmap(-1, size)
        self.bytes = np.frombuffer(self._mapped, dtype=np.uint8)
        self.words = self.bytes.view(np.uint64)
        self.size = size
        self.address = int(self.bytes.ctypes.data)

    def fill(self) -> None:
        """Gives every word its own content."""
        step = CHUNK_BYTES // WORD_BYTES
        for start in range(0, len(self.words), step):
            end = min(start + step, len(self.words))
            self.words[start:end] = _content(start, end - start)

    def wipe(self) -> None:
        self.bytes[:] = 0

    def holds(self, batch: Batch, block_bytes: int, *, full: bool) -> bool:
        """Did the batch's blocks arrive here, each in its place?"""
        words = block_bytes // WORD_BYTES
        every = 1 if full or len(batch.source) <= SAMPLED else SAMPLED
        for source, landing in zip(batch.source[::every], batch.landing[::every], strict=True):
            first = int(landing) // WORD_BYTES
            if not np.array_equal(self.words[first : first + words], _content(int(source) // WORD_BYTES, words)):
                return False
        return True


def _content(first: int, count: int) -> np.ndarray:
    return np.arange(first + 1, first + 1 + count, dtype=np.uint64) * np.uint64(CONTENT)
