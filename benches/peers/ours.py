"""KVFerry itself, through `kvferry bench`, in the same turns as everybody else.

    one place:    kvferry bench --json ...                          the far end is its child
    two places:   kvferry bench listen (target's namespace) <- kvferry bench --connect (initiator's)

One transfer is in flight at a time, as with the rivals, but where a peer's title says otherwise. The benchmark wipes
and compares by itself; its JSON rows are taken as they are, with its name for the cell.
"""

from __future__ import annotations

import json
import re
import select
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import installation
from cells import LARGE, LATENCY, REGION_BYTES, SHAPED, Cell
from children import PeerError, end, output, start
from peer import Peer, Turn
from rows import answered

KVFERRY = installation.ROOT / "target" / "release" / "kvferry"
# Where memory does not decide: for transfers that caches hold in any case, and on a link slower than memory.
SMALL_REGION = "64M"
LIMIT_S = 90.0
LISTEN_LIMIT_S = 10.0
LISTENING = re.compile(rb"listening on (\S+)")


class Kvferry(Peer):
    """One way of running `kvferry bench`."""

    def __init__(
        self,
        name: str,
        title: str,
        settings: tuple[str, ...],
        flags: tuple[str, ...] = (),
        *,
        only: tuple[Cell, ...] | None = None,
        region: str = f"{REGION_BYTES >> 20}M",
    ) -> None:
        super().__init__(name, title, settings)
        self._flags = flags
        self._only = only
        self._region = region

    def missing(self, work: Path) -> str | None:
        if not KVFERRY.exists():
            return "kvferry was not built"
        known = _options()
        if not known:
            return "this kvferry has no `bench`"
        unknown = [flag for flag in self._flags if flag.startswith("--") and flag not in known]
        return f"this kvferry's bench has no {', '.join(unknown)}" if unknown else None

    def measure(self, turn: Turn) -> None:
        cells = [cell for cell in turn.setting.cells if self._only is None or cell in self._only]
        # Both ends fill their memory anew for every command, so one command has all cells.
        shapes = dict.fromkeys((cell.blocks, cell.block_bytes) for cell in cells)
        try:
            for line in self._lines(turn, [f"{blocks}x{block_bytes}" for blocks, block_bytes in shapes]):
                self._record(turn, cells, line)
        except PeerError as error:
            for cell in cells:
                turn.record(replace(self.row(turn, cell), error=str(error)))

    def _record(self, turn: Turn, cells: Sequence[Cell], line: dict[str, Any]) -> None:
        asked = line["cell"]
        for cell in cells:
            # A copy has one direction: it is a read.
            if (asked["direction"], asked["blocks"], asked["block_bytes"]) == (cell.op, cell.blocks, cell.block_bytes):
                row = replace(self.row(turn, cell), verified=line["verified"], raw=line)
                turn.record(answered(row, line))

    def _lines(self, turn: Turn, shapes: Sequence[str]) -> list[dict[str, Any]]:
        region = SMALL_REGION if turn.setting.rate else self._region
        options = [
            *("--block-size", ",".join(shapes), "--region", region),
            *("--duration", f"{turn.setting.budget_s * 1e3:.0f}ms", "--rounds", "1", "--json", "--no-ceilings"),
            *("--transport", "copy" if turn.setting.name == "copy" else "tcp", "--direction", "both"),
            *self._flags,
        ]
        log = turn.log(self.name)
        if turn.place.target_namespace:
            with self._listener(turn, log) as address:
                near = [*turn.place.at_initiator(), str(KVFERRY), "bench", *options, "--connect", address]
                printed = output(near, log=log, limit_s=LIMIT_S)
        else:
            printed = output([KVFERRY, "bench", *options], log=log, limit_s=LIMIT_S)
        return parse(printed)

    @contextmanager
    def _listener(self, turn: Turn, log: Path) -> Iterator[str]:
        command = [*turn.place.at_target(), str(KVFERRY), "bench", "listen", "--address", f"{turn.place.target_ip}:0"]
        child = start(command, log=log)
        try:
            yield _address(child)
        finally:
            end(child)


def parse(printed: str) -> list[dict[str, Any]]:
    """The rows that `kvferry bench --json` printed.

    Raises:
        PeerError: it printed something else, or nothing.
    """
    try:
        lines = [json.loads(line) for line in printed.splitlines() if line.strip()]
    except ValueError as error:
        raise PeerError(f"kvferry bench printed something unknown: {error}") from None
    if not lines:
        raise PeerError("kvferry bench printed nothing")
    return lines


def _address(child: subprocess.Popen[bytes]) -> str:
    assert child.stdout is not None
    deadline = time.monotonic() + LISTEN_LIMIT_S
    while time.monotonic() < deadline:
        if select.select([child.stdout], [], [], 0.2)[0]:
            found = LISTENING.search(child.stdout.readline())
            if found is not None:
                return found[1].decode()
            if child.poll() is not None:
                break
    raise PeerError("kvferry bench listen did not say where it listens")


def draw(lines: Path, page: Path) -> None:
    """Makes a page of charts out of a run's lines, and says where it is or why there is none."""
    if not KVFERRY.exists() or lines.stat().st_size == 0:
        print("no charts: they are drawn by kvferry, from rows with rates")
        return
    subprocess.run([KVFERRY, "bench", "report", lines, "--output", page], check=False)


@cache
def _options() -> frozenset[str]:
    """What the bench of this build can be asked; empty without one."""
    done = subprocess.run([KVFERRY, "bench", "--help"], capture_output=True, text=True, check=False)
    return frozenset(re.findall(r"--[a-z][a-z-]*", done.stdout)) if done.returncode == 0 else frozenset()


TLS_CELLS = (*LARGE, *SHAPED)
KVFERRIES: tuple[Peer, ...] = (
    Kvferry("kvferry", "KVFerry", ("lo", "lo-busy", "veth", "veth-busy", "link")),
    Kvferry("kvferry-unverified", "KVFerry, verification off", ("lo",), ("--verify", "off"), only=LARGE),
    # A thread that has done its part of one goes on with the next: it waits for no end, as raw sockets never do.
    Kvferry("kvferry-four", "KVFerry, four transfers at once", ("lo",), ("--depth", "4"), only=LARGE[:2]),
    Kvferry(
        "kvferry-four-unverified",
        "KVFerry, verification off, four transfers at once",
        ("lo",),
        ("--verify", "off", "--depth", "4"),
        only=LARGE[:2],
    ),
    Kvferry(
        "kvferry-sleeping",
        "KVFerry, never spinning",
        ("lo",),
        ("--spin-us", "0"),
        only=LATENCY,
        region=SMALL_REGION,
    ),
    Kvferry("kvferry-one-thread", "KVFerry, one data thread", ("lo",), ("--data-threads", "1"), only=LARGE),
    Kvferry(
        "kvferry-tls", "KVFerry, TLS, one data thread", ("lo", "link"), ("--tls", "--data-threads", "1"), only=TLS_CELLS
    ),
    Kvferry("kvferry-copy-1", "KVFerry copy, one core", ("copy",), ("--copy-threads", "1")),
    Kvferry("kvferry-copy-2", "KVFerry copy, two cores", ("copy",), ("--copy-threads", "2")),
)
