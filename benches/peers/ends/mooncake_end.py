"""One end of Mooncake's transfer engine over TCP, peer to peer. Runs in Mooncake's own environment.

    mooncake_end.py IP REGION_BYTES

A batch of 4,096 blocks and more fails in 0.3.13 (its queue is full), so ``batch_max`` can cut a transfer into batches
that run one after another.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from blocks import Batch, Region
from end import serve
from mooncake.engine import TransferEngine


class Mooncake:
    progress: Callable[[], None] | None = None

    def __init__(self, ip: str, source: Region, landing: Region) -> None:
        self._ip = ip
        self._source = source
        self._landing = landing
        self._engine = TransferEngine()
        _succeed("initialize", self._engine.initialize(ip, "P2PHANDSHAKE", "tcp", ""))
        for region in (source, landing):
            _succeed("register_memory", self._engine.register_memory(region.address, region.size))
        self._far: dict[str, Any] = {}

    def address(self) -> dict[str, Any]:
        peer = f"{self._ip}:{self._engine.get_rpc_port()}"
        return {"peer": peer, "source": self._source.address, "landing": self._landing.address}

    def connect(self, address: dict[str, Any]) -> None:
        self._far = address

    def prepare(self, op: str, batch: Batch, block_bytes: int, batch_max: int) -> Callable[[], None]:
        engine, peer = self._engine, self._far["peer"]
        if op == "read":
            call, local_base, remote_base = engine.batch_transfer_sync_read, self._landing.address, self._far["source"]
            local, remote = batch.landing, batch.source
        else:
            call, local_base, remote_base = engine.batch_transfer_sync_write, self._source.address, self._far["landing"]
            local, remote = batch.source, batch.landing
        cuts = [slice(start, start + batch_max) for start in range(0, len(local), batch_max)]
        parts = [
            (
                [local_base + int(offset) for offset in local[cut]],
                [remote_base + int(offset) for offset in remote[cut]],
                [block_bytes] * len(local[cut]),
            )
            for cut in cuts
        ]

        def run() -> None:
            for here, there, lengths in parts:
                _succeed(f"batch_transfer_sync_{op} of {len(lengths)} blocks", call(peer, here, there, lengths))

        return run

    def forget(self) -> None:
        pass


def _succeed(what: str, status: int) -> None:
    if status != 0:
        raise RuntimeError(f"{what} returned {status}")


if __name__ == "__main__":
    ip, size = sys.argv[1:]
    serve(lambda source, landing: Mooncake(ip, source, landing), int(size))
