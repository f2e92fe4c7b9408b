"""Where --max-model-len is part of what KV cache means, and where it is not."""

import pytest

from kvferry.vllm.context_length import length_facts

ORIGINAL = {"original_max_position_embeddings": 4096}


def rope(kind, **more):
    return {"rope_parameters": {"rope_type": kind, **more}}


@pytest.mark.parametrize(
    "config",
    [
        {**ORIGINAL, "rope_scaling": {"type": "longrope", "long_factor": [1.0]}},
        {**ORIGINAL, "rope_scaling": {"type": "su"}},
        rope("longrope", **ORIGINAL),
        {"text_config": {"rope_parameters": {"full_attention": {"rope_type": "longrope", **ORIGINAL}}}},
    ],
)
def test_longrope_is_long_or_short(config):
    long, short = length_facts(config, 4097), length_facts(config, 4096)
    assert long and short and long != short
    assert length_facts(config, 131072) == long
    assert length_facts(config, 1024) == short
    assert length_facts(config, None)


def test_longrope_that_does_not_say_since_when_counts_each_length():
    assert length_facts(rope("longrope"), 4097) != length_facts(rope("longrope"), 4098)


def test_llama_4_is_tuned_beyond_32_k():
    config = {"model_type": "llama4", "text_config": {"model_type": "llama4_text"}}
    assert length_facts(config, 32768) == length_facts(config, 1024) != length_facts(config, 32769)


@pytest.mark.parametrize("config", [rope("dynamic", factor=2.0), rope("default", use_fope=True), rope("of tomorrow")])
def test_kinds_that_may_compute_with_the_length_count_it(config):
    assert length_facts(config, 4096) != length_facts(config, 8192)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model_type": "llama", "rope_theta": 10000.0, "rope_scaling": None},
        {"model_type": "qwen2", "quantization_config": {"type": "int"}},
        rope("default", rope_theta=10000.0),
        rope("dynamic", alpha=1000.0),
        rope("linear", factor=2.0),
        rope("llama3", factor=8.0, **ORIGINAL),
        rope("yarn", factor=4.0, **ORIGINAL),
        {"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}},
        {"rope_scaling": {"type": "deepseek_yarn", "factor": 40, **ORIGINAL}},
    ],
)
def test_plain_models_share_whatever_their_length(config):
    assert length_facts(config, 4096) == length_facts(config, 8192) == length_facts(config, None) == []
