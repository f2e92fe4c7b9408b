"""What both ends of a rival do, with a rival whose network is a copy inside this process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blocks import Batch, Region, batches
from end import End

from conftest import PEERS

MIB = 1 << 20
SHAPE = {"blocks": 16, "block_bytes": 4096}


class Copier:
    """Source and landing of one process. With ``lost``, the last block of each transfer stays behind."""

    progress: Callable[[], None] | None = None

    def __init__(self, source: Region, landing: Region, *, lost: bool = False, swapped: bool = False) -> None:
        self._source, self._landing = source, landing
        self._lost = lost
        self._swapped = swapped

    def address(self) -> dict[str, Any]:
        return {}

    def connect(self, address: dict[str, Any]) -> None:
        pass

    def forget(self) -> None:
        pass

    def prepare(self, op: str, batch: Batch, block_bytes: int, batch_max: int) -> Callable[[], None]:
        def run() -> None:
            pairs = list(zip(batch.source, batch.landing, strict=True))
            if self._lost and len(pairs) > 1:
                pairs.pop()
            if self._swapped and len(pairs) > 1:
                (a, to_a), (b, to_b), *rest = pairs
                pairs = [(a, to_b), (b, to_a), *rest]
            for source, landing in pairs:
                self._landing.bytes[landing : landing + block_bytes] = self._source.bytes[source : source + block_bytes]

        return run


def end(**broken: bool) -> End:
    source, landing = Region(4 * MIB), Region(4 * MIB)
    source.fill()
    made = End(source, landing, Copier(source, landing, **broken))
    made.obey({"do": "connect", "address": {"pid": os.getpid()}})
    made.obey({"do": "wipe"})
    return made


def measure_and_check(made: End, *, full: bool = True) -> tuple[dict[str, Any], bool]:
    answer = made.obey(
        {"do": "measure", "op": "read", "batch_max": 1 << 30, "budget_s": 0, "transfers_min": 5, **SHAPE}
    )
    check = made.obey({"do": "check", "batches": answer["batches"], "full": full, **SHAPE})
    return answer, check["verified"]


def test_figures_and_content() -> None:
    answer, verified = measure_and_check(end())
    assert verified
    assert (answer["transfers"], answer["batches"]) == (5, 5)
    assert answer["gbps"] > 0
    assert answer["p50_us"] <= answer["p99_us"] <= answer["p999_us"]


@pytest.mark.parametrize("broken", ["lost", "swapped"])
def test_a_broken_rival_is_seen(broken: str) -> None:
    assert not measure_and_check(end(**{broken: True}))[1]


def test_nothing_is_verified_before_it_arrived() -> None:
    assert not end().obey({"do": "check", "batches": 1, "full": True, **SHAPE})["verified"]


def test_blocks_are_moved_once_and_in_random_order() -> None:
    sets = batches(4 * MIB, 16, 4096, 100)
    assert len(sets) == 64
    for side in ("source", "landing"):
        offsets = np.concatenate([getattr(batch, side) for batch in sets])
        assert sorted(offsets) == list(range(0, 4 * MIB, 4096))
        assert list(offsets) != sorted(offsets)
    assert list(sets[0].source) != list(sets[0].landing)
    again = batches(4 * MIB, 16, 4096, 1)[0]
    assert list(again.source) == list(sets[0].source), "both ends draw the same"


def test_tiny_blocks_are_spread_over_the_region() -> None:
    offsets = [int(batch.source[0]) for batch in batches(64 * MIB, 1, 64, 64)]
    assert max(offsets) > 32 * MIB
    assert max(offsets) + 64 <= 64 * MIB


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        batches(MIB, 2, MIB, 1)


SCRIPT = """
import sys
sys.path[:0] = [{tests!r}, {ends!r}, {peers!r}]
from end import serve
from test_ends import Copier
serve(Copier, 1 << 20)
"""


def test_an_end_answers_every_line_and_leaves_with_its_input() -> None:
    paths = {"tests": str(PEERS / "tests"), "ends": str(PEERS / "ends"), "peers": str(PEERS)}
    commands = [{"do": "describe"}, {"do": "dance"}, {"do": "wipe"}]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(**paths)],
        input="".join(json.dumps(command) + "\n" for command in commands),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, len(answers)) == (0, 3), done.stderr
    assert "pid" in answers[0]
    assert answers[1] == {"error": "no such command: dance"}
    assert answers[2] == {}


def test_one_constant_says_what_blocks_hold() -> None:
    header = (Path(PEERS) / "programs" / "measure.h").read_text()
    ends = (Path(PEERS) / "ends" / "blocks.py").read_text()
    assert "#define CONTENT 0x9E3779B97F4A7C15UL" in header
    assert "CONTENT = 0x9E3779B97F4A7C15" in ends
