"""KVFerry's own tiers: the benches of `crates/tier`, in the same turns as everybody else.

    cargo bench --no-run (once) -> the program --json PART -> rows: ours, and the ceilings that it measured beside ours

Ceilings that come from the same process take turns with ours inside it, so that the two ends of a ratio are
milliseconds apart.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import installation
from cells import Cell
from children import PeerError, output
from peer import Peer, Turn
from rows import Row

BENCHES = installation.ROOT / "crates" / "tier" / "benches"
LIMIT_S = 180.0
OURS = "kvferry"


def has_bench(name: str) -> bool:
    return (BENCHES / f"{name}.rs").exists()


@cache
def program(name: str, package: str = "kvferry-tier") -> Path:
    """Builds a bench, where that is needed, and says where it is.

    Raises:
        PeerError: it cannot be built.
    """
    command = ["cargo", "bench", "--locked", "--package", package, "--bench", name, "--no-run"]
    done = subprocess.run(
        [*command, "--message-format", "json"], cwd=installation.ROOT, stdout=subprocess.PIPE, text=True, check=False
    )
    for line in done.stdout.splitlines():
        message = json.loads(line) if line.startswith("{") else {}
        if message.get("executable") and message["target"]["name"] == name:
            return Path(message["executable"])
    raise PeerError(f"the bench {name} cannot be built: cargo ended with {done.returncode}")


def ask(turn: Turn, name: str, *words: str) -> dict[str, Any]:
    """What a bench prints as JSON.

    Raises:
        PeerError: it failed, or prints something else.
    """
    # A bench that is ended early leaves what it wrote; the folder goes with this process.
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="kvferry-bench-") as folder:
        command: list[str | Path] = [program(name), "--json", f"--in={folder}", *words]
        printed = output(command, log=turn.log(f"bench-{name}"), limit_s=LIMIT_S)
    try:
        document: dict[str, Any] = json.loads(printed)
    except ValueError:
        raise PeerError(f"the bench {name} has no --json") from None
    return document


def copied(document: dict[str, Any]) -> Iterator[tuple[str, Cell, float]]:
    """Peer, cell and rate, out of what the arena's bench says of its copies."""
    for line in document["copy"]:
        shape = line["blocks"], line["block_bytes"]
        yield OURS, Cell("write", *shape), line["put_gbps"]
        yield OURS, Cell("read", *shape), line["get_gbps"]
        yield "memcpy", Cell("any", *shape), line["memcpy_gbps"]


def looked_up(document: dict[str, Any]) -> Iterator[tuple[str, int, float]]:
    """Peer, the size of the blocks in the store, and microseconds."""
    for line in document["look_up"]:
        yield OURS, line["block_bytes"], line["arena_us"]
        yield "hash-set", line["block_bytes"], line["hash_set_us"]


def moved(document: dict[str, Any]) -> Iterator[tuple[str, Cell, dict[str, Any]]]:
    """Peer, cell and figures, out of what the disk's bench says: ``{"disk": [{"op", "block_bytes", "depth", "ours",
    "fio"}]}``, where ours and fio hold ``gbps``, ``p50_us`` and ``p99_us``."""
    for line in document["disk"]:
        cell = Cell(line["op"], line["depth"], line["block_bytes"])
        for peer, name in ((OURS, "ours"), ("fio", "fio")):
            if line.get(name):
                yield peer, cell, {unit: line[name][unit] for unit in ("gbps", "p50_us", "p99_us")}


class Tiers(Peer):
    """The host arena and the disk store."""

    def missing(self, work: Path) -> str | None:
        return None if has_bench("arena") else "the arena has no bench"

    def measure(self, turn: Turn) -> None:
        if turn.setting.name == "host":
            for peer, cell, gbps in copied(ask(turn, "arena", "copy")):
                turn.record(replace(self._of(turn, peer, cell), gbps=gbps))
        elif turn.setting.name == "look-up":
            cell = turn.setting.cells[0]
            for peer, block_bytes, us in looked_up(ask(turn, "arena", "look-up")):
                row = self._of(turn, peer, cell)
                turn.record(replace(row, p50_us=us, way={"blocks_kib": block_bytes >> 10}))
        elif not has_bench("disk"):
            raise PeerError("disk: not built")
        else:
            sizes = sorted({cell.block_bytes for cell in turn.setting.cells})
            # Each goes first as often: what comes first after the writes pays for them. Many short ones, since a disk
            # that others share has good seconds and bad ones.
            words = ["--rounds=6", *(f"{size >> 10}k" for size in sizes)]
            for peer, cell, figures in moved(ask(turn, "disk", *words)):
                way: dict[str, Any] = {} if peer == OURS else {"beside": OURS}
                turn.record(replace(self._of(turn, peer, cell), way=way, **figures))

    def _of(self, turn: Turn, peer: str, cell: Cell) -> Row:
        return replace(self.row(turn, cell), peer=peer)
