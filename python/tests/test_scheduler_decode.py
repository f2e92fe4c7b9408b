"""The scheduler's half when decodes begin, hook by hook."""

import pytest
from fake_request import Status, blocks, request
from scheduler_rig import HYBRID, Rig

from kvferry.client import GroupBlocks, Refused
from kvferry.vllm.metadata import LoadOrder


def test_a_load_is_matched_ordered_and_cleared():
    rig = Rig()
    decode = rig.decode()
    for _ in range(3):
        assert rig.side.get_num_new_matched_tokens(decode, 0) == (99, True)
    rig.side.update_state_after_alloc(decode, blocks([11, 12, 13, 14, 15, 16, 17]), 99)
    assert decode.kv_transfer_params["do_remote_prefill"] is False
    meta = rig.side.build_connector_meta(None)
    # Bound to this prompt: the holder compares it with what the ticket's blocks were computed from.
    binding = bytes.fromhex(decode.kv_transfer_params["kvferry"]["digest"])
    order = LoadOrder("d", "ticket-1", (GroupBlocks(tuple(range(7)), (11, 12, 13, 14, 15, 16, 17)),), binding)
    assert meta.loads == [order] and len(binding) == 32
    assert rig.side.build_connector_meta(None).loads == []
    # After the load (or its failure, or a preemption) vLLM asks again.
    assert rig.side.get_num_new_matched_tokens(decode, 0) == (0, False)
    rig.side.update_state_after_alloc(decode, blocks([11, 12, 13, 14, 15, 16, 17]), 0)
    assert rig.client.relinquished == []


def test_locally_cached_blocks_are_left_out():
    rig = Rig()
    decode = rig.decode()
    assert rig.side.get_num_new_matched_tokens(decode, 48) == (51, True)
    rig.side.update_state_after_alloc(decode, blocks([-11, -12, -13, 14, 15, 16, 17]), 51)
    (order,) = rig.side.build_connector_meta(None).loads
    assert order.groups == (GroupBlocks((3, 4, 5, 6), (14, 15, 16, 17)),)


def test_the_last_token_s_block_is_not_fetched_for_it_alone():
    rig = Rig()
    decode = rig.decode(tokens=97)
    assert rig.side.get_num_new_matched_tokens(decode, 0) == (96, True)
    rig.side.update_state_after_alloc(decode, blocks(range(11, 17)), 96)
    (order,) = rig.side.build_connector_meta(None).loads
    assert order.groups[0].positions == tuple(range(6))


def test_a_full_local_hit_hands_the_ticket_back():
    rig = Rig()
    decode = rig.decode(tokens=97)
    assert rig.side.get_num_new_matched_tokens(decode, 96) == (0, False)
    rig.side.update_state_after_alloc(decode, blocks([-1, -2, -3, -4, -5, -6, 7]), 0)
    assert rig.client.relinquished == ["ticket-1"]
    assert rig.side.request_finished(decode, ([],)) == (False, None)
    assert rig.client.relinquished == ["ticket-1"]


def test_a_prompt_of_one_token_is_not_worth_a_load():
    rig = Rig()
    assert rig.side.get_num_new_matched_tokens(rig.decode(tokens=1), 0) == (0, False)


def test_a_shorter_prefill_helps_as_far_as_it_goes():
    rig = Rig()
    decode = request("d", 200, rig.offer(100))
    assert rig.side.get_num_new_matched_tokens(decode, 0) == (100, True)


def test_a_longer_prefill_is_another_prompt():
    rig = Rig()
    decode = request("d", 50, rig.offer(100))
    assert rig.side.get_num_new_matched_tokens(decode, 0) == (0, False)


def test_a_ticket_for_another_prompt_is_not_used():
    rig = Rig()
    decode = request("d", range(1, 101), rig.offer(100))
    assert rig.side.get_num_new_matched_tokens(decode, 0) == (0, False)
    rig.side.update_state_after_alloc(decode, blocks(range(1, 8)), 0)
    assert rig.client.relinquished == ["ticket-1"]


def test_sliding_windows_fetch_their_window_alone():
    rig = Rig(HYBRID)
    decode = rig.decode(tokens=100)
    assert rig.side.get_num_new_matched_tokens(decode, 0) == (99, True)
    rig.side.update_state_after_alloc(decode, blocks(range(11, 18), [0, 0, 0, 0, 25, 26, 27]), 99)
    (order,) = rig.side.build_connector_meta(None).loads
    assert order.groups == (
        GroupBlocks(tuple(range(7)), tuple(range(11, 18))),
        GroupBlocks((4, 5, 6), (25, 26, 27)),
    )


def test_a_window_that_slid_past_what_is_needed_is_not_used():
    rig = Rig(HYBRID)
    # (95 - 32 + 1) is a multiple of 16: P has let block 3 go, which the last token still looks at.
    assert rig.side.get_num_new_matched_tokens(rig.decode(tokens=95), 0) == (0, False)
    assert rig.side.get_num_new_matched_tokens(rig.decode("e", tokens=96), 0) == (95, True)
    # With the block in the local cache, it does not matter.
    assert rig.side.get_num_new_matched_tokens(rig.decode("f", tokens=95), 64) == (30, True)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ([11, 12, 13, -14, 15, 16, 17], "a block that other requests share"),
        ([11, 12, 13], "too few blocks"),
        ([], "no blocks"),
    ],
)
def test_a_load_that_cannot_be_ordered_is_reported_lost(given, why):
    rig = Rig()
    decode = rig.decode()
    rig.side.get_num_new_matched_tokens(decode, 0)
    rig.side.update_state_after_alloc(decode, blocks(given), 99)
    meta = rig.side.build_connector_meta(None)
    assert (meta.loads, meta.lost) == ([], ["d"]), why


def test_external_tokens_that_were_never_offered_are_reported_lost():
    rig = Rig()
    decode = rig.decode(kvferry=None)
    rig.side.update_state_after_alloc(decode, blocks(range(1, 8)), 99)
    assert rig.side.build_connector_meta(None).lost == ["d"]


@pytest.mark.parametrize("missing", ["kvferry", "remote_num_tokens", "remote_block_ids"])
def test_malformed_parameters_are_computed_here_and_the_ticket_handed_back(missing):
    rig = Rig()
    decode = rig.decode(**{missing: None})
    assert rig.side.get_num_new_matched_tokens(decode, 0) == (0, False)
    rig.side.update_state_after_alloc(decode, blocks(range(1, 8)), 0)
    assert rig.client.relinquished == ([] if missing == "kvferry" else ["ticket-1"])
    assert rig.side.get_num_new_matched_tokens(decode, 0) == (0, False)


def test_a_rejected_request_hands_the_ticket_back_once():
    rig = Rig()
    # notify_kv_transfer_request_rejected: a stand-in with one token, aborted before it is scheduled.
    rejected = request("d", [0], rig.offer(100), Status.FINISHED_ABORTED)
    assert rig.side.request_finished(rejected, ([],)) == (False, None)
    assert rig.side.request_finished(rejected, ([],)) == (False, None)
    assert rig.client.relinquished == ["ticket-1"]


def test_an_abort_in_the_queue_hands_the_ticket_back():
    rig = Rig()
    decode = rig.decode()
    rig.side.get_num_new_matched_tokens(decode, 0)
    decode.status = Status.FINISHED_ABORTED
    rig.side.request_finished(decode, ([],))
    assert rig.client.relinquished == ["ticket-1"]
    assert rig.side._candidates == {}


def loading(rig, request_id="d", **changes):
    decode = rig.decode(request_id, **changes)
    rig.side.get_num_new_matched_tokens(decode, 0)
    rig.side.update_state_after_alloc(decode, blocks(range(1, 8)), 99)
    return decode


def test_an_abort_during_the_load_stops_it():
    rig = Rig()
    decode = loading(rig)
    rig.side.build_connector_meta(None)
    rig.side.request_finished(decode, ([1],))
    assert rig.side.build_connector_meta(None).aborts == ["d"]
    assert rig.client.relinquished == []


def test_an_abort_before_the_order_left_reports_it_lost():
    rig = Rig()
    rig.side.request_finished(loading(rig), ([1],))
    meta = rig.side.build_connector_meta(None)
    assert (meta.loads, meta.lost, meta.aborts) == ([], ["d"], [])


def test_an_abort_after_the_load_says_nothing():
    rig = Rig()
    decode = loading(rig)
    rig.side.build_connector_meta(None)
    rig.side.loads_over({"d"})
    rig.side.request_finished(decode, ([1],))
    meta = rig.side.build_connector_meta(None)
    assert (meta.aborts, meta.lost) == ([], [])
    rig.side.loads_over(None)


def test_a_ticket_that_another_request_loads_on_is_not_handed_back():
    rig = Rig()
    loading(rig, "one")
    second = rig.decode("two")
    second.status = Status.FINISHED_ABORTED
    rig.side.request_finished(second, ([],))
    assert rig.client.relinquished == []
    rig.side.loads_over({"one"})
    third = rig.decode("three")
    rig.side.request_finished(third, ([],))
    assert rig.client.relinquished == ["ticket-1"]


def test_without_a_daemon_everything_is_computed_here():
    rig = Rig()
    rig.client.connected = False
    decode = rig.decode()
    assert rig.side.get_num_new_matched_tokens(decode, 0) == (0, False)
    rig.side.update_state_after_alloc(decode, blocks(range(1, 8)), 0)
    assert decode.kv_transfer_params["do_remote_prefill"] is False


def test_with_a_refusal_nothing_is_granted_or_matched_but_tickets_go_back():
    rig = Rig()
    rig.side.refusal = "no memory to share"
    assert rig.prefill() == (False, None)
    decode = rig.decode()
    assert rig.side.get_num_new_matched_tokens(decode, 0) == (0, False)
    rig.side.update_state_after_alloc(decode, blocks(range(1, 8)), 0)
    assert rig.client.relinquished == ["ticket-1"]


def test_a_client_that_fails_does_not_fail_the_engine():
    rig = Rig()
    rig.client.errors["relinquish"] = OSError("broken")
    rig.side.request_finished(rig.decode(), ([],))
    rig.client.events.append(Refused("another version"))
    rig.side.build_connector_meta(None)


def test_prefill_and_decode_on_one_request():
    rig = Rig()
    both = request("b", 100, {**rig.offer(100), "do_remote_decode": True})
    assert rig.side.get_num_new_matched_tokens(both, 0) == (99, True)
    rig.side.update_state_after_alloc(both, blocks(range(1, 8)), 99)
    rig.side.build_connector_meta(None)
    rig.side.loads_over({"b"})
    both.status, both.num_computed_tokens = Status.FINISHED_LENGTH_CAPPED, 100
    kept, params = rig.side.request_finished(both, (list(range(1, 8)),))
    assert kept
    assert params["remote_request_id"] == "b"
