"""What is measured: cells (a direction, so many blocks of so many bytes) and the settings they are measured in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# "any" is for limits, which have no direction.
Op = Literal["any", "read", "write"]

# Of the memory at each end: more than a transfer, and more than any cache of our own.
REGION_BYTES = 1 << 30


@dataclass(frozen=True, order=True)
class Cell:
    op: Op
    blocks: int
    block_bytes: int

    def __str__(self) -> str:
        return self.shape if self.op == "any" else f"{self.op} {self.shape}"

    @property
    def shape(self) -> str:
        return f"{self.blocks} x {readable_size(self.block_bytes)}"

    @property
    def bytes(self) -> int:
        return self.blocks * self.block_bytes


def readable_size(count: int) -> str:
    """64 -> ``64 B``, 65536 -> ``64 KiB``."""
    for size, unit in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= size and count % size == 0:
            return f"{count // size} {unit}"
    return f"{count} B"


def both(blocks: int, block_bytes: int) -> tuple[Cell, Cell]:
    return Cell("read", blocks, block_bytes), Cell("write", blocks, block_bytes)


LARGE = (*both(1024, 64 << 10), *both(1024, 1 << 20))
SMALL = both(8192, 16 << 10)
LATENCY = both(1, 64)
COPY = (*both(1024, 64 << 10), *both(64, 1 << 20), *both(8192, 16 << 10))
SHAPED = both(1024, 64 << 10)


@dataclass(frozen=True)
class Setting:
    """A place, what else runs on the machine, and the cells measured there."""

    name: str
    title: str
    cells: tuple[Cell, ...]
    veth: bool = False
    rate: str | None = None
    # Processes that compete for the cores.
    busy_loops: int = 0
    budget_s: float = 0.3
    # Each cell is told with its times too, also where it moves more than a block.
    timed: bool = False


BUSY_LOOPS = 2

SETTINGS: tuple[Setting, ...] = (
    Setting("lo", "TCP over loopback", (*LARGE, *SMALL, *LATENCY)),
    Setting("lo-busy", "TCP over loopback, two busy loops competing", LARGE, busy_loops=BUSY_LOOPS, budget_s=0.4),
    Setting("veth", "TCP over a veth pair between two namespaces", (*LARGE, *SMALL, *LATENCY), veth=True),
    Setting(
        "veth-busy",
        "TCP over the veth pair, two busy loops competing",
        both(1024, 64 << 10),
        veth=True,
        busy_loops=BUSY_LOOPS,
        budget_s=0.4,
    ),
    Setting("copy", "copy on one node", COPY),
    Setting("link", "TCP over the veth pair, shaped to 10 Gbit/s", SHAPED, veth=True, rate="10gbit"),
)


def setting(name: str) -> Setting:
    """The setting of that name.

    Raises:
        KeyError: there is none.
    """
    return {found.name: found for found in SETTINGS}[name]
