"""Groups: which kinds are carried, and where windows begin."""

from types import SimpleNamespace

import pytest

from kvferry.vllm.groups import GroupShape, UnsupportedError, group_shapes

PARALLEL = SimpleNamespace(decode_context_parallel_size=1, prefill_context_parallel_size=1)


def spec(kind, **fields):
    return type(kind, (), {"block_size": 16, "tokens_per_state": 1, **fields})()


def config(*specs, **fields):
    groups = [
        SimpleNamespace(kv_cache_spec=s, layer_names=[f"l{i}"], enable_kv_transfer=True) for i, s in enumerate(specs)
    ]
    return SimpleNamespace(kv_cache_groups=groups, **fields)


def test_plain_groups_are_described():
    window = spec("SlidingWindowSpec", sliding_window=64, extra_retained_tokens=2, block_size=32)
    chunks = spec("ChunkedLocalAttentionSpec", attention_chunk_size=128)
    unlike = spec(
        "UniformTypeKVCacheSpecs", kv_cache_specs={"a": spec("FullAttentionSpec"), "b": spec("MLAAttentionSpec")}
    )
    assert group_shapes(config(spec("FullAttentionSpec"), window, chunks, unlike), PARALLEL) == (
        GroupShape(0, 16),
        GroupShape(1, 32, window=66),
        GroupShape(2, 16, chunk=128),
        GroupShape(3, 16),
    )


def test_groups_that_are_not_transferred_are_left_out():
    cache = config(spec("FullAttentionSpec"), spec("HiSparseHotSpec"))
    cache.kv_cache_groups[1].enable_kv_transfer = False
    assert group_shapes(cache, PARALLEL) == (GroupShape(0, 16),)


@pytest.mark.parametrize(
    "cache",
    [
        config(),
        config(spec("MambaSpec")),
        config(spec("FullAttentionSpec"), spec("SinkFullAttentionSpec")),
        config(spec("FullAttentionSpec", tokens_per_state=4)),
        config(spec("UniformTypeKVCacheSpecs", kv_cache_specs={"a": spec("FullAttentionSpec"), "b": spec("RSWASpec")})),
        config(
            spec(
                "UniformTypeKVCacheSpecs",
                kv_cache_specs={
                    "a": spec("SlidingWindowSpec", sliding_window=1),
                    "b": spec("SlidingWindowSpec", sliding_window=2),
                },
            )
        ),
    ],
)
def test_what_is_not_plain_is_refused(cache):
    with pytest.raises(UnsupportedError):
        group_shapes(cache, PARALLEL)


@pytest.mark.parametrize("axis", ["decode_context_parallel_size", "prefill_context_parallel_size"])
def test_blocks_spread_over_ranks_are_refused(axis):
    with pytest.raises(UnsupportedError, match=axis):
        group_shapes(config(spec("FullAttentionSpec")), SimpleNamespace(**{axis: 2}))


def test_windows_begin_where_vllm_s_do():
    # vLLM's own examples in SlidingWindowManager and ChunkedLocalAttentionManager.get_num_skipped_tokens.
    assert GroupShape(0, 1, window=4).first_needed(7) == 4
    assert GroupShape(0, 1, chunk=8).first_needed(13) == 8
    assert GroupShape(0, 1, chunk=8).first_needed(8) == 8
    assert GroupShape(0, 16).first_needed(10_000) == 0
    assert GroupShape(0, 16, window=64).first_needed(63) == 0
    assert GroupShape(0, 16, window=64).first_needed(79) == 1
    assert GroupShape(0, 16).block_count(0) == 0
    assert GroupShape(0, 16).block_count(17) == 2


def test_the_formulas_are_vllm_s():
    manager = pytest.importorskip("vllm.v1.core.single_type_kv_cache_manager")
    for tokens in range(0, 200, 7):
        for size in (1, 5, 64):
            window = SimpleNamespace(sliding_window=size, extra_retained_tokens=3)
            skipped = manager.SlidingWindowManager.get_num_skipped_tokens(window, tokens)
            assert GroupShape(0, 16, window=size + 3).first_needed(tokens) == skipped // 16
            chunks = SimpleNamespace(attention_chunk_size=size)
            skipped = manager.ChunkedLocalAttentionManager.get_num_skipped_tokens(chunks, tokens)
            assert GroupShape(0, 16, chunk=size).first_needed(tokens) == skipped // 16
