"""kv_transfer_params: what is sent, and that reading survives anything."""

import json
import random

import pytest

from kvferry.client import Granted
from kvferry.vllm import params as parameters
from kvferry.vllm.params import EngineFacts, HeldBlocks, MalformedError, Offer

GRANTED = Granted(1, 2, "the-ticket", "10.0.0.1", 7000, 30_000)
ENGINE = EngineFacts("P0", tp_size=1, dcp_size=1, pp_size=1)


def offered(groups=((1, 2, 3), (0, 0, 9))):
    return parameters.offer(ENGINE, GRANTED, "r", groups, 40, "digest")


def test_the_keys_are_nixl_s_and_ours():
    assert offered() == {
        "do_remote_prefill": True,
        "do_remote_decode": False,
        "remote_block_ids": [[1, 2, 3], [0, 0, 9]],
        "remote_engine_id": "P0",
        "remote_request_id": "r",
        "remote_host": "10.0.0.1",
        "remote_port": 7000,
        "tp_size": 1,
        "dcp_size": 1,
        "pp_size": 1,
        "remote_num_tokens": 40,
        "remote_blocks_expiry_time": None,
        "transfer_mode": "pull",
        "kvferry": {"version": 1, "ticket": "the-ticket", "digest": "digest"},
    }


def test_an_offer_survives_json_and_foreign_keys():
    sent = {**json.loads(json.dumps(offered())), "remote_prefill_cached_tokens": 0, "unknown": [1]}
    assert parameters.read_offer(sent, 2, ENGINE) == Offer(
        "the-ticket", "digest", 40, (HeldBlocks(0, 3), HeldBlocks(2, 3))
    )
    assert parameters.find_ticket(sent) == "the-ticket"


def without(key):
    return {name: value for name, value in offered().items() if name != key}


BROKEN = [
    None,
    [],
    "text",
    {},
    without("kvferry"),
    without("remote_num_tokens"),
    without("remote_block_ids"),
    {**offered(), "kvferry": None},
    {**offered(), "kvferry": "ticket"},
    {**offered(), "kvferry": {}},
    {**offered(), "kvferry": {"version": 2, "ticket": "t", "digest": "d"}},
    {**offered(), "kvferry": {"version": True, "ticket": "t", "digest": "d"}},
    {**offered(), "kvferry": {"version": 1.0, "ticket": "t", "digest": "d"}},
    {**offered(), "kvferry": {"version": 1, "ticket": "", "digest": "d"}},
    {**offered(), "kvferry": {"version": 1, "ticket": 5, "digest": "d"}},
    {**offered(), "kvferry": {"version": 1, "ticket": "t" * 5000, "digest": "d"}},
    {**offered(), "kvferry": {"version": 1, "ticket": "t"}},
    {**offered(), "remote_num_tokens": 0},
    {**offered(), "remote_num_tokens": -1},
    {**offered(), "remote_num_tokens": "40"},
    {**offered(), "remote_num_tokens": True},
    without("tp_size"),
    without("dcp_size"),
    without("pp_size"),
    {**offered(), "tp_size": None},
    {**offered(), "tp_size": "1"},
    {**offered(), "tp_size": 1.0},
    {**offered(), "pp_size": True},
    {**offered(), "remote_block_ids": [[1, 2, 3]]},
    {**offered(), "remote_block_ids": [[1], [2], [3]]},
    {**offered(), "remote_block_ids": [1, 2]},
    {**offered(), "remote_block_ids": "ab"},
    {**offered(), "remote_block_ids": [[1, "2"], [3]]},
    {**offered(), "remote_block_ids": [[1, -2], [3]]},
    {**offered(), "remote_block_ids": [[1, 2.0], [3]]},
    {**offered(), "remote_block_ids": [[1, True], [3]]},
    {**offered(), "remote_block_ids": [[1, 0, 2], [3]]},
    {**offered(), "remote_block_ids": {"0": [1], "1": [2]}},
]


@pytest.mark.parametrize("params", BROKEN)
def test_anything_else_is_malformed_and_nothing_worse(params):
    with pytest.raises(MalformedError):
        parameters.read_offer(params, 2, ENGINE)
    parameters.find_ticket(params)
    parameters.wants_prefill(params)
    parameters.wants_decode(params)


SIZES = {
    "tp_size": "--tensor-parallel-size",
    "dcp_size": "--decode-context-parallel-size",
    "pp_size": "--pipeline-parallel-size",
}


@pytest.mark.parametrize(("size", "flag"), SIZES.items())
def test_an_offer_of_an_engine_of_another_shape_says_both_sizes_and_what_to_do(size, flag):
    here = EngineFacts("D0", **{**dict.fromkeys(SIZES, 1), size: 4})
    with pytest.raises(MalformedError) as refused:
        parameters.read_offer(offered(), 2, here)
    text = str(refused.value)
    assert f"{size} is 1 on the prefill engine and 4 on this one" in text
    assert f"the same {flag}" in text
    # The lease that it is about can still be given back.
    assert parameters.find_ticket(offered()) == "the-ticket"


def test_an_offer_of_an_engine_of_the_same_shape_is_read():
    spread = EngineFacts("P0", tp_size=2, dcp_size=3, pp_size=4)
    sent = parameters.offer(spread, GRANTED, "r", ((1,),), 10, "digest")
    assert parameters.read_offer(sent, 1, EngineFacts("D0", 2, 3, 4)).ticket == "the-ticket"


JUNK = [None, True, False, 0, -1, 2**70, 1.5, float("nan"), "", "x", b"x", [], [0], [[]], {}, {"a": 1}, object(), {1}]


def mangle(value, rng):
    """Replaces, drops or nests parts of a value at random."""
    if rng.random() < 0.15:
        return rng.choice(JUNK)
    if isinstance(value, dict):
        return {key: mangle(part, rng) for key, part in value.items() if rng.random() < 0.9}
    if isinstance(value, list):
        return [mangle(part, rng) for part in value if rng.random() < 0.95]
    return value


@pytest.mark.parametrize("seed", range(300))
def test_mangled_parameters_are_read_or_malformed(seed):
    params = mangle(offered(), random.Random(seed))
    ticket = parameters.find_ticket(params)
    try:
        offer = parameters.read_offer(params, 2, ENGINE)
    except MalformedError:
        return
    assert offer.ticket == ticket
    assert offer.token_count > 0
    assert all(0 <= held.first <= held.count for held in offer.groups)
