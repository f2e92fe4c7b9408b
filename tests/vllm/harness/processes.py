"""Processes that never outlive the stage they were started on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from .sessions import Session, SurvivorError

# How long an asked process may take to end before it is killed. vLLM ends within 2 s (measured).
GRACE_S = 15.0
POLL_S = 0.05
TAIL_LINES = 40
TELL_INTERVAL_S = 10.0


class StageError(Exception):
    """A process did not do what the stage needs. The text holds the end of its log."""


class Process:
    """One started program with everything that it starts."""

    def __init__(self, name: str, command: Sequence[str | Path], environment: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as output:
            self._child = subprocess.Popen(
                [str(part) for part in command],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=log.parent,
                start_new_session=True,
            )
        self._session = Session(self.pid)

    @property
    def pid(self) -> int:
        """The process, and the session and group that it leads."""
        return self._child.pid

    def is_running(self) -> bool:
        return self._child.poll() is None

    def process_count(self) -> int:
        """How many processes it is now."""
        return self._session.working_count()

    def cpu_s(self) -> float:
        """The processor time that it has used so far, in user and kernel mode; of living processes."""
        return self._session.cpu_s()

    def pause(self) -> None:
        """Takes the cores away from all of it; what it has stays as it is."""
        self._session.send(signal.SIGSTOP)

    def go_on(self) -> None:
        """After a pause."""
        self._session.send(signal.SIGCONT)

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
            self._session.note_shared_memory()
            # A paused program would not hear it.
            self.go_on()
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
        """Kills all of it as a crash would: without a word. Returns when nothing of it is left.

        Raises:
            StageError: something survived SIGKILL.
        """
        try:
            self._session.kill()
        except SurvivorError as error:
            raise StageError(f"{self.name}: {error}") from error
        self._child.wait()


class Stage:
    """A folder for sockets, configs and logs, and the processes that run in it; leaving it ends and removes all."""

    def __init__(self, name: str, keep_logs_in: Path) -> None:
        self._name = name
        self._keep_logs_in = keep_logs_in
        self._processes: list[Process] = []
        # Not below the repository: the path of a Unix socket has at most 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix=f"kvferry-{name}-"))
        self._previous = signal.getsignal(signal.SIGTERM)
        self._keeper = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("keeper.py"), self.folder],
            stdin=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )

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
            self._tell_keeper("farewell")
            self._keeper.wait()
            for number, handler in interrupts:
                signal.signal(number, handler)
            signal.signal(signal.SIGTERM, self._previous)

    def start(self, name: str, command: Sequence[str | Path], environment: Mapping[str, str]) -> Process:
        """Starts a program whose log is ``NAME.log``; one that is started again adds to it."""
        process = Process(name, command, environment, self.folder / f"{name}.log")
        self._tell_keeper(str(process.pid))
        self._processes.append(process)
        return process

    def forget(self, process: Process) -> None:
        """Says that a process has been ended."""
        self._tell_keeper(f"-{process.pid}")
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

    def _tell_keeper(self, word: str) -> None:
        assert self._keeper.stdin is not None
        self._keeper.stdin.write(f"{word}\n")
        self._keeper.stdin.flush()
