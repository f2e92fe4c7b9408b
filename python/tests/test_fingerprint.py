"""The fingerprint: equal where blocks may be exchanged, different where not, and the same on every machine."""

from types import SimpleNamespace

import pytest

from kvferry.vllm import fingerprint


def hf_config(**changes):
    values = {"hidden_size": 64, "_name_or_path": "/a", "transformers_version": "5", **changes}
    return SimpleNamespace(to_dict=lambda: values, _commit_hash=changes.get("_commit_hash"))


def config(model="org/model", **changes):
    written = {
        "revision": None,
        "dtype": "bfloat16",
        "quantization": None,
        "max_model_len": 8192,
        "hf_config": hf_config(),
        "cache_dtype": "auto",
        "tp": 1,
        "pp": 1,
        "rank": 0,
        "speculative_config": None,
        **changes,
    }
    names = ("revision", "dtype", "quantization", "max_model_len", "hf_config")
    return SimpleNamespace(
        model_config=SimpleNamespace(model=model, **{name: written[name] for name in names}),
        cache_config=SimpleNamespace(cache_dtype=written["cache_dtype"]),
        parallel_config=SimpleNamespace(
            pipeline_parallel_size=written["pp"], tensor_parallel_size=written["tp"], rank=written["rank"]
        ),
        speculative_config=written["speculative_config"],
    )


def spec(kind="FullAttentionSpec", **changes):
    fields = {"block_size": 32, "num_kv_heads": 2, "head_size": 64, "head_size_v": 64, "dtype": "torch.bfloat16"}
    return type(kind, (), {**fields, **changes})()


def cache(spec_=None, layers=("a", "b"), blocks=8):
    group = SimpleNamespace(layer_names=list(layers), kv_cache_spec=spec_ or spec(), enable_kv_transfer=True)
    return SimpleNamespace(kv_cache_groups=[group], num_blocks=blocks)


def tensors(blocks=8, tokens=32, dtype="torch.bfloat16"):
    return {name: SimpleNamespace(shape=(blocks, 2, tokens, 128), dtype=dtype) for name in ("a", "b", "c")}


def digest(config_=None, cache_=None, tensors_=None, attention=("CPU_ATTN", "isa amx"), version="0.32.0"):
    facts = fingerprint.engine_facts(config_ or config(), cache_ or cache(), tensors_ or tensors(), attention, version)
    return fingerprint.fingerprint(facts)


def test_it_is_the_same_everywhere():
    golden = "c22cb7b0353770e2b38094af641143ebf008ddf2d1f2dedb9d875996fcf245fa"
    assert fingerprint.fingerprint({"b": [1, "x"], "a": None}).hex() == golden
    assert fingerprint.fingerprint({"b": 1, "a": 2}) == fingerprint.fingerprint({"a": 2, "b": 1})
    assert digest() == digest()


def test_what_may_differ_does_not_count():
    assert digest(cache_=cache(blocks=99), tensors_=tensors(blocks=99)) == digest()
    elsewhere = hf_config(_name_or_path="/b", transformers_version="6", _commit_hash=None)
    assert digest(config(hf_config=elsewhere)) == digest()
    assert digest(attention=("isa amx", "CPU_ATTN")) == digest()
    assert digest(config(max_model_len=4096, hf_config=hf_config(max_model_len=4096))) == digest()


def test_all_ranks_of_an_engine_have_one():
    assert digest(config(rank=1)) == digest()
    first, second = (digest(config(pp=2, rank=rank), cache(layers=[layer])) for rank, layer in enumerate("ab"))
    assert first == second


@pytest.mark.parametrize(
    "other",
    [
        {"config_": config("org/other")},
        {"config_": config(revision="v2")},
        {"config_": config(hf_config=hf_config(hidden_size=65))},
        {"config_": config(hf_config=hf_config(_commit_hash="abc"))},
        {"config_": config(dtype="float16")},
        {"config_": config(quantization="fp8")},
        {"config_": config(cache_dtype="fp8")},
        {"config_": config(tp=2)},
        {"config_": config(pp=2)},
        {"config_": config(speculative_config=SimpleNamespace(method="ngram", draft_model_config=None))},
        {"cache_": cache(spec(block_size=64))},
        {"cache_": cache(spec(num_kv_heads=4))},
        {"cache_": cache(spec("SlidingWindowSpec", sliding_window=64))},
        {"cache_": cache(layers=("a", "c"))},
        {"cache_": cache(layers=("b", "a"))},
        {"tensors_": tensors(tokens=16)},
        {"tensors_": tensors(dtype="torch.float16")},
        {"attention": ("FLASH_ATTN",)},
        {"attention": ("CPU_ATTN", "isa vec")},
        {"version": "0.33.0"},
    ],
)
def test_what_must_agree_counts(other):
    assert digest(**other) != digest()


def test_the_length_counts_where_it_decides():
    def of_length(max_model_len, rope_type):
        rope = {"rope_type": rope_type, "original_max_position_embeddings": 4096}
        return digest(config(max_model_len=max_model_len, hf_config=hf_config(rope_parameters=rope)))

    assert of_length(4096, "longrope") == of_length(2048, "longrope") != of_length(8192, "longrope")
    assert of_length(4096, "yarn") == of_length(8192, "yarn")


def folder(tmp_path, name, weights, **more):
    place = tmp_path / name
    place.mkdir()
    (place / "model.safetensors").write_bytes(weights)
    for file, text in more.items():
        (place / file).write_text(text)
    return str(place)


def test_a_local_model_is_its_content_not_its_path(tmp_path):
    weights = bytes(range(256)) * 4096
    one = folder(tmp_path, "one", weights)
    same = folder(tmp_path, "same", weights, README="text that does not count")
    tuned = folder(tmp_path, "tuned", weights[:-1] + b"x")
    longer = folder(tmp_path, "longer", weights + b"x")
    assert digest(config(one)) == digest(config(same))
    assert len({digest(config(path)) for path in (one, tuned, longer)}) == 3
    assert digest(config(one)) != digest(config("org/model"))


def test_small_and_empty_weights(tmp_path):
    paths = [folder(tmp_path, f"m{index}", weights) for index, weights in enumerate((b"", b"x", b"y"))]
    assert len({digest(config(path)) for path in paths}) == 3
    file = tmp_path / "m1" / "model.safetensors"
    assert digest(config(str(file))) == digest(config(paths[1]))


def test_the_draft_model_counts():
    def speculating(name):
        draft = config(name).model_config
        return config(speculative_config=SimpleNamespace(method="eagle", draft_model_config=draft))

    assert digest(speculating("a")) != digest(speculating("b"))


def test_cpu_attention_names_its_instruction_set():
    layers = {"a": SimpleNamespace(isa="amx"), "b": SimpleNamespace(), "c": SimpleNamespace(isa=None)}
    vllm_config = SimpleNamespace(compilation_config=SimpleNamespace(static_forward_context=layers))
    backend = SimpleNamespace(get_name=lambda: "CPU_ATTN")
    assert fingerprint.attention_names(vllm_config, [backend]) == ["CPU_ATTN", "isa amx"]


def test_people_hear_the_name_that_is_served():
    served = SimpleNamespace(model="/models/a", served_model_name=["chat", "other"])
    assert fingerprint.model_name(served) == "chat"
    assert fingerprint.model_name(SimpleNamespace(model="/models/a", served_model_name="m")) == "m"
    assert fingerprint.model_name(SimpleNamespace(model="/models/a", served_model_name=[])) == "/models/a"
    assert fingerprint.model_name(SimpleNamespace(model="/models/a")) == "/models/a"
