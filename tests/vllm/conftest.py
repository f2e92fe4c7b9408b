"""What all end-to-end tests share: two daemons and two vLLM engines, started once, and back to rest after each test."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.engine import ROOT
from harness.processes import Stage
from pair import Pair

# The debug build: its assertions are on.
BINARY = ROOT / "target" / "debug" / "kvferry"
# How long a pair may take to come to rest: leases that nobody redeems have to end first.
REST_S_MAX = 30.0
# What no test may find in an engine's log.
ENGINE_CRASH = ("Traceback (most recent call last)", "EngineDeadError", "AssertionError")


@pytest.fixture(scope="session")
def started() -> Iterator[Pair]:
    with Stage("end-to-end", ROOT / "target" / "logs") as stage:
        try:
            yield Pair(stage, BINARY)
        finally:
            stage.save_logs()


@pytest.fixture
def pair(started: Pair, request: pytest.FixtureRequest) -> Iterator[Pair]:
    """The pair at rest. After the test it is at rest again, everything runs, and nobody complained unexpectedly."""
    started.restore()
    read = {log: log.stat().st_size for log in started.logs()}
    yield started
    started.restore()
    started.wait_rest(REST_S_MAX)
    assert started.prefill.is_serving()
    assert started.decode.is_serving()
    crashes_expected = request.node.get_closest_marker("engine_dies") is not None
    complaints = [line for log in started.logs() for line in complaints_in(log, read.get(log, 0), crashes_expected)]
    assert complaints == []


def complaints_in(log: Path, start: int, crashes_expected: bool) -> list[str]:
    """Lines that a person would have to look at, from ``start`` on."""
    with log.open("rb") as source:
        source.seek(start)
        lines = source.read().decode(errors="replace").splitlines()
    if log.name.startswith("engine"):
        return [] if crashes_expected else [line for line in lines if any(mark in line for mark in ENGINE_CRASH)]
    return [line for line in lines if " WARN " in line or " ERROR " in line or "panicked at" in line]


@pytest.fixture(autouse=True)
def tell_time() -> Iterator[None]:
    """Ends a test that found no other end: no wait in here is without a limit, but the sum of many is long."""
    start = time.monotonic()
    yield
    assert time.monotonic() - start < 240


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "engine_dies: an engine is killed, which its log may complain about")
