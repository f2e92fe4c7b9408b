"""Progress on the terminal, and child commands that report through it.

A step prints one line when it begins, one every few seconds while it lasts and one when it ends::

    vLLM environment: 170 packages
      20 s, 1.9 GB: Downloading torch (502.2MiB)
      done in 64 s, 5.2 GB
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

# How often a running command says that it is still there.
INTERVAL_S = 10.0
# How much of a failed command's output is shown.
TAIL_LINES = 40
# How long a command may take to end after it was asked to.
GRACE_S = 5.0


class SetupError(Exception):
    """Something could not be made. The text says what to do."""


class Step:
    """One thing that is being made; ``with Step("models"):`` prints its first and last line."""

    def __init__(self, title: str, place: Path | None = None) -> None:
        self._start = time.monotonic()
        # The folder whose size is told, if any.
        self._place = place
        self._note = ""
        print(title, flush=True)

    def __enter__(self) -> Step:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            self.say(f"done in {self._seconds():.0f} s{self._size()}{self._note}")

    def say(self, text: str) -> None:
        """Prints one line below the title."""
        print(f"  {text}", flush=True)

    def note(self, text: str) -> None:
        """What the last line adds."""
        self._note = f", {text}"

    def run(
        self,
        command: Sequence[str | Path],
        *,
        log: Path,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Runs a command to its end with its output in ``log``.

        Raises:
            SetupError: it failed; the text holds the end of its output.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            child = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env={**os.environ, **(environment or {})},
                # A group of its own, so that Ctrl-C reaches it once, by us, and its children with it.
                start_new_session=True,
            )
            try:
                self._wait(child, lambda: last_line(log))
            except BaseException:
                end_group(child)
                raise
        if child.returncode != 0:
            shown = "\n".join(read_tail(log, TAIL_LINES))
            raise SetupError(
                f"`{' '.join(str(part) for part in command)}` ended with {child.returncode}; the end of {log}:\n{shown}"
            )

    def _wait(self, child: subprocess.Popen[bytes], latest: Callable[[], str]) -> None:
        while True:
            try:
                child.wait(timeout=INTERVAL_S)
                return
            except subprocess.TimeoutExpired:
                self.say(f"{self._seconds():.0f} s{self._size()}: {latest()}")

    def _seconds(self) -> float:
        return time.monotonic() - self._start

    def _size(self) -> str:
        if self._place is None or not self._place.exists():
            return ""
        return f", {readable_bytes(folder_bytes(self._place))}"


def end_group(child: subprocess.Popen[bytes]) -> None:
    """Ends a child and everything in its group."""
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, signal_number)
            child.wait(timeout=GRACE_S)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def folder_bytes(place: Path) -> int:
    """What the files below a folder (or one file) hold."""
    if place.is_file():
        return place.stat().st_size
    total = 0
    for folder, _, names in os.walk(place):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except FileNotFoundError:
                continue
    return total


def readable_bytes(count: int) -> str:
    """A size for people: ``5.2 GB``."""
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def read_tail(log: Path, line_count: int) -> list[str]:
    """The last lines of a log; a progress bar that overwrites itself counts as its last state."""
    with log.open("rb") as source:
        source.seek(0, os.SEEK_END)
        source.seek(max(0, source.tell() - 200 * line_count))
        text = source.read().decode(errors="replace")
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in text.split("\n")]
    return [line for line in lines if line][-line_count:]


def last_line(log: Path) -> str:
    lines = read_tail(log, 1)
    return lines[-1][:100] if lines else "working"
