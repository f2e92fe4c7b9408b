"""Rows, the arithmetic of ratios, and verdicts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cells import LARGE, LATENCY, SETTINGS, SMALL, Cell
from figures import Source, Spread, by_round, compare, ways
from limits import LIMITS
from ours import KVFERRIES
from rivals import RIVALS
from rows import Row
from targets import CLAIMS, IPERF, OURS, RAW, SPINNING, Target, judge, verdict

CELL = LARGE[0]


def rates(peer: str, *values: float, cell: Cell | None = CELL, **more: object) -> list[Row]:
    return [
        replace(Row(number, "lo", peer, cell, gbps=value, verified=True), **more) for number, value in enumerate(values)
    ]


def test_a_row_survives_its_line() -> None:
    row = Row(3, "lo", "raw-sockets", Cell("any", 1024, 65536), gbps=4.5, verified=True, way={"call": 524288})
    assert Row.from_json(row.to_json()) == row
    failed = Row(0, "veth", "mooncake", error="refused")
    assert Row.from_json(failed.to_json()) == failed


@pytest.mark.parametrize("line", ['{"round": 1}', '{"meta": {}}', '{"round"', "[]", '{"round": 1, "cell": {"op": 1}}'])
def test_other_lines_are_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        Row.from_json(line)


def test_ratios_are_taken_within_a_round() -> None:
    # The machine is twice as fast in the second round; ours always does half.
    ours = by_round(rates("kvferry", 1.0, 2.0, 4.0), "lo", OURS, CELL, "gbps")
    theirs = by_round(rates("iperf3", 2.0, 4.0, 8.0, cell=None), "lo", IPERF, CELL, "gbps")
    found = compare(ours, {"iperf3": theirs})
    assert found is not None
    assert found.ratio == Spread(0.5, 0.5, 0.5, 3)
    assert found.ours == Spread(2.0, 1.0, 4.0, 3)


def test_the_best_other_is_chosen_in_each_round() -> None:
    found = compare({0: 1.0, 1: 1.0, 2: 1.0}, {"a": {0: 2.0, 1: 4.0, 2: 1.0}, "b": {0: 4.0, 1: 2.0, 2: 5.0}})
    assert found is not None
    assert (found.ratio.low, found.ratio.median, found.ratio.high, found.best) == (0.2, 0.25, 0.25, "b")
    slower = compare({0: 3.0}, {"a": {0: 2.0}, "b": {0: 1.0}}, higher_is_better=False)
    assert slower is not None
    assert (slower.ratio.median, slower.best) == (3.0, "b")


def test_rounds_that_only_one_side_has_do_not_count() -> None:
    found = compare({0: 1.0, 1: 9.0}, {"a": {0: 2.0}})
    assert found is not None
    assert found.ratio == Spread(0.5, 0.5, 0.5, 1)
    assert compare({0: 1.0}, {"a": {1: 1.0}}) is None
    assert compare({}, {}) is None


def test_the_best_way_counts_and_what_did_not_arrive_does_not() -> None:
    rows = [
        *rates("raw-sockets", 2.0, cell=Cell("any", 1024, 65536), way={"call": 1}),
        *rates("raw-sockets", 3.0, cell=Cell("any", 1024, 65536), way={"call": 2}),
        *rates("raw-sockets", 9.0, cell=Cell("any", 1024, 65536), way={"call": 3}, verified=False),
        *rates("raw-sockets", 8.0, cell=Cell("any", 1024, 65536), way={"call": 4}, error="broke"),
        *rates("raw-sockets", 7.0, cell=Cell("any", 1024, 1 << 20), way={"call": 5}),
    ]
    assert by_round(rows, "lo", RAW, CELL, "gbps") == {0: 3.0}
    assert by_round(rows, "lo", Source("raw-sockets", (("call", 1),)), CELL, "gbps") == {0: 2.0}
    assert by_round(rows, "veth", RAW, CELL, "gbps") == {}
    assert len(ways(rows, "lo", "raw-sockets")) == 5


def test_directions_are_kept_apart() -> None:
    rows = rates("nixl-tcp", 2.0, cell=LARGE[1])
    assert by_round(rows, "lo", Source("nixl-tcp"), LARGE[0], "gbps") == {}
    assert by_round(rows, "lo", Source("nixl-tcp"), LARGE[1], "gbps") == {0: 2.0}


def test_targets_are_judged_by_the_median_ratio() -> None:
    target = Target("x", "lo", CELL, OURS, (IPERF,), 0.9)
    theirs = rates("iperf3", 1.0, 1.0, 1.0, cell=None)
    assert judge(target, [*rates("kvferry", 0.1, 0.9, 0.95), *theirs]).verdict == "met"
    assert judge(target, [*rates("kvferry", 0.1, 0.89, 0.95), *theirs]).verdict == "missed"
    assert judge(target, theirs).verdict == "not measured"


def test_a_latency_must_stay_below() -> None:
    target = Target("x", "lo", LATENCY[0], OURS, (SPINNING,), 2.0, unit="p50_us")
    ping = [
        Row(0, "lo", "ping-pong", p50_us=5.0, way={"way": "tcp", "wait": "spin"}),
        Row(0, "lo", "ping-pong", p50_us=1.0, way={"way": "uds", "wait": "spin"}),
    ]
    assert judge(target, [*ping, Row(0, "lo", "kvferry", LATENCY[0], p50_us=9.0)]).verdict == "met"
    assert judge(target, [*ping, Row(0, "lo", "kvferry", LATENCY[0], p50_us=11.0)]).verdict == "missed"


def test_ours_may_be_held_against_another_cell_of_ours() -> None:
    target = Target("x", "lo", SMALL[0], OURS, (OURS,), 0.85, other_cell=CELL)
    rows = [*rates("kvferry", 2.0), *rates("kvferry", 1.6, cell=SMALL[0])]
    judged = judge(target, rows)
    assert judged.verdict == "missed"
    assert judged.comparison is not None
    assert judged.comparison.ratio.median == pytest.approx(0.8)


def test_a_claim_stands_only_with_all_its_targets() -> None:
    target = Target("x", "lo", CELL, OURS, (IPERF,), 0.9)
    met = judge(target, [*rates("kvferry", 1.0), *rates("iperf3", 1.0, cell=None)])
    missed = judge(target, [*rates("kvferry", 0.5), *rates("iperf3", 1.0, cell=None)])
    unknown = judge(target, [])
    assert verdict([met, met]) == "met"
    assert verdict([met, unknown]) == "not measured"
    assert verdict([met, unknown, missed]) == "missed"


def test_every_target_can_be_measured() -> None:
    settings = {setting.name: setting for setting in SETTINGS}
    peers = {peer.name: peer for peer in (*KVFERRIES, *RIVALS, *LIMITS)}
    for claim in CLAIMS:
        assert claim.targets
        for target in claim.targets:
            setting = settings[target.setting]  # type: ignore[index]
            for cell in (target.cell, target.other_cell or target.cell):
                assert cell in setting.cells, target
            for source in (target.ours, *target.others):
                assert peers[source.peer].plays(setting), (target, source)
