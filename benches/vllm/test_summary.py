"""Medians, ratios within a round and verdicts, over made-up requests whose figures can be worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

import summary
from samples import Idle, Request, Results, Run, Sample
from summary import Spread

RUN = Run("machine", "commit", "command", "now", 1.0, "versions", 3)
ANSWER = Request(
    prompt_tokens=1500,
    prefill_s=1.0,
    first_s=0.2,
    transfer_s=0.05,
    total_s=2.0,
    engines_cpu_s=2.0,
    daemons_cpu_s=0.1,
    others_cpu_s=0.0,
    fetched_tokens=1499,
    cached_tokens=0,
    token_ids=[1, 2, 3],
)


def results_of(*samples: Sample, idle: Sequence[Idle] = ()) -> Results:
    return Results(RUN, samples, idle)


def firsts(contender: str, *seconds: float, length: int = 1500) -> list[Sample]:
    return [Sample(number, contender, length, replace(ANSWER, first_s=each)) for number, each in enumerate(seconds)]


def verdict(results: Results, words: str) -> bool | None:
    (found,) = [claim for claim in summary.claims(results) if words in claim.sentence]
    return found.held


def test_a_spread_has_the_middle_and_the_ends() -> None:
    assert Spread.of([3.0, 1.0, 10.0]) == Spread(3.0, 1.0, 10.0, 3)
    assert Spread.of([]) is None
    assert Spread(0.1594, 0.1, 1.2345, 3).tell(1000) == "159 [100-1,234]"


def test_ratios_are_between_requests_of_one_round() -> None:
    # The medians over all rounds are equal, each round's figures are not.
    results = results_of(*firsts("kvferry", 0.1, 0.2, 0.4), *firsts("recompute", 0.4, 0.2, 0.1))
    assert summary.ratios(results, "kvferry", "recompute", 1500, summary.first_s) == Spread(1.0, 0.25, 4.0, 3)


def test_a_round_in_which_one_failed_has_no_ratio() -> None:
    failed = Sample(0, "recompute", 1500, replace(ANSWER, failure="timed out"))
    results = results_of(*firsts("kvferry", 0.1, 0.3), failed, *firsts("recompute", 9.0, 0.6)[1:])
    assert summary.ratios(results, "kvferry", "recompute", 1500, summary.first_s) == Spread(0.5, 0.5, 0.5, 1)
    assert summary.failures(results, "recompute", 1500) == ["timed out"]


@pytest.mark.parametrize(("ours", "held"), [(0.149, True), (0.151, False)])
def test_the_target_against_recompute(ours: float, held: bool) -> None:
    results = results_of(*firsts("kvferry", ours, 9.0, 0.0), *firsts("recompute", 1.0, 1.0, 1.0))
    assert verdict(results, "recompute") is held


@pytest.mark.parametrize(("ours", "held"), [(0.5, True), (0.51, False)])
def test_the_target_against_nixl(ours: float, held: bool) -> None:
    assert verdict(results_of(*firsts("kvferry", ours), *firsts("nixl", 1.0)), "nixl") is held


def test_other_lengths_do_not_count_for_the_targets() -> None:
    results = results_of(*firsts("kvferry", 9.0, length=100), *firsts("recompute", 1.0, length=100))
    assert verdict(results, "recompute") is None


@pytest.mark.parametrize(("daemons", "held"), [(0.01, True), (0.0101, False)])
def test_idle_daemons_are_counted_each(daemons: float, held: bool) -> None:
    idle = [Idle("nixl", 20.0, 1.9, 0.0, 0.0), Idle("kvferry", 20.0, 0.02, daemons, 0.0)]
    assert verdict(results_of(idle=idle), "idle daemon") is held


def test_one_answer_that_differs_is_seen() -> None:
    other = replace(ANSWER, token_ids=[1, 2, 4])
    same = results_of(*firsts("kvferry", 1.0, 1.0), *firsts("nixl", 1.0, 1.0))
    assert verdict(same, "same tokens") is True
    differs = results_of(*same.samples, Sample(1, "recompute", 1500, other))
    assert verdict(differs, "same tokens") is False


def test_answers_without_tokens_are_not_equal() -> None:
    empty = replace(ANSWER, token_ids=[])
    results = results_of(Sample(0, "kvferry", 100, empty), Sample(0, "nixl", 100, empty))
    assert verdict(results, "same tokens") is False


@pytest.mark.parametrize(
    ("change", "held"),
    [({}, True), ({"fetched_tokens": 0}, False), ({"fetched_tokens": 1472}, False), ({"failure": "500"}, False)],
)
def test_a_decode_leg_that_was_computed_is_seen(change: dict[str, object], held: bool) -> None:
    results = results_of(*firsts("kvferry", 1.0), Sample(1, "kvferry", 1500, replace(ANSWER, **change)))
    assert verdict(results, "fetched") is held


def test_a_prompt_from_the_cache_is_seen() -> None:
    assert verdict(results_of(*firsts("nixl", 1.0)), "in the cache") is True
    cached = Sample(0, "recompute", 1500, replace(ANSWER, cached_tokens=32))
    assert verdict(results_of(cached), "in the cache") is False


def test_what_was_not_measured_has_no_verdict() -> None:
    assert {claim.held for claim in summary.claims(results_of())} == {None}
