"""The order of things: every round takes one sample of every peer in every setting, A B A B.

    for each round: for each setting: for each peer, starting one further on than the round before

What drifts with time (another guest of the host, a core that clocks down) drifts over all peers of a round alike, so
figures are compared within a round only.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import network
from cells import Setting
from children import PeerError, busy_loops
from network import LOOPBACK, NetworkError, Place
from peer import Peer, Turn
from rows import Row

# What a turn takes, until one has been seen: sets the first estimate of the time left.
TURN_GUESS_S = 7.0


@dataclass
class Clock:
    """How long the rest will take, from how long the same turns took before."""

    seen_s: dict[tuple[str, str], float] = field(default_factory=dict)

    def left_s(self, turns: Sequence[tuple[Setting, Peer]]) -> float:
        return sum(self.seen_s.get((setting.name, peer.name), TURN_GUESS_S) for setting, peer in turns)


@dataclass
class Run:
    settings: Sequence[Setting]
    peers: Sequence[Peer]
    rounds: int
    work: Path
    record: Callable[[Row], None]
    # Told to the terminal.
    say: Callable[[str], None]
    # After this time no further round begins.
    limit_s: float

    def __post_init__(self) -> None:
        self._start = time.monotonic()
        self._clock = Clock()

    def all_rounds(self) -> int:
        """Runs all rounds that there is time for; returns how many those were."""
        rounds = [self._order(number) for number in range(self.rounds)]
        for number, turns in enumerate(rounds):
            if number > 0 and self._gone_s() + self._clock.left_s(turns) > self.limit_s:
                self.say(f"no time for round {number + 1}: the run is to end within {self.limit_s:.0f} s")
                return number
            rest = [turn for later in rounds[number + 1 :] for turn in later]
            self._round(number, turns, rest)
        return len(rounds)

    def _order(self, number: int) -> list[tuple[Setting, Peer]]:
        turns = []
        for setting in self.settings:
            playing = [peer for peer in self.peers if peer.plays(setting)]
            cut = number % max(1, len(playing))
            turns += [(setting, peer) for peer in (*playing[cut:], *playing[:cut])]
        return turns

    def _round(self, number: int, turns: list[tuple[Setting, Peer]], rest: list[tuple[Setting, Peer]]) -> None:
        for setting in self.settings:
            with self._place(setting) as place:
                for index, (turn_setting, peer) in enumerate(turns):
                    if turn_setting is not setting:
                        continue
                    left_s = self._clock.left_s([*turns[index:], *rest])
                    self.say(
                        f"round {number + 1}/{self.rounds}, {setting.name}: {peer.title} "
                        f"({_minutes(self._gone_s())} gone, about {_minutes(left_s)} left)"
                    )
                    self._turn(number, setting, place, peer)

    def _turn(self, number: int, setting: Setting, place: Place, peer: Peer) -> None:
        begun = time.monotonic()
        recorded: list[Row] = []

        def record(row: Row) -> None:
            row = replace(row, load=round(os.getloadavg()[0], 2), at_s=round(self._gone_s(), 1))
            recorded.append(row)
            self.record(row)

        try:
            peer.measure(Turn(number, setting, place, self.work, record))
        except PeerError as error:
            record(replace(Row(number, setting.name, peer.name), error=str(error)))
        for why in sorted({row.error for row in recorded if row.error is not None}):
            self.say(f"  {peer.title}: {why}")
        self._clock.seen_s[setting.name, peer.name] = time.monotonic() - begun

    @contextlib.contextmanager
    def _place(self, setting: Setting) -> Iterator[Place]:
        with contextlib.ExitStack() as stack:
            place = stack.enter_context(network.cable(setting.rate)) if setting.veth else LOOPBACK
            if setting.busy_loops:
                stack.enter_context(busy_loops(setting.busy_loops, self.work / "logs" / "busy.log"))
            yield place

    def _gone_s(self) -> float:
        return time.monotonic() - self._start


def possible(settings: Sequence[Setting]) -> tuple[list[Setting], list[str]]:
    """The settings that this machine can show, and a sentence for each reason that keeps one out."""
    why = network.why_not()
    if why is None and any(setting.veth for setting in settings):
        try:
            with network.cable():
                pass
        except NetworkError as error:
            why = str(error)
    if why is None:
        return list(settings), []
    left_out = [setting.name for setting in settings if setting.veth]
    note = [f"skipped {', '.join(left_out)}: {why}"] if left_out else []
    return [setting for setting in settings if not setting.veth], note


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"
