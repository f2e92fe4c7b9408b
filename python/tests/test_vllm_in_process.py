"""The connector inside a real vLLM engine, in this process, on the CPU, with a tiny model. Opt in: KVFERRY_TEST_VLLM=1.

Against a daemon that is not there, the engine serves. Against one that moves real bytes, one engine prefills, forgets,
and decodes from what it leased to itself; failures, aborts and forgeries are computed and give the same text, and
after each test vLLM has every block back.
"""

import importlib.util
import os
import subprocess
import sys
import textwrap

import native_paths
import pytest

REAL = importlib.util.find_spec("vllm") is not None and os.environ.get("KVFERRY_TEST_VLLM") == "1"
pytestmark = [pytest.mark.vllm, pytest.mark.skipif(not REAL, reason="KVFERRY_TEST_VLLM=1 and vLLM are not there")]

PROMPT = "The quick brown fox jumps over the lazy dog. " * 5
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_HOST_IP": "127.0.0.1",
    "GLOO_SOCKET_IFNAME": "lo",
    "VLLM_CPU_CI_ENV": "1",
}
PREFILL = {"do_remote_decode": True, "do_remote_prefill": False, "remote_block_ids": None, "remote_engine_id": None}


class Engine:
    """A vLLM engine that is stepped by hand."""

    def __init__(self, model, socket=None, connector=None, **more):
        from vllm import LLM

        self.llm = LLM(
            model=model,
            dtype="float32",
            block_size=32,
            max_model_len=1024,
            num_gpu_blocks_override=64,
            enforce_eager=True,
            distributed_executor_backend="uni",
            disable_log_stats=True,
            kv_transfer_config=connector
            or {
                "kv_connector": "KVFerryConnector",
                "kv_connector_module_path": "kvferry.vllm",
                "kv_role": "kv_both",
                "kv_load_failure_policy": "recompute",
                "kv_connector_extra_config": {"socket": socket},
            },
            **more,
        )
        self.core = self.llm.llm_engine.engine_core.engine_core
        self.scheduler = self.core.scheduler
        self.outputs = {}
        self.names = iter(range(10**6))

    def add(self, prompt, params=None, max_tokens=8, salt=None, adapter=None):
        """Adds a request; each has a salt of its own, so that it finds nothing in the local cache."""
        from vllm import SamplingParams

        name = f"r{next(self.names)}"
        extra = {"kv_transfer_params": dict(params)} if params else None
        sampling = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, extra_args=extra)
        asked = {"prompt": prompt, "cache_salt": salt or name}
        self.llm.llm_engine.add_request(name, asked, sampling, lora_request=adapter)
        return name

    def step(self):
        for output in self.llm.llm_engine.step():
            if output.finished:
                self.outputs[output.request_id] = output

    def finish(self, name, steps=500):
        for _ in range(steps):
            if name in self.outputs:
                return self.outputs.pop(name)
            self.step()
        raise AssertionError(f"{name} did not finish")

    def text(self, prompt, params=None, max_tokens=8, salt=None, adapter=None):
        return tuple(self.finish(self.add(prompt, params, max_tokens, salt, adapter)).outputs[0].token_ids)

    def prefill(self, prompt=PROMPT, adapter=None):
        return self.finish(self.add(prompt, PREFILL, max_tokens=1, adapter=adapter)).kv_transfer_params

    def drain(self, steps=300):
        """Steps the bare core as its busy loop does, until vLLM says that there is nothing left."""
        for _ in range(steps):
            if not self.scheduler.has_requests():
                return
            self.core.step_fn()
        raise AssertionError(f"still held: {sorted(self.scheduler.requests)}")

    def assert_idle(self):
        self.drain()
        assert self.scheduler.requests == {}
        assert self.free_blocks() == 63  # All but the null block.
        assert self.llm.reset_prefix_cache()

    def free_blocks(self):
        return self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()


@pytest.fixture(scope="module")
def daemon():
    from loopback_daemon import LoopbackDaemon

    return LoopbackDaemon()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    import tiny_model

    os.environ.update(ENVIRONMENT)
    folder = tmp_path_factory.mktemp("model")
    tiny_model.make(str(folder))
    return str(folder)


@pytest.fixture(scope="module")
def loaded(model, daemon):
    from kvferry import native

    patch = pytest.MonkeyPatch()
    patch.setattr(native, "start_scheduler", daemon.start_scheduler)
    patch.setattr(native, "start_worker", daemon.start_worker)
    yield Engine(model, "/nowhere/kvferry.sock")
    patch.undo()


@pytest.fixture
def engine(loaded, daemon):
    daemon.mode, daemon.connected, daemon.delivered = "deliver", True, 0
    daemon.relinquished.clear()
    loaded.assert_idle()
    yield loaded
    daemon.mode = "deliver"
    for ticket in list(daemon.leases):
        daemon.end(ticket, "test over")
    loaded.assert_idle()


@pytest.fixture
def expected(engine):
    text = engine.text(PROMPT)
    engine.assert_idle()
    return text


def test_its_memory_is_shared(engine, daemon):
    spec = daemon.spec
    assert (spec.rank, spec.rank_count, len(spec.fingerprint)) == (0, 1, 32)
    assert spec.model == engine.core.vllm_config.model_config.served_model_name
    assert spec.layout.order == "LBHNC"
    assert spec.layout.block_count == 64
    ((span,),) = spec.layout.groups
    assert (span.layer_count, span.head_count, span.token_count, span.content_bytes) == (2, 2, 32, 2 * 64 * 4)
    assert os.fstat(spec.region_fd).st_size == spec.layout.region_bytes
    assert engine.scheduler.connector._scheduler.refusal is None


def test_a_lease_pins_blocks_and_the_core_steps_until_it_ends(engine, daemon):
    before = engine.free_blocks()
    params = engine.prefill()
    held = sum(len(group) for group in params["remote_block_ids"])
    assert held == -(-params["remote_num_tokens"] // 32)
    for _ in range(20):
        engine.core.step_fn()
    assert engine.free_blocks() == before - held
    assert engine.scheduler.has_requests()
    assert not engine.scheduler.has_unfinished_requests()
    (ticket,) = daemon.leases
    daemon.end(ticket, "expired")
    engine.drain()
    assert engine.free_blocks() == before


def test_a_decode_reads_what_was_leased(engine, daemon, expected):
    params = engine.prefill()
    assert engine.text(PROMPT, params) == expected
    assert daemon.delivered == 1


def test_a_decode_reads_real_bytes(engine, daemon, expected):
    """The check above would also pass if the delivered bytes were never looked at."""
    params = engine.prefill()
    name = engine.add(PROMPT, params)
    daemon.mode = "hold"
    for _ in range(5):
        engine.step()
    ((_, _, groups),) = daemon.waiting.values()
    (ticket,) = daemon.leases
    blocks = daemon.leases[ticket][1][0]
    daemon.leases[ticket] = (daemon.leases[ticket][0], [blocks[::-1]], daemon.leases[ticket][2])
    assert len(groups[0].positions) > 1
    daemon.mode = "deliver"
    assert tuple(engine.finish(name).outputs[0].token_ids) != expected


def test_a_partial_local_hit_fetches_the_rest(engine, daemon, expected):
    params = engine.prefill()
    (ticket,) = daemon.leases
    engine.text(PROMPT[:100], max_tokens=1, salt="both")
    daemon.mode = "hold"
    name = engine.add(PROMPT, params, salt="both")
    for _ in range(5):
        engine.step()
    ((_, _, groups),) = daemon.waiting.values()
    # Three blocks of a hundred tokens are cached here.
    assert groups[0].positions == tuple(range(3, -(-(params["remote_num_tokens"] - 1) // 32)))
    assert ticket in daemon.leases
    daemon.mode = "deliver"
    assert tuple(engine.finish(name).outputs[0].token_ids) == expected


@pytest.mark.parametrize("failure", ["lease_ended", "checksum", "daemon_gone"])
def test_a_failed_load_is_computed(engine, daemon, expected, failure, monkeypatch):
    monkeypatch.setattr("kvferry.vllm.worker.GONE_SECONDS", 0.01)
    params = engine.prefill()
    daemon.mode = failure
    name = engine.add(PROMPT, params)
    assert tuple(engine.finish(name, steps=5000).outputs[0].token_ids) == expected
    assert daemon.delivered == 0


@pytest.mark.parametrize(
    "change",
    [
        {"kvferry": {"version": 1, "ticket": "forged", "digest": None}},
        {"kvferry": {"version": 1, "ticket": "forged"}},
        {"kvferry": None},
        {"remote_block_ids": None},
        {"remote_block_ids": [[0, 0, 0, 0, 0, 0, 0, 0]]},
        {"remote_num_tokens": 10**6},
        {"remote_num_tokens": "many"},
    ],
)
def test_forged_and_malformed_parameters_are_computed(engine, daemon, expected, change):
    params = engine.prefill()
    if change.get("kvferry") and "digest" in change["kvferry"]:
        change = {"kvferry": {**change["kvferry"], "digest": params["kvferry"]["digest"]}}
    assert engine.text(PROMPT, {**params, **change}) == expected
    assert daemon.delivered == 0


def test_another_prompt_s_ticket_is_not_used(engine, daemon):
    other = PROMPT.replace("fox", "cat")
    wanted = engine.text(other)
    params = engine.prefill()
    assert engine.text(other, params) == wanted
    assert daemon.delivered == 0
    assert daemon.relinquished


def test_two_requests_for_one_ticket(engine, daemon, expected):
    params = engine.prefill()
    names = [engine.add(PROMPT, params), engine.add(PROMPT, params)]
    assert [tuple(engine.finish(name).outputs[0].token_ids) for name in names] == [expected, expected]
    assert daemon.delivered == 1


@pytest.mark.parametrize("steps", [0, 1, 2, 6])
@pytest.mark.parametrize("answer", ["cancelled", "late"])
def test_an_abort_at_any_time_gives_every_block_back(engine, daemon, steps, answer, monkeypatch):
    params = engine.prefill()
    daemon.mode = "hold"
    name = engine.add(PROMPT, params)
    for _ in range(steps):
        engine.step()
    if answer == "late":
        # The transfer is done at the daemon when the abort gets there.
        monkeypatch.setattr("loopback_daemon._Loopback.abort", lambda self, key: None)
    assert engine.scheduler.has_unfinished_requests()
    engine.llm.llm_engine.abort_request([name])
    assert not engine.scheduler.has_unfinished_requests()
    for _ in range(3):
        engine.core.step_fn()
    # While the daemon may still write, its blocks belong to nobody else.
    leased = sum(len(group) for _, blocks, _ in daemon.leases.values() for group in blocks)
    targets = sum(len(wanted.targets) for _, _, groups in daemon.waiting.values() for wanted in groups)
    assert bool(targets) == (answer == "late" and steps > 0)
    assert bool(leased) == (steps > 0)
    assert engine.free_blocks() == 63 - leased - targets
    daemon.mode = "deliver"


def test_a_request_rejected_by_the_api_server_frees_p(engine, daemon):
    from vllm import SamplingParams
    from vllm.v1.engine import EngineCoreRequest

    params = engine.prefill()
    fields = dict.fromkeys(("mm_features", "pooling_params", "lora_request", "cache_salt"))
    rejected = EngineCoreRequest(
        request_id="rejected",
        prompt_token_ids=[0],
        sampling_params=SamplingParams(max_tokens=1, extra_args={"kv_transfer_params": dict(params)}),
        arrival_time=0.0,
        data_parallel_rank=None,
        abort_immediately=True,
        **fields,
    )
    request, wave = engine.core.preprocess_add_request(rejected)
    engine.core.add_request(request, wave)
    assert daemon.relinquished == [params["kvferry"]["ticket"]]
    assert daemon.leases == {}


def test_without_a_daemon_it_serves(engine, daemon, expected):
    daemon.connected = False
    assert engine.prefill() is None
    assert engine.text(PROMPT) == expected


def test_a_preempted_request_computes_again(engine, daemon, expected):
    params = engine.prefill()
    name = engine.add(PROMPT, params)
    while daemon.delivered == 0:
        engine.step()
    for _ in range(4):
        engine.step()
    assert [request.request_id for request in engine.scheduler.running]
    # Preempts all that runs.
    engine.scheduler.reset_prefix_cache(reset_running_requests=True)
    assert not engine.scheduler.running
    assert tuple(engine.finish(name).outputs[0].token_ids) == expected
    assert daemon.delivered == 1


def test_the_native_client_without_any_daemon(model):
    """Start to finish with nothing at the socket: no hang, no error, no parameters, and the same text."""
    script = """
        import sys, time
        sys.path[:0] = {path!r}
        from test_vllm_in_process import Engine, PREFILL, PROMPT
        engine = Engine({model!r}, "/nowhere/kvferry.sock")
        plain = engine.text(PROMPT)
        began = time.monotonic()
        assert engine.prefill() is None
        assert time.monotonic() - began < 5
        forged = dict(do_remote_prefill=True, do_remote_decode=False, remote_num_tokens=9, remote_block_ids=[[1]],
                      kvferry=dict(version=1, ticket="forged", digest=""))
        assert engine.text(PROMPT, forged) == plain
        engine.assert_idle()
        print("served")
    """
    path = native_paths.python_path()
    if path is None:
        pytest.skip("the native module was not built")
    code = textwrap.dedent(script).format(path=path, model=model)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    assert "served" in run.stdout
