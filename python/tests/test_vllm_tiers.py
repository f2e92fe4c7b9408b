"""Tiers inside a real vLLM engine, with a daemon in this process that keeps real bytes. Opt in: KVFERRY_TEST_VLLM=1.

vLLM's own scheduler, block pool and hashes: what one request left is loaded by another after the engine forgot it, and
gives the same text.
"""

import pytest
from test_vllm_in_process import PROMPT, REAL, daemon, engine, expected, loaded, model  # noqa: F401 (fixtures)

pytestmark = [pytest.mark.vllm, pytest.mark.skipif(not REAL, reason="KVFERRY_TEST_VLLM=1 and vLLM are not there")]


@pytest.fixture
def tier(engine, daemon, expected):  # noqa: F811
    daemon.tier.__init__(daemon)
    daemon.tier.is_there = True
    tiers = engine.scheduler.connector._scheduler.tiers
    tiers._lookups._paused_until = 0.0
    # The same blocks were stored a moment ago, by the test before, in a tier that is gone.
    tiers._orders._recent.clear()
    yield daemon.tier
    daemon.tier.is_there = False
    engine.drain()


def forget(engine):  # noqa: F811
    engine.drain()
    assert engine.llm.reset_prefix_cache()


def test_what_was_stored_is_loaded(engine, tier, expected):  # noqa: F811
    assert engine.text(PROMPT, salt="a") == expected
    forget(engine)
    whole = engine.scheduler.kv_cache_manager.block_pool.num_gpu_blocks and len(tier.kept)
    assert whole >= 6
    assert engine.text(PROMPT, salt="a") == expected
    ((_, count),) = tier.loaded
    assert count == tier.lookups[-1][1][0] > 5


def test_what_is_loaded_is_read(engine, tier, expected):  # noqa: F811
    """The check above would also pass if the loaded bytes were never looked at."""
    engine.text(PROMPT, salt="a")
    forget(engine)
    tier.kept = {name: [bytes(byte ^ 0x15 for byte in page) for page in pages] for name, pages in tier.kept.items()}
    assert engine.text(PROMPT, salt="a") != expected


def test_another_salt_finds_nothing(engine, tier, expected):  # noqa: F811
    engine.text(PROMPT, salt="a")
    forget(engine)
    assert engine.text(PROMPT, salt="b") == expected
    assert tier.loaded == []
    assert len(set(tier.tenants)) == 2
    assert {held for _, held in tier.lookups} == {(0,)}


def test_a_failed_load_is_computed_and_not_tried_again(engine, tier, expected):  # noqa: F811
    engine.text(PROMPT, salt="a")
    forget(engine)
    tier.failure = "checksum_mismatch"
    assert engine.text(PROMPT, salt="a") == expected
    assert len(tier.loaded) == 1
    forget(engine)
    tier.failure = None
    assert engine.text(PROMPT, salt="a") == expected
    assert len(tier.loaded) == 2


def test_decoded_blocks_are_stored_too(engine, tier):  # noqa: F811
    name = engine.add(PROMPT[:40], max_tokens=90, salt="a")
    engine.finish(name)
    forget(engine)
    # Forty bytes and ninety tokens are four blocks of 32.
    assert len(tier.kept) == 4


def test_a_slow_daemon_is_not_waited_for(engine, tier, expected, monkeypatch):  # noqa: F811
    side = engine.scheduler.connector._scheduler
    monkeypatch.setattr(side.tiers._lookups, "_reply_seconds", 0.05)
    engine.text(PROMPT, salt="a")
    forget(engine)
    tier.is_slow = True
    output = engine.finish(engine.add(PROMPT, salt="a"), steps=10**6)
    assert tuple(output.outputs[0].token_ids) == expected
    assert tier.loaded == []
    # The late answer's claim is given back.
    engine.scheduler.connector._scheduler._client.events.extend(tier.late)
    tier.is_slow = False
    engine.text(PROMPT[:60])
    assert tier.late[0].key in tier.forgotten


def test_a_preempted_request_loads_what_it_stored(engine, tier, expected):  # noqa: F811
    name = engine.add(PROMPT, salt="a")
    for _ in range(5):
        engine.step()
    assert engine.scheduler.running
    engine.scheduler.reset_prefix_cache(reset_running_requests=True)
    assert tuple(engine.finish(name).outputs[0].token_ids) == expected
    assert len(tier.loaded) == 1


def test_cleared_tiers_hold_nothing(engine, tier, expected):  # noqa: F811
    engine.text(PROMPT, salt="a")
    engine.drain()
    assert tier.kept
    assert engine.scheduler.reset_prefix_cache(reset_connector=True)
    assert tier.kept == {}
    assert engine.text(PROMPT, salt="a") == expected
    assert tier.loaded == []
    # Once the workers have dropped what was under way, blocks are kept again.
    assert engine.text(PROMPT, salt="c") == expected
    engine.drain()
    assert tier.kept


def test_a_decode_fetches_what_no_tier_has(engine, daemon, tier, expected):  # noqa: F811
    # The tier has the first three blocks, P all of them.
    engine.text(PROMPT[:100], max_tokens=1, salt="a")
    forget(engine)
    assert len(tier.kept) == 3
    params = engine.prefill()
    daemon.mode = "hold"
    name = engine.add(PROMPT, params, salt="a")
    for _ in range(8):
        engine.step()
    ((_, _, groups),) = daemon.waiting.values()
    assert groups[0].positions == tuple(range(3, -(-(params["remote_num_tokens"] - 1) // 32)))
    assert tier.loaded == [(name, 3)] or tier.loaded[0][1] == 3
    daemon.mode = "deliver"
    assert tuple(engine.finish(name).outputs[0].token_ids) == expected


def test_hits_are_told_by_source(engine, tier, expected):  # noqa: F811
    from vllm.v1.metrics.cache_hit_source import CacheHitSource

    engine.text(PROMPT, salt="a")
    forget(engine)
    engine.text(PROMPT, salt="a")
    count = tier.loaded[0][1] * 32
    assert engine.scheduler.connector.get_external_cache_hit_sources(None, count) == {CacheHitSource.HOST: count}


def test_changes_leave_as_kv_events(engine, tier):  # noqa: F811
    from vllm.distributed.kv_events import BlockRemoved, BlockStored
    from vllm.v1.core.kv_cache_utils import maybe_convert_block_hash

    connector = engine.scheduler.connector
    connector._scheduler.tiers._changes = []
    engine.text(PROMPT, salt="a")
    tier.clear()
    connector._scheduler._hear()
    events = list(connector.take_events())
    connector._scheduler.tiers._changes = None
    stored = [event for event in events if isinstance(event, BlockStored)]
    removed = [event for event in events if isinstance(event, BlockRemoved)]
    # The engine published what it stored while it ran; what is left is the removal, at least.
    assert all(event.medium == "CPU" for event in stored + removed)
    assert removed
    assert all(isinstance(h, type(maybe_convert_block_hash(b"x" * 32))) for e in removed for h in e.block_hashes)
