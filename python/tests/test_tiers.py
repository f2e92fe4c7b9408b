"""The tiers as the scheduler's half uses them: lookups, loads, clearing, events."""

import math
from types import SimpleNamespace

import pytest
from fake_request import Status, block, blocks
from scheduler_rig import HYBRID
from tier_rig import DAEMON_NAMES, Rig, admitted, named, output

from kvferry.client import DAEMON_GONE, NO_TIER, Connected, Disconnected, Found, TierBlocks, TierChanged
from kvferry.vllm import lookups
from kvferry.vllm.metadata import ClearedReport


def test_what_is_held_is_loaded_and_nothing_is_waited_for():
    rig, new = Rig(), named()
    assert rig.matched(new, 4) == (64, True)
    assert rig.client.lookups == {100: ("r", [DAEMON_NAMES[:6]])}
    assert rig.ask(new) == (64, True)
    rig.side.update_state_after_alloc(new, blocks([11, 12, 13, 14]), 64)
    assert rig.side.hits == (64, 0, 0)
    meta = rig.step()
    (order,) = meta.loads
    assert (order.ticket, order.tier.claim) == (None, 100)
    assert order.tier.groups == (TierBlocks(tuple(DAEMON_NAMES[:4]), (11, 12, 13, 14)),)
    assert set(meta.written) == {11, 12, 13, 14}
    assert rig.client.forgotten == []


def test_the_last_token_is_computed_here():
    rig, new = Rig(), named(96)
    assert rig.matched(new, 6) == (80, True)


def test_what_the_engine_has_is_not_loaded():
    rig, new = Rig(), named()
    assert rig.matched(new, 4, local=32) == (32, True)
    rig.side.update_state_after_alloc(new, blocks([-1, -2, 13, 14]), 32)
    assert rig.step().loads[0].tier.groups == (TierBlocks(tuple(DAEMON_NAMES[2:4]), (13, 14)),)


def test_a_claim_that_is_of_no_use_is_given_back():
    rig, new = Rig(), named()
    assert rig.matched(new, 2, local=32) == (0, False)
    rig.side.update_state_after_alloc(new, blocks([-1, -2]), 0)
    assert rig.client.forgotten == [100]


def test_nothing_held_ends_its_claim_at_once():
    rig, new = Rig(), named()
    assert rig.matched(new, 0) == (0, False)
    assert rig.client.forgotten == [100]


def test_an_answer_that_does_not_come_means_nothing_and_is_forgotten_when_it_does():
    rig, new = Rig(), named()
    assert rig.ask(new) == (None, False)
    rig.clock.now += 0.2
    assert rig.ask(new) == (0, False)
    rig.answer(4)
    rig.step()
    assert rig.ask(new) == (0, False)
    assert rig.client.forgotten == [100]


def test_an_old_claim_is_made_anew():
    rig, new = Rig(), named()
    rig.matched(new, 4)
    rig.clock.now += lookups.CLAIM_SECONDS
    assert rig.ask(new) == (None, False)
    assert rig.client.forgotten == [100]
    rig.answer(3)
    assert rig.ask(new) == (48, True)


def test_a_daemon_without_tiers_is_asked_once():
    rig, new = Rig(), named()
    rig.client.tiers = None
    assert rig.ask(new) == (0, False)
    assert rig.ask(named(request_id="s")) == (0, False)
    rig.clock.now += 10_000
    assert rig.ask(named(request_id="t")) == (0, False)
    assert len(rig.client.lookups) == 1
    rig.client.events.append(Connected(8))
    rig.step()
    rig.client.tiers = True
    assert rig.ask(named(request_id="u")) == (None, False)
    assert rig.side.tiers._lookups._paused_until < math.inf


@pytest.mark.parametrize("why", ["no daemon", "off", "short", "opted out", "refused", "raises"])
def test_where_nothing_can_be_held_nothing_is_asked(why):
    rig = Rig(hash_block_size=None if why == "off" else 16)
    new = named(16 if why == "short" else 100)
    rig.client.connected = why != "no daemon"
    rig.side.refusal = "its memory" if why == "refused" else None
    new.skip_reading_prefix_cache = why == "opted out"
    if why == "raises":
        rig.client.errors["lookup"] = OSError("broken")
    assert rig.ask(new) == (0, False)
    assert rig.client.lookups == {}


@pytest.mark.parametrize("failure", [DAEMON_GONE, "busy"])
def test_a_failed_lookup_means_nothing(failure):
    rig, new = Rig(), named()
    rig.ask(new)
    rig.client.found(100, failure=failure)
    assert rig.ask(new) == (0, False)
    assert failure != NO_TIER
    assert rig.client.forgotten == []


def test_strange_answers_mean_nothing():
    rig, new = Rig(), named()
    rig.ask(new)
    rig.client.events += [Found(999, "r", (9,), (0,), None), Found(100, "r", (1, 2), (0, 0), None)]
    assert rig.ask(new) == (0, False)
    assert rig.client.forgotten == [999]


def test_claims_go_with_the_daemon():
    rig, new = Rig(), named()
    rig.matched(new, 4)
    rig.client.events += [Disconnected(), Connected(9)]
    rig.step()
    assert rig.ask(new) == (0, False)


def test_a_long_queue_is_asked_about_bit_by_bit(monkeypatch):
    monkeypatch.setattr(lookups, "LOOKUPS_MAX", 2)
    rig = Rig()
    for number in range(4):
        assert rig.ask(named(request_id=f"r{number}")) == (None, False)
    assert len(rig.client.lookups) == 2
    rig.answer(1, key=100)
    rig.ask(named(request_id="r0"))
    rig.ask(named(request_id="r3"))
    assert rig.client.lookups[102][0] == "r3"


def test_a_failing_load_is_not_tried_for_ever():
    rig, new = Rig(), named()
    rig.matched(new, 4)
    rig.side.update_state_after_alloc(new, blocks([11, 12, 13, 14]), 64)
    rig.step()
    rig.side.loads_over({"r"}, {"r"})
    assert rig.ask(new) == (0, False)
    rig.side.update_state_after_alloc(new, blocks([11, 12]), 0)
    # It computes, is preempted, and may ask again.
    tables = {"r": ([21, 22],)}
    meta = rig.step(output({"r": 0}, {"r": 32}, tables, new=["r"]))
    # What failed to load is stored again.
    assert meta.stores[0].groups[0].hashes == tuple(DAEMON_NAMES[:2])
    assert rig.ask(new) == (None, False)


def test_an_end_before_allocation_gives_the_claim_back():
    rig, new = Rig(), named()
    rig.matched(new, 4)
    new.status = Status.FINISHED_ABORTED
    assert rig.side.request_finished(new, ([],)) == (False, None)
    assert rig.client.forgotten == [100]


def test_an_end_before_the_order_left_gives_the_claim_back():
    rig, new = Rig(), named()
    rig.matched(new, 4)
    rig.side.update_state_after_alloc(new, blocks([11, 12, 13, 14]), 64)
    new.status = Status.FINISHED_ABORTED
    rig.side.request_finished(new, ([11, 12, 13, 14],))
    assert rig.client.forgotten == [100]
    assert rig.step().lost == ["r"]


def test_every_group_has_to_hold_the_prefix():
    rig, new = Rig(HYBRID), named()
    assert rig.matched(new, 6, 4) == (64, True)
    # The window is two blocks: what is before it needs no loading.
    tables = SimpleNamespace(
        blocks=([block(11), block(12), block(13), block(14)], [block(0), block(0), block(23), block(24)])
    )
    rig.side.update_state_after_alloc(new, tables, 64)
    first, second = rig.step().loads[0].tier.groups
    assert first.blocks == (11, 12, 13, 14)
    assert second == TierBlocks(tuple(DAEMON_NAMES[2:4]), (23, 24))


def test_hits_are_counted_by_source():
    rig, new = Rig(), named()
    assert rig.matched(new, 5, on_disk=(3,)) == (80, True)
    rig.side.update_state_after_alloc(new, blocks([11, 12, 13, 14, 15]), 80)
    assert rig.side.hits == (32, 48, 0)


def decode(rig, *held):
    asked = rig.decode(tokens=100)
    asked.block_hashes = DAEMON_NAMES[:6]
    return asked, rig.matched(asked, *held)


def test_a_decode_fetches_what_no_tier_has():
    rig = Rig()
    asked, answer = decode(rig, 4)
    assert answer == (99, True)
    rig.side.update_state_after_alloc(asked, blocks([11, 12, 13, 14, 15, 16, 17]), 99)
    assert rig.side.hits == (64, 0, 35)
    (order,) = rig.step().loads
    assert order.tier.groups[0].blocks == (11, 12, 13, 14)
    assert (order.groups[0].positions, order.groups[0].targets) == ((4, 5, 6), (15, 16, 17))
    assert order.ticket is not None
    assert rig.client.relinquished == []


def test_a_decode_whose_prompt_the_tiers_hold_frees_p():
    rig = Rig()
    asked = rig.decode(tokens=97)
    asked.block_hashes = DAEMON_NAMES[:6]
    assert rig.matched(asked, 6) == (96, True)
    rig.side.update_state_after_alloc(asked, blocks([11, 12, 13, 14, 15, 16]), 96)
    (order,) = rig.step().loads
    assert order.ticket is None
    assert rig.client.relinquished == ["ticket-1"]


def test_a_cleared_cache_holds_and_keeps_nothing_until_the_workers_agree():
    rig, old = Rig(), named()
    admitted(rig, old)
    rig.matched(named(request_id="w"), 4)
    assert rig.side.reset_cache()
    assert rig.client.cleared == 1
    assert rig.client.forgotten == [101]
    assert rig.ask(named(request_id="x")) == (0, False)
    tables = {"r": ([11, 12, 13, 14, 15, 16],)}
    meta = rig.step(output({"r": 0}, {"r": 96}, tables, new=["r"]))
    assert meta.cleared
    assert meta.stores == []
    assert not rig.step().cleared
    rig.side.workers_said(None)
    assert rig.ask(named(request_id="y")) == (0, False)
    rig.side.workers_said(ClearedReport().aggregate(ClearedReport()))
    # The daemon is told again before anything is stored: steps under way may have stored something meanwhile.
    assert rig.client.cleared == 2
    assert rig.ask(named(request_id="z")) == (None, False)
    assert rig.client.cleared == 2
    # A request that ran when the cache was cleared keeps nothing.
    assert rig.step(output({"r": 96}, {"r": 1}, tables)).stores == []


@pytest.mark.parametrize("failure", ["cleared", "engine", DAEMON_GONE, NO_TIER])
def test_an_order_to_clear_is_not_repeated_whatever_is_answered(failure):
    """The client sees to it that every daemon hears of it; another order would take what was stored since."""
    rig = Rig()
    rig.side.reset_cache()
    rig.step()
    rig.side.workers_said(ClearedReport())
    for name in "ab":
        rig.ask(named(request_id=name))
        rig.client.found(max(rig.client.lookups), failure=failure)
        assert rig.ask(named(request_id=name)) == (0, False)
        rig.client.events += [Disconnected(), Connected(8)]
        rig.step()
    assert rig.matched(named(request_id="c"), 4) == (64, True)
    assert rig.client.cleared == 2


def test_an_order_that_the_client_did_not_take_is_given_again_before_anything_is_asked():
    rig = Rig()
    rig.client.errors["clear"] = RuntimeError("closed")
    rig.side.reset_cache()
    rig.step()
    rig.side.workers_said(ClearedReport())
    assert rig.ask(named(request_id="a")) == (0, False)
    assert not rig.client.lookups
    del rig.client.errors["clear"]
    rig.clock.now += lookups.PAUSE_SECONDS
    assert rig.ask(named(request_id="b")) == (None, False)
    assert (rig.client.cleared, len(rig.client.lookups)) == (1, 1)


def test_changes_are_told_once_by_group():
    rig = Rig(HYBRID)
    rig.client.events.append(TierChanged("disk", ((0, b"a" * 32), (1, b"b" * 32)), ((0, b"c" * 32),)))
    rig.step()
    assert rig.side.tiers.take_changes() == [
        ("disk", True, 0, [b"a" * 32]),
        ("disk", True, 1, [b"b" * 32]),
        ("disk", False, 0, [b"c" * 32]),
    ]
    assert rig.side.tiers.take_changes() == []


def test_a_hanging_daemon_is_waited_for_once():
    rig = Rig()
    rig.ask(named(request_id="a"))
    rig.clock.now += 0.2
    assert rig.ask(named(request_id="a")) == (0, False)
    assert rig.ask(named(request_id="b")) == (0, False)
    rig.clock.now += lookups.PAUSE_SECONDS
    assert rig.ask(named(request_id="c")) == (None, False)
