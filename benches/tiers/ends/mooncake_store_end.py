"""Mooncake's store with its memory in this very process: the nearest it comes to a host tier. Runs in its environment.

    mooncake_store_end.py REGION_BYTES PORT

It starts a master of its own. A transfer puts one batch of blocks, each under a new key, or gets one batch that was put
before; both by the batch calls that copy nothing on the way. A store that is full answers 0 to puts whose objects are
gone, so every length that comes back is compared, and what was put is got again before it counts as landed.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from blocks import Batch, Region
from end import serve
from mooncake.store import MooncakeDistributedStore

# More than is put while the clock runs: nothing has to make room for anything.
SEGMENT_BYTES = 3 << 30
# Written once beforehand, so that the kernel has no page to find while the clock runs.
TOUCHED_BYTES = SEGMENT_BYTES - (128 << 20)
TOUCH_BYTES = 64 << 20
MASTER_LIMIT_S = 10.0
# For so long an object that was got stays, whoever removes it.
LEASE_MS = 100
PR_SET_PDEATHSIG = 1


class MooncakeStore:
    progress: Callable[[], None] | None = None

    def __init__(self, port: int, source: Region, landing: Region) -> None:
        self._source = source
        self._landing = landing
        self._store = MooncakeDistributedStore()
        status = self._store.setup("127.0.0.1", "P2PHANDSHAKE", SEGMENT_BYTES, 64 << 20, "tcp", "", f"127.0.0.1:{port}")
        _succeed("setup", [status])
        for region in (source, landing):
            _succeed("register_buffer", [self._store.register_buffer(region.address, region.size)])
        self._serial = count()
        # What is got again: the keys of each batch's last put.
        self._put: dict[int, tuple[Batch, int, list[str]]] = {}
        self._touch()

    def _touch(self) -> None:
        for number in range(TOUCHED_BYTES // TOUCH_BYTES):
            pieces = [self._source.address + place * (1 << 20) for place in range(TOUCH_BYTES >> 20)]
            keys = [f"touch-{number}-{place}" for place in range(len(pieces))]
            _succeed("batch_put_from", self._store.batch_put_from(keys, pieces, [1 << 20] * len(pieces)))
        self._store.remove_all()

    def address(self) -> dict[str, Any]:
        return {}

    def connect(self, address: dict[str, Any]) -> None:
        pass

    def prepare(self, op: str, batch: Batch, block_bytes: int, batch_max: int) -> Callable[[], None]:
        sizes = [block_bytes] * len(batch.source)
        sources = [self._source.address + int(offset) for offset in batch.source]

        def put() -> list[str]:
            first = next(self._serial)
            keys = [f"{first}-{index}" for index in range(len(sizes))]
            _succeed("batch_put_from", self._store.batch_put_from(keys, sources, sizes))
            return keys

        if op == "read":
            keys = put()
            return lambda: self._get(batch, block_bytes, keys)

        def run() -> None:
            self._put[id(batch)] = batch, block_bytes, put()

        return run

    def forget(self) -> None:
        """What was put shows itself in the landing; then the store is emptied for the next cell."""
        for batch, block_bytes, keys in self._put.values():
            self._get(batch, block_bytes, keys)
        self._put.clear()
        time.sleep(2 * LEASE_MS / 1000)
        self._store.remove_all()

    def _get(self, batch: Batch, block_bytes: int, keys: list[str]) -> None:
        sizes = [block_bytes] * len(keys)
        landings = [self._landing.address + int(offset) for offset in batch.landing]
        lengths = self._store.batch_get_into(keys, landings, sizes)
        if list(lengths) != sizes:
            raise RuntimeError(f"batch_get_into returned {next(n for n in lengths if n != block_bytes)}")


def _succeed(what: str, statuses: list[int]) -> None:
    wrong = [status for status in statuses if status != 0]
    if wrong:
        raise RuntimeError(f"{what} returned {wrong[0]} for {len(wrong)} of {len(statuses)}")


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def start_master(port: int) -> None:
    """It ends with this process."""
    found = importlib.util.find_spec("mooncake")
    assert found is not None
    assert found.submodule_search_locations is not None
    program = Path(found.submodule_search_locations[0]) / "mooncake_master"
    command = [str(program), f"--rpc_port={port}", f"--metrics_port={port + 1}"]
    command += [f"--default_kv_lease_ttl={LEASE_MS}"]
    child = subprocess.Popen(command, stdout=2, stdin=subprocess.DEVNULL, preexec_fn=_die_with_parent)
    deadline = time.monotonic() + MASTER_LIMIT_S
    while not _listens(port):
        if child.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"mooncake_master does not listen on port {port} (status {child.poll()})")
        time.sleep(0.05)


def _listens(port: int) -> bool:
    """Asked of the kernel: a connection that says nothing would count as a client."""
    wanted = f":{port:04X}"
    lines = Path("/proc/net/tcp").read_text().splitlines() + Path("/proc/net/tcp6").read_text().splitlines()
    return any(fields[1].endswith(wanted) and fields[3] == "0A" for fields in map(str.split, lines[1:]))


if __name__ == "__main__":
    os.environ.setdefault("GLOG_minloglevel", "3")
    os.environ.setdefault("MC_LOG_LEVEL", "ERROR")
    size, port_text = sys.argv[1:]
    start_master(int(port_text))
    serve(lambda source, landing: MooncakeStore(int(port_text), source, landing), int(size))
