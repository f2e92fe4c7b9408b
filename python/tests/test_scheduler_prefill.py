"""The scheduler's half when prefills end, hook by hook."""

import json

import pytest
from fake_request import Status
from scheduler_rig import HYBRID, Rig

from kvferry.client import Connected, Disconnected, LeaseEnded, RefusedError, UnavailableError
from kvferry.vllm.scheduler import GRANT_PAUSE_SECONDS


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
    assert rig.side.build_connector_meta(None).released == []
    rig.client.end_lease(1, "p")
    rig.client.end_lease(1, "p")
    assert rig.side.build_connector_meta(None).released == ["p"]
    assert rig.side.build_connector_meta(None).released == []


def test_blocks_come_back_at_the_deadline_when_the_daemon_is_gone():
    rig = Rig()
    rig.prefill()
    rig.client.connected = False
    rig.client.events.append(Disconnected())
    rig.clock.now += 30.5
    assert rig.side.build_connector_meta(None).released == []
    rig.clock.now += 1
    assert rig.side.build_connector_meta(None).released == ["p"]
    rig.client.end_lease(1, "p")
    assert rig.side.build_connector_meta(None).released == []


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
    rig.side.build_connector_meta(None)
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
    rig.side.build_connector_meta(None)
