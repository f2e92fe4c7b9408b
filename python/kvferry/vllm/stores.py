"""A worker's stores: submitted behind the step that made them whole, committed when nothing wrote to them meanwhile.

::

    metadata.stores  -> wait_for_save      -> client.store -> Copied -> client.commit      lookups find them
    metadata.written -> handle_preemptions -> doomed       -> Copied -> nothing            nobody ever finds them

Why a committed block holds what its hash says, though nobody has to wait for a copy and vLLM gives blocks away freely:

* All writes to this rank's KV memory are made, or asked for, by this process, step by step, on one thread: the forward
  pass, the zeroing and copying before it, and the daemon on a ``redeem`` or ``load`` that ``start_load_kv`` asks for.
  vLLM's runners call ``handle_preemptions`` before all of these, in every step, also in those without tokens
  (``GPUModelRunner.execute_model``; ``ActiveKVConnector.pre_forward`` in ``v1/worker/gpu/kv_connector.py``).
* A store is ordered for blocks that are whole when its step is computed (store_orders.py), and submitted in
  ``wait_for_save``, behind that step's forward. So it reads nothing too early.
* What is whole is not written to by its owner again. So a block can only be lost by changing hands: its owner finished,
  was aborted or preempted, or the block slid out of the window; vLLM freed it, and gave it to another. That is decided
  in one ``schedule()``, and the metadata of that very step names the block in ``written``: new blocks of running
  requests, those of new and resumed ones behind their local hits, copies' targets, blocks to be loaded into. A block
  that is freed and not given away keeps its content, and its store.
* A step that would write to a block which is being copied waits for the copy a moment, before anything of it runs
  (``is_copying``; worker.py). Nothing depends on that: it keeps stores from being lost. Without it a prompt of several
  steps would hardly ever be kept where layers have sliding windows, since vLLM frees what a window has passed, and
  gives it away first of all, in the ``schedule()`` behind the step that computed it.
* So before the first write to a block, ``before_step`` of that step has run in this process and doomed its store; and a
  store that was committed earlier was so on a ``Copied`` that was polled before the write, when the daemon's last read
  was over. With steps in flight (asynchronous scheduling, pipelines) nothing changes: each worker does one step after
  the other, and ``written`` travels with the step that writes.
* If a runner should not call ``handle_preemptions`` before a step, that step's stores are not submitted and all under
  way are doomed.

This holds where the forward pass is over when ``execute_model`` goes on, as on CPUs; with a device's queue in between,
``store`` would have to wait for an event of that queue. Memory of devices is not shared yet.

Limits: ``STORES_MAX`` stores under way, beyond which new ones are not made (a later request's will be). A store that is
not answered in ``STORE_SECONDS`` is called off; its place is taken until the answer comes or the connection ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from kvferry.client import Copied, WorkerClient
from kvferry.vllm.complaints import Complaints
from kvferry.vllm.metadata import KVFerryMetadata, StoreOrder
from kvferry.vllm.store_orders import SETTLE_SECONDS

# Chosen: several steps of a full batch, each request having filled a block.
STORES_MAX = 1024
# Chosen: no copy takes as long while anybody works on it.
STORE_SECONDS = 10.0


@dataclass
class _Store:
    """Blocks that the daemon is asked to copy and has not answered for."""

    request_id: str
    blocks: tuple[int, ...]
    # When it is called off.
    abort_at: float
    # Doomed: never to be committed.
    lost: bool = False


@dataclass
class Stores:
    """Every store from its order to the daemon's answer."""

    client: WorkerClient
    complaints: Complaints
    clock: Callable[[], float] = time.monotonic
    # By key. In when submitted, out at Copied.
    _stores: dict[int, _Store] = field(default_factory=dict)
    # Which stores a block is in. Requests with a common beginning store a block twice.
    _by_block: dict[int, set[int]] = field(default_factory=dict)
    # Ordered in this step and not submitted.
    _ordered: list[StoreOrder] = field(default_factory=list)
    # Finished requests, and when they are reported whatever is under way. In when released, out when reported.
    _leaving: dict[str, float] = field(default_factory=dict)
    # The step whose writes were looked at.
    _guarded: int | None = None
    # Whether a clearing of the cache waits to be reported.
    _cleared: bool = False

    def before_step(self, orders: KVFerryMetadata) -> None:
        """Before anything of the step writes. The caller has polled just now, so what was copied is committed."""
        if orders.step == self._guarded:
            return
        self._guarded = orders.step
        self._cleared |= orders.cleared
        if orders.cleared or orders.loses_all:
            self._lose(list(self._stores))
        for block_id in orders.written:
            if block_id in self._by_block:
                self._lose(list(self._by_block[block_id]))

    def is_copying(self, orders: KVFerryMetadata) -> bool:
        """Whether a store would be kept if this step's writes came a little later."""
        if orders.step == self._guarded or orders.cleared or orders.loses_all:
            return False
        return any(block_id in self._by_block for block_id in orders.written)

    def take_orders(self, orders: KVFerryMetadata) -> None:
        """This step's stores, to be submitted behind the forward pass, and requests that may go."""
        if self._guarded == orders.step:
            self._ordered = list(orders.stores)
        else:
            self.complaints.warn("unguarded", "kvferry: vLLM did not say that a step begins; nothing is kept of it")
            self._lose(list(self._stores))
        report_at = self.clock() + SETTLE_SECONDS
        self._leaving.update(dict.fromkeys(orders.released, report_at))

    def submit(self) -> None:
        """Asks for the copies; the forward pass is over."""
        ordered, self._ordered = self._ordered, []
        if ordered and not self.client.is_connected():
            return
        for order in ordered:
            if len(self._stores) >= STORES_MAX:
                self.complaints.warn("stores", "kvferry: %d stores are under way, more are not kept", STORES_MAX)
                return
            try:
                key = self.client.store(order.request_id, order.groups, order.tenant)
            except Exception as error:
                self.complaints.warn("store", "kvferry: failed to store blocks of %s: %r", order.request_id, error)
                continue
            blocks = tuple(block_id for group in order.groups for block_id in group.blocks)
            self._stores[key] = _Store(order.request_id, blocks, self.clock() + STORE_SECONDS)
            for block_id in blocks:
                self._by_block.setdefault(block_id, set()).add(key)

    def copied(self, event: Copied) -> None:
        """The daemon will not read a store's blocks again. What is intact is vouched for here, and only here."""
        store = self._stores.pop(event.key, None)
        if store is None:
            self.complaints.warn("stale store", "kvferry: ignored a stale answer about blocks of %s", event.request_id)
            return
        if not store.lost:
            self._let_go(event.key, store)
        if event.failure is not None:
            if not store.lost:
                self.complaints.warn(
                    "not kept", "kvferry: blocks of %s are not kept: %s", event.request_id, event.failure
                )
            return
        if store.lost:
            return
        try:
            self.client.commit(event.key)
        except Exception as error:
            self.complaints.warn("commit", "kvferry: failed to vouch for blocks of %s: %r", event.request_id, error)

    def _lose(self, keys: Iterable[int]) -> None:
        for key in keys:
            store = self._stores[key]
            if store.lost:
                continue
            store.lost = True
            self._let_go(key, store)
            try:
                self.client.abort(key)
            except Exception as error:
                self.complaints.warn("abort", "kvferry: failed to call off a store of %s: %r", store.request_id, error)

    def _let_go(self, key: int, store: _Store) -> None:
        for block_id in store.blocks:
            keys = self._by_block.get(block_id, set())
            keys.discard(key)
            if not keys:
                self._by_block.pop(block_id, None)

    def left(self) -> set[str]:
        """Finished requests whose blocks nothing of ours needs any more; each once."""
        now = self.clock()
        self._lose([key for key, store in self._stores.items() if not store.lost and store.abort_at <= now])
        if not self._leaving:
            return set()
        busy = {store.request_id for store in self._stores.values() if not store.lost}
        busy.update(order.request_id for order in self._ordered)
        left = {
            request_id for request_id, report_at in self._leaving.items() if request_id not in busy or report_at <= now
        }
        for request_id in left:
            del self._leaving[request_id]
        return left

    def take_cleared(self) -> bool:
        """Whether a clearing of the cache was obeyed since the last call."""
        cleared, self._cleared = self._cleared, False
        return cleared
