"""Time to the first token: computed, from the engine's own prefix cache, and loaded from host memory or from disk.

    daemon with both tiers -> one engine -> turns: recompute | own cache | host | disk    each with the round's prompt

One engine answers all of them, and each turn makes its own ground, untimed: *own cache* asks the prompt first, *host*
asks it, waits until all of it is stored and has the engine forget its prefix cache (vLLM's development endpoint, which
leaves the connector's store alone). *disk* goes on: what is asked for again is written to the disk, and then the daemon
is killed and starts without its host memory. What the engine and the daemon count shows where the blocks came from; a
turn whose counts are others is an error, not a figure.
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
# A block is written in milliseconds.
WRITTEN_PAUSE_S = 0.5
WRITTEN_LIMIT_S = 30.0
CACHED = "vllm:prefix_cache_hits_total"
LOADED = "vllm:external_prefix_cache_hits_total"
WAYS = {
    "recompute": "recompute",
    "own-cache": "the engine's own prefix cache",
    "host": "KVFerry, loaded from host memory",
    "disk": "KVFerry, loaded from disk",
}


class Node:
    """One daemon with host memory and a disk, and one engine."""

    def __init__(self, stage: Stage, memory: Path, disk: Path) -> None:
        self._arena = memory / "arena"
        self._disk = disk / "store"
        self.daemon = Daemon(stage, BINARY, "T", "127.0.0.1")
        self._start_daemon()
        found = kvferry_connector(self.daemon.socket)
        connector = Connector(found.config, {**found.environment, "VLLM_SERVER_DEV_MODE": "1"})
        self.engine = Engine(stage, EngineOptions(SMOLLM2, "T0", ENGINE_BLOCKS, connector, forked=True))

    def _start_daemon(self) -> None:
        self.daemon.start(host_tier=self._arena, host_mib=HOST_MIB, disk_tier=self._disk)

    def lose_memory(self) -> None:
        """Kills the daemon and starts it without what host memory held."""
        self.daemon.kill()
        self._arena.unlink()
        self._start_daemon()
        self.daemon.wait_attached(self.engine.name)

    def wait_written(self) -> None:
        """Until nothing more comes to the disk; whether enough did, the bytes of the next load tell.

        Raises:
            PeerError: there is no end to it.
        """
        before = -1
        deadline = time.monotonic() + WRITTEN_LIMIT_S
        while (now := self.daemon.status().tiers["disk"]["blocks"]) != before:
            if time.monotonic() > deadline:
                raise PeerError(f"the disk was still written to after {WRITTEN_LIMIT_S:.0f} s: {now} blocks")
            before = now
            time.sleep(WRITTEN_PAUSE_S)

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
            "disk_bytes": self.daemon.status().tiers["loaded_disk_bytes_total"],
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
        # On the file system of the build, which takes O_DIRECT.
        tempfile.TemporaryDirectory(dir=installation.ROOT / "target", prefix="tiers-") as disk,
    ):
        try:
            made = Node(stage, Path(memory), Path(disk))
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
            if self.name == "disk":
                asked.forget()
                # Asked for again: it goes to the disk, unless an earlier turn has brought it there.
                asked.ask(text)
                asked.wait_written()
                asked.lose_memory()
            if self.name in ("host", "disk"):
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
        "loaded_tokens": whole * BLOCK_TOKENS if way in ("host", "disk") else 0,
        "loaded_bytes": whole * SMOLLM2.block_bytes if way in ("host", "disk") else 0,
        "disk_bytes": whole * SMOLLM2.block_bytes if way == "disk" else 0,
    }
    others = [f"{name} {counted[name]}, not {value}" for name, value in wanted.items() if counted[name] != value]
    return "; ".join(others) or None
