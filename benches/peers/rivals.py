"""NIXL and Mooncake: two processes each, one of which is told what to move and how often.

    start both ends -> describe, connect -> for each cell: wipe the landing, measure, check what landed -> end both

Both ends are started anew in every turn and fill their memory side by side; a rival that spins while it waits would
otherwise take the cores from the others. A cell that fails is kept as a result with the rival's words, and the rest of
the turn goes on with fresh ends, for parts of what failed may still be on their way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from cells import REGION_BYTES, Cell
from children import Conversation, PeerError
from network import Place
from peer import Peer, Turn
from rows import answered

ENDS = Path(__file__).resolve().parent / "ends"
START_LIMIT_S = 60.0
# Busy loops have cost NIXL a factor of 50: the largest transfer may take this long before it counts as stuck.
MEASURE_LIMIT_S = 60.0
CHECK_LIMIT_S = 60.0
NO_BATCH_MAX = 1 << 30
# Mooncake fails at 4,096 blocks and more in one batch (measured, 0.3.13).
MOONCAKE_BATCH_MAX = 2048


@dataclass(frozen=True)
class Pair:
    initiator: Conversation
    target: Conversation


class Rival(Peer):
    """A rival that runs as two ends."""

    def commands(self, turn: Turn) -> tuple[list[str | Path], list[str | Path]]:
        """How initiator and target are started."""
        raise NotImplementedError

    def environment(self, place: Place, *, at_initiator: bool) -> Mapping[str, str]:
        return {}

    def ways(self, turn: Turn) -> list[tuple[Cell, int]]:
        """The cells to try, each with the most blocks of a batch."""
        return [(cell, NO_BATCH_MAX) for cell in turn.setting.cells]

    def measure(self, turn: Turn) -> None:
        todo = self.ways(turn)
        while todo:
            with self._pair(turn) as pair:
                while todo:
                    cell, batch_max = todo.pop(0)
                    if not self._try(turn, pair, cell, batch_max):
                        break

    def _try(self, turn: Turn, pair: Pair, cell: Cell, batch_max: int) -> bool:
        """Records the cell's row; False when the ends are not to be used again."""
        row = self.row(turn, cell)
        if batch_max < cell.blocks:
            row = replace(row, way={"batch_blocks": batch_max})
        shape = {"blocks": cell.blocks, "block_bytes": cell.block_bytes}
        landing = pair.initiator if cell.op == "read" else pair.target
        try:
            landing.ask(CHECK_LIMIT_S, do="wipe")
            answer = pair.initiator.ask(
                MEASURE_LIMIT_S,
                do="measure",
                op=cell.op,
                batch_max=batch_max,
                budget_s=turn.setting.budget_s,
                transfers_min=1,
                **shape,
            )
            check = landing.ask(CHECK_LIMIT_S, do="check", batches=answer["batches"], full=turn.full, **shape)
        except PeerError as error:
            turn.record(replace(row, error=str(error)))
            return False
        turn.record(replace(answered(row, answer), verified=check["verified"]))
        return True

    @contextmanager
    def _pair(self, turn: Turn) -> Iterator[Pair]:
        place = turn.place
        initiator, target = self.commands(turn)
        with (
            Conversation(
                [*place.at_target(), *target],
                log=turn.log(f"{self.name}-target"),
                environment=self.environment(place, at_initiator=False),
            ) as far,
            Conversation(
                [*place.at_initiator(), *initiator],
                log=turn.log(f"{self.name}-initiator"),
                environment=self.environment(place, at_initiator=True),
            ) as near,
        ):
            near.send(do="describe")
            address = far.ask(START_LIMIT_S, do="describe")
            near.receive(START_LIMIT_S)
            near.ask(START_LIMIT_S, do="connect", address=address)
            yield Pair(near, far)


class Nixl(Rival):
    """NIXL over UCX, by UCX's own choice (CMA between processes of one host) or over TCP."""

    def __init__(self, name: str, title: str, settings: tuple[str, ...], *, tcp: bool, thread: bool) -> None:
        super().__init__(name, title, settings)
        self._tcp = tcp
        self._mode = "thread" if thread else "polled"

    def missing(self, work: Path) -> str | None:
        return None if (work / "nixl" / ".ready").exists() else "NIXL's environment was not installed"

    def commands(self, turn: Turn) -> tuple[list[str | Path], list[str | Path]]:
        python = turn.work / "nixl" / "bin" / "python"
        common = (ENDS / "nixl_end.py",)
        tail = (str(REGION_BYTES), self._mode)
        return [python, *common, "initiator", *tail], [python, *common, "target", *tail]

    def environment(self, place: Place, *, at_initiator: bool) -> Mapping[str, str]:
        if not self._tcp:
            return {}
        device = place.initiator_device if at_initiator else place.target_device
        return {"UCX_TLS": "tcp", "UCX_NET_DEVICES": device}


class Mooncake(Rival):
    def missing(self, work: Path) -> str | None:
        return None if (work / "mooncake" / ".ready").exists() else "Mooncake's environment was not installed"

    def commands(self, turn: Turn) -> tuple[list[str | Path], list[str | Path]]:
        python = turn.work / "mooncake" / "bin" / "python"
        end = ENDS / "mooncake_end.py"
        size = str(REGION_BYTES)
        return [python, end, turn.place.initiator_ip, size], [python, end, turn.place.target_ip, size]

    def ways(self, turn: Turn) -> list[tuple[Cell, int]]:
        works = [(cell, min(cell.blocks, MOONCAKE_BATCH_MAX)) for cell in turn.setting.cells]
        fails = [(cell, NO_BATCH_MAX) for cell in turn.setting.cells if cell.blocks > MOONCAKE_BATCH_MAX]
        # That larger batches fail is shown once, and last: parts of them may still be on their way.
        return [*works, *fails] if turn.full else works


NETWORKED = ("lo", "lo-busy", "veth", "veth-busy")

RIVALS: tuple[Rival, ...] = (
    Nixl("nixl-tcp", "NIXL over UCX tcp, progress thread", NETWORKED, tcp=True, thread=True),
    Nixl("nixl-tcp-polled", "NIXL over UCX tcp, both ends polling", NETWORKED, tcp=True, thread=False),
    Mooncake("mooncake", "Mooncake over TCP", NETWORKED),
    Nixl("nixl-default", "NIXL as UCX chooses (CMA)", ("copy",), tcp=False, thread=True),
)
