"""Memory that is shared with the daemon, and the one thread that copies between it and vLLM's host memory.

::

    store   vLLM's row -> copy_in -> slot -> daemon          load   daemon -> slot -> copy_out -> vLLM's row

The daemon maps nothing whose length could change under it, since touching a mapping behind a file's end kills the
process that does. vLLM's region is a plain file of /dev/shm, and such files cannot be sealed (only memfds can). So
every chunk is copied once more, by a thread of ours, as vLLM's scheduler must not copy itself; numpy gives Python's
lock away meanwhile. What this buys: the daemon never reads or writes vLLM's memory, so a daemon that hangs or dies can
hold up nothing and spoil nothing there.

Limits: ``slot_count`` rows. A slot that a lost daemon may still write to is not used again for ``GONE_SECONDS``.
"""

from __future__ import annotations

import mmap
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np

from kvferry.vllm.memfd import sealed_memfd

# Twice the second that a daemon has for letting go of an engine whose connection closed.
GONE_SECONDS = 2.0
# Chosen: what is moved at once; while one part is copied the daemon is at the next.
PART_BYTES = 32 << 20


class Staging:
    """Slots of one row each."""

    def __init__(self, primary: memoryview, slot_count: int, clock: Callable[[], float] = time.monotonic) -> None:
        assert primary.shape is not None and len(primary.shape) == 2
        self._clock = clock
        self._primary: Any = np.asarray(primary).view(np.uint8)
        self.row_bytes = int(self._primary.shape[1])
        self.slot_count = slot_count
        # At most so many rows are moved at once.
        self._part_slots = max(1, PART_BYTES // self.row_bytes)
        self.fd: int | None = sealed_memfd("kvferry-tier", slot_count * self.row_bytes)
        mapping = mmap.mmap(self.fd, slot_count * self.row_bytes, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        # The array keeps the mapping alive.
        self._slots: Any = np.frombuffer(mapping, dtype=np.uint8).reshape(slot_count, self.row_bytes)
        self._free = deque(range(slot_count))
        # Slots that nobody may write to before a time, oldest first.
        self._resting: deque[tuple[float, int]] = deque()
        self._copier = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kvferry-tier")
        self._copies: set[Future[None]] = set()

    def take(self, wanted: int, spare: int = 0) -> list[int]:
        """Free slots for a part of what is ``wanted``, such that ``spare`` remain."""
        now = self._clock()
        while self._resting and self._resting[0][0] <= now:
            self._free.append(self._resting.popleft()[1])
        return [self._free.popleft() for _ in range(min(wanted, self._part_slots, len(self._free) - spare))]

    def give_back(self, slots: Iterable[int], rest: bool = False) -> None:
        """Nobody uses these any more; with ``rest``, nobody that is known of."""
        if rest:
            self._resting.extend((self._clock() + GONE_SECONDS, slot) for slot in slots)
        else:
            self._free.extend(slots)

    def copy_in(self, rows: Sequence[int], slots: Sequence[int]) -> Future[None]:
        """Copies rows of vLLM's memory into slots, behind what was asked for before."""
        return self._copy(self._slots, slots, self._primary, rows)

    def copy_out(self, slots: Sequence[int], rows: Sequence[int]) -> Future[None]:
        """Copies slots into rows of vLLM's memory, behind what was asked for before."""
        return self._copy(self._primary, rows, self._slots, slots)

    def _copy(self, target: Any, places: Sequence[int], source: Any, of: Sequence[int]) -> Future[None]:
        def run() -> None:
            for place, row in zip(places, of, strict=True):
                target[place] = source[row]

        copy = self._copier.submit(run)
        self._copies.add(copy)
        copy.add_done_callback(self._copies.discard)
        return copy

    def wait_idle(self) -> None:
        """Returns when no copy is under way: at most one staging area's worth of memcpy."""
        wait(list(self._copies))

    def close(self) -> None:
        """Ends the thread and lets go of vLLM's memory."""
        self._copier.shutdown(wait=True)
        self._primary = self._slots = None
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None
