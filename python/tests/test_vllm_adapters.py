"""LoRA adapters inside a real vLLM engine, with a daemon that keeps real bytes. Opt in: KVFERRY_TEST_VLLM=1.

An adapter is trained anew in its place: its name, its path and so vLLM's hashes stay, and what was kept is of the old
one.
"""

import json
import os

import pytest
from test_adapters import wait_for_the_clock_of_files
from test_vllm_in_process import PROMPT, REAL, Engine, daemon, model  # noqa: F401 (fixtures)

pytestmark = [pytest.mark.vllm, pytest.mark.skipif(not REAL, reason="KVFERRY_TEST_VLLM=1 and vLLM are not there")]

RANK = 8


@pytest.fixture(scope="module")
def engine(model, daemon):  # noqa: F811
    from kvferry import native

    patch = pytest.MonkeyPatch()
    patch.setattr(native, "start_scheduler", daemon.start_scheduler)
    patch.setattr(native, "start_worker", daemon.start_worker)
    engine = Engine(model, "/nowhere/kvferry.sock", enable_lora=True, max_lora_rank=RANK, max_loras=2)
    daemon.tier.is_there = True
    yield engine
    daemon.tier.is_there = False
    patch.undo()


def train(folder, seed):
    """Random weights for the keys and values of the tiny model, large enough to change what it says."""
    import torch
    from safetensors.torch import save_file

    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(2):
        for name in ("k_proj", "v_proj"):
            module = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{module}.lora_A.weight"] = torch.randn(RANK, 256, generator=random) / 16
            tensors[f"{module}.lora_B.weight"] = torch.randn(128, RANK, generator=random)
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"r": RANK, "lora_alpha": RANK, "target_modules": ["k_proj", "v_proj"], "peft_type": "LORA"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def asked(folder, number, name="tuned"):
    from vllm.lora.request import LoRARequest

    return LoRARequest(name, number, str(folder))


def start_again(engine):
    """As far as adapters go: no cache, none loaded, none known."""
    engine.drain()
    assert engine.llm.reset_prefix_cache()
    forget_adapters(engine)


def forget_adapters(engine):
    from kvferry.vllm.adapters import Adapters

    for number in engine.llm.llm_engine.list_loras():
        engine.llm.llm_engine.remove_lora(number)
    side = engine.scheduler.connector._scheduler
    # Read at once: an engine that is stepped by hand takes more steps in that time than a test waits for.
    side._adapters = side.tiers._names._adapters = Adapters(start=lambda work: work())


def test_a_kept_adapter_is_found_again_and_one_trained_anew_is_not(engine, daemon, tmp_path):  # noqa: F811
    tier = daemon.tier
    old, new = train(tmp_path / "old", 1), train(tmp_path / "new", 2)
    # What each of them says, computed: with names of their own nothing is found.
    expected = []
    for number, folder in enumerate((old, new), 1):
        start_again(engine)
        expected.append(engine.text(PROMPT, salt="a", adapter=asked(folder, number, f"computed {number}")))
    assert len({*expected, engine.text(PROMPT)}) == 3 and tier.loaded == []

    place = train(tmp_path / "place", 1)
    for _ in range(2):
        start_again(engine)
        assert engine.text(PROMPT, salt="a", adapter=asked(place, 3)) == expected[0]
    ((_, count),) = tier.loaded
    assert count > 5, "the second time it was loaded"

    train(place, 2)
    start_again(engine)
    assert engine.text(PROMPT, salt="a", adapter=asked(place, 3)) == expected[1]
    assert len(tier.loaded) == 1


def test_a_ticket_of_the_old_adapter_is_computed(engine, daemon, tmp_path):  # noqa: F811
    place = train(tmp_path / "place", 3)
    # The same adapter, as on another node.
    other = train(tmp_path / "same", 3)
    start_again(engine)
    daemon.delivered = 0
    params = engine.prefill(adapter=asked(place, 4))
    assert params
    text = engine.text(PROMPT, params, adapter=asked(other, 5))
    assert daemon.delivered == 1

    start_again(engine)
    params = engine.prefill(adapter=asked(place, 4))
    train(other, 4)
    forget_adapters(engine)
    assert engine.text(PROMPT, params, adapter=asked(other, 5)) != text
    assert daemon.delivered == 1
    for ticket in list(daemon.leases):
        daemon.end(ticket, "test over")


def test_an_adapter_that_changes_under_the_engine_is_not_kept(engine, daemon, tmp_path):  # noqa: F811
    place = train(tmp_path / "place", 5)
    start_again(engine)
    wait_for_the_clock_of_files(tmp_path)
    os.utime(place / "adapter_model.safetensors")
    kept = len(daemon.tier.kept)
    engine.text(PROMPT, salt="b", adapter=asked(place, 6))
    engine.drain()
    assert len(daemon.tier.kept) == kept
    assert engine.prefill(adapter=asked(place, 6)) is None
