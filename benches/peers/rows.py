"""One measured figure, as a line of JSON: what ``benches/results/`` holds and every table is made from."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cells import Cell


@dataclass(frozen=True)
class Row:
    """What one peer did in one cell of one setting, in one round."""

    round: int
    setting: str
    peer: str
    # None for limits that have no cell, such as a ping-pong.
    cell: Cell | None = None
    # GB/s; None where only time is measured, or on an error.
    gbps: float | None = None
    p50_us: float | None = None
    p99_us: float | None = None
    p999_us: float | None = None
    cpu_s_per_gb: float | None = None
    transfers: int | None = None
    verified: bool | None = None
    # A failure is a result: what the peer said.
    error: str | None = None
    # How the peer was asked, where it has several ways: call size, streams, waiting.
    way: dict[str, Any] = field(default_factory=dict)
    # What else the peer printed (KVFerry's own row).
    raw: dict[str, Any] | None = None
    load: float | None = None
    at_s: float | None = None

    def to_json(self) -> str:
        fields = {name: value for name, value in vars(self).items() if value is not None and value != {}}
        if self.cell is not None:
            fields["cell"] = vars(self.cell)
        return json.dumps(fields)

    @staticmethod
    def from_json(text: str) -> Row:
        """Reads what ``to_json`` wrote.

        Raises:
            ValueError: it is something else.
        """
        try:
            fields = json.loads(text)
            if "cell" in fields:
                fields["cell"] = Cell(**fields["cell"])
            return Row(**fields)
        except TypeError as error:
            raise ValueError(f"not a row: {error}") from None


def read(path: Path) -> list[Row]:
    """All rows of a file; lines that are no rows (the machine's facts) are left out."""
    lines = path.read_text().splitlines()
    return [Row.from_json(line) for line in lines if line.startswith('{"round"')]


def answered(row: Row, answer: dict[str, Any]) -> Row:
    """The row with the figures that an end answered."""
    names = ("gbps", "p50_us", "p99_us", "p999_us", "cpu_s_per_gb", "transfers")
    return Row(**{**vars(row), **{name: answer[name] for name in names}})


def verified(rows: Iterable[Row]) -> bool:
    """Did every row that has content arrive whole?"""
    return all(row.verified is not False for row in rows)
