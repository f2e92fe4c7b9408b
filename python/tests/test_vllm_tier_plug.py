"""KVFerryTier in a real vLLM engine with vLLM's OffloadingConnector, on the CPU. Opt in: KVFERRY_TEST_VLLM=1.

One process: an engine answers, its memories are emptied, and it answers from what a real daemon kept.
"""

import os
import pathlib
import time

import native_paths
import pytest
from test_vllm_in_process import PROMPT, REAL, Engine, model  # noqa: F401 (fixture)

BUILT = native_paths.python_path() is not None and native_paths.daemon() is not None
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not REAL, reason="KVFERRY_TEST_VLLM=1 and vLLM are not there"),
    pytest.mark.skipif(not BUILT, reason="the native module or the daemon was not built"),
]


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    import kvferry

    # The module that was built, under the sources that are tested.
    kvferry.__path__.append(str(pathlib.Path(native_paths.python_path()[1]) / "kvferry"))
    from plug_rig import Node

    node = Node(tmp_path_factory.mktemp("node"))
    node.start()
    yield node
    node.close()


@pytest.fixture(scope="module")
def engine(node, model):  # noqa: F811
    os.environ["PYTHONPATH"] = str(native_paths.HERE)
    engine = Engine(
        model,
        connector={
            "kv_connector": "OffloadingConnector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": {
                "spec_name": "CpuTieringSpec",
                "spec_module_path": "cpu_tiering",
                "cpu_bytes_to_use": 64 << 20,
                "secondary_tiers": [{"type": "KVFerryTier", "module_path": "kvferry.vllm.tier", "socket": node.socket}],
            },
        },
    )
    yield engine
    engine.scheduler.connector.shutdown()


@pytest.fixture
def tiering(engine):
    tiering = engine.scheduler.connector.connector_scheduler.manager
    (tier,) = tiering.secondary_tiers
    wait(engine, lambda: tier._worker.is_connected() and tier._scheduler.is_connected())
    return tiering


def wait(engine, condition, step=None):
    """An idle engine steps faster than a daemon answers, so this counts time and not steps."""
    ends_at = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < ends_at, "it takes too long"
        (step or engine.core.step_fn)()
        time.sleep(0.001)


def finish(engine, name):
    wait(engine, lambda: name in engine.outputs, engine.step)
    return engine.outputs.pop(name)


def forget(engine, tiering):
    """Neither the engine nor its host memory has anything any more."""
    wait(engine, lambda: not engine.scheduler.connector.has_pending_push_work())
    engine.drain()
    assert engine.llm.reset_prefix_cache()
    tiering.primary_tier.reset_cache()


def test_an_answer_from_what_the_daemon_kept(node, engine, tiering):
    expected = tuple(finish(engine, engine.add(PROMPT, salt="a")).outputs[0].token_ids)
    blocks = len(engine.llm.get_tokenizer().encode(PROMPT)) // 32
    forget(engine, tiering)
    output = finish(engine, engine.add(PROMPT, salt="a"))
    assert tuple(output.outputs[0].token_ids) == expected
    assert output.num_cached_tokens == (blocks * 32) > 0
    forget(engine, tiering)

    tier = tiering.secondary_tiers[0]
    clients = (tier._worker, tier._scheduler)
    node.kill()
    # A connection looks alive until its thread has heard of the end: what is asked meanwhile is a miss.
    wait(engine, lambda: not any(client.is_connected() for client in clients))
    node.start()
    wait(engine, lambda: all(client.is_connected() for client in clients))
    output = finish(engine, engine.add(PROMPT, salt="a"))
    assert tuple(output.outputs[0].token_ids) == expected
    assert output.num_cached_tokens == blocks * 32
    forget(engine, tiering)

    other = finish(engine, engine.add(PROMPT, salt="b"))
    assert (tuple(other.outputs[0].token_ids), other.num_cached_tokens) == (expected, 0)
    forget(engine, tiering)

    node.kill()
    output = finish(engine, engine.add(PROMPT, salt="a"))
    assert (tuple(output.outputs[0].token_ids), output.num_cached_tokens) == (expected, 0)
