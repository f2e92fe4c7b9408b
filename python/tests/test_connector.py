"""The connector's class: roles, refusals, and that every hook reaches its half."""

import logging
import pickle
import subprocess
import sys
from types import SimpleNamespace

import pytest
from fake_client import FakeClient
from fake_request import NEW_PREFILL, Status, blocks, request
from test_tiers import output

from kvferry import native
from kvferry.client import TierChanged


@pytest.fixture
def clients(monkeypatch):
    made = {"scheduler": FakeClient(), "worker": FakeClient(), "asked": []}

    def start(role):
        def start_client(*arguments):
            made["asked"].append((role, *arguments))
            return made[role]

        return start_client

    monkeypatch.setattr(native, "start_scheduler", start("scheduler"))
    monkeypatch.setattr(native, "start_worker", start("worker"))
    return made


def spec(kind="FullAttentionSpec"):
    fields = {"block_size": 16, "tokens_per_state": 1, "num_heads": 2, "num_states": 16, "state_content_size_bytes": 8}
    return type(kind, (), fields)()


def configs(policy="recompute", extra=None, kind="FullAttentionSpec", caching=False, events=False):
    transfer = SimpleNamespace(
        kv_connector_extra_config={} if extra is None else extra,
        kv_load_failure_policy=policy,
        engine_id="E0",
        is_kv_producer=True,
    )
    parallel = SimpleNamespace(tensor_parallel_size=1, pipeline_parallel_size=1, rank=0, world_size=1)
    group = SimpleNamespace(kv_cache_spec=spec(kind), layer_names=["a"], enable_kv_transfer=True)
    tensor = SimpleNamespace(size=2048, layers=["a"], layer_stride=2048, block_stride=256, offset=0)
    cache = SimpleNamespace(kv_cache_groups=[group], kv_cache_tensors=[tensor], num_blocks=8, kv_cache_layout="LBHNC")
    config = SimpleNamespace(
        kv_transfer_config=transfer,
        parallel_config=parallel,
        cache_config=SimpleNamespace(enable_prefix_caching=caching, prefix_caching_hash_algo="sha256", block_size=16),
        kv_events_config=SimpleNamespace(enable_kv_cache_events=True) if events else None,
    )
    return config, cache


def connector(role="SCHEDULER", **options):
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole

    from kvferry.vllm import KVFerryConnector

    config, cache = configs(**options)
    return KVFerryConnector(config, KVConnectorRole[role], cache)


def test_importing_kvferry_needs_neither_vllm_nor_torch_nor_native_code():
    code = "import sys, kvferry, kvferry.client, kvferry.native, kvferry.vllm; print(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=HERE).stdout
    for name in ("'vllm'", "'torch'", "kvferry._native", "kvferry.vllm.connector"):
        assert name not in loaded


HERE = str(__import__("pathlib").Path(__file__).resolve().parent.parent)


def test_what_vllm_asks_of_the_class(clients):
    import inspect

    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, SupportsHMA

    from kvferry.vllm import KVFerryConnector

    assert issubclass(KVFerryConnector, KVConnectorBase_V1)
    assert issubclass(KVFerryConnector, SupportsHMA)
    assert list(inspect.signature(KVFerryConnector).parameters) == ["vllm_config", "role", "kv_cache_config"]
    with pytest.raises(AttributeError):
        sys.modules["kvferry.vllm"].NoSuchThing  # noqa: B018 the lookup is the test


@pytest.mark.parametrize("role", ["SCHEDULER", "WORKER"])
def test_each_role_has_one_client(clients, role):
    made = connector(role, extra={"socket": "/tmp/s", "reply_timeout_ms": 9})
    assert clients["asked"] == [(role.lower(), "/tmp/s", "E0", 9)]
    made.shutdown()
    assert clients[role.lower()].closed == 1


@pytest.mark.parametrize("role", ["SCHEDULER", "WORKER"])
def test_unknown_settings_stop_the_engine_at_start(clients, role):
    with pytest.raises(ValueError, match="knows"):
        connector(role, extra={"lease": 1})


def test_the_failure_policy_is_warned_about_by_name(clients, caplog):
    with caplog.at_level(logging.WARNING, logger="vllm.kvferry"):
        logging.getLogger("vllm").propagate = True
        connector(policy="fail")
    assert '"kv_load_failure_policy": "recompute"' in caplog.text
    caplog.clear()
    connector(policy="recompute")
    assert "kv_load_failure_policy" not in caplog.text


def test_a_model_that_cannot_be_carried_is_served_without_us(clients):
    made = connector(kind="MambaSpec")
    done = request("p", 20, dict(NEW_PREFILL), Status.FINISHED_LENGTH_CAPPED, computed=20)
    assert made.request_finished_all_groups(done, ([1, 2],)) == (False, None)
    worker = connector("WORKER", kind="MambaSpec")
    worker.register_kv_caches({})
    assert "MambaSpec" in worker.get_handshake_metadata().refusal


def test_one_worker_that_shares_nothing_stops_grants_and_loads(clients):
    made, worker = connector(), connector("WORKER")
    worker.register_kv_caches({})
    word = pickle.loads(pickle.dumps(worker.get_handshake_metadata()))
    assert "host memory" in word.refusal
    assert clients["worker"].attached == []
    made.set_xfer_handshake_metadata_pp_aware({(0, 0): type(word)(None), (1, 0): word})
    done = request("p", 20, dict(NEW_PREFILL), Status.FINISHED_LENGTH_CAPPED, computed=20)
    assert made.request_finished_all_groups(done, ([1, 2],)) == (False, None)
    assert clients["scheduler"].granted == []


def test_workers_that_all_share_change_nothing(clients):
    made = connector()
    made.set_xfer_handshake_metadata_pp_aware({})
    done = request("p", 20, dict(NEW_PREFILL), Status.FINISHED_LENGTH_CAPPED, computed=20)
    assert made.request_finished(done, [1, 2])[0]
    assert made.reset_cache() is True
    assert made.get_loaded_kv_cache_group_ids(done) == (0,)


def test_a_transfer_from_hook_to_hook(clients):
    prefiller, worker = connector(), connector("WORKER")
    done = request("p", 20, dict(NEW_PREFILL), Status.FINISHED_LENGTH_CAPPED, computed=20)
    _, params = prefiller.request_finished_all_groups(done, ([1, 2],))
    decode = request("d", 20, params)
    assert prefiller.get_num_new_matched_tokens(decode, 0) == (19, True)
    prefiller.update_state_after_alloc(decode, blocks([4, 5]), 19)
    clients["scheduler"].end_lease(1, "p")
    meta = pickle.loads(pickle.dumps(prefiller.build_connector_meta(None)))
    worker.handle_preemptions(meta)
    worker.start_load_kv(None)
    worker.bind_connector_metadata(meta)
    worker.start_load_kv(None, anything=1)
    worker.wait_for_layer_load("a")
    worker.save_kv_layer("a", None, None)
    worker.wait_for_save()
    results = worker.get_transfer_results({"p"})
    assert (results.finished_sending, results.finished_recving) == ({"p"}, set())
    clients["worker"].done(100)
    worker.clear_connector_metadata()
    assert worker.get_transfer_results(set()).finished_recving == {"d"}
    assert worker.get_block_ids_with_load_errors() == set()
    prefiller.update_connector_output(
        SimpleNamespace(finished_recving={"d"}, failed_recving=set(), kv_connector_worker_meta=None)
    )
    assert prefiller._scheduler._loading == {}


def test_a_block_from_hook_to_hook(clients, monkeypatch):
    """Stored by one request, loaded by the next, told as events."""
    monkeypatch.setattr("vllm.v1.core.kv_cache_utils.resolve_kv_cache_block_sizes", lambda cache, config: (16, 16))
    made, worker = connector(caching=True, events=True), connector("WORKER")
    client = clients["scheduler"]
    client.tiers = True
    new = request("a", 40)
    new.block_hashes = [b"1" * 32, b"2" * 32]
    assert made.get_num_new_matched_tokens(new, 0) == (None, False)
    client.found(100, (0,), (0,))
    assert made.get_num_new_matched_tokens(new, 0) == (0, False)
    made.update_state_after_alloc(new, blocks([1, 2, 3]), 0)
    step(worker, made.build_connector_meta(output({"a": 0}, {"a": 40}, {"a": ([1, 2, 3],)}, new=["a"])))
    assert len(clients["worker"].stores) == 1
    clients["worker"].copied(100)
    step(worker, made.build_connector_meta(output({}, {}, {})))
    assert clients["worker"].committed == [100]

    again = request("b", 40)
    again.block_hashes = new.block_hashes
    made.get_num_new_matched_tokens(again, 0)
    client.found(101, (2,), (0,))
    assert made.get_num_new_matched_tokens(again, 0) == (32, True)
    made.update_state_after_alloc(again, blocks([4, 5]), 32)
    sources = made.get_external_cache_hit_sources(again, 32)
    assert {source.name: count for source, count in sources.items()} == {"HOST": 32}
    assert {s.name for s in made.get_external_cache_hit_sources(again, 31)} == {"EXTERNAL_UNSPECIFIED"}
    step(worker, made.build_connector_meta(output({}, {}, {})))
    clients["worker"].loaded(101)
    assert worker.get_transfer_results(set()).finished_recving == {"b"}

    client.events.append(TierChanged("disk", ((0, b"1" * 32),), ((0, b"2" * 32),)))
    made.build_connector_meta(output({}, {}, {}))
    stored, removed = made.take_events()
    assert (stored.medium, stored.group_idx, removed.medium) == ("STORAGE", 0, "STORAGE")
    assert list(made.take_events()) == []

    assert made.reset_cache() is True
    step(worker, made.build_connector_meta(output({}, {}, {})))
    report = worker.build_connector_worker_meta()
    made.update_connector_output(
        SimpleNamespace(finished_recving=set(), failed_recving=set(), kv_connector_worker_meta=report)
    )
    assert worker.build_connector_worker_meta() is None
    assert not made._scheduler.tiers._lookups.suspended


def step(worker, meta):
    """The order of a worker's hooks in one step."""
    meta = pickle.loads(pickle.dumps(meta))
    worker.handle_preemptions(meta)
    worker.bind_connector_metadata(meta)
    worker.start_load_kv(None)
    worker.wait_for_save()
    worker.get_transfer_results(set())
    worker.clear_connector_metadata()


@pytest.mark.parametrize(
    ("options", "is_on"),
    [({"caching": True}, True), ({"caching": False}, False), ({"caching": True, "extra": {"tier": False}}, False)],
)
def test_tiers_need_names_and_can_be_turned_off(clients, monkeypatch, options, is_on):
    monkeypatch.setattr("vllm.v1.core.kv_cache_utils.resolve_kv_cache_block_sizes", lambda cache, config: (16, 16))
    assert connector(**options)._scheduler.tiers._is_on == is_on


def test_hashes_that_do_not_fit_blocks_turn_tiers_off(clients, monkeypatch):
    monkeypatch.setattr("vllm.v1.core.kv_cache_utils.resolve_kv_cache_block_sizes", lambda cache, config: (32, 32))
    assert not connector(caching=True)._scheduler.tiers._is_on


def test_the_wrong_half_is_a_bug_and_says_so(clients):
    with pytest.raises(RuntimeError, match="scheduler"):
        connector("WORKER").build_connector_meta(None)
    assert connector().get_transfer_results(set()).finished_sending == set()


def test_memory_on_a_gpu_is_left_alone(clients, monkeypatch):
    from vllm import platforms

    worker = connector("WORKER")
    monkeypatch.setattr(platforms, "current_platform", SimpleNamespace(device_type="cuda"))
    assert worker.get_mem_pool_context() is None
