"""KVFerryTier behind vLLM's own TieringOffloadingSpec and over a real daemon, where both are there."""

import fcntl
import logging
import os
import pathlib
import time

import native_paths
import pytest

pytest.importorskip("vllm.v1.kv_offload.tiering.manager", reason="the real vLLM is not there")
if native_paths.python_path() is None or native_paths.daemon() is None:
    pytest.skip("the native module or the daemon was not built", allow_module_level=True)

import kvferry

# The module that was built, under the sources that are tested.
kvferry.__path__.append(str(pathlib.Path(native_paths.python_path()[1]) / "kvferry"))

from plug_rig import ROW_BYTES, Engine, Node, content, keys_of  # noqa: E402
from vllm.v1.kv_offload.base import LookupResult  # noqa: E402

from kvferry import native  # noqa: E402
from kvferry.client import AttachSpec, Layout, Refused, Span, TierChanged  # noqa: E402

# Chosen: far above what a call needs on busy cores, and below what waiting for a daemon takes here.
CALL_SECONDS = 1.0
PATIENT = {"transfer_deadline_ms": 1500, "reply_timeout_ms": 1500}


@pytest.fixture
def node(tmp_path):
    node = Node(tmp_path)
    node.start()
    yield node
    node.close()


@pytest.fixture
def start(node):
    engines = []

    def make(**more):
        engines.append(Engine(node, **more))
        if node.process.poll() is None:
            engines[-1].wait_connected()
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def failures(engine, is_promotion):
    """Wraps vLLM's bookkeeping: the results of jobs of one direction, as they come."""
    seen = []
    tell = engine.offloading._metrics.on_job_finished

    def listen(metadata, result):
        if metadata.transfer_job.is_promotion == is_promotion:
            seen.append(result)
        tell(metadata, result)

    engine.offloading._metrics.on_job_finished = listen
    return seen


def test_what_left_host_memory_comes_back(start):
    engine = start()
    stored = failures(engine, is_promotion=False)
    keys = keys_of("a", 4)
    engine.store(keys)
    assert [(result.success, result.transfer_bytes) for result in stored] == [(True, 4 * ROW_BYTES)]
    others = keys_of("b", 8)
    engine.store(others)
    context = engine.request(keys)
    assert engine.offloading.primary_tier.lookup(keys[0], context) is LookupResult.MISS
    assert engine.look(keys, context) == 4
    assert all(engine.holds(key, context) for key in keys)
    assert engine.look(others) == 8


def test_more_than_the_staging_area_holds_at_once(start):
    engine = start(chunks=200, tier={"staging_mib": 1})
    assert engine.tier._staging.slot_count < 100
    keys = keys_of("a", 200)
    engine.store(keys)
    engine.evict()
    context = engine.request(keys)
    assert engine.look(keys, context) == 200
    assert all(engine.holds(key, context) for key in keys)
    assert engine.slowest < CALL_SECONDS


def test_vllm_tells_the_chain(start):
    engine = start()
    keys = keys_of("a", 3)
    assert engine.tier._chains.from_key(engine.request(keys), keys[0]) == keys


def test_what_is_missing_ends_a_prefix(start):
    engine = start()
    keys = keys_of("a", 6)
    engine.store(keys[:3], engine.request(keys))
    engine.evict()
    assert engine.look(keys) == 3
    assert engine.look(keys_of("c", 2)) == 0


def test_windows_are_asked_for_from_the_end(start):
    engine = start()
    keys = keys_of("a", 6)
    engine.store(keys)
    engine.evict()
    context = engine.request(keys)
    for key in reversed(keys[4:]):
        assert engine.look([key], context) == 1
    assert all(engine.holds(key, context) for key in keys[4:])


def test_groups_do_not_mix(start):
    engine = start(groups=2)
    first, second = keys_of("a", 2, group=0), keys_of("a", 2, group=1)
    assert first[0][:-4] == second[0][:-4]
    engine.store(second)
    engine.evict()
    assert engine.look(first) == 0
    engine.store(first)
    engine.evict()
    context = engine.request(first + second)
    assert engine.look(first + second, context) == 4
    assert all(engine.holds(key, context) for key in first + second)


def test_it_outlives_the_daemon_and_the_engine(node, start):
    keys = keys_of("a", 4)
    old = start()
    old.store(keys)
    node.kill()
    node.start()
    new = start()
    context = new.request(keys)
    assert new.look(keys, context) == 4
    assert all(new.holds(key, context) for key in keys)
    old.wait_connected()
    old.evict()
    assert old.look(keys) == 4


@pytest.mark.parametrize(
    "other", [{"dtype": "float16"}, {"model": "org/other"}, {"tier": {"revision": "2"}}, {"groups": 2}], ids=str
)
def test_another_fingerprint_finds_nothing(start, other):
    keys = keys_of("a", 2)
    engine = start()
    engine.store(keys)
    assert start(**other).look(keys) == 0
    assert start().look(keys) == 2


def test_a_prompt_is_stored_in_steps(start):
    engine = start()
    keys = keys_of("a", 6)
    context = engine.request(keys)
    for first in (0, 2, 4):
        engine.store(keys[first : first + 2], context)
    assert start().look(keys) == 6


def test_an_answer_continues_what_another_request_stored(start):
    engine = start()
    keys = keys_of("a", 6)
    engine.finish(engine.store(keys[:3], engine.request(keys)))
    engine.tier._stores.forget_committed()
    context = engine.request(keys)
    assert engine.look(keys[:3], context) == 3
    engine.store(keys[3:], context)
    assert start().look(keys) == 6


def test_what_stands_behind_a_lost_chunk_is_kept_by_itself(node, start):
    engine = start()
    keys = keys_of("a", 6)
    context = engine.request(keys)
    # Only vLLM has the first three.
    node.kill()
    engine.store(keys[:3], context)
    node.start()
    engine.wait_connected()
    engine.store(keys[3:], context)
    other = start()
    context = other.request(keys)
    assert other.look(keys, context) == 0
    assert other.look(keys[3:], context) == 3


def test_without_a_daemon_nothing_is_found_and_nothing_breaks(node, start):
    engine = start()
    keys = keys_of("a", 3)
    engine.store(keys)
    node.kill()
    stored = failures(engine, is_promotion=False)
    engine.store(keys_of("b", 2))
    assert [result.success for result in stored] == [False]
    assert engine.look(keys_of("b", 2)) == 2, "from vLLM's own memory"
    engine.evict()
    assert engine.look(keys) == 0
    assert engine.slowest < CALL_SECONDS
    node.start()
    engine.wait_connected()
    context = engine.request(keys)
    assert engine.look(keys, context) == 3
    assert all(engine.holds(key, context) for key in keys)


def test_a_daemon_that_dies_under_a_load(node, start):
    engine = start()
    keys = keys_of("a", 3)
    engine.store(keys)
    engine.evict()
    context = engine.request(keys)
    loaded = failures(engine, is_promotion=True)
    engine.until(lambda: engine.offloading.lookup(keys[0], context) is LookupResult.HIT_PENDING)
    node.pause()
    engine.step()
    node.kill()
    engine.settle()
    assert len(loaded) == 1
    if not loaded[0].success:
        assert engine.look(keys, context) == 0, "and it is not tried again for this request"


def test_a_daemon_that_hangs_holds_up_nothing(node, start):
    engine = start(tier=PATIENT)
    keys = keys_of("a", 3)
    engine.store(keys)
    engine.evict()
    found = engine.request(keys)
    engine.until(lambda: engine.offloading.lookup(keys[0], found) is LookupResult.HIT_PENDING)
    node.pause()
    stored, loaded = failures(engine, is_promotion=False), failures(engine, is_promotion=True)
    # One load that was found, one store and one lookup on their way, and vLLM clearing its cache over them.
    engine.step()
    engine.store(keys_of("b", 3))
    assert [result.success for result in stored] == [False]
    assert engine.look(keys[1:]) == 0
    engine.settle()
    assert len(loaded) == 1
    engine.call(engine.offloading.complete_store, *prepared(engine, keys_of("c", 2)))
    engine.call(engine.offloading.reset_cache)
    assert not engine.offloading.has_pending_work()
    assert engine.slowest < CALL_SECONDS
    node.resume()
    assert engine.look(keys) == 0, "cleared"
    engine.store(keys)
    engine.evict()
    context = engine.request(keys)
    assert engine.look(keys, context) == 3
    assert all(engine.holds(key, context) for key in keys)


def prepared(engine, keys):
    context = engine.request(keys)
    output = engine.offloading.prepare_store(keys, context)
    for key, row in zip(output.keys_to_store, output.store_spec.chunk_ids, strict=True):
        engine.rows[row] = content(key)
    return output.keys_to_store, context


def test_a_reset_clears_what_the_daemon_keeps(start):
    engine, other = start(), start()
    keys = keys_of("a", 3)
    engine.store(keys)
    engine.offloading.reset_cache()
    assert engine.look(keys) == 0
    assert other.look(keys) == 0
    engine.store(keys)
    engine.evict()
    assert other.look(keys) == 3


def test_a_reset_clears_once_however_long_that_takes(start):
    """The daemon clears in pieces, and is not done when the first lookup behind the order comes."""
    chunks = 512
    crowd, engine = start(model="crowd", chunks=chunks), start(groups=8)
    # What is known of others is looked through, too.
    for number in range(8):
        crowd.store(keys_of(f"crowd {number}", chunks))
    keys = keys_of("a", 3)
    engine.store(keys)
    client, told = engine.tier._scheduler, []
    order = client.clear
    client.clear = lambda: told.append(order())
    engine.offloading.reset_cache()
    assert engine.look(keys) == 0
    ends_at = time.monotonic() + 20
    while engine.look(keys) < 3:
        assert time.monotonic() < ends_at, "never found again"
        engine.store(keys)
        engine.evict()
    assert len(told) == 1


def test_a_reset_reaches_a_daemon_that_was_away(node, start):
    engine = start()
    keys = keys_of("a", 3)
    engine.store(keys)
    node.kill()
    engine.offloading.reset_cache()
    node.start()
    engine.wait_connected()
    assert engine.look(keys) == 0
    assert start().look(keys) == 0
    engine.store(keys)
    engine.evict()
    assert engine.look(keys) == 3


def test_a_daemon_without_tiers(tmp_path):
    node = Node(tmp_path, host_tier=False)
    node.start()
    engine = Engine(node)
    try:
        engine.wait_connected()
        lines = []
        handler = logging.Handler()
        handler.emit = lambda record: lines.append(record.getMessage())
        logger = logging.getLogger("vllm.kvferry")
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        for number in range(3):
            assert engine.look(keys_of("a", 2)) == 0
            engine.store(keys_of(f"b {number}", 2))
        logger.removeHandler(handler)
        assert lines == ["kvferry: the daemon keeps no blocks; this tier finds and keeps nothing"]
    finally:
        engine.close()
        node.close()


def test_changes_of_the_tiers_are_vllms_events(start):
    engine = start(groups=2)
    keys = keys_of("a", 1) + keys_of("a", 1, group=1)
    engine.store(keys)
    change = TierChanged("host", ((0, keys[0][:32]),), ((1, keys[1][:32]),))
    engine.tier._changed(change)
    assert list(engine.offloading.take_events()) == [], "nobody wants to know"
    engine.tier._tells_events = True
    engine.tier._changed(change)
    events = [(event.keys, event.medium.value, event.removed) for event in engine.offloading.take_events()]
    assert events == [(keys[:1], "CPU", False), (keys[1:], "CPU", True)]
    assert list(engine.offloading.take_events()) == []


def test_the_daemon_does_not_map_vllms_own_region(node, start):
    """Why there is a staging area: a file of /dev/shm can shrink, and cannot be sealed against it."""
    engine = start()
    region = engine.spec._scheduler_mmap
    with pytest.raises(PermissionError):
        fcntl.fcntl(region.fd, 1033, 7)
    client = native.start_worker(node.socket, "bare", 200)
    span = Span(1, 0, ROW_BYTES, ROW_BYTES, 1, 1, ROW_BYTES)
    client.attach(AttachSpec(0, 1, Layout("BLHNC", 8, os.fstat(region.fd).st_size, ((span,),)), b"f" * 32, region.fd))
    events = []
    engine.until(lambda: events.extend(client.poll()) or any(isinstance(event, Refused) for event in events))
    client.close()
    assert "can still change its length" in next(event.message for event in events if isinstance(event, Refused))
