"""What KVFerry promises against its rivals and the machine, and what would prove it wrong.

Each target is a ratio within one run. It is met when the median of the rounds' ratios reaches it; what could not be
measured is named as such and never counted as met.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cells import COPY, LARGE, LATENCY, SHAPED, SMALL, Cell
from figures import Comparison, Source, Unit, by_round, compare
from rows import Row

Verdict = Literal["met", "missed", "not measured"]

OURS = Source("kvferry")
ONE_THREAD = Source("kvferry-one-thread")
UNVERIFIED = Source("kvferry-unverified")
FOUR = Source("kvferry-four")
FOUR_UNVERIFIED = Source("kvferry-four-unverified")
TLS = Source("kvferry-tls")
RAW = Source("raw-sockets")
RAW_AS_SYSTEM = Source("raw-sockets", (("congestion", "system"),))
IPERF = Source("iperf3")
NIXL = (Source("nixl-tcp"), Source("nixl-tcp-polled"))
MOONCAKE = Source("mooncake")
SLEEPER = Source("kvferry-sleeping")
SPINNING = Source("ping-pong", (("way", "tcp"), ("wait", "spin")))
SLEEPING = Source("ping-pong", (("way", "tcp"), ("wait", "sleep")))
MEMCPY = Source("memcpy", (("way", "memcpy"), ("cores", 1)))


@dataclass(frozen=True)
class Target:
    """One line of the table."""

    what: str
    setting: str
    cell: Cell
    ours: Source
    others: tuple[Source, ...]
    factor: float
    unit: Unit = "gbps"
    # Where ours is held against another cell of its own.
    other_cell: Cell | None = None
    # Where it is held against a number and nobody: ``others`` is empty then.
    bound: float | None = None

    @property
    def higher_is_better(self) -> bool:
        return self.unit == "gbps"


@dataclass(frozen=True)
class Claim:
    """A sentence that can be wrong, the targets that hold it up, and what would bring it down."""

    text: str
    falsified_by: str
    targets: tuple[Target, ...]


@dataclass(frozen=True)
class Judged:
    target: Target
    comparison: Comparison | None
    verdict: Verdict


def _loopback(
    text: str, ours: Source, factor: float, raw: Source = RAW, cells: tuple[Cell, ...] = LARGE
) -> tuple[Target, ...]:
    return tuple(Target(text, "lo", cell, ours, (raw, IPERF, *NIXL), factor) for cell in cells)


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "Over loopback, verification on, KVFerry carries 0.90 of what the best of raw sockets, iperf3 and NIXL does.",
        "a median ratio below 0.90 in any of the four cells",
        _loopback("TCP loopback, verified", OURS, 0.90),
    ),
    Claim(
        "And as much of it where raw sockets, like the rivals, run under the system's own congestion control.",
        "a median ratio below 0.90 in any of the four cells; without BBR the same as the claim above",
        _loopback("TCP loopback, verified, raw sockets as the system has them", OURS, 0.90, RAW_AS_SYSTEM),
    ),
    Claim(
        "With verification off it is as fast as the best of them.",
        "a median ratio below 1.0 in any of the four cells",
        _loopback("TCP loopback, verification off", UNVERIFIED, 1.0),
    ),
    Claim(
        "With four transfers of 64 KiB blocks at once it carries 0.90 of the best of them, verification on: no thread "
        "waits for the end of a transfer then, as those of raw sockets never do.",
        "a median ratio below 0.90 in either direction",
        _loopback("TCP loopback, verified, four transfers at once", FOUR, 0.90, cells=LARGE[:2]),
    ),
    Claim(
        "And with verification off as much as the best of them.",
        "a median ratio below 1.0 in either direction",
        _loopback("TCP loopback, verification off, four transfers at once", FOUR_UNVERIFIED, 1.0, cells=LARGE[:2]),
    ),
    Claim(
        "Over veth, verification on, it carries 0.95 of what the best of iperf3 and the rivals does.",
        "a median ratio below 0.95 in any of the four cells",
        tuple(Target("TCP over veth, verified", "veth", cell, OURS, (IPERF, *NIXL, MOONCAKE), 0.95) for cell in LARGE),
    ),
    Claim(
        "Over veth it keeps to within 0.95 of raw sockets too.",
        "a median ratio to raw sockets below 0.95 in any of the four cells",
        tuple(Target("TCP over veth, against raw sockets", "veth", cell, OURS, (RAW,), 0.95) for cell in LARGE),
    ),
    Claim(
        "Small blocks cost it little: 8,192 of 16 KiB go 1.5 times as fast as with the best rival.",
        "a median ratio below 1.5 in either direction",
        tuple(Target("8,192 x 16 KiB, loopback", "lo", cell, OURS, (*NIXL, MOONCAKE), 1.5) for cell in SMALL),
    ),
    Claim(
        "And at most 15 % slower than its own 1,024 blocks of 64 KiB.",
        "a median ratio below 0.85 in either direction",
        tuple(
            Target("8,192 x 16 KiB against our own 1,024 x 64 KiB", "lo", small, OURS, (OURS,), 0.85, other_cell=large)
            for small, large in zip(SMALL, LARGE[:2], strict=True)
        ),
    ),
    Claim(
        "It stays fast when cores are short: with two busy loops beside it, 0.7 of iperf3 under the same load.",
        "a median ratio below 0.7 in any of the four cells",
        tuple(Target("TCP loopback, two busy loops", "lo-busy", cell, OURS, (IPERF,), 0.7) for cell in LARGE),
    ),
    Claim(
        "One 64 B transfer takes at most twice the raw TCP ping-pong, both spinning and both sleeping.",
        "a median p50 above twice the ping-pong's, in either direction and waiting mode",
        tuple(
            Target(f"64 B over TCP, {told}, p50", "lo", cell, ours, (ping_pong,), 2.0, unit="p50_us")
            for told, ours, ping_pong in (("spinning", OURS, SPINNING), ("sleeping", SLEEPER, SLEEPING))
            for cell in LATENCY
        ),
    ),
    Claim(
        "The copy on one node runs at 0.9 of memcpy of scattered blocks on one core, and at 1.7 of it on two.",
        "a median ratio below 0.9 with one thread or below 1.7 with two, in any of the three cells",
        tuple(
            Target(f"same-node copy, {threads} core{'s' * (threads > 1)}", "copy", cell, ours, (MEMCPY,), factor)
            for threads, ours, factor in ((1, Source("kvferry-copy-1"), 0.9), (2, Source("kvferry-copy-2"), 1.7))
            for cell in COPY
            if cell.op == "read"
        ),
    ),
    Claim(
        "TLS on the data path, one data thread at each end, costs at most half of the rate on loopback.",
        "a median ratio to our own plaintext on as many threads below 0.5 in any of the cells",
        tuple(Target("TLS against our own plaintext, loopback", "lo", cell, TLS, (ONE_THREAD,), 0.5) for cell in LARGE),
    ),
    Claim(
        "And nothing that can be seen on a link of 10 Gbit/s.",
        "a median ratio to our own plaintext below 0.95 in either direction",
        tuple(Target("TLS against our own plaintext, 10 Gbit/s", "link", cell, TLS, (OURS,), 0.95) for cell in SHAPED),
    ),
)


def judge(target: Target, rows: Sequence[Row]) -> Judged:
    """Holds one target against what was measured."""
    ours = by_round(rows, target.setting, target.ours, target.cell, target.unit)
    cell = target.other_cell or target.cell
    # A ping-pong has no cell and answers for any.
    others = {other.peer: by_round(rows, target.setting, other, cell, target.unit) for other in target.others}
    if target.bound is not None:
        others["bound"] = dict.fromkeys(ours, target.bound)
    comparison = compare(ours, others, higher_is_better=target.higher_is_better)
    if comparison is None:
        return Judged(target, None, "not measured")
    ratio = comparison.ratio.median
    reached = ratio >= target.factor if target.higher_is_better else ratio <= target.factor
    return Judged(target, comparison, "met" if reached else "missed")


def verdict(judged: Sequence[Judged]) -> Verdict:
    """Of a claim: missed if any of its targets is, met only if all are."""
    verdicts = {one.verdict for one in judged}
    if "missed" in verdicts:
        return "missed"
    return "met" if verdicts == {"met"} else "not measured"
