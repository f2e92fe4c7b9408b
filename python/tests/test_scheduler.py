"""The scheduler's half, hook by hook."""

import json

import pytest
from fake_client import FakeClient
from fake_request import NEW_PREFILL, Clock, Status, blocks, request

from kvferry.client import Connected, Disconnected, GroupBlocks, LeaseEnded, Refused, RefusedError, UnavailableError
from kvferry.vllm.groups import GroupShape
from kvferry.vllm.metadata import LoadOrder
from kvferry.vllm.params import EngineFacts
from kvferry.vllm.scheduler import GRANT_PAUSE_SECONDS, SchedulerSide
from kvferry.vllm.settings import Settings

ENGINE = EngineFacts("E0", 1, 1, 1)
ONE = (GroupShape(0, 16),)
HYBRID = (GroupShape(0, 16), GroupShape(1, 16, window=32))


class Rig:
    def __init__(self, groups=ONE):
        self.clock = Clock()
        self.client = FakeClient()
        self.side = SchedulerSide(Settings(), self.client, groups, ENGINE, self.clock)

    def prefill(self, request_id="p", tokens=100, ids=(range(1, 8),), **fields):
        done = request(request_id, tokens, dict(NEW_PREFILL), Status.FINISHED_LENGTH_CAPPED, computed=tokens)
        vars(done).update(fields)
        return self.side.request_finished(done, tuple(list(group) for group in ids))

    def offer(self, tokens=100, **changes):
        """Parameters as another engine's prefill made them and a router brought them."""
        other = Rig(self.side._groups)
        counts = [group.block_count(tokens) for group in other.side._groups]
        firsts = [group.first_needed(tokens) for group in other.side._groups]
        ids = [[0] * first + list(range(50, 50 + n - first)) for n, first in zip(counts, firsts, strict=True)]
        kept, params = other.prefill(tokens=tokens, ids=ids)
        assert kept
        return {**json.loads(json.dumps(params)), **changes}

    def decode(self, request_id="d", tokens=100, **changes):
        return request(request_id, tokens, self.offer(tokens, **changes))


# -- prefill ---------------------------------------------------------------------------------------------------------


def test_a_finished_prefill_is_leased_and_its_blocks_kept():
    rig = Rig()
    kept, params = rig.prefill()
    assert kept
    assert rig.client.granted == [("p", [[1, 2, 3, 4, 5, 6, 7]], 30_000)]
    assert params["kvferry"]["ticket"] == "ticket-1"
    assert params["do_remote_prefill"] is True
    assert params["do_remote_decode"] is False
    assert params["remote_block_ids"] == [[1, 2, 3, 4, 5, 6, 7]]
    assert (params["remote_host"], params["remote_port"]) == ("10.0.0.1", 7000)
    assert params["remote_num_tokens"] == 100
    json.dumps(params)


def test_blocks_behind_the_prompt_and_null_blocks():
    rig = Rig(HYBRID)
    kept, params = rig.prefill(
        tokens=64, ids=([1, 2, 3, 4, 5], [0, 0, 8, 9, 10]), num_computed_tokens=70, num_prompt_tokens=64
    )
    assert kept
    assert params["remote_num_tokens"] == 64
    assert params["remote_block_ids"] == [[1, 2, 3, 4], [0, 0, 8, 9]]


@pytest.mark.parametrize("status", [Status.FINISHED_ABORTED, Status.FINISHED_ERROR])
def test_an_unfinished_prefill_is_freed_at_once(status):
    rig = Rig()
    assert rig.prefill(status=status) == (False, None)
    assert rig.client.granted == []


@pytest.mark.parametrize("params", [None, {}, [], "x", {"do_remote_decode": None}, {"do_remote_decode": "yes"}])
def test_other_requests_are_none_of_our_business(params):
    rig = Rig()
    assert rig.prefill(kv_transfer_params=params) == (False, None)
    assert rig.client.granted == []


def test_a_prefill_whose_blocks_are_gone_is_not_leased():
    rig = Rig()
    assert rig.prefill(num_computed_tokens=0, ids=([],)) == (False, None)
    assert rig.prefill(ids=([1, 2, 3],)) == (False, None)
    assert rig.client.granted == []


def test_embeddings_have_no_digest_and_are_not_leased():
    rig = Rig()
    assert rig.prefill(prompt_token_ids=None) == (False, None)
    assert rig.prefill(prompt_embeds=object()) == (False, None)
    assert rig.client.granted == []


def test_a_lease_ends_once_and_only_for_its_own_number_and_epoch():
    rig = Rig()
    rig.prefill()
    rig.client.events += [LeaseEnded(9, "p", 7, ""), LeaseEnded(1, "p", 8, ""), LeaseEnded(1, "q", 7, "")]
    assert rig.side.build_connector_meta().released == []
    rig.client.end_lease(1, "p")
    rig.client.end_lease(1, "p")
    assert rig.side.build_connector_meta().released == ["p"]
    assert rig.side.build_connector_meta().released == []


def test_blocks_come_back_at_the_deadline_when_the_daemon_is_gone():
    rig = Rig()
    rig.prefill()
    rig.client.connected = False
    rig.client.events.append(Disconnected())
    rig.clock.now += 30.5
    assert rig.side.build_connector_meta().released == []
    rig.clock.now += 1
    assert rig.side.build_connector_meta().released == ["p"]
    rig.client.end_lease(1, "p")
    assert rig.side.build_connector_meta().released == []


def test_a_grant_that_times_out_costs_once():
    rig = Rig()
    rig.client.errors["grant"] = UnavailableError("no answer")
    assert rig.prefill("a") == (False, None)
    del rig.client.errors["grant"]
    assert rig.prefill("b") == (False, None)
    assert rig.client.granted == []
    rig.clock.now += GRANT_PAUSE_SECONDS
    assert rig.prefill("c")[0]


def test_grants_resume_when_the_daemon_is_back():
    rig = Rig()
    rig.client.errors["grant"] = UnavailableError("no answer")
    rig.prefill("a")
    del rig.client.errors["grant"]
    rig.client.events.append(Connected(8))
    rig.side.build_connector_meta()
    assert rig.prefill("b")[0]


def test_a_refusal_does_not_stop_the_next_grant():
    rig = Rig()
    rig.client.errors["grant"] = RefusedError("full")
    assert rig.prefill("a") == (False, None)
    del rig.client.errors["grant"]
    assert rig.prefill("b")[0]


def test_without_a_daemon_nothing_is_asked():
    rig = Rig()
    rig.client.connected = False
    rig.client.errors["grant"] = AssertionError("asked")
    assert rig.prefill() == (False, None)


@pytest.mark.parametrize("error", [ValueError("x"), OverflowError("x"), KeyError("x")])
def test_bugs_below_us_cost_a_recompute(error):
    rig = Rig()
    rig.client.errors["grant"] = error
    assert rig.prefill() == (False, None)
    rig.client.errors["poll"] = error
    rig.side.build_connector_meta()


# -- decode ----------------------------------------------------------------------------------------------------------


def test_a_load_is_matched_ordered_and_cleared():
    rig = Rig()
    decode = rig.decode()
    for _ in range(3):
        assert rig.side.get_num_new_matched_tokens(decode, 0) == (99, True)
    rig.side.update_state_after_alloc(decode, blocks([11, 12, 13, 14, 15, 16, 17]), 99)
    assert decode.kv_transfer_params["do_remote_prefill"] is False
    meta = rig.side.build_connector_meta()
    order = LoadOrder("d", "ticket-1", (GroupBlocks(tuple(range(7)), (11, 12, 13, 14, 15, 16, 17)),))
    assert meta.loads == [order]
    assert rig.side.build_connector_meta().loads == []
    # After the load (or its failure, or a preemption) vLLM asks again.
    assert rig.side.get_num_new_matched_tokens(decode, 0) == (0, False)
    rig.side.update_state_after_alloc(decode, blocks([11, 12, 13, 14, 15, 16, 17]), 0)
    assert rig.client.relinquished == []


def test_locally_cached_blocks_are_left_out():
    rig = Rig()
    decode = rig.decode()
    assert rig.side.get_num_new_matched_tokens(decode, 48) == (51, True)
    rig.side.update_state_after_alloc(decode, blocks([-11, -12, -13, 14, 15, 16, 17]), 51)
    (order,) = rig.side.build_connector_meta().loads
    assert order.groups == (GroupBlocks((3, 4, 5, 6), (14, 15, 16, 17)),)


def test_the_last_token_s_block_is_not_fetched_for_it_alone():
    rig = Rig()
    decode = rig.decode(tokens=97)
    assert rig.side.get_num_new_matched_tokens(decode, 0) == (96, True)
    rig.side.update_state_after_alloc(decode, blocks(range(11, 17)), 96)
    (order,) = rig.side.build_connector_meta().loads
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
    (order,) = rig.side.build_connector_meta().loads
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
    meta = rig.side.build_connector_meta()
    assert (meta.loads, meta.lost) == ([], ["d"]), why


def test_external_tokens_that_were_never_offered_are_reported_lost():
    rig = Rig()
    decode = rig.decode(kvferry=None)
    rig.side.update_state_after_alloc(decode, blocks(range(1, 8)), 99)
    assert rig.side.build_connector_meta().lost == ["d"]


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
    rig.side.build_connector_meta()
    rig.side.request_finished(decode, ([1],))
    assert rig.side.build_connector_meta().aborts == ["d"]
    assert rig.client.relinquished == []


def test_an_abort_before_the_order_left_reports_it_lost():
    rig = Rig()
    rig.side.request_finished(loading(rig), ([1],))
    meta = rig.side.build_connector_meta()
    assert (meta.loads, meta.lost, meta.aborts) == ([], ["d"], [])


def test_an_abort_after_the_load_says_nothing():
    rig = Rig()
    decode = loading(rig)
    rig.side.build_connector_meta()
    rig.side.loads_over({"d"})
    rig.side.request_finished(decode, ([1],))
    meta = rig.side.build_connector_meta()
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
    rig.side.build_connector_meta()


def test_prefill_and_decode_on_one_request():
    rig = Rig()
    both = request("b", 100, {**rig.offer(100), "do_remote_decode": True})
    assert rig.side.get_num_new_matched_tokens(both, 0) == (99, True)
    rig.side.update_state_after_alloc(both, blocks(range(1, 8)), 99)
    rig.side.build_connector_meta()
    rig.side.loads_over({"b"})
    both.status, both.num_computed_tokens = Status.FINISHED_LENGTH_CAPPED, 100
    kept, params = rig.side.request_finished(both, (list(range(1, 8)),))
    assert kept
    assert params["remote_request_id"] == "b"
