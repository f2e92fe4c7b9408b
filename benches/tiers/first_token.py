"""Time to the first token: computed, from the engine's own prefix cache, and loaded from host memory.

    daemon with [tier.host] -> one engine -> turns: recompute | own cache | host     each with a prompt of the round's

One engine answers all of them, and each turn makes its own ground, untimed: *own cache* asks the prompt first, *host*
asks it, waits until all of it is stored and has the engine forget its prefix cache (vLLM's development endpoint, which
leaves the connector's store alone). What the engine and the daemon count shows where the blocks came from; a turn whose
counts are others is an error, not a figure.
"""

from __future__ import annotations

import http.client
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import installation
import logbook
from children import PeerError
from daemon import Daemon
from harness.completions import fresh_salt
from harness.engine import SMOLLM2, Connector, Engine, EngineOptions, kvferry_connector
from harness.processes import Stage, StageError
from peer import Peer, Turn
from places import BLOCK_TOKENS

BINARY = installation.ROOT / "target" / "release" / "kvferry"
LOGS = installation.ROOT / "target" / "logs"
# All prompts of a run, and what recomputing stores beside them, some of which may go.
HOST_MIB = 1024
ENGINE_BLOCKS = 300
LINES = 88
# All of as many digits, so that prompts have as many tokens.
FIRST_SERIAL = 4000
ANSWER_TOKENS = 2
STORED_LIMIT_S = 30.0
CACHED = "vllm:prefix_cache_hits_total"
LOADED = "vllm:external_prefix_cache_hits_total"
WAYS = {
    "recompute": "recompute",
    "own-cache": "the engine's own prefix cache",
    "host": "KVFerry, loaded from host memory",
}


class Node:
    """One daemon with host memory and one engine."""

    def __init__(self, stage: Stage, memory: Path) -> None:
        self.daemon = Daemon(stage, BINARY, "T", "127.0.0.1")
        self.daemon.start(host_tier=memory / "arena", host_mib=HOST_MIB)
        found = kvferry_connector(self.daemon.socket)
        connector = Connector(found.config, {**found.environment, "VLLM_SERVER_DEV_MODE": "1"})
        self.engine = Engine(stage, EngineOptions(SMOLLM2, "T0", ENGINE_BLOCKS, connector, forked=True))

    def wait_ready(self) -> None:
        self.engine.wait_ready(lambda seconds: print(f"  {seconds:.0f} s", flush=True))
        self.daemon.wait_attached(self.engine.name)

    def wait_stored(self) -> None:
        self.daemon.wait_for(lambda status: status.tiers["stores"] == 0, "done with storing", STORED_LIMIT_S)

    def forget(self) -> None:
        """The engine's prefix cache; blocks that are still held would keep it."""
        server = self.engine.server
        connection = http.client.HTTPConnection(server.host, server.port, timeout=STORED_LIMIT_S)
        deadline = time.monotonic() + STORED_LIMIT_S
        try:
            while True:
                connection.request("POST", "/reset_prefix_cache")
                response = connection.getresponse()
                body = response.read().decode(errors="replace")
                if response.status == 200 and json.loads(body)["success"]:
                    return
                if response.status != 200 or time.monotonic() > deadline:
                    raise PeerError(f"the engine does not forget its prefix cache: {response.status} {body[:100]}")
                time.sleep(0.1)
        finally:
            connection.close()

    def counts(self) -> dict[str, int]:
        """Tokens from the engine's cache and from outside, and bytes loaded as the daemon tells it."""
        return {
            "cached_tokens": int(self.engine.metric(CACHED)),
            "loaded_tokens": int(self.engine.metric(LOADED)),
            "loaded_bytes": self.daemon.status().tiers["loaded_bytes_total"],
        }

    def ask(self, prompt: str, **options: Any) -> tuple[float, dict[str, Any]]:
        """Seconds to the first token, and what was counted meanwhile."""
        before = self.counts()
        answer = self.engine.server.stream(prompt, ANSWER_TOKENS, **options)
        if answer.status != 200:
            raise PeerError(f"{answer.status}: {answer.text[:100]}")
        after = self.counts()
        counted: dict[str, Any] = {name: after[name] - before[name] for name in after}
        counted |= {"prompt_tokens": answer.prompt_tokens, "token_ids": answer.token_ids}
        return answer.first_s, counted


@contextmanager
def node() -> Iterator[Node]:
    """One that is ready; ended and removed with the block.

    Raises:
        StageError: daemon or engine did not start.
    """
    print("starting daemon and engine: half a minute or more", flush=True)
    with (
        Stage("bench-tiers", LOGS) as stage,
        tempfile.TemporaryDirectory(dir="/dev/shm", prefix="kvferry-tiers-") as memory,
    ):
        try:
            made = Node(stage, Path(memory))
            made.wait_ready()
            # The first steps of an engine are slow, whatever they do.
            made.ask(prompt(-1))
            yield made
        finally:
            stage.save_logs()


def prompt(number: int) -> str:
    """No two of them have a block in common: their first ones differ, and hashes are chained."""
    return f"Logbook {FIRST_SERIAL + number}.\n{logbook.prompt('Swan', LINES)}"


class FirstToken(Peer):
    """One of the ways to a first token."""

    def __init__(self, name: str, asked: Node) -> None:
        super().__init__(name, WAYS[name], ("ttft",))
        self._node = asked

    def measure(self, turn: Turn) -> None:
        try:
            first_s, counted = self._ask(turn)
        except (OSError, http.client.HTTPException, StageError) as error:
            raise PeerError(f"{type(error).__name__}: {error}".splitlines()[0]) from error
        why = wrong(self.name, counted)
        cell = turn.setting.cells[0]
        turn.record(replace(self.row(turn, cell), p50_us=first_s * 1e6, raw=counted, error=why))

    def _ask(self, turn: Turn) -> tuple[float, dict[str, Any]]:
        asked = self._node
        text = prompt(turn.round)
        if self.name == "recompute":
            found = asked.ask(text, **fresh_salt())
        else:
            asked.ask(text)
            asked.wait_stored()
            if self.name == "host":
                asked.forget()
            found = asked.ask(text)
        # What is stored in the background falls into no other turn.
        asked.wait_stored()
        return found


def wrong(way: str, counted: dict[str, Any]) -> str | None:
    """What shows that the blocks did not come from where they should, or None."""
    whole = (counted["prompt_tokens"] - 1) // BLOCK_TOKENS
    wanted = {
        "cached_tokens": whole * BLOCK_TOKENS if way == "own-cache" else 0,
        "loaded_tokens": whole * BLOCK_TOKENS if way == "host" else 0,
        "loaded_bytes": whole * SMOLLM2.block_bytes if way == "host" else 0,
    }
    others = [f"{name} {counted[name]}, not {value}" for name, value in wanted.items() if counted[name] != value]
    return "; ".join(others) or None
