"""Real daemons under load: transfers beside offload, and what a restart costs.

    cargo bench --no-run (once) -> the bench `daemons` of the daemon's own package --json PART -> rows

Transfers at rest, beside offload and beside the floor take turns within one run of the program.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from cells import Cell
from children import PeerError, output
from our_tiers import OURS, program
from peer import Peer, Turn

BENCH = "daemons"
PACKAGE = "kvferry"
LIMIT_S = 300.0
# Each kind has one turn for each shape, and each round is another run.
TURN_S = 2
IDLE = "idle"
FLOOR = "floor"
KINDS = {"idle": IDLE, "offload": OURS, "floor": FLOOR}


class Daemons(Peer):
    """Real daemons, real clients, engines that are stand-ins."""

    def measure(self, turn: Turn) -> None:
        found = self._ask(turn)
        if turn.setting.name == "beside":
            self._beside(turn, found["beside"])
        else:
            self._restart(turn, found["restart"])

    def _ask(self, turn: Turn) -> dict[str, Any]:
        words = [turn.setting.name, "--json", f"--seconds={TURN_S}", "--turns=1"]
        printed = output([program(BENCH, PACKAGE), *words], log=turn.log("bench-daemons"), limit_s=LIMIT_S)
        try:
            # What tests print of their seeds stands before it.
            document: dict[str, Any] = json.loads(printed.strip().splitlines()[-1])
        except (ValueError, IndexError):
            raise PeerError(f"the bench {BENCH} printed no JSON") from None
        return document

    def _beside(self, turn: Turn, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            cell = Cell("read", line["blocks"], line["block_bytes"])
            for kind, peer in KINDS.items():
                figures = {unit: line[kind][unit] for unit in ("transfers", "p50_us", "p99_us")}
                row = replace(self.row(turn, cell), peer=peer, raw=line if peer == OURS else None, **figures)
                turn.record(row)

    def _restart(self, turn: Turn, lines: list[dict[str, Any]]) -> None:
        cell = turn.setting.cells[0]
        for line in lines:
            lost = line["kept"] - line["whole"]
            error = f"{lost} of {line['kept']} blocks are not there again, whole" if lost else None
            for what in ("gap", "engine"):
                way = {"how": line["how"], "what": what}
                turn.record(replace(self.row(turn, cell), way=way, p50_us=line[f"{what}_us"], raw=line, error=error))
