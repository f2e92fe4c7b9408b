"""Processes that never outlive the stage they were started on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

# How long an asked process may take to end before it is killed. vLLM ends within 2 s (measured).
GRACE_S = 15.0
# How long the helpers of a killed engine may take to notice and to remove their shared memory.
ORPHAN_GRACE_S = 3.0
POLL_S = 0.05
TAIL_LINES = 40
TELL_INTERVAL_S = 10.0
SHARED_MEMORY = "/dev/shm/psm_"
# The process that cleans up after killed ones, and ends by itself.
JANITOR = b"multiprocessing.resource_tracker"


class StageError(Exception):
    """A process did not do what the stage needs. The text holds the end of its log."""


class Process:
    """One started program with everything that it starts. It leads a session, by which its descendants are found."""

    def __init__(self, name: str, command: Sequence[str | Path], environment: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        # Files in /dev/shm that its processes had open. vLLM leaves some behind when it is killed, and when it is not.
        self._shared_memory: set[Path] = set()
        # When this process dies without a chance to clean up, the kernel ends what it started.
        guard = ["setpriv", "--pdeathsig", "SIGTERM", "--"] if shutil.which("setpriv") else []
        with log.open("ab") as output:
            self._child = subprocess.Popen(
                [*guard, *(str(part) for part in command)],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=log.parent,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process, and the session and group that it leads."""
        return self._child.pid

    def is_running(self) -> bool:
        return self._child.poll() is None

    def wait_until(
        self,
        ready: Callable[[], bool],
        what: str,
        within_s: float,
        tell: Callable[[float], None] | None = None,
    ) -> None:
        """Waits until ``ready`` says so. ``tell`` hears every few seconds how long that has taken.

        Raises:
            StageError: the process ended, or the time is over; the text holds the end of its log.
        """
        start = told = time.monotonic()
        deadline = start + within_s
        while not ready():
            now = time.monotonic()
            if tell is not None and now - told > TELL_INTERVAL_S:
                told = now
                tell(now - start)
            status = self._child.poll()
            if status is not None:
                raise StageError(f"{self.name} ended with {status} before it was {what}\n{self.tail()}")
            if time.monotonic() > deadline:
                raise StageError(f"{self.name} was not {what} within {within_s:.0f} s\n{self.tail()}")
            time.sleep(POLL_S)

    def member_count(self) -> int:
        """How many processes it is now, with those that it started."""
        return sum(JANITOR not in _command_line(pid) for pid in session_members(self.pid))

    def tail(self) -> str:
        """The end of the log."""
        with self.log.open("rb") as source:
            source.seek(0, os.SEEK_END)
            source.seek(max(0, source.tell() - 300 * TAIL_LINES))
            lines = source.read().decode(errors="replace").splitlines()[-TAIL_LINES:]
        return "\n".join([f"the end of {self.log.name}:", *(f"  | {line}" for line in lines)])

    def ask_to_end(self) -> None:
        """Sends SIGTERM to the program itself, which ends its own children."""
        if self.is_running():
            self._note_shared_memory()
            self._child.send_signal(signal.SIGTERM)

    def end(self) -> None:
        """Ends the program in order, and whatever of its session remains by force."""
        self.ask_to_end()
        self.wait_ended(GRACE_S)
        self.kill()

    def wait_ended(self, within_s: float) -> bool:
        try:
            self._child.wait(timeout=within_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        """Kills the whole session as a crash would: without a word. Returns when nothing of it is left.

        Raises:
            StageError: something survived SIGKILL.
        """
        self._note_shared_memory()
        _signal_all([pid for pid in session_members(self.pid) if JANITOR not in _command_line(pid)])
        self._child.wait()
        deadline = time.monotonic() + ORPHAN_GRACE_S
        while (left := session_members(self.pid)) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        _signal_all(left)
        deadline = time.monotonic() + ORPHAN_GRACE_S
        while left := session_members(self.pid):
            if time.monotonic() > deadline:
                raise StageError(f"processes {left} of {self.name} survived SIGKILL")
            time.sleep(POLL_S)
        for path in self._shared_memory:
            path.unlink(missing_ok=True)

    def _note_shared_memory(self) -> None:
        for pid in session_members(self.pid):
            self._shared_memory.update(_shared_memory(pid))


class Stage:
    """A folder for sockets, configs and logs, and the processes that run in it; leaving it ends and removes all."""

    def __init__(self, name: str, keep_logs_in: Path) -> None:
        self._name = name
        self._keep_logs_in = keep_logs_in
        self._processes: list[Process] = []
        # Not below the repository: the path of a Unix socket has at most 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix=f"kvferry-{name}-"))
        self._previous = signal.getsignal(signal.SIGTERM)

    def __enter__(self) -> Stage:
        # A SIGTERM unwinds as Ctrl-C does.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        interrupts = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
        for number, _handler in interrupts:
            # A second Ctrl-C must not leave engines behind.
            signal.signal(number, signal.SIG_IGN)
        try:
            self.end_all()
        finally:
            if kind is not None:
                self.save_logs()
            shutil.rmtree(self.folder, ignore_errors=True)
            for number, handler in interrupts:
                signal.signal(number, handler)
            signal.signal(signal.SIGTERM, self._previous)

    def start(self, name: str, command: Sequence[str | Path], environment: Mapping[str, str]) -> Process:
        """Starts a program whose log is ``NAME.log``; one that is started again adds to it."""
        process = Process(name, command, environment, self.folder / f"{name}.log")
        self._processes.append(process)
        return process

    def forget(self, process: Process) -> None:
        """Says that a process has been ended."""
        self._processes.remove(process)

    def end_all(self) -> None:
        """Ends every process, all at once and the last started first."""
        survivors = []
        for process in reversed(self._processes):
            process.ask_to_end()
        deadline = time.monotonic() + GRACE_S
        for process in reversed(self._processes):
            process.wait_ended(max(0.0, deadline - time.monotonic()))
            try:
                process.kill()
            except StageError as error:
                survivors.append(str(error))
        self._processes.clear()
        if survivors:
            raise StageError("\n".join(survivors))

    def save_logs(self) -> Path:
        """Copies the logs to where they stay."""
        place = self._keep_logs_in / self._name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        for log in self.folder.glob("*.log"):
            shutil.copy(log, place)
        return place


def session_members(leader: int) -> list[int]:
    """Every live process of the session that ``leader`` leads or led."""
    members = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", "rb") as stat:
                    # The name in parentheses may hold anything; what follows are: state, parent, group, session.
                    fields = stat.read().rsplit(b")", 1)[1].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[3]) == leader and fields[0] not in (b"Z", b"X"):
                members.append(int(entry))
    return members


def _command_line(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as source:
            return source.read()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def _shared_memory(pid: int) -> set[Path]:
    """The files that Python's multiprocessing made in /dev/shm and this process maps."""
    try:
        with open(f"/proc/{pid}/maps") as source:
            paths = {line.split(maxsplit=5)[5].strip() for line in source if SHARED_MEMORY in line}
    except (FileNotFoundError, ProcessLookupError):
        return set()
    return {Path(path) for path in paths if Path(path).exists()}


def _signal_all(pids: Sequence[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
