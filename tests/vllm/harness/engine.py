"""One vLLM engine on the CPU, with or without the connector."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .completions import Server
from .ports import free_port
from .processes import Process, Stage

ROOT = Path(__file__).resolve().parents[3]
PYTHON = ROOT / "target" / "vllm" / "bin" / "python"
MODELS = ROOT / "target" / "models"
# CPU attention takes multiples of 32 only.
BLOCK_TOKENS = 32
# Two engines that start together are ready after 41 to 47 s on two quiet cores, 17 s when forked (measured); this
# allows for a machine that compiles meanwhile.
START_S_MAX = 300.0
# Of prompts in one step; a longer one takes several. What `vllm serve` has for one rank on CPUs anyway.
STEP_TOKENS = 2048
# API server, engine core, worker; of an engine of one rank.
PROCESS_COUNT = 3

# What `prefill` adds to a request: keep the blocks for another engine.
PREFILL = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}


@dataclass(frozen=True)
class Model:
    name: str
    dtype: str
    # KV of one block, over all layers of its group, all ranks together.
    block_bytes: int
    # Of each KV cache group, in vLLM's order: how many tokens a token looks back on, itself included; None: all.
    windows: tuple[int | None, ...] = (None,)

    @property
    def folder(self) -> Path:
        return MODELS / self.name


SMOLLM2 = Model("smollm2-135m", "bfloat16", 30 * 3 * BLOCK_TOKENS * 128 * 2)
TINY_LLAMA = Model("tiny-llama", "float32", 2 * 2 * BLOCK_TOKENS * 128 * 4)
# Two layers in each group.
TINY_GEMMA3 = Model("tiny-gemma3", "float32", 2 * 2 * BLOCK_TOKENS * 128 * 4, windows=(128, 128, None))


@dataclass(frozen=True)
class Connector:
    """What carries an engine's KV cache."""

    # Of --kv-transfer-config, all but the engine's id.
    config: Mapping[str, Any]
    environment: Mapping[str, str] = field(default_factory=dict)


def kvferry_connector(socket: Path, **extra_config: Any) -> Connector:
    """Ours, with the daemon of the engine's node."""
    return Connector(
        {
            "kv_connector": "KVFerryConnector",
            "kv_connector_module_path": "kvferry.vllm",
            "kv_role": "kv_both",
            "kv_load_failure_policy": "recompute",
            "kv_connector_extra_config": {"socket": str(socket), **extra_config},
        }
    )


@dataclass(frozen=True)
class EngineOptions:
    model: Model
    engine_id: str
    # Of its KV cache.
    block_count: int
    # Without one every prompt is computed.
    connector: Connector | None = None
    # Starts the engine's three processes by fork: the same engine, a third of the start. `vllm serve` itself spawns.
    forked: bool = False
    # Of each rank's compute; None leaves it to vLLM.
    thread_count: int | None = None
    # Ranks that share each layer's KV heads.
    tensor_parallel_size: int = 1


class Engine:
    """A started engine. ``wait_ready`` before asking it anything."""

    def __init__(self, stage: Stage, options: EngineOptions) -> None:
        self.options = options
        self.server = Server("127.0.0.1", free_port())
        self._stage = stage
        self.process: Process = self._start()

    @property
    def name(self) -> str:
        return self.options.engine_id

    def wait_ready(self, tell: Callable[[float], None] | None = None) -> None:
        self.process.wait_until(lambda: self.server.answers("/health"), "healthy", START_S_MAX, tell)

    def kill(self) -> None:
        """SIGKILL to all its processes."""
        self.process.kill()
        self._stage.forget(self.process)

    def restart(self) -> None:
        self.process = self._start()

    def is_serving(self) -> bool:
        return self.process.is_running() and self.server.answers("/health")

    def metric(self, name: str) -> float:
        """The sum over a metric's samples."""
        status, text = self.server.get("/metrics")
        assert status == 200, text
        found = re.findall(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)
        return sum(map(float, found))

    def is_idle(self) -> bool:
        """Whether no request is left and no block is held for one."""
        names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
        return all(self.metric(f"vllm:{name}") == 0 for name in names)

    def command(self) -> list[str | Path]:
        """What a person would type."""
        options = self.options
        serve: Sequence[str | Path] = (PYTHON, PYTHON.parent / "vllm", "serve")
        if options.forked:
            serve = (PYTHON, Path(__file__).with_name("forked_serve.py"))
        command: list[str | Path] = [*serve, options.model.folder]
        command += ["--host", self.server.host, "--port", str(self.server.port), "--served-model-name", "m"]
        command += ["--dtype", options.model.dtype, "--block-size", str(BLOCK_TOKENS), "--enforce-eager"]
        command += ["--max-model-len", "4096", "--max-num-seqs", "8", "--max-num-batched-tokens", str(STEP_TOKENS)]
        command += ["--num-gpu-blocks-override", str(options.block_count)]
        if options.tensor_parallel_size > 1:
            command += ["--tensor-parallel-size", str(options.tensor_parallel_size)]
        if options.connector is not None:
            transfer = {**options.connector.config, "engine_id": options.engine_id}
            command += ["--kv-transfer-config", json.dumps(transfer)]
        return command

    def _start(self) -> Process:
        return self._stage.start(f"engine-{self.name}", self.command(), self._environment())

    def _environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("HOME", "LANG", "PATH") if name in os.environ}
        folder = str(self._stage.folder)
        if self.options.thread_count is not None:
            kept["OMP_NUM_THREADS"] = str(self.options.thread_count)
        if self.options.tensor_parallel_size > 1:
            # With several ranks C++ compilers were seen at work behind the start, eager or not, on cores that the first
            # request wants.
            kept["TORCHDYNAMO_DISABLE"] = "1"
        connector = self.options.connector
        return {
            **kept,
            **(connector.environment if connector is not None else {}),
            # Nothing is fetched and nothing reported.
            "DO_NOT_TRACK": "1",
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            # Everything it writes goes with the stage.
            "TMPDIR": folder,
            "VLLM_CACHE_ROOT": f"{folder}/cache",
            "VLLM_CONFIG_ROOT": f"{folder}/config",
            "XDG_CACHE_HOME": f"{folder}/cache",
            # Whole GiB only; --num-gpu-blocks-override decides what is taken.
            "VLLM_CPU_KVCACHE_SPACE": "1",
            # Both engines share the cores.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "GLOO_SOCKET_IFNAME": "lo",
            "VLLM_HOST_IP": "127.0.0.1",
            "PYTHONUNBUFFERED": "1",
        }
