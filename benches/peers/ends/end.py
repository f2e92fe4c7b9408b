"""One end of a rival, told what to do by the harness: a line of JSON in, a line of JSON out.

    harness --stdin--> {"do": "measure", ...} --> Rival.prepare, run, run, ... --> {"gbps": ...} --stdout--> harness

The initiator reads from or writes to the target; the target only holds memory, and lets its library make progress
where the library wants that. Each end has a source and a landing of its own, so reads and writes need no refilling.
A command that fails answers {"error": ...}; the end goes on. It ends when its standard input closes.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from blocks import Batch, Region, batches

# Handles are made before the clock runs, and their transfers take turns so that no cache keeps one's blocks.
BATCHES_MAX = 16
SINGLES_MAX = 64
# Moved before the clock runs, as with everybody: the scheduler needs that long to place several threads.
WARM_UP_S = 0.15
# From this size on, the first transfer counts: it takes longer than that, its pages are touched and its connection is
# warm already.
LARGE_BYTES = 256 << 20
WARM_BYTES = 65536


class Rival(Protocol):
    """What a library must be able to do."""

    def address(self) -> dict[str, Any]:
        """What the initiator must know to reach this end."""

    def connect(self, address: dict[str, Any]) -> None:
        """Makes the target with this address the one that transfers go to."""

    def prepare(self, op: str, batch: Batch, block_bytes: int, batch_max: int) -> Callable[[], None]:
        """A transfer that is ready to run; it raises when it fails. ``op`` is read or write."""

    def forget(self) -> None:
        """Frees what ``prepare`` made."""

    # Called again and again by a target that waits, or None if its library needs no help.
    progress: Callable[[], None] | None


class End:
    """Obeys commands until there are no more."""

    def __init__(self, source: Region, landing: Region, rival: Rival) -> None:
        self._source = source
        self._landing = landing
        self._rival = rival
        self._far_pid = 0

    def obey(self, command: dict[str, Any]) -> dict[str, Any]:
        match command["do"]:
            case "describe":
                return {"pid": os.getpid(), **self._rival.address()}
            case "connect":
                self._far_pid = int(command["address"]["pid"])
                self._rival.connect(command["address"])
                for op in ("read", "write"):
                    self._transfers(op, 1, WARM_BYTES, 1, 1)[0]()
                self._rival.forget()
                return {}
            case "wipe":
                self._landing.wipe()
                return {}
            case "measure":
                return self._measure(command)
            case "check":
                sets = self._batches(command["blocks"], command["block_bytes"])[: command["batches"]]
                full = bool(command["full"])
                return {"verified": all(self._landing.holds(s, command["block_bytes"], full=full) for s in sets)}
            case unknown:
                raise ValueError(f"no such command: {unknown}")

    def _batches(self, blocks: int, block_bytes: int, count_max: int | None = None) -> list[Batch]:
        count = count_max or (SINGLES_MAX if blocks == 1 else BATCHES_MAX)
        return batches(self._source.size, blocks, block_bytes, count)

    def _transfers(
        self, op: str, blocks: int, block_bytes: int, batch_max: int, count: int | None = None
    ) -> list[Callable[[], None]]:
        sets = self._batches(blocks, block_bytes, count)
        return [self._rival.prepare(op, batch, block_bytes, batch_max) for batch in sets]

    def _measure(self, command: dict[str, Any]) -> dict[str, Any]:
        blocks, block_bytes = int(command["blocks"]), int(command["block_bytes"])
        transfers = self._transfers(command["op"], blocks, block_bytes, int(command["batch_max"]))
        try:
            if blocks * block_bytes < LARGE_BYTES:
                self._run(transfers, WARM_UP_S, 1)
            seconds, cpu_s = self._run(transfers, float(command["budget_s"]), int(command["transfers_min"]))
        finally:
            self._rival.forget()
        moved = blocks * block_bytes * len(seconds)
        total_s = sum(seconds)
        ordered = sorted(seconds)

        def quantile_us(share: float) -> float:
            return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e6

        return {
            "gbps": moved / total_s / 1e9,
            "p50_us": quantile_us(0.5),
            "p99_us": quantile_us(0.99),
            "p999_us": quantile_us(0.999),
            "cpu_s_per_gb": cpu_s / (moved / 1e9),
            "transfers": len(seconds),
            "batches": min(len(seconds), len(transfers)),
        }

    def _run(
        self, transfers: list[Callable[[], None]], budget_s: float, transfers_min: int
    ) -> tuple[list[float], float]:
        seconds: list[float] = []
        cpu_before = self._cpu_s()
        clock = time.perf_counter
        deadline = clock() + budget_s
        while True:
            for transfer in transfers:
                start = clock()
                transfer()
                end = clock()
                seconds.append(end - start)
                if end > deadline and len(seconds) >= transfers_min:
                    return seconds, self._cpu_s() - cpu_before

    def _cpu_s(self) -> float:
        return sum(_cpu_s(pid) for pid in (os.getpid(), self._far_pid))


def _cpu_s(pid: int) -> float:
    """What all threads of a process have run so far, from the scheduler's own count."""
    total_ns = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            total_ns += int((task / "schedstat").read_text().split()[0])
        except FileNotFoundError:
            continue
    return total_ns / 1e9


def serve(make: Callable[[Region, Region], Rival], region_bytes: int) -> None:
    """Runs one end to its end, and the process with it.

    The process leaves without running the destructors of libraries: those of UCX 1.23 crash.
    """
    # What libraries print must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    commands: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            commands.put(line)
        commands.put(None)

    source, landing = Region(region_bytes), Region(region_bytes)
    source.fill()
    landing.wipe()
    rival = make(source, landing)
    end = End(source, landing, rival)
    threading.Thread(target=listen, daemon=True).start()
    while True:
        while rival.progress is not None and commands.empty():
            rival.progress()
        line = commands.get()
        if line is None:
            os._exit(0)
        try:
            answer = end.obey(json.loads(line))
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{error}"}
        print(json.dumps(answer), file=answers, flush=True)
