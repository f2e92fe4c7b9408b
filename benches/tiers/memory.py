"""Rivals of the host tier: Mooncake's store in one process, and what answers look-ups elsewhere."""

from __future__ import annotations

import json
import random
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median

from cells import REGION_BYTES, Cell
from children import Conversation, PeerError, end, output, start
from installation import HERE as PEERS
from peer import Peer, Turn
from rows import answered

ENDS = Path(__file__).resolve().parent / "ends"
START_LIMIT_S = 60.0
MEASURE_LIMIT_S = 60.0
REDIS_LIMIT_S = 60.0
# As many blocks of 64 KiB as 8 GiB hold: what our arena has when it is asked.
KEYS = (8 << 30) // (64 << 10)
RUNS = 51


class MooncakeStore(Peer):
    """One store for all cells of a turn, whose memory was written before, as ours was."""

    def missing(self, work: Path) -> str | None:
        return None if (work / "mooncake" / ".ready").exists() else "Mooncake's environment was not installed"

    def measure(self, turn: Turn) -> None:
        todo = list(turn.setting.cells)
        while todo:
            with self._store(turn) as store:
                while todo:
                    cell = todo.pop(0)
                    try:
                        self._cell(turn, store, cell)
                    except PeerError as error:
                        turn.record(replace(self.row(turn, cell), error=str(error)))
                        # The next cell has a new one.
                        break

    @contextmanager
    def _store(self, turn: Turn) -> Iterator[Conversation]:
        port = _two_free_ports()
        command: list[str | Path] = [turn.work / "mooncake" / "bin" / "python", ENDS / "mooncake_store_end.py"]
        with Conversation(
            [*command, str(REGION_BYTES), str(port)],
            log=turn.log(self.name),
            environment={"PYTHONPATH": str(PEERS / "ends")},
        ) as store:
            address = store.ask(START_LIMIT_S, do="describe")
            # It is its own other end.
            store.ask(START_LIMIT_S, do="connect", address=address)
            yield store

    def _cell(self, turn: Turn, store: Conversation, cell: Cell) -> None:
        shape = {"blocks": cell.blocks, "block_bytes": cell.block_bytes}
        store.ask(MEASURE_LIMIT_S, do="wipe")
        answer = store.ask(
            MEASURE_LIMIT_S,
            do="measure",
            op=cell.op,
            batch_max=cell.blocks,
            budget_s=turn.setting.budget_s,
            transfers_min=1,
            **shape,
        )
        check = store.ask(MEASURE_LIMIT_S, do="check", batches=answer["batches"], full=turn.full, **shape)
        # Of the middle transfer, as ours and memcpy are told.
        answer["gbps"] = cell.bytes / answer["p50_us"] / 1e3
        # Counted for two ends, and without the master.
        answer["cpu_s_per_gb"] = None
        turn.record(replace(answered(self.row(turn, cell), answer), verified=check["verified"]))


class Dict(Peer):
    """A Python dict in this process: the floor for whoever looks up in Python."""

    def measure(self, turn: Turn) -> None:
        dice = random.Random(1)
        held = dict.fromkeys(dice.randbytes(32) for _ in range(KEYS))
        cell = turn.setting.cells[0]
        asked = dice.choices(list(held), k=cell.blocks)
        seconds = []
        for _ in range(RUNS):
            start_s = time.perf_counter()
            found = [key in held for key in asked]
            seconds.append(time.perf_counter() - start_s)
            if not all(found):
                raise PeerError("a key that was put is not there")
        turn.record(replace(self.row(turn, cell), p50_us=median(seconds) * 1e6))


class Redis(Peer):
    """A server of its own on a Unix socket, asked in one pipeline."""

    def missing(self, work: Path) -> str | None:
        if server() is None:
            return "redis-server is not installed (Debian: redis-tools)"
        return None if (work / "redis" / ".ready").exists() else "Redis' client was not installed"

    def measure(self, turn: Turn) -> None:
        cell = turn.setting.cells[0]
        words = [str(KEYS), str(cell.blocks), str(RUNS)]
        with self._server(turn) as path:
            python = turn.work / "redis" / "bin" / "python"
            command: list[str | Path] = [python, ENDS / "redis_end.py", path, *words]
            for line in output(command, log=turn.log(self.name), limit_s=REDIS_LIMIT_S).splitlines():
                figure = json.loads(line)
                turn.record(replace(self.row(turn, cell), p50_us=figure["p50_us"], way={"way": figure["way"]}))

    @contextmanager
    def _server(self, turn: Turn) -> Iterator[Path]:
        program = server()
        assert program is not None
        with tempfile.TemporaryDirectory(prefix="kvferry-redis-") as folder:
            path = Path(folder) / "socket"
            # The name decides what Debian's one binary is; the folder's link gives it the right one.
            link = Path(folder) / "redis-server"
            link.symlink_to(program)
            settings = ["--port", "0", "--unixsocket", str(path), "--save", "", "--appendonly", "no", "--dir", folder]
            child = start([link, *settings], log=turn.log("redis-server"))
            try:
                deadline = time.monotonic() + START_LIMIT_S
                while not path.exists():
                    if child.poll() is not None or time.monotonic() > deadline:
                        raise PeerError(f"redis-server does not listen (status {child.poll()})")
                    time.sleep(0.05)
                yield path
            finally:
                end(child)


def server() -> str | None:
    """Redis' server. Debian's redis-tools has it under another name, and starts no service."""
    return shutil.which("redis-server") or shutil.which("redis-check-rdb")


def _two_free_ports() -> int:
    """The first of two neighbours that nobody listens on."""
    for _ in range(100):
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            try:
                second.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port
    raise PeerError("no two free ports in a row")
