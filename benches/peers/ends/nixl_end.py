"""One end of NIXL over its UCX backend, host memory to host memory. Runs in NIXL's own environment.

    nixl_end.py NAME REGION_BYTES thread|polled

``thread`` turns on NIXL's progress thread, which spins; ``polled`` lets both ends poll in their own loop. Which way
UCX goes is chosen outside, by UCX_TLS and UCX_NET_DEVICES. NIXL has no call that waits: completion is by polling.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from typing import Any

os.environ.setdefault("NIXL_LOG_LEVEL", "ERROR")

import base64

import numpy as np
from blocks import Batch, Region
from end import serve
from nixl._api import nixl_agent, nixl_agent_config

logging.disable(logging.WARNING)


class Nixl:
    def __init__(self, name: str, source: Region, landing: Region, *, thread: bool) -> None:
        self._source = source
        self._landing = landing
        self._agent = nixl_agent(name, nixl_agent_config(enable_prog_thread=thread, backends=["UCX"]))
        self._agent.register_memory([(region.address, region.size, 0, "") for region in (source, landing)], "DRAM")
        self._remote = ""
        self._far: dict[str, Any] = {}
        self._handles: list[Any] = []
        self.progress: Callable[[], None] | None = None if thread else self._agent.get_new_notifs

    def address(self) -> dict[str, Any]:
        return {
            "source": self._source.address,
            "landing": self._landing.address,
            "metadata": base64.b64encode(self._agent.get_agent_metadata()).decode(),
        }

    def connect(self, address: dict[str, Any]) -> None:
        self._far = address
        self._remote = self._agent.add_remote_agent(base64.b64decode(address["metadata"]))

    def prepare(self, op: str, batch: Batch, block_bytes: int, batch_max: int) -> Callable[[], None]:
        if op == "read":
            local = self._pieces(self._landing.address, batch.landing, block_bytes)
            remote = self._pieces(self._far["source"], batch.source, block_bytes)
        else:
            local = self._pieces(self._source.address, batch.source, block_bytes)
            remote = self._pieces(self._far["landing"], batch.landing, block_bytes)
        agent = self._agent
        handle = agent.initialize_xfer(op.upper(), local, remote, self._remote)
        self._handles.append(handle)

        def run() -> None:
            state = agent.transfer(handle)
            while state == "PROC":
                state = agent.check_xfer_state(handle)
            if state != "DONE":
                raise RuntimeError(f"the transfer ended in state {state}")

        return run

    def forget(self) -> None:
        for handle in self._handles:
            self._agent.release_xfer_handle(handle)
        self._handles.clear()

    def _pieces(self, base: int, offsets: np.ndarray, block_bytes: int) -> Any:
        rows = np.empty((len(offsets), 3), dtype=np.uint64)
        rows[:, 0] = offsets.astype(np.uint64) + np.uint64(base)
        rows[:, 1] = block_bytes
        rows[:, 2] = 0
        return self._agent.get_xfer_descs(rows, "DRAM")


if __name__ == "__main__":
    name, size, mode = sys.argv[1:]
    serve(lambda source, landing: Nixl(name, source, landing, thread=mode == "thread"), int(size))
