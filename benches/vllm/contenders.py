"""The three ways to the first token on D: compute the prompt, fetch it with NixlConnector, fetch it with KVFerry.

::

    recompute              prompt ------------------------------------------------> engine D   computes, decodes
    nixl      prompt -> engine P computes -> kv_transfer_params -> prompt + params -> engine D   fetches, decodes
    kvferry   the same, with the two daemons between the engines

Each has engines of its own, alike in everything but the connector. Only one contender has the cores at any time: the
others are paused (SIGSTOP), because NixlConnector's progress threads never sleep and would spoil the others' figures.
Both engines of a contender pause and go on together.

The two legs are sent one after the other, as a router sends them; no router or sidecar stands between, so that the
legs of both connectors are the same. Why not one engine for all: an engine has one connector.
"""

from __future__ import annotations

import http.client
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from daemon import Daemon
from harness.completions import Answer
from harness.engine import PREFILL, SMOLLM2, Connector, Engine, EngineOptions, kvferry_connector
from harness.ports import free_port
from harness.processes import Stage, StageError
from samples import Request

# 9,600 tokens, 211 MiB: four rounds of prompts. Older ones make room, as in an engine that serves.
ENGINE_BLOCKS = 300
# Half of the cores for each engine: threads that wait for one another while others have their core are slow.
THREADS = max(1, (os.cpu_count() or 2) // 2)
# A daemon that must wait for a core may take longer than the usual 200 ms to answer.
SETTINGS = {"lease_ms": 20_000, "reply_timeout_ms": 2_000}
ANSWER_TOKENS = 12
# Tokens that D took from another engine, and from its own cache.
FETCHED = "vllm:external_prefix_cache_hits_total"
CACHED = "vllm:prefix_cache_hits_total"


@dataclass
class Contender:
    name: str
    decode: Engine
    # Without one D computes its prompts.
    prefill: Engine | None = None
    daemons: tuple[Daemon, ...] = ()

    @property
    def engines(self) -> list[Engine]:
        return [engine for engine in (self.prefill, self.decode) if engine is not None]

    def wait_ready(self, tell: Callable[[float], None]) -> None:
        for engine in self.engines:
            engine.wait_ready(tell)
        for daemon, engine in zip(self.daemons, self.engines, strict=False):
            daemon.wait_attached(engine.name)

    def pause(self) -> None:
        """Takes the cores away. Daemons stay as they are: an idle one uses none."""
        for engine in self.engines:
            engine.process.pause()

    def go_on(self) -> None:
        for engine in self.engines:
            engine.process.go_on()

    def engine_cpu_s(self) -> float:
        return sum(engine.process.cpu_s() for engine in self.engines)

    def daemon_cpu_s(self) -> float:
        return sum(daemon.cpu_s() for daemon in self.daemons)

    def ask(self, prompt: str) -> Request:
        """One prompt from its first leg to its last token. A failure is told in the request, not raised."""
        fetched, cached = self.decode.metric(FETCHED), self.decode.metric(CACHED)
        busy_s, engines_s, daemons_s = machine_busy_s(), self.engine_cpu_s(), self.daemon_cpu_s()
        own_s = time.process_time()
        start = time.monotonic()
        try:
            prefill_s, answer = self._legs(prompt)
            failure = None if answer.status == 200 else f"{answer.status}: {answer.text}"
        except (OSError, http.client.HTTPException, StageError) as error:
            prefill_s, answer, failure = 0.0, Answer(0, ""), f"{type(error).__name__}: {error}"
        total_s = time.monotonic() - start
        engines_s, daemons_s = self.engine_cpu_s() - engines_s, self.daemon_cpu_s() - daemons_s
        others_s = machine_busy_s() - busy_s - engines_s - daemons_s - (time.process_time() - own_s)
        return Request(
            prompt_tokens=answer.prompt_tokens,
            prefill_s=prefill_s,
            first_s=answer.first_s,
            transfer_s=0.0 if failure else self._transfer_s(),
            total_s=total_s,
            engines_cpu_s=engines_s,
            daemons_cpu_s=daemons_s,
            others_cpu_s=max(0.0, others_s),
            fetched_tokens=int(self.decode.metric(FETCHED) - fetched),
            cached_tokens=int(self.decode.metric(CACHED) - cached),
            token_ids=answer.token_ids,
            failure=failure,
        )

    def _transfer_s(self) -> float:
        finished = self.daemons[-1].status().finished if self.daemons else []
        return finished[-1].micros / 1e6 if finished else 0.0

    def _legs(self, prompt: str) -> tuple[float, Answer]:
        if self.prefill is None:
            return 0.0, self.decode.server.stream(prompt, ANSWER_TOKENS)
        offer = self.prefill.server.complete(prompt, 1, kv_transfer_params=PREFILL)
        if offer.status != 200 or offer.kv_transfer_params is None:
            raise StageError(f"the prefill leg ended with {offer.status}: {offer.text}")
        answer = self.decode.server.stream(prompt, ANSWER_TOKENS, kv_transfer_params=offer.kv_transfer_params)
        return offer.total_s, answer


def start_recompute(stage: Stage) -> Contender:
    """One engine without a connector."""
    return Contender("recompute", Engine(stage, _options("R-D", None)))


def start_nixl(stage: Stage, packages: Path) -> Contender:
    """vLLM's NixlConnector as it is configured by default, over the transports that UCX chooses."""
    sides = []
    for name in ("N-P", "N-D"):
        connector = Connector(
            {"kv_connector": "NixlConnector", "kv_role": "kv_both", "kv_buffer_device": "cpu"},
            {
                "PYTHONPATH": str(packages),
                "VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1",
                "VLLM_NIXL_SIDE_CHANNEL_PORT": str(free_port()),
            },
        )
        sides.append(Engine(stage, _options(name, connector)))
    return Contender("nixl", decode=sides[1], prefill=sides[0])


def start_kvferry(stage: Stage, binary: Path, priority: int | None = None) -> Contender:
    """Our connector, each engine with a daemon of its own as on two nodes, TCP between them.

    A priority is the daemons' ``limits.realtime_priority``; without one they have what they take by default.
    """
    daemons = Daemon(stage, binary, "P", "127.0.0.1"), Daemon(stage, binary, "D", "127.0.0.2")
    sides = []
    for daemon in daemons:
        daemon.start(realtime_priority=priority)
        connector = kvferry_connector(daemon.socket, **SETTINGS)
        sides.append(Engine(stage, _options(f"K-{daemon.name}", connector)))
    return Contender("kvferry", decode=sides[1], prefill=sides[0], daemons=daemons)


def _options(name: str, connector: Connector | None) -> EngineOptions:
    return EngineOptions(SMOLLM2, name, ENGINE_BLOCKS, connector, forked=True, thread_count=THREADS)


def machine_busy_s() -> float:
    """Processor time that all cores together have spent on anything."""
    with open("/proc/stat") as source:
        user, nice, system, _idle, _iowait, irq, softirq = map(int, source.readline().split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
