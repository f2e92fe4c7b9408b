"""What the scheduler's half orders stored, and which blocks it says are written to."""

from types import SimpleNamespace

import pytest
from fake_request import Status, blocks
from scheduler_rig import HYBRID
from tier_rig import DAEMON_NAMES, Rig, admitted, named, output

from kvferry.vllm.hashes import tenant_named


def test_whole_blocks_are_stored_as_they_complete():
    rig, new = Rig(), named(50)
    admitted(rig, new, 0)
    tables = {"r": ([11, 12, 13, 14],)}
    (order,) = rig.step(output({"r": 0}, {"r": 40}, tables, new=["r"])).stores
    assert (order.groups[0].parent, order.groups[0].hashes) == (b"", tuple(DAEMON_NAMES[:2]))
    assert order.groups[0].blocks == (11, 12)
    (order,) = rig.step(output({"r": 40}, {"r": 10}, tables)).stores
    assert (order.groups[0].parent, order.groups[0].blocks) == (DAEMON_NAMES[1], (13,))
    # Decoding: a block is stored when its last token is known and computed.
    assert rig.step(output({"r": 50}, {"r": 14}, tables)).stores == []
    new.block_hashes = DAEMON_NAMES[:4]
    (order,) = rig.step(output({"r": 64}, {"r": 1}, tables)).stores
    assert order.groups[0].blocks == (14,)


@pytest.mark.parametrize(
    ("namespace", "salt", "name"), [("", None, ""), ("team", None, "team"), ("", "x", "x"), ("team", "x", "x")]
)
def test_blocks_count_against_the_salt_or_the_namespace(namespace, salt, name):
    rig, new = Rig(namespace=namespace), named(32, cache_salt=salt)
    admitted(rig, new, 0)
    (order,) = rig.step(output({"r": 0}, {"r": 32}, {"r": ([11, 12],)}, new=["r"])).stores
    assert order.tenant == tenant_named(name)


def test_what_is_held_is_not_stored_again():
    rig, new = Rig(), named(100)
    admitted(rig, new, 3)
    tables = {"r": ([11, 12, 13, 14, 15, 16, 17],)}
    (order,) = rig.step(output({"r": 0}, {"r": 100}, tables, new=["r"])).stores
    assert order.groups[0].blocks == (14, 15, 16)


def test_what_no_lookup_would_reach_is_not_stored():
    rig, new = Rig(HYBRID), named(64)
    admitted(rig, new)
    tables = {"r": ([11, 12, 13, 14], [0, 22, 23, 24])}
    (order,) = rig.step(output({"r": 0}, {"r": 64}, tables, new=["r"])).stores
    assert order.groups[0].blocks == (11, 12, 13, 14)
    assert order.groups[1].blocks == ()


def test_null_blocks_that_are_held_do_not_matter():
    rig, new = Rig(HYBRID), named(64)
    rig.matched(new, 1, 1)
    rig.side.update_state_after_alloc(new, blocks([]), 0)
    tables = {"r": ([11, 12, 13, 14], [0, 22, 23, 24])}
    (order,) = rig.step(output({"r": 16}, {"r": 48}, tables, new=["r"])).stores
    assert order.groups[1].blocks == (22, 23, 24)
    assert order.groups[1].parent == DAEMON_NAMES[0]


def test_a_block_of_several_requests_is_ordered_once():
    rig = Rig()
    first, second = named(64, "a"), named(80, "b")
    admitted(rig, first)
    admitted(rig, second)
    tables = {"a": ([11, 12, 13, 14],), "b": ([11, 12, 13, 14, 15],)}
    scheduled = {"a": 64, "b": 80}
    a, b = rig.step(output({"a": 0, "b": 0}, scheduled, tables, new=["a", "b"])).stores
    assert a.groups[0].blocks == (11, 12, 13, 14)
    assert (b.groups[0].parent, b.groups[0].blocks) == (DAEMON_NAMES[3], (15,))
    # Not for ever: the first may have been lost.
    rig.clock.now += 2.0
    admitted(rig, named(64, "c"))
    tables = {"c": ([11, 12, 13, 14],)}
    (c,) = rig.step(output({"c": 0}, {"c": 64}, tables, new=["c"])).stores
    assert c.groups[0].blocks == (11, 12, 13, 14)


def test_blocks_that_change_hands_are_named():
    rig = Rig()
    tables = {"new": ([1, 2, 3],), "old": ([7],), "again": ([4, 5, 6],)}
    scheduled = {"new": 20, "old": 1, "again": 20}
    out = output({"new": 16, "old": 99, "again": 32}, scheduled, tables, new=["new"], resumed=["again"])
    out.scheduled_cached_reqs.new_block_ids[0] = ([8, 9],)
    out.kv_cache_block_copies = [SimpleNamespace(src_block_id=40, dst_block_id=41)]
    assert set(rig.step(out).written) == {2, 3, 6, 8, 9, 41}
    assert rig.step().written == ()


def test_a_step_that_is_not_understood_loses_what_is_under_way():
    rig = Rig()
    meta = rig.step(SimpleNamespace(num_scheduled_tokens={}))
    assert meta.loses_all


def test_a_finished_request_waits_for_its_copies():
    rig, new = Rig(), named(40)
    admitted(rig, new)
    tables = {"r": ([11, 12, 13],)}
    rig.step(output({"r": 0}, {"r": 40}, tables, new=["r"]))
    new.status, new.num_computed_tokens = Status.FINISHED_STOPPED, 48
    new.block_hashes = DAEMON_NAMES[:3]
    assert rig.side.request_finished(new, ([11, 12, 13],)) == (True, None)
    meta = rig.step()
    assert meta.released == ["r"]
    # What the last output made whole.
    assert meta.stores[0].groups[0].blocks == (13,)
    assert not rig.side.tiers._orders._progress


@pytest.mark.parametrize("status", [Status.FINISHED_ABORTED, Status.FINISHED_ERROR])
def test_other_ends_hold_nothing(status):
    rig, new = Rig(), named(40, status=status)
    admitted(rig, new)
    rig.step(output({"r": 0}, {"r": 40}, {"r": ([11, 12, 13],)}, new=["r"]))
    assert rig.side.request_finished(new, ([11, 12, 13],)) == (False, None)
    assert rig.step().stores == []
