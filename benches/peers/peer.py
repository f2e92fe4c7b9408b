"""What the harness asks of everything it measures: a rival, a limit of the machine, or KVFerry itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cells import Cell, Setting
from network import Place
from rows import Row


@dataclass(frozen=True)
class Turn:
    """One peer's turn in one setting of one round."""

    round: int
    setting: Setting
    place: Place
    # What was installed and built for the benchmark.
    work: Path
    # Called with each figure as soon as there is one.
    record: Callable[[Row], None]

    @property
    def full(self) -> bool:
        """Is all content compared? In the first round; later a part of it, for comparing takes longer than moving."""
        return self.round == 0

    def log(self, name: str) -> Path:
        return self.work / "logs" / f"{self.setting.name}-{name}.log"


class Peer(ABC):
    def __init__(self, name: str, title: str, settings: tuple[str, ...]) -> None:
        # In rows; short.
        self.name = name
        # In tables.
        self.title = title
        self._settings = settings

    def plays(self, setting: Setting) -> bool:
        return setting.name in self._settings

    def missing(self, work: Path) -> str | None:
        """What this machine lacks to run it, or None."""
        return None

    @abstractmethod
    def measure(self, turn: Turn) -> None:
        """Records a row for each of the setting's cells it can do, and one with an error for those it fails at.

        Raises:
            PeerError: nothing more is to be had from it in this turn.
        """

    def row(self, turn: Turn, cell: Cell | None = None) -> Row:
        """A row with the place of this turn filled in and no figures yet."""
        return Row(round=turn.round, setting=turn.setting.name, peer=self.name, cell=cell)
