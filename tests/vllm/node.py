"""One daemon and one engine, as the tests of what outlives both see them."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conftest import BINARY, complaints_in
from daemon import Daemon
from harness.engine import BLOCK_TOKENS, PREFILL, ROOT, TINY_LLAMA, Engine, EngineOptions, Model, kvferry_connector
from harness.processes import Stage
from pair import ANSWER_TOKENS, BLOCKS, REPLY_TIMEOUT_MS

# Longer than any test waits: however busy the machine is, no lease ends before it is redeemed or given back.
LEASE_MS = 60_000

# However busy the machine is, no step writes over what is being copied.
STORE_WAIT_MS = 5_000

# What an engine holds of a prompt: a checksum for each block, by rank and group; None where the window has passed.
Sums = dict[tuple[int, int], list[int | None]]


@dataclass(frozen=True)
class Tiers:
    """Where a daemon keeps blocks."""

    memory: Path
    disk: Path

    @property
    def arena(self) -> Path:
        return self.memory / "arena"


class Node:
    """One daemon, with host memory and a disk or without, and one engine."""

    def __init__(
        self,
        stage: Stage,
        tiers: Tiers | None,
        model: Model = TINY_LLAMA,
        *,
        engine_id: str = "E0",
        daemon: Daemon | None = None,
        tensor_parallel_size: int = 1,
        block_count: int = BLOCKS,
    ) -> None:
        self.stage = stage
        self.tiers = tiers
        self.model = model
        self.rank_count = tensor_parallel_size
        self.daemon = daemon or Daemon(stage, BINARY, "N", "127.0.0.1")
        self.start_daemon()
        settings = {"lease_ms": LEASE_MS, "reply_timeout_ms": REPLY_TIMEOUT_MS, "store_wait_ms": STORE_WAIT_MS}
        self.engine = Engine(
            stage,
            EngineOptions(
                model,
                engine_id,
                block_count,
                kvferry_connector(self.daemon.socket, **settings),
                forked=True,
                thread_count=1,
                tensor_parallel_size=tensor_parallel_size,
            ),
        )

    def wait_attached(self) -> None:
        self.engine.wait_ready()
        self.daemon.wait_attached(self.engine.name)

    def restart_engine(self) -> None:
        self.engine.kill()
        self.engine.restart()
        self.wait_attached()

    def restart_daemon(self) -> None:
        self.daemon.kill()
        self.start_daemon()
        self.wait_attached()

    def start_daemon(self) -> None:
        if self.tiers is None:
            self.daemon.start()
        else:
            self.daemon.start(host_tier=self.tiers.arena, disk_tier=self.tiers.disk / "store")

    def lose_memory(self) -> None:
        """The daemon starts again, and the disk is all that is left to it."""
        assert self.tiers is not None
        self.daemon.kill()
        self.tiers.arena.unlink()
        self.start_daemon()

    def ask(self, prompt: list[int], **options: object) -> list[int]:
        answer = self.engine.server.complete(prompt, ANSWER_TOKENS, **options)
        assert answer.status == 200, answer.text
        return answer.token_ids

    def offer(self, prompt: list[int]) -> dict[str, Any]:
        """The prefill leg: what the engine hands to the router. Its blocks stay where they are until the lease ends."""
        answer = self.engine.server.complete(prompt, 1, kv_transfer_params=PREFILL)
        assert answer.status == 200, answer.text
        assert answer.kv_transfer_params is not None
        return answer.kv_transfer_params

    def held(self, prompt: list[int]) -> Sums:
        """What the engine holds of a prompt's whole blocks, each looked at where it lies. Computes what it lacks."""
        offered = self.offer(prompt)
        full = len(prompt) // BLOCK_TOKENS
        sums = {
            (rank, group): self._sums(table[:full], group, rank)
            for rank in range(self.rank_count)
            for group, table in enumerate(offered["remote_block_ids"])
        }
        self.give_back(offered)
        return sums

    def give_back(self, offered: dict[str, Any]) -> None:
        """Ends the lease of an offer that nobody redeems: until then the engine does not rest, and takes all cores."""
        # A request that has no use for the ticket hands it back.
        answer = self.engine.server.complete([2], 1, kv_transfer_params=offered)
        assert answer.status == 200, answer.text
        self.daemon.wait_quiet(LEASE_MS / 2000)

    def _sums(self, table: list[int], group: int, rank: int) -> list[int | None]:
        real = [block for block in table if block]
        sums = iter(self.daemon.checksums(self.engine.name, real, group, rank))
        return [next(sums) if block else None for block in table]

    def wait_stored(self, blocks: int) -> None:
        self.daemon.wait_for(lambda status: status.tiers["host_blocks"] >= blocks, f"storing {blocks} blocks", 20)
        self.daemon.wait_for(lambda status: status.tiers["stores"] == 0, "done with storing", 20)

    def host_blocks(self) -> int:
        """Each rank and each group has blocks of its own. Waits for stores under way, which would come on top."""
        self.wait_stored(0)
        blocks: int = self.daemon.status().tiers["host_blocks"]
        return blocks

    def loaded_bytes(self) -> int:
        loaded: int = self.daemon.status().tiers["loaded_bytes_total"]
        return loaded

    def sums(self) -> set[int]:
        """Of all blocks of the engine."""
        return set(self.daemon.checksums(self.engine.name, range(1, self.engine.options.block_count)))


@contextlib.contextmanager
def tiered_node(name: str, model: Model = TINY_LLAMA, **options: Any) -> Iterator[Node]:
    """A node with host memory and a disk. After the last test no engine may have complained of itself."""
    with (
        Stage(name, ROOT / "target" / "logs") as stage,
        tempfile.TemporaryDirectory(dir="/dev/shm", prefix=f"kvferry-{name}-") as memory,
        # On the file system of the build, which takes O_DIRECT.
        tempfile.TemporaryDirectory(dir=ROOT / "target", prefix=f"{name}-") as disk,
    ):
        try:
            node = Node(stage, Tiers(Path(memory), Path(disk)), model, **options)
            node.wait_attached()
            yield node
            engine_logs = stage.folder.glob("engine-*.log")
            assert [line for log in engine_logs for line in complaints_in(log, 0, crashes_expected=False)] == []
        finally:
            stage.save_logs()


def holder(node: Node, tensor_parallel_size: int) -> Node:
    """A prefill engine of the same model, with a daemon of its own that keeps nothing. Not awaited."""
    daemon = Daemon(node.stage, BINARY, f"P{tensor_parallel_size}", "127.0.0.2")
    options = node.engine.options
    return Node(
        node.stage,
        None,
        node.model,
        engine_id="P0",
        daemon=daemon,
        tensor_parallel_size=tensor_parallel_size,
        block_count=options.block_count,
    )
