"""A real daemon with a host tier, and vLLM's own offloading classes over it, without a model and without a GPU.

The test plays vLLM's scheduler and its GPU worker: it says which chunks a request has, fills rows of host memory, and
steps.
"""

import hashlib
import signal
import subprocess
import sys
import tempfile
import time
import uuid

import native_paths
import numpy as np
from vllm.v1.kv_offload.base import LookupResult, ReqContext, ScheduleEndContext, make_offload_key
from vllm.v1.kv_offload.config import (
    OffloadingCacheConfig,
    OffloadingConfig,
    OffloadingGroupConfig,
    OffloadingModelConfig,
    OffloadingParallelConfig,
)
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec

ROW_BYTES = 12288
TOKENS = 16


class Node:
    """A daemon's process, and what outlives it."""

    def __init__(self, folder, host_tier=True):
        self.memory = tempfile.TemporaryDirectory(dir="/dev/shm", prefix="kvferry-test-")
        self.socket = f"{folder}/kvferry.sock"
        self.config = folder / "kvferry.toml"
        tables = f'[attach]\ndirectory = "{folder}"\n[peer]\nlisten = "127.0.0.1:0"\n[admin]\nlisten = "127.0.0.1:0"\n'
        if host_tier:
            tables += f'[tier.host]\nmib = 64\nblock_mib_max = 2\npath = "{self.memory.name}/arena"\n'
        self.config.write_text(tables)
        self.process = None

    def start(self):
        command = [str(native_paths.daemon()), "serve", "--config", str(self.config)]
        self.process = subprocess.Popen(command, stdout=sys.stderr)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def pause(self):
        self.process.send_signal(signal.SIGSTOP)

    def resume(self):
        self.process.send_signal(signal.SIGCONT)

    def close(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.memory.cleanup()


def offloading_config(engine_id, model, tier, chunks=8, groups=1, dtype="bfloat16"):
    """As ``build_offloading_config`` makes it of vLLM's configuration, for a small model."""
    extra = {
        "cpu_bytes_to_use": chunks * ROW_BYTES,
        "secondary_tiers": [{"type": "KVFerryTier", "module_path": "kvferry.vllm.tier", **tier}],
    }
    return OffloadingConfig(
        groups=tuple(OffloadingGroupConfig(TOKENS, (f"layer.{group}",), group) for group in range(groups)),
        worker_kv_bytes_per_block=ROW_BYTES,
        enable_kv_cache_events=False,
        extra_config=extra,
        engine_id=engine_id,
        model=OffloadingModelConfig(model, dtype),
        cache=OffloadingCacheConfig(TOKENS, 1),
        parallel=OffloadingParallelConfig(0, 1, 1, 1, 1, 1, 0, 1, None, True),
        kv_cache_layout="BLHNC",
    )


class Engine:
    """vLLM's scheduler as far as offloading goes."""

    def __init__(self, node, model="org/model", **more):
        tier = {"socket": node.socket, "revision": "1", **more.pop("tier", {})}
        # The name of vLLM's region in /dev/shm.
        engine_id = f"kvferry-test-{uuid.uuid4()}"
        self.spec = TieringOffloadingSpec(offloading_config(engine_id, model, tier, **more))
        self.offloading = self.spec.get_manager()
        (self.tier,) = self.offloading.secondary_tiers
        self.rows = np.asarray(self.offloading.primary_tier.get_kv_memoryview())
        # The longest that a call took, in seconds.
        self.slowest = 0.0

    def close(self):
        self.rows = None
        self.offloading.shutdown()

    def wait_connected(self):
        self.until(lambda: self.tier._worker.is_connected() and self.tier._scheduler.is_connected())

    def call(self, function, *arguments):
        began = time.monotonic()
        result = function(*arguments)
        self.slowest = max(self.slowest, time.monotonic() - began)
        return result

    def step(self):
        self.call(self.offloading.on_schedule_end, ScheduleEndContext((), ()))

    def until(self, condition, seconds=20.0):
        ends_at = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < ends_at, "it takes too long"
            self.step()
            time.sleep(0.002)

    def settle(self):
        self.until(lambda: not self.offloading.has_pending_work())

    def request(self, keys):
        context = ReqContext(f"request-{uuid.uuid4()}")
        counts = {}
        for key in keys:
            group = key[-4:]
            counts[group] = counts.get(group, 0) + TOKENS
            context.set_offload_key_position(key, counts[group])
        self.call(self.offloading.on_new_request, context)
        return context

    def store(self, keys, context=None):
        """The GPU worker's part, and what follows from it. Returns the context."""
        context = context or self.request(keys)
        prepared = self.call(self.offloading.prepare_store, keys, context)
        for key, row in zip(prepared.keys_to_store, prepared.store_spec.chunk_ids, strict=True):
            self.rows[row] = content(key)
        # vLLM's scheduler passes a set.
        self.call(self.offloading.complete_store, set(prepared.keys_to_store), context)
        self.settle()
        return context

    def evict(self):
        """Everything leaves host memory."""
        self.offloading.primary_tier.reset_cache()
        self.rows[:] = 0

    def look(self, keys, context=None, seconds=20.0):
        """What a request finds, once nothing is left to wait for. As ``_maximal_prefix_lookup``."""
        context = context or self.request(keys)
        ends_at = time.monotonic() + seconds
        while True:
            results = []
            for key in keys:
                results.append(self.call(self.offloading.lookup, key, context))
                if results[-1] is LookupResult.MISS:
                    break
            self.step()
            if not {LookupResult.RETRY, LookupResult.HIT_PENDING} & set(results):
                return sum(result is LookupResult.HIT for result in results)
            assert time.monotonic() < ends_at, results
            time.sleep(0.002)

    def holds(self, key, context):
        """Whether a chunk that was found is what was stored."""
        (row,) = self.offloading.prepare_load([key], context).chunk_ids
        self.offloading.complete_load([key], context)
        return bool((self.rows[row] == content(key)).all())

    def finish(self, context):
        self.call(self.offloading.on_request_finished, context)


def keys_of(text, count, group=0):
    return [make_offload_key(hashlib.sha256(f"{text} {number}".encode()).digest(), group) for number in range(count)]


def content(key):
    """A row that no other key has."""
    seed = int.from_bytes(hashlib.sha256(key).digest()[:8], "big")
    return np.random.default_rng(seed).integers(-128, 128, ROW_BYTES, dtype=np.int8)
