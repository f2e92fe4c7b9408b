"""A started program and all that it starts, found by the session that it leads."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

# How long the janitor of a killed engine may take to notice and to remove its shared memory.
ORPHAN_GRACE_S = 3.0
POLL_S = 0.05
SHARED_MEMORY = Path("/dev/shm")
# The process that cleans up after killed ones, and ends by itself.
JANITOR = b"multiprocessing.resource_tracker"
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class SurvivorError(Exception):
    """Something survived SIGKILL."""


class Session:
    def __init__(self, leader: int) -> None:
        self._leader = leader
        # Files right in /dev/shm that its processes had open. vLLM leaves some behind, killed or not.
        self._shared_memory: set[Path] = set()

    def members(self) -> list[int]:
        """Every live process of the session, also when its leader is gone."""
        members = []
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                fields = _stat(entry)
                if len(fields) > 3 and int(fields[3]) == self._leader and fields[0] not in (b"Z", b"X"):
                    members.append(int(entry))
        return members

    def cpu_s(self) -> float:
        """User and system time of its live processes, counted by the kernel in ticks."""
        fields = [_stat(pid) for pid in self.members()]
        return sum(int(each[11]) + int(each[12]) for each in fields if len(each) > 12) / TICKS_PER_S

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to all of it."""
        for pid in self.members():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def working_count(self) -> int:
        """How many processes it is, janitors left out."""
        return len(self._workers())

    def note_shared_memory(self) -> None:
        """Remembers what has to be removed when these processes are gone."""
        for pid in self.members():
            for line in _read(pid, "maps").decode(errors="replace").splitlines():
                path = Path(line.split(maxsplit=5)[-1])
                # What lies in a folder is its owner's: a daemon's host tier outlives it.
                if path.parent == SHARED_MEMORY and path.exists():
                    self._shared_memory.add(path)

    def kill(self) -> None:
        """Kills all of it as a crash would, without a word, and returns when nothing is left.

        Raises:
            SurvivorError: something survived.
        """
        self.note_shared_memory()
        _kill(self._workers())
        self._wait_gone()
        _kill(self.members())
        if left := self._wait_gone():
            raise SurvivorError(f"processes {left} survived SIGKILL")
        for path in self._shared_memory:
            path.unlink(missing_ok=True)

    def _workers(self) -> list[int]:
        return [pid for pid in self.members() if JANITOR not in _read(pid, "cmdline")]

    def _wait_gone(self) -> list[int]:
        deadline = time.monotonic() + ORPHAN_GRACE_S
        while (left := self.members()) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return left


def _read(pid: int | str, name: str) -> bytes:
    """A file of a process; nothing when the process is gone."""
    try:
        with open(f"/proc/{pid}/{name}", "rb") as source:
            return source.read()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""


def _stat(pid: int | str) -> list[bytes]:
    """State, parent, group, session, ...: what follows the name in parentheses, which may hold anything."""
    return _read(pid, "stat").rsplit(b")", 1)[-1].split()


def _kill(pids: Sequence[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
