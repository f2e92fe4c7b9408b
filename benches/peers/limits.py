"""What the machine can do at most: plain sockets, iperf3, copies of blocks, ping-pongs.

The three programs of our own are in ``programs/``; each says there what it does and what it does not.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from cells import REGION_BYTES, Cell
from children import PeerError, end, output, start
from peer import Peer, Turn

LIMIT_S = 90.0
IPERF_PORT = 5311
IPERF_STREAMS = (1, 2, 4)
IPERF_SECONDS = 1
COPY_REGION_BYTES = 512 << 20
SOCKET_SETTINGS = ("lo", "lo-busy", "veth", "veth-busy", "link")
# Raw sockets take blocks of any size as they come; the small ones only show that the call's size decides.
RAW_BLOCK_BYTES_MIN = 64 << 10


class Program(Peer):
    """One of our own C programs."""

    program = ""

    def missing(self, work: Path) -> str | None:
        return None if (work / "bin" / self.program).exists() else f"{self.program} was not built (gcc)"

    def lines(self, turn: Turn, **options: object) -> list[dict[str, Any]]:
        command: list[str | Path] = [turn.work / "bin" / self.program]
        for name, value in options.items():
            command += [f"--{name}", str(value)]
        printed = output(command, log=turn.log(self.name), limit_s=LIMIT_S)
        return [json.loads(line) for line in printed.splitlines()]


class RawSockets(Program):
    program = "raw_sockets"

    def measure(self, turn: Turn) -> None:
        shapes = {
            Cell("any", cell.blocks, cell.block_bytes)
            for cell in turn.setting.cells
            if cell.block_bytes >= RAW_BLOCK_BYTES_MIN
        }
        for cell in sorted(shapes):
            rows = self.lines(
                turn,
                address=turn.place.initiator_ip,
                near=turn.place.initiator_namespace,
                far=turn.place.target_namespace,
                block=cell.block_bytes,
                region=REGION_BYTES,
                budget=turn.setting.budget_s,
                full=int(turn.full),
            )
            for line in rows:
                gbps, verified = line.pop("gbps"), line.pop("verified")
                turn.record(replace(self.row(turn, cell), gbps=gbps, verified=verified, way=line))


class PingPong(Program):
    program = "ping_pong"

    def measure(self, turn: Turn) -> None:
        place = turn.place
        namespaces = {"near": place.initiator_namespace, "far": place.target_namespace}
        for line in self.lines(turn, address=place.initiator_ip, **namespaces, budget=0.2):
            way = {"way": line["way"], "wait": line["wait"]}
            row = replace(self.row(turn), p50_us=line["p50_us"], p99_us=line["p99_us"])
            turn.record(replace(row, transfers=line["samples"], way=way))


class BlockCopy(Program):
    program = "block_copy"

    def measure(self, turn: Turn) -> None:
        shapes = {Cell("any", cell.blocks, cell.block_bytes) for cell in turn.setting.cells}
        for cell in sorted(shapes):
            budget = turn.setting.budget_s
            for line in self.lines(turn, block=cell.block_bytes, region=COPY_REGION_BYTES, budget=budget):
                gbps, verified = line.pop("gbps"), line.pop("verified")
                turn.record(replace(self.row(turn, cell), gbps=gbps, verified=verified, way=line))


class Iperf(Peer):
    """iperf3 sends one buffer of 128 KiB again and again: it has no blocks, and nothing to verify."""

    def missing(self, work: Path) -> str | None:
        return None if shutil.which("iperf3") is not None else "iperf3 is not installed (Debian: iperf3)"

    def measure(self, turn: Turn) -> None:
        for streams in IPERF_STREAMS:
            row = replace(self.row(turn), way={"streams": streams})
            try:
                turn.record(replace(row, gbps=self._once(turn, streams)))
            except PeerError as error:
                turn.record(replace(row, error=str(error)))

    def _once(self, turn: Turn, streams: int) -> float:
        place = turn.place
        port = str(IPERF_PORT)
        log = turn.log(self.name)
        server = start([*place.at_target(), "iperf3", "-s", "-1", "-p", port], log=log)
        client = [*place.at_initiator(), "iperf3", "-c", place.target_ip, "-p", port, "-J", "-P", str(streams)]
        try:
            deadline = time.monotonic() + 5.0
            while True:
                try:
                    return parse_iperf(output([*client, "-t", str(IPERF_SECONDS)], log=log, limit_s=30.0))
                except PeerError:
                    # The server was not listening yet.
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.05)
        finally:
            end(server)


def parse_iperf(printed: str) -> float:
    """GB/s that iperf3's receiver saw.

    Raises:
        PeerError: iperf3 says that it failed, or says nothing that can be read.
    """
    try:
        report = json.loads(printed)
        if "error" in report:
            raise PeerError(f"iperf3: {report['error']}")
        return float(report["end"]["sum_received"]["bits_per_second"]) / 8e9
    except (ValueError, KeyError) as error:
        raise PeerError(f"iperf3 printed something unknown: {error!r}") from None


LIMITS: tuple[Peer, ...] = (
    RawSockets("raw-sockets", "raw sockets", SOCKET_SETTINGS),
    Iperf("iperf3", "iperf3", SOCKET_SETTINGS),
    PingPong("ping-pong", "raw ping-pong, 64 B", ("lo", "veth")),
    BlockCopy("memcpy", "memcpy of scattered blocks", ("copy",)),
)
