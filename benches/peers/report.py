"""The rows of a run as `kvferry bench report` reads them: one line for each peer, way, setting and cell.

The keys are those of `kvferry bench --json`; a rival's row says so in "peer". Each row carries the ceilings that were
measured beside it, in the same setting.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from cells import LATENCY, REGION_BYTES, Cell
from figures import Source, by_round
from rows import Row
from targets import SLEEPER, SLEEPING, SPINNING

CEILINGS = (
    ("raw_sockets_gbps", Source("raw-sockets")),
    ("iperf3_gbps", Source("iperf3")),
    ("memcpy_1_core_gbps", Source("memcpy", (("way", "memcpy"), ("cores", 1)))),
    ("memcpy_2_cores_gbps", Source("memcpy", (("way", "memcpy"), ("cores", 2)))),
)
SUMMED = ("p50_us", "p99_us", "p999_us", "cpu_s_per_gb")


def write(path: Path, titles: dict[str, str], rows: Sequence[Row]) -> None:
    """Writes the lines; rows without a cell are ceilings of the others, not lines of their own."""
    keys = dict.fromkeys(
        (row.setting, row.peer, tuple(row.way.items()), row.cell) for row in rows if row.cell is not None
    )
    with path.open("w") as lines:
        for setting, peer, way, cell in keys:
            mine = [
                row
                for row in rows
                if (row.setting, row.peer, tuple(row.way.items()), row.cell) == (setting, peer, way, cell)
            ]
            good = [row for row in mine if row.error is None and row.gbps is not None]
            if good and cell is not None and cell.op != "any":
                sleeps = peer == SLEEPER.peer
                # Who sleeps stands beside a ping-pong that sleeps, in a chart of its own.
                line = _line(titles.get(peer, peer), f"{setting}, asleep" if sleeps else setting, dict(way), cell, good)
                line["ceilings"] = _ceilings(rows, setting, cell, SLEEPING if sleeps else SPINNING)
                print(json.dumps(line), file=lines)


def _line(title: str, setting: str, way: dict[str, Any], cell: Cell, rows: Sequence[Row]) -> dict[str, Any]:
    rates = [row.gbps for row in rows if row.gbps is not None]
    raw = next((row.raw for row in rows if row.raw is not None), None)
    shape = {
        "transport": "copy" if setting == "copy" else "tcp",
        "direction": cell.op,
        "block_bytes": cell.block_bytes,
        "blocks": cell.blocks,
        "layers": 1,
        "depth": 1,
        "region_bytes": REGION_BYTES,
        **way,
    }
    line: dict[str, Any] = {
        "peer": title,
        "setting": setting,
        "cell": raw["cell"] if raw is not None else shape,
        "rounds": [{"gbps": rate} for rate in rates],
        "gbps": median(rates),
        "gbps_min": min(rates),
        "gbps_max": max(rates),
        "transfers": sum(row.transfers or 0 for row in rows),
        "verified": all(row.verified is True for row in rows),
    }
    for name in SUMMED:
        values = [value for row in rows if (value := getattr(row, name)) is not None]
        if values:
            line[name] = median(values)
    return line


def _ceilings(rows: Sequence[Row], setting: str, cell: Cell, ping_pong: Source) -> dict[str, float]:
    found = {name: by_round(rows, setting, source, cell, "gbps") for name, source in CEILINGS}
    if cell in LATENCY:
        found = {"tcp_ping_pong_p50_us": by_round(rows, setting, ping_pong, cell, "p50_us")}
    return {name: median(values.values()) for name, values in found.items() if values}
