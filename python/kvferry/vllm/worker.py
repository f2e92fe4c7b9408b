"""A worker's half of the connector: shares this rank's memory, asks for and reports loads, and stores (stores.py).

::

    metadata.loads -> client.redeem, client.load -> TransferDone, Loaded -> finished_recving (and failed_recving)
    metadata.aborts -> client.abort -> TransferDone, Loaded -> finished_recving
    metadata.lost -> finished_recving and failed_recving
    metadata.released -> finished_sending

A load is reported once, and only when nothing touches its blocks any more: vLLM gives them to others in the same step.
That is why a deadline aborts a load instead of reporting it. When the connection is lost the client answers for the
daemon, which may be alive and in the middle of a write; it lets go of everything of ours within a second of losing us,
so such a load is reported a little later than that. A load may have two parts, one from another engine and one from the
local tiers; it is over when both are, and has failed when one has.

Every rank reports every load. vLLM's ``KVOutputAggregator`` (``distributed/kv_transfer/kv_connector/utils.py``) counts
the ranks, and lets a failure of one fail the request once all have reported.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from kvferry.client import DAEMON_GONE, Copied, Loaded, Refused, TransferDone, WorkerClient
from kvferry.vllm.complaints import Complaints
from kvferry.vllm.metadata import KVFerryMetadata, LoadOrder
from kvferry.vllm.settings import Settings
from kvferry.vllm.stores import Stores

# Chosen: how long a daemon may take to answer beyond the deadline it was given, before it is asked to stop.
DEADLINE_MARGIN_SECONDS = 1.0
# Twice the second that a daemon has for letting go of an engine whose connection closed (the design's promise).
GONE_SECONDS = 2.0
# Chosen: between two looks at whether a copy is over. Short beside a step, long beside what a look costs.
LOOK_SECONDS = 0.0002
# Chosen: how long nobody waits for copies after a wait in vain, so that a daemon that hangs costs next to nothing.
IMPATIENT_SECONDS = 10.0


@dataclass
class _Load:
    """A load that the daemon has and has not answered."""

    # Of the parts that are not answered.
    keys: set[int]
    # When it is called off; None: it has been.
    abort_at: float | None
    # The first part's failure that was heard; None: none yet.
    failure: str | None = None
    # Whether a part was answered by a lost connection, and may still land.
    is_gone: bool = False


@dataclass
class Report:
    """What vLLM is told at the end of a step."""

    finished_sending: set[str]
    finished_recving: set[str]
    failed_recving: set[str]


class WorkerSide:
    """All state is about requests whose loads vLLM waits for."""

    def __init__(
        self,
        settings: Settings,
        client: WorkerClient,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._settings = settings
        self._client = client
        self._clock = clock
        self._sleep = sleep
        # Until then no step waits for copies.
        self._impatient_until = 0.0
        self._complaints = Complaints(clock)
        # The last step obeyed.
        self._step: int | None = None
        # Loads without an answer, by request. In when asked for, out at the last part's answer.
        self._loads: dict[str, _Load] = {}
        # Loads that failed with the daemon gone, by request, and when that may be reported.
        self._gone: dict[str, float] = {}
        self._report = Report(set(), set(), set())
        self._stores = Stores(client, self._complaints, clock)

    def begin_step(self, orders: object) -> None:
        """Before anything of a step writes to KV memory."""
        if isinstance(orders, KVFerryMetadata):
            # What was copied in time is committed, before this step's writes can doom it.
            self._hear()
            self._wait_for_copies(orders)
            self._stores.before_step(orders)

    def _wait_for_copies(self, orders: KVFerryMetadata) -> None:
        began = self._clock()
        if began < self._impatient_until:
            return
        while self._stores.is_copying(orders) and self._client.is_connected():
            if self._clock() - began >= self._settings.store_wait_ms / 1000:
                self._impatient_until = self._clock() + IMPATIENT_SECONDS
                return
            self._sleep(LOOK_SECONDS)
            self._hear()

    def end_step(self) -> None:
        """The step's forward pass is over."""
        self._stores.submit()

    def take_cleared(self) -> bool:
        """Whether a clearing of the cache was obeyed since the last call."""
        return self._stores.take_cleared()

    def obey(self, orders: object) -> None:
        """Carries out one step's orders. Called again with the same ones it does nothing."""
        if not isinstance(orders, KVFerryMetadata) or orders.step == self._step:
            return
        self._step = orders.step
        # Aborts first: an id in both lists ended and came back.
        for request_id in orders.aborts:
            self._abort(request_id)
        for order in orders.loads:
            self._load(order)
        for request_id in orders.lost:
            self._fail(request_id)
        self._stores.take_orders(orders)

    def _load(self, order: LoadOrder) -> None:
        request_id = order.request_id
        if request_id in self._loads or request_id in self._gone:
            # Answering twice would kill the engine; the first load's answer serves for both.
            self._complaints.warn("twice", "kvferry: %s is loading already, ignored a second load", request_id)
            return
        if not self._client.is_connected():
            self._complaints.warn("no daemon", "kvferry: %s is computed here, no daemon to fetch it", request_id)
            self._fail(request_id)
            return
        load = _Load(set(), self._clock() + self._settings.transfer_deadline_ms / 1000 + DEADLINE_MARGIN_SECONDS)
        try:
            self._ask(order, load)
        except Exception as error:
            self._complaints.warn("redeem", "kvferry: %s is computed here, failed to ask for it: %r", request_id, error)
            load.failure = "not_asked"
        if not load.keys:
            self._fail(request_id)
            return
        self._loads[request_id] = load
        if load.failure is not None:
            self._abort(request_id)

    def _ask(self, order: LoadOrder, load: _Load) -> None:
        deadline_ms = self._settings.transfer_deadline_ms
        if order.ticket is not None:
            load.keys.add(self._client.redeem(order.request_id, order.ticket, order.groups, deadline_ms, order.binding))
        if order.tier is not None:
            load.keys.add(self._client.load(order.request_id, order.tier.claim, order.tier.groups, deadline_ms))

    def _fail(self, request_id: str) -> None:
        self._report.finished_recving.add(request_id)
        self._report.failed_recving.add(request_id)

    def _abort(self, request_id: str) -> None:
        load = self._loads.get(request_id)
        # Unknown: it was answered before the request ended. Without a time: asked already.
        if load is None or load.abort_at is None:
            return
        load.abort_at = None
        for key in load.keys:
            try:
                self._client.abort(key)
            except Exception as error:
                self._complaints.warn("abort", "kvferry: failed to call off the load of %s: %r", request_id, error)

    def report(self) -> Report:
        """What has completed since the last step; each id once."""
        self._hear()
        now = self._clock()
        for request_id, load in self._loads.items():
            if load.abort_at is not None and load.abort_at <= now:
                self._complaints.warn("deadline", "kvferry: the load of %s takes too long, called off", request_id)
                self._abort(request_id)
        for request_id in [request_id for request_id, report_at in self._gone.items() if report_at <= now]:
            del self._gone[request_id]
            self._fail(request_id)
        self._report.finished_sending |= self._stores.left()
        report, self._report = self._report, Report(set(), set(), set())
        return report

    def _hear(self) -> None:
        try:
            events = self._client.poll()
        except Exception as error:
            self._complaints.warn("poll", "kvferry: failed to hear from the daemon: %r", error)
            return
        for event in events:
            if isinstance(event, TransferDone | Loaded):
                self._done(event)
            elif isinstance(event, Copied):
                self._stores.copied(event)
            elif isinstance(event, Refused):
                self._complaints.warn("attach", "kvferry: the daemon will not have this memory: %s", event.message)

    def _done(self, done: TransferDone | Loaded) -> None:
        request_id = done.request_id
        load = self._loads.get(request_id)
        if load is None or done.key not in load.keys:
            self._complaints.warn("stale", "kvferry: ignored a stale answer for %s", request_id)
            return
        load.keys.remove(done.key)
        if done.failure is not None:
            if load.abort_at is not None:
                self._complaints.warn(
                    "failed", "kvferry: %s is computed here, its load failed: %s", request_id, done.failure
                )
            load.failure = load.failure or done.failure
            load.is_gone |= done.failure == DAEMON_GONE
            # The other part is of no use without this one, but may still land.
            self._abort(request_id)
        if load.keys:
            return
        del self._loads[request_id]
        if load.failure is None:
            self._report.finished_recving.add(request_id)
        elif load.is_gone:
            self._gone[request_id] = self._clock() + GONE_SECONDS
        else:
            self._fail(request_id)

    def shutdown(self) -> None:
        """Ends the connection; the daemon unmaps this rank's memory."""
        self._client.close()
