"""The daemon and the sidecar as their users meet them: a config file, a command line, JSON.

All that the demo and the tests know about the daemon's formats is in here.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.completions import Server
from harness.ports import free_port
from harness.processes import Process, Stage, StageError

START_S_MAX = 20.0
ASK_S_MAX = 10.0
POLL_S = 0.02
HOST_TIER_MIB = 256
DISK_TIER_MIB = 1024
# The daemon's whole environment. Its log's level may be given from outside.
LOGGING = {"KVFERRY_LOG": os.environ.get("KVFERRY_LOG", "info"), "RUST_BACKTRACE": "1"}


@dataclass(frozen=True)
class Transfer:
    """One that ended, as the daemon it went to tells it."""

    request: str
    # `delivered`, or why not.
    outcome: str
    bytes: int
    micros: int
    # Blocks of each group that was moved: the holder's, and where they went.
    source_groups: list[list[int]]
    target_groups: list[list[int]]

    @property
    def is_delivered(self) -> bool:
        return self.outcome == "delivered"

    @property
    def source_blocks(self) -> list[int]:
        """The holder's, one group after the other."""
        return [block for group in self.source_groups for block in group]

    @property
    def target_blocks(self) -> list[int]:
        """Where they went."""
        return [block for group in self.target_groups for block in group]


@dataclass(frozen=True)
class Status:
    """The part of `kvferry status --json` that is looked at."""

    # Those that can hand over: a worker is attached and the scheduler connected.
    engines: list[str]
    region_count: int
    lease_count: int
    # Into this node and out of it, under way.
    reading_count: int
    serving_count: int
    finished: list[Transfer]
    delivered_total: int
    failed_total: int
    # What `tiers` says: empty without a tier.
    tiers: dict[str, Any]

    @classmethod
    def parse(cls, document: dict[str, Any]) -> Status:
        transfers = document["transfers"]
        return cls(
            engines=[engine["engine"] for engine in document["engines"] if engine["scheduler"]],
            region_count=document["regions"]["count"],
            lease_count=len(document["leases"]),
            reading_count=len(transfers["reading"]),
            serving_count=len(transfers["serving"]),
            finished=[
                Transfer(
                    done["request"],
                    done["outcome"],
                    done["bytes"],
                    done["micros"],
                    done["source_blocks"],
                    done["target_blocks"],
                )
                for done in transfers["finished"]
            ],
            delivered_total=transfers["delivered_total"],
            failed_total=transfers["failed_total"],
            tiers=document["tiers"] or {},
        )

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is promised and nothing moves."""
        return self.lease_count == self.reading_count == self.serving_count == 0


class Daemon:
    """`kvferry serve` on an address of its own."""

    def __init__(self, stage: Stage, binary: Path, name: str, address: str) -> None:
        self.name = name
        self._stage = stage
        self._binary = binary
        self._directory = stage.folder / name
        self._directory.mkdir(mode=0o700)
        self._config = stage.folder / f"{name}.toml"
        # The same in every start, so that a restarted daemon is the same peer.
        self._peer = f"{address}:{free_port(address)}"
        self._admin = Server(address, free_port(address))
        self._process: Process | None = None

    @property
    def socket(self) -> Path:
        """Where engines attach and commands ask."""
        return self._directory / "kvferry.sock"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def cpu_s(self) -> float:
        """The processor time that it has used since its start."""
        assert self._process is not None
        return self._process.cpu_s()

    def start(
        self,
        *,
        bytes_per_second_max: int | None = None,
        realtime_priority: int | None = None,
        host_tier: Path | None = None,
        disk_tier: Path | None = None,
        host_mib: int = HOST_TIER_MIB,
    ) -> None:
        """Starts it and waits until it is ready. A rate holds transfers up, so that one can be caught in flight."""
        lines = [
            f'node = "{self.name}"',
            "[attach]",
            f'directory = "{self._directory}"',
            "[peer]",
            f'listen = "{self._peer}"',
            "[admin]",
            f'listen = "{self._admin.host}:{self._admin.port}"',
        ]
        limits = {"peer_bytes_per_second_max": bytes_per_second_max, "realtime_priority": realtime_priority}
        lines += ["[limits]", *(f"{name} = {value}" for name, value in limits.items() if value is not None)]
        if host_tier is not None:
            lines += ["[tier.host]", f'path = "{host_tier}"', f"mib = {host_mib}"]
        if disk_tier is not None:
            lines += ["[tier.disk]", f'path = "{disk_tier}"', f"mib = {DISK_TIER_MIB}"]
        self._config.write_text("\n".join(lines) + "\n")
        command: list[str | Path] = [self._binary, "serve", "--config", self._config]
        self._process = self._stage.start(f"daemon-{self.name}", command, LOGGING)
        self._process.wait_until(lambda: self._admin.answers("/readyz"), "ready", START_S_MAX)

    def end(self) -> None:
        """SIGTERM, as an upgrade would."""
        assert self._process is not None
        self._process.end()
        self._stage.forget(self._process)
        self._process = None

    def kill(self) -> None:
        """SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self._stage.forget(self._process)
        self._process = None

    def is_running(self) -> bool:
        return self._process is not None and self._process.is_running()

    @property
    def log(self) -> Path:
        """Of all its starts."""
        return self._stage.folder / f"daemon-{self.name}.log"

    def status(self) -> Status:
        return Status.parse(self._ask("status"))

    def checksums(self, engine: str, blocks: Sequence[int], group: int = 0, rank: int = 0) -> list[int]:
        """CRC-32C of each block of an engine attached here, over all layers of its group."""
        if not blocks:
            return []
        listed = ",".join(map(str, blocks))
        of = ["--engine", engine, "--rank", str(rank), "--group", str(group)]
        answer = self._ask("checksum", *of, "--blocks", listed)
        return [answer[str(block)] for block in blocks]

    def wait_for(self, wanted: Callable[[Status], bool], what: str, within_s: float) -> Status:
        """Asks until the status is as wanted.

        Raises:
            StageError: it did not become so in time; the text holds the last status and the log's end.
        """
        deadline = time.monotonic() + within_s
        while True:
            status = self.status()
            if wanted(status):
                return status
            if time.monotonic() > deadline:
                assert self._process is not None
                raise StageError(f"{self.name}: not {what} within {within_s:.0f} s: {status}\n{self._process.tail()}")
            time.sleep(POLL_S)

    def wait_attached(self, engine: str, within_s: float = 15.0) -> None:
        self.wait_for(lambda status: engine in status.engines, f"joined by {engine}", within_s)

    def wait_quiet(self, within_s: float) -> None:
        self.wait_for(lambda status: status.is_quiet, "quiet", within_s)

    def _ask(self, command: str, *arguments: str) -> dict[str, Any]:
        words = [str(self._binary), command, "--socket", str(self.socket), "--json", *arguments]
        done = subprocess.run(words, capture_output=True, text=True, timeout=ASK_S_MAX, check=False)
        if done.returncode != 0:
            raise StageError(f"`{' '.join(words)}` ended with {done.returncode}: {done.stderr.strip()}")
        document: dict[str, Any] = json.loads(done.stdout)
        return document


def start_sidecar(stage: Stage, binary: Path, decode: Server, prefill: Server) -> Server:
    """`kvferry sidecar` in front of the decode engine."""
    front = Server("127.0.0.1", free_port())
    command: list[str | Path] = [binary, "sidecar", "--listen", f"{front.host}:{front.port}"]
    command += ["--decode", f"http://{decode.host}:{decode.port}", "--prefill", f"{prefill.host}:{prefill.port}"]
    process = stage.start("sidecar", command, LOGGING)
    # Whatever it does not understand it hands to the engine.
    process.wait_until(lambda: front.answers("/v1/models"), "ready", START_S_MAX)
    return front
