"""The second plug's settings, and what its fingerprint tells apart."""

import json
from types import SimpleNamespace

import pytest

from kvferry.vllm.tier.identity import tier_fingerprint
from kvferry.vllm.tier.settings import TierSettings, parse


def test_settings_have_defaults_and_bounds():
    assert parse({}) == TierSettings()
    assert parse({"socket": "/s", "staging_mib": 1, "revision": "abc"}) == TierSettings("/s", 1, revision="abc")


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ({"sokcet": "/s"}, "does not know \\['sokcet'\\]"),
        ({"socket": "s"}, "absolute path"),
        ({"revision": 7}, "a text"),
        ({"staging_mib": 0}, "from 1 to 65536"),
        ({"staging_mib": True}, "whole number"),
        ({"reply_timeout_ms": 5001}, "reply_timeout_ms"),
        ({"transfer_deadline_ms": "1"}, "transfer_deadline_ms"),
    ],
)
def test_wrong_settings_say_what_is_right(written, text):
    with pytest.raises(ValueError, match=text):
        parse(written)


def config(model="org/model", **more):
    given = {
        "cache": SimpleNamespace(blocks_per_chunk=1, tokens_per_hash=16),
        "canonical_layout": False,
        "engine_id": "e",
        "groups": (SimpleNamespace(group_id=0, tokens_per_block=16, layer_names=("a", "b")),),
        "kv_cache_layout": "BLHNC",
        "model": SimpleNamespace(name=str(model), dtype=more.pop("dtype", "bfloat16")),
        "parallel": SimpleNamespace(tp_size=1, pp_size=1, pcp_size=1, dcp_size=1, world_size=1),
        "replicated_layout": False,
        "worker_kv_bytes_per_block": 4096,
    }
    return SimpleNamespace(**{**given, **more})


def of(given, row_bytes=4096, revision="1", version="0.32.0"):
    return tier_fingerprint(given, row_bytes, revision, version)


def test_engines_of_one_kind_agree():
    assert of(config()) == of(config(engine_id="other"))
    assert len(of(config())) == 32


@pytest.mark.parametrize(
    "more",
    [
        {"cache": SimpleNamespace(blocks_per_chunk=2, tokens_per_hash=16)},
        {"dtype": "float16"},
        {"groups": ()},
        {"kv_cache_layout": "BLNHC"},
        {"model": "org/other"},
        {"parallel": SimpleNamespace(tp_size=2, pp_size=1, pcp_size=1, dcp_size=1, world_size=2)},
        {"replicated_layout": True},
        {"worker_kv_bytes_per_block": 8192},
    ],
    ids=str,
)
def test_what_differs_does_not_agree(more):
    assert of(config(**more)) != of(config())


def test_the_caller_s_own_facts():
    others = [of(config(), row_bytes=8192), of(config(), revision="2"), of(config(), version="0.33.0")]
    assert len({of(config()), *others}) == 4


def test_a_model_from_a_hub_needs_a_revision():
    with pytest.raises(ValueError, match="revision"):
        of(config(), revision="")


def test_a_model_in_a_folder_is_known_by_its_files(tmp_path):
    folders = []
    for name, weights, path in (("a", b"1", "x"), ("b", b"1", "y"), ("c", b"2", "x")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(weights)
        (folder / "config.json").write_text(json.dumps({"_name_or_path": path, "rope_theta": 1}))
        folders.append(folder)
    first, same, other = (of(config(folder), revision="") for folder in folders)
    assert first == same != other
    (folders[0] / "config.json").write_text(json.dumps({"rope_theta": 2}))
    assert of(config(folders[0]), revision="") != first


def test_a_model_that_depends_on_its_length_needs_a_revision(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"1")
    rope = {"type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}
    (tmp_path / "config.json").write_text(json.dumps({"original_max_position_embeddings": 4096, "rope_scaling": rope}))
    with pytest.raises(ValueError, match=r"max-model-len.*revision"):
        of(config(tmp_path), revision="")
    assert of(config(tmp_path), revision="4096") != of(config(tmp_path), revision="131072")
