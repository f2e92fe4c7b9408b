"""Figures out of rows: one value for each peer, cell and round, ratios within a round, medians over rounds.

A limit that was measured in several ways counts with its best way of the round. A ratio is made of two figures of the
same round, and the median is taken of the ratios; the ratio of two medians would compare different moments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from cells import Cell
from rows import Row

Unit = Literal["gbps", "p50_us", "p99_us", "cpu_s_per_gb"]


@dataclass(frozen=True)
class Spread:
    """The median of some rounds, with the lowest and the highest."""

    median: float
    low: float
    high: float
    count: int

    @staticmethod
    def of(values: Iterable[float]) -> Spread | None:
        found = list(values)
        return Spread(median(found), min(found), max(found), len(found)) if found else None


@dataclass(frozen=True)
class Source:
    """Which rows a figure is made from: a peer, and where it has several ways, which of them."""

    peer: str
    way: tuple[tuple[str, object], ...] = ()

    def takes(self, row: Row) -> bool:
        return row.peer == self.peer and all(row.way.get(name) == value for name, value in self.way)


def fits(row: Row, cell: Cell | None) -> bool:
    """Does the row speak about the cell? One without a cell speaks about all, one without a direction about both."""
    if row.cell is None or cell is None:
        return True
    same_shape = (row.cell.blocks, row.cell.block_bytes) == (cell.blocks, cell.block_bytes)
    return same_shape and (row.cell.op == cell.op or "any" in (row.cell.op, cell.op))


def by_round(rows: Iterable[Row], setting: str, source: Source, cell: Cell | None, unit: Unit) -> dict[int, float]:
    """The source's best figure of each round."""
    best: dict[int, float] = {}
    choose: Callable[[float, float], float] = max if unit == "gbps" else min
    for row in rows:
        value = getattr(row, unit)
        # What did not arrive whole was not moved.
        good = row.error is None and row.verified is not False and value is not None
        if good and row.setting == setting and source.takes(row) and fits(row, cell):
            best[row.round] = choose(best[row.round], value) if row.round in best else value
    return best


@dataclass(frozen=True)
class Comparison:
    """A figure held against the best of some others, round by round."""

    ours: Spread
    theirs: Spread
    ratio: Spread
    # Which of the others was the best, in most rounds.
    best: str


def compare(
    ours: Mapping[int, float], others: Mapping[str, Mapping[int, float]], *, higher_is_better: bool = True
) -> Comparison | None:
    """Holds ours against the best other of each round. None where no round has both."""
    ratios: list[float] = []
    theirs: list[float] = []
    mine: list[float] = []
    best: list[str] = []
    for number, value in sorted(ours.items()):
        rivals = {name: values[number] for name, values in others.items() if number in values}
        if not rivals:
            continue
        name = (max if higher_is_better else min)(rivals, key=lambda rival: rivals[rival])
        ratios.append(value / rivals[name])
        theirs.append(rivals[name])
        mine.append(value)
        best.append(name)
    spreads = [Spread.of(values) for values in (mine, theirs, ratios)]
    if not ratios or spreads[0] is None or spreads[1] is None or spreads[2] is None:
        return None
    return Comparison(spreads[0], spreads[1], spreads[2], max(sorted(set(best)), key=best.count))


def ways(rows: Sequence[Row], setting: str, peer: str) -> list[tuple[tuple[str, object], ...]]:
    """The ways in which a peer was asked in a setting, in the order in which they came."""
    found = (tuple(row.way.items()) for row in rows if row.setting == setting and row.peer == peer)
    return list(dict.fromkeys(found))
