"""Whatever dies: the answer comes, no block stays held, and those who live go on."""

from __future__ import annotations

import time

import pytest
from harness.engine import PREFILL
from pair import LEASE_MS, LONG_TOKENS, Pair, Redeeming, random_prompt


def start_long(pair: Pair, seed: int) -> tuple[list[int], list[int], Redeeming]:
    """A long prompt, what one engine says to it, and its hand-over in flight."""
    prompt = random_prompt(seed, LONG_TOKENS)
    expected = pair.compute(pair.decode, prompt)
    pair.slow_down()
    redeeming = Redeeming(pair, prompt, pair.offer(prompt))
    redeeming.wait_in_flight()
    return prompt, expected, redeeming


def assert_hand_over_works(pair: Pair, seed: int) -> None:
    prompt = random_prompt(seed, 200)
    answer = pair.redeem(prompt, pair.offer(prompt))
    assert pair.last_transfer().outcome == "delivered"
    assert answer.token_ids == pair.compute(pair.decode, prompt)


def test_daemon_of_the_prefill_engine_is_killed(pair: Pair) -> None:
    _, expected, redeeming = start_long(pair, 20)
    pair.p.kill()
    assert redeeming.token_ids() == expected
    assert pair.last_transfer().outcome != "delivered"
    # Without its daemon P0 serves on, and holds blocks for nobody.
    assert pair.compute(pair.prefill, random_prompt(21, 100)) == pair.compute(pair.decode, random_prompt(21, 100))
    pair.wait_idle(pair.prefill, 2 * LEASE_MS / 1000)
    pair.restore()
    assert_hand_over_works(pair, 22)


def test_daemon_of_the_decode_engine_is_killed(pair: Pair) -> None:
    _, expected, redeeming = start_long(pair, 30)
    pair.d.kill()
    assert redeeming.token_ids() == expected
    # P's blocks come back when the lease ends, and not before.
    pair.p.wait_quiet(2 * LEASE_MS / 1000)
    pair.wait_idle(pair.prefill, 5)
    pair.restore()
    assert_hand_over_works(pair, 31)


def test_both_daemons_are_away(pair: Pair) -> None:
    prompt = random_prompt(40, 300)
    expected = pair.compute(pair.decode, prompt)
    pair.p.kill()
    pair.d.kill()
    # A router that knows nothing of it goes on with its two legs.
    answer = pair.prefill.server.complete(prompt, 1, kv_transfer_params=PREFILL)
    assert answer.status == 200
    assert pair.redeem(prompt, answer.kv_transfer_params or {}).token_ids == expected
    pair.wait_idle(pair.prefill, 5)
    pair.restore()
    assert_hand_over_works(pair, 41)


def test_a_ticket_from_before_the_daemon_started_again(pair: Pair) -> None:
    prompt = random_prompt(50, 300)
    expected = pair.compute(pair.decode, prompt)
    params = pair.offer(prompt)
    pair.p.kill()
    pair.restore()
    delivered = pair.d.status().delivered_total
    assert pair.redeem(prompt, params).token_ids == expected
    assert pair.d.status().delivered_total == delivered


def test_a_client_that_leaves_in_the_middle(pair: Pair) -> None:
    prompt = random_prompt(60, LONG_TOKENS)
    pair.slow_down()
    params = pair.offer(prompt)
    connection = pair.decode.server.open(prompt, 16, kv_transfer_params=params)
    pair.p.wait_for(lambda status: status.serving_count > 0, "serving", 20)
    time.sleep(0.5)
    connection.close()
    pair.wait_rest(2 * LEASE_MS / 1000)
    pair.restore()
    assert_hand_over_works(pair, 61)


def test_nobody_comes_for_the_blocks(pair: Pair) -> None:
    pair.offer(random_prompt(70, 300))
    assert pair.p.status().lease_count == 1
    assert not pair.prefill.is_idle()
    pair.p.wait_quiet(2 * LEASE_MS / 1000)
    pair.wait_idle(pair.prefill, 2)


@pytest.mark.engine_dies
def test_prefill_engine_is_killed(pair: Pair) -> None:
    _, expected, redeeming = start_long(pair, 80)
    pair.prefill.kill()
    killed = time.monotonic()
    pair.p.wait_for(lambda status: status.lease_count == 0, "without leases", 1.0)
    pair.p.wait_for(lambda status: status.region_count == 0, "without regions", 1.0)
    assert time.monotonic() - killed < 1.0
    assert redeeming.token_ids() == expected
    assert pair.last_transfer().outcome != "delivered"
    pair.restore()
    assert_hand_over_works(pair, 81)


@pytest.mark.engine_dies
def test_decode_engine_is_killed(pair: Pair) -> None:
    prompt, _, _ = start_long(pair, 90)
    pair.decode.kill()
    pair.d.wait_for(lambda status: status.region_count == 0, "without regions", 1.0)
    # P0's blocks come back: at once if the daemons tell each other, when the lease ends if they cannot.
    pair.p.wait_quiet(2 * LEASE_MS / 1000)
    pair.wait_idle(pair.prefill, 5)
    pair.restore()
    assert_hand_over_works(pair, 91)
    assert pair.compute(pair.decode, prompt) == pair.compute(pair.prefill, prompt)
