"""Child processes of the harness: started, talked to in lines of JSON, and always ended.

Every child stays in the harness's session and so in its autogroup: the kernel shares the cores among single threads,
not among sessions, and no peer is favoured by who started it. Each dies with the harness, whatever ends that.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

GRACE_S = 3.0
TAIL_BYTES = 2000
PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class PeerError(Exception):
    """A peer did not do what was asked; the text is kept as its result."""


def die_with_parent() -> None:
    """Runs in the child before its program: the kernel kills it when the harness goes."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def start(
    command: Sequence[str | Path],
    *,
    log: Path,
    environment: Mapping[str, str] | None = None,
    talks: bool = False,
) -> subprocess.Popen[bytes]:
    """Starts a child in a process group of its own, with its complaints in ``log``."""
    pipe = subprocess.PIPE if talks else subprocess.DEVNULL
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as complaints:
        return subprocess.Popen(
            [str(part) for part in command],
            stdin=pipe,
            stdout=subprocess.PIPE,
            stderr=complaints,
            env={**os.environ, **(environment or {})},
            process_group=0,
            preexec_fn=die_with_parent,
        )


def end(child: subprocess.Popen[bytes]) -> None:
    """Ends a child and its group; it is gone when this returns."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
        except ProcessLookupError:
            break
        try:
            child.wait(timeout=GRACE_S)
            break
        except subprocess.TimeoutExpired:
            continue
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            pipe.close()


def output(
    command: Sequence[str | Path], *, log: Path, limit_s: float, environment: Mapping[str, str] | None = None
) -> str:
    """What a command prints.

    Raises:
        PeerError: it failed, or had not ended after ``limit_s``.
    """
    child = start(command, log=log, environment=environment)
    name = Path(str(command[0])).name
    try:
        printed, _ = child.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        raise PeerError(f"{name} had not ended after {limit_s:.0f} s") from None
    finally:
        end(child)
    if child.returncode != 0:
        raise PeerError(f"{name} ended with {child.returncode}: {_tail(log)}")
    return printed.decode(errors="replace")


def _tail(log: Path) -> str:
    lines = log.read_bytes()[-TAIL_BYTES:].decode(errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else "it said nothing"


class Conversation:
    """A child that answers each line of JSON with one."""

    def __init__(
        self, command: Sequence[str | Path], *, log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self._name = log.stem
        self._log = log
        self._child = start(command, log=log, environment=environment, talks=True)
        self._pending = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, _: TracebackType | None) -> None:
        end(self._child)

    def send(self, **command: Any) -> None:
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps(command).encode() + b"\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            raise PeerError(f"{self._name} is gone: {_tail(self._log)}") from None

    def receive(self, limit_s: float) -> dict[str, Any]:
        """The next answer.

        Raises:
            PeerError: there was none within ``limit_s``, or it says that the command failed.
        """
        assert self._child.stdout is not None
        deadline = time.monotonic() + limit_s
        while b"\n" not in self._pending:
            readable, _, _ = select.select([self._child.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not readable:
                raise PeerError(f"{self._name} had not answered after {limit_s:.0f} s")
            chunk = os.read(self._child.stdout.fileno(), 1 << 16)
            if not chunk:
                raise PeerError(f"{self._name} went away: {_tail(self._log)}")
            self._pending += chunk
        line, self._pending = self._pending.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerError(str(answer["error"]))
        return answer

    def ask(self, limit_s: float, **command: Any) -> dict[str, Any]:
        self.send(**command)
        return self.receive(limit_s)


@contextmanager
def busy_loops(count: int, log: Path) -> Iterator[None]:
    """So many processes that do nothing and never stop, while the block runs."""
    loops: list[subprocess.Popen[bytes]] = []
    try:
        loops.extend(start([sys.executable, "-c", "while True: pass"], log=log) for _ in range(count))
        yield
    finally:
        for loop in loops:
            end(loop)
