"""A process that is paused, its processor time, and its end: what the benchmark over real engines rests on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness.processes import Process, Stage

WAIT_S_MAX = 20.0
POLL_S = 0.02
# A program with a child; both keep a core busy.
BUSY = ["sh", "-c", "while :; do :; done & while :; do :; done"]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with Stage("processes", tmp_path) as stage:
        yield stage


def wait_for(wanted: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S_MAX
    while not wanted():
        assert time.monotonic() < deadline, f"not {what} within {WAIT_S_MAX:.0f} s"
        time.sleep(POLL_S)


def states(process: Process) -> set[str]:
    """Of the program and its child: R running, S sleeping, T stopped."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    stats = [Path(f"/proc/{pid}/stat").read_text() for pid in (process.pid, *children)]
    return {stat.rsplit(")", 1)[-1].split()[0] for stat in stats}


def test_processor_time_is_that_of_the_whole_session(stage: Stage) -> None:
    process = stage.start("busy", BUSY, {"PATH": "/usr/bin:/bin"})
    wait_for(lambda: process.process_count() == 2, "two processes")
    wait_for(lambda: process.cpu_s() > 0.2, "busy")


def test_a_paused_program_stands_still_with_its_children(stage: Stage) -> None:
    process = stage.start("busy", BUSY, {"PATH": "/usr/bin:/bin"})
    wait_for(lambda: process.process_count() == 2, "two processes")
    process.pause()
    wait_for(lambda: states(process) == {"T"}, "stopped")
    used = process.cpu_s()
    process.go_on()
    wait_for(lambda: "T" not in states(process), "going on")
    wait_for(lambda: process.cpu_s() > used + 0.1, "busy again")


def test_a_paused_program_is_ended_in_order(stage: Stage) -> None:
    script = "trap 'echo > heard; exit' TERM; echo > set; while :; do :; done"
    process = stage.start("busy", ["sh", "-c", script], {"PATH": "/usr/bin:/bin"})
    wait_for((stage.folder / "set").exists, "listening for SIGTERM")
    process.pause()
    process.end()
    # Not killed: it heard the signal, which a paused program does not.
    assert (stage.folder / "heard").exists()
    assert process.process_count() == 0
