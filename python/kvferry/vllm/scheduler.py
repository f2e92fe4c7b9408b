"""The scheduler's half of the connector: grants leases on finished prefills, orders loads and stores.

::

    P  request_finished -> client.grant -> ticket into kv_transfer_params       blocks stay with vLLM, unfreed
       client.poll -> LeaseEnded -> metadata.released -> worker reports finished_sending -> vLLM frees them
    D  get_num_new_matched_tokens -> (count, True) -> update_state_after_alloc -> metadata.loads -> worker redeems
       worker reports finished_recving (and failed_recving) -> vLLM decodes (or computes)
all    the local tiers are asked about every prompt, and given every block: tiers.py. A load takes from another engine
       only what no local tier has.

Whatever fails, the request is computed here: no hook raises, and none waits but ``request_finished``, for at most the
reply timeout, and not again before the daemon has been heard of.

What vLLM 0.32 does around the hooks, read in its source; the limits of this file follow from it.

* The engine keeps stepping while P holds blocks. A finished request whose blocks are delayed stays in
  ``Scheduler.requests``, and ``has_finished_requests`` (``v1/core/sched/scheduler.py``) is true as long as that holds
  more than the queues do. ``EngineCoreProc._process_engine_step`` (``v1/engine/core.py``) then sleeps 1 ms between
  empty steps, each of which runs ``build_connector_meta`` and every worker's ``get_transfer_results``. So leases are
  polled without ``has_pending_push_work``, and ours stays False.
* ``finished_sending`` may be reported in any step after ``request_finished`` returned True, once: it asserts that the
  request is still known, and frees. One step's metadata reaches all ranks, so all report an ended lease together.
* A request aborted in WAITING_FOR_REMOTE_KVS is finished at once, but keeps its blocks and stays known until its id
  comes in ``finished_recving`` (``finish_requests``: ``delay_free_blocks``). A load that was ordered must therefore be
  reported once, whatever happened to its request; ids that vLLM does not know kill the engine.
* Such a request cannot be preempted: only RUNNING ones can (``_preempt_request``). One that is preempted later comes
  back with ``num_computed_tokens`` 0 and asks ``get_num_new_matched_tokens`` again. Its ticket is used up by then
  (``do_remote_prefill`` has been cleared in its parameters); the local tiers may be asked again.
* ``update_state_after_alloc`` is called for every request that gets blocks, and again without external tokens when one
  goes on after its load. Only the first call follows a question in the same ``schedule()``.
* A failed load must be in ``failed_recving`` and in ``finished_recving``. Under the policy "recompute" the request's
  blocks are freed, it is scheduled again from 0 computed tokens, and ``get_num_new_matched_tokens`` is called again.
  Under "fail" it ends as FINISHED_ERROR, by way of ``request_finished`` and before ``update_connector_output``.
  ``get_block_ids_with_load_errors`` is not used: it raises for models with several groups and gains nothing, since
  locally cached blocks are found again.
* When all of a prompt is external, vLLM computes its last token again. In sliding window groups that reads one block
  more than a list for the whole prompt keeps, so one token less is asked for here, and the list then keeps it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kvferry.client import (
    ClientError,
    Connected,
    LeaseEnded,
    Refused,
    RefusedError,
    SchedulerClient,
)
from kvferry.vllm import params as parameters
from kvferry.vllm.adapters import Adapters
from kvferry.vllm.complaints import Complaints
from kvferry.vllm.groups import GroupShape
from kvferry.vllm.load_orders import Candidate, count_hits, load_order
from kvferry.vllm.metadata import ClearedReport, KVFerryMetadata
from kvferry.vllm.params import EngineFacts, MalformedError, Offer
from kvferry.vllm.prompt import prompt_digest
from kvferry.vllm.settings import Settings
from kvferry.vllm.tiers import Tiers

# A prefill ends with one of these when its KV is whole. By name, so that this file does not need vLLM's enum.
_WHOLE = ("FINISHED_LENGTH_CAPPED", "FINISHED_STOPPED")
# Chosen: covers the daemon's answer on its way and the step that was running; the daemon's own deadline is earlier.
LEASE_MARGIN_SECONDS = 1.0
# Chosen: how long a daemon that did not answer is left alone, if it does not connect anew before.
GRANT_PAUSE_SECONDS = 5.0


@dataclass
class _Held:
    """Blocks of a finished request that wait for a decode engine."""

    lease_id: int
    daemon_epoch: int
    # When the lease is over even if nobody says so.
    release_at: float


class SchedulerSide:
    """All state is about requests that vLLM has not forgotten: see the single uses of each map."""

    def __init__(
        self,
        settings: Settings,
        client: SchedulerClient,
        groups: tuple[GroupShape, ...],
        engine: EngineFacts,
        clock: Callable[[], float] = time.monotonic,
        hash_block_size: int | None = None,
        tells_changes: bool = False,
        adapters: Adapters | None = None,
    ) -> None:
        self._settings = settings
        self._client = client
        self._groups = groups
        self._engine = engine
        self._clock = clock
        self._complaints = Complaints(clock)
        # Why nothing can be moved at all, known from the start; None: it can.
        self.refusal: str | None = None
        self._grants_paused_until = 0.0
        self._step = 0
        # P: leases, by request. In at request_finished, out at the lease's end.
        self._held: dict[str, _Held] = {}
        # D: requests not yet scheduled. In when first asked about, out at allocation or at the request's end.
        self._candidates: dict[str, Candidate] = {}
        # D: tickets being loaded, by request. In at allocation, out when vLLM hears that the load is over.
        self._loading: dict[str, str] = {}
        # Where the tokens of the last ordered load come from: host, disk, another engine.
        self.hits = (0, 0, 0)
        # Orders of this step, drained by build_connector_meta.
        self._orders = KVFerryMetadata()
        timeout_ms, namespace = settings.reply_timeout_ms, settings.namespace
        self._adapters = adapters or Adapters(clock=clock)
        told = (tells_changes, namespace, self._adapters)
        self.tiers = Tiers(client, groups, hash_block_size, timeout_ms, self._complaints, clock, *told)

    # -- P: a prefill ends ------------------------------------------------------------------------------------------

    def request_finished(self, request: Any, block_ids: tuple[list[int], ...]) -> tuple[bool, dict[str, Any] | None]:
        """vLLM is done with a request. True: its blocks stay until the lease ends and what is stored is copied."""
        kept, answer = self._finish(request, block_ids)
        try:
            is_whole = request.status.name in _WHOLE
            if self.tiers.finished(request, block_ids, is_whole and self.refusal is None) and not kept:
                # Nobody else needs them: they may go as soon as the workers see the copies done.
                self._orders.released.append(request.request_id)
                kept = True
        except Exception as error:
            self._complaints.warn("store bug", "kvferry: failed to keep %s: %r", request.request_id, error)
        return kept, answer

    def _finish(self, request: Any, block_ids: tuple[list[int], ...]) -> tuple[bool, dict[str, Any] | None]:
        request_id = request.request_id
        params = request.kv_transfer_params
        self._candidates.pop(request_id, None)
        if request_id in self._loading:
            self._stop_loading(request_id)
        if parameters.wants_prefill(params):
            # Never scheduled: aborted in the queue, or rejected by the API server (abort_immediately).
            params["do_remote_prefill"] = False
            self._relinquish(parameters.find_ticket(params))
            return False, None
        if not parameters.wants_decode(params) or request.status.name not in _WHOLE:
            return False, None
        try:
            return self._lease_out(request, block_ids)
        except Exception as error:  # A bug of ours costs a recompute on D, never this engine.
            self._complaints.warn("grant bug", "kvferry: failed to lease out %s: %r", request_id, error)
            return False, None

    def _lease_out(self, request: Any, block_ids: tuple[list[int], ...]) -> tuple[bool, dict[str, Any] | None]:
        request_id = request.request_id
        if self.refusal is not None:
            return False, None
        if not self._client.is_connected() or self._clock() < self._grants_paused_until:
            self._complaints.warn("no daemon", "kvferry: no daemon to keep %s for D, which computes it", request_id)
            return False, None
        # With steps in flight num_computed_tokens runs ahead of memory, but not within the prompt.
        token_count = min(request.num_computed_tokens, request.num_prompt_tokens)
        blocks = [block_ids[group.group_id][: group.block_count(token_count)] for group in self._groups]
        counts = [group.block_count(token_count) for group in self._groups]
        if token_count <= 0 or [len(group) for group in blocks] != counts:
            # Preempted while its last output was in flight: the blocks are gone already.
            return False, None
        adapter = self._adapters.of(request)
        if adapter is None:
            # Which adapter, and why, was said when it was found out.
            return False, None
        digest = prompt_digest(request, token_count, map(parameters.held_blocks, blocks), adapter)
        if digest is None:
            self._complaints.warn("embeddings", "kvferry: %s has no token ids; D computes it", request_id)
            return False, None
        try:
            granted = self._client.grant(request_id, blocks, self._settings.lease_ms, bytes.fromhex(digest))
        except RefusedError as error:
            self._complaints.warn("refused", "kvferry: the daemon refused to keep %s for D: %s", request_id, error)
            return False, None
        except ClientError as error:
            self._grants_paused_until = self._clock() + GRANT_PAUSE_SECONDS
            self._complaints.warn("unavailable", "kvferry: failed to reach the daemon for %s: %s", request_id, error)
            return False, None
        answer = parameters.offer(self._engine, granted, request_id, blocks, token_count, digest)
        release_at = self._clock() + granted.lease_ms / 1000 + LEASE_MARGIN_SECONDS
        self._held[request_id] = _Held(granted.lease_id, granted.daemon_epoch, release_at)
        return True, answer

    # -- D: a decode begins -----------------------------------------------------------------------------------------

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        """How many tokens others hold beyond the engine's own. May be asked every step; None: not known yet."""
        if self.refusal is not None:
            return 0, False
        candidate = self._candidates.setdefault(request.request_id, Candidate())
        candidate.local_tokens = candidate.near_tokens = num_computed_tokens
        if not self._client.is_connected():
            return 0, False
        if self._adapters.are_awaited(request):
            return None, False
        if not candidate.is_read and parameters.wants_prefill(request.kv_transfer_params):
            candidate.offer, candidate.is_read = self._read_offer(request), True
        in_tiers = self._ask_tiers(request)
        if in_tiers is None:
            return None, False
        end = near = candidate.near_tokens = max(num_computed_tokens, in_tiers)
        if candidate.offer is not None:
            total = min(candidate.offer.token_count, request.num_prompt_tokens - 1)
            if total > near and self._is_held(candidate.offer, near, total):
                end = total
        return end - num_computed_tokens, end > num_computed_tokens

    def _ask_tiers(self, request: Any) -> int | None:
        try:
            return self.tiers.tokens(request, self._hear)
        except Exception as error:
            self._complaints.warn("lookup bug", "kvferry: nothing is loaded for %s: %r", request.request_id, error)
            return 0

    def _read_offer(self, request: Any) -> Offer | None:
        request_id = request.request_id
        try:
            offer = parameters.read_offer(request.kv_transfer_params, len(self._groups), self._engine)
            adapter = self._adapters.of(request)
            if adapter is None:
                # Why was said when it was found out. What else may be held is computed, too.
                return None
            digest = prompt_digest(request, offer.token_count, offer.groups, adapter)
        except MalformedError as error:
            self._complaints.warn("malformed", "kvferry: %s is computed here, its parameters: %s", request_id, error)
            return None
        except Exception as error:
            self._complaints.warn("malformed", "kvferry: %s is computed here: %r", request_id, error)
            return None
        if digest != offer.digest:
            self._complaints.warn(
                "prompt", "kvferry: %s is computed here, its ticket is for another prompt", request_id
            )
            return None
        return offer

    def _is_held(self, offer: Offer, local: int, total: int) -> bool:
        """Whether P still has all that tokens behind ``total`` look at and that is not here."""
        for group, held in zip(self._groups, offer.groups, strict=True):
            first = max(group.first_needed(total), local // group.block_size)
            if held.count < group.block_count(total) or first < held.first:
                return False
        return True

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """vLLM gave the request its blocks; with external tokens it is now parked until the load is reported."""
        params = request.kv_transfer_params
        request_id = request.request_id
        candidate = self._candidates.pop(request_id, None)
        ticket = None
        if parameters.wants_prefill(params):
            # One load a ticket: later calls for it, after a failure or a preemption, find nothing to fetch.
            params["do_remote_prefill"] = False
            ticket = parameters.find_ticket(params)
        loads = num_external_tokens > 0
        from_tiers = loads and candidate is not None and candidate.near_tokens > candidate.local_tokens
        # Without a candidate it goes on after a load.
        claim = self.tiers.admitted(request, from_tiers) if candidate is not None else None
        if not loads:
            # All of it is here already, or it is of no use; P need not wait.
            self._relinquish(ticket)
            return
        self._loading[request_id] = ticket or ""
        self.tiers.load_into(blocks)
        self.hits = (0, 0, 0)
        try:
            if candidate is None:
                raise LookupError("it was never matched")
            order = load_order(self._groups, self.tiers, request, candidate, blocks, num_external_tokens, claim)
            self.hits = count_hits(self._groups, candidate, num_external_tokens, claim)
        except Exception as error:
            self._complaints.warn("load order", "kvferry: %s is computed here, no load: %r", request_id, error)
            self._orders.lost.append(request_id)
            return
        if order.ticket is None:
            # The tiers have all of it.
            self._loading[request_id] = ""
            self._relinquish(ticket)
        self._orders.loads.append(order)

    def _stop_loading(self, request_id: str) -> None:
        """The request ended while its load is out; the report still has to come."""
        for order in self._orders.loads:
            if order.request_id == request_id:
                # Not sent yet, so there is nothing to stop.
                self._orders.loads.remove(order)
                self._orders.lost.append(request_id)
                if order.tier is not None:
                    self.tiers.give_back(order.tier.claim)
                return
        if request_id not in self._orders.lost:
            self._orders.aborts.append(request_id)

    # -- every step -------------------------------------------------------------------------------------------------

    def build_connector_meta(self, scheduler_output: Any) -> KVFerryMetadata:
        """Drains what has gathered since the last step."""
        self._hear()
        now = self._clock()
        for request_id in [request_id for request_id, held in self._held.items() if held.release_at <= now]:
            # The daemon is gone or hangs. It reads nothing beyond the lease's deadline, which has passed.
            self._release(request_id)
        try:
            self.tiers.step(scheduler_output, self._orders)
        except Exception as error:
            # Without knowing what this step writes, nothing that is under way may be vouched for.
            self._complaints.warn("step bug", "kvferry: what is not kept yet is lost: %r", error)
            self._orders.stores, self._orders.loses_all = [], True
        orders, self._orders = self._orders, KVFerryMetadata()
        self._step += 1
        orders.step = self._step
        return orders

    def _hear(self) -> None:
        try:
            events = self._client.poll()
        except Exception as error:
            self._complaints.warn("poll", "kvferry: failed to hear from the daemon: %r", error)
            return
        for event in events:
            self.tiers.heard(event)
            if isinstance(event, Connected):
                self._grants_paused_until = 0.0
            elif isinstance(event, LeaseEnded):
                held = self._held.get(event.request_id)
                if held and (held.lease_id, held.daemon_epoch) == (event.lease_id, event.daemon_epoch):
                    self._release(event.request_id)
            elif isinstance(event, Refused):
                self._complaints.warn("hello", "kvferry: the daemon will not serve this engine: %s", event.message)

    def _release(self, request_id: str) -> None:
        del self._held[request_id]
        self._orders.released.append(request_id)

    def loads_over(self, request_ids: set[str] | None, failed: set[str] | None = None) -> None:
        """vLLM heard from all ranks that these loads are over, well or badly."""
        for request_id in request_ids or ():
            self._loading.pop(request_id, None)
        for request_id in failed or ():
            self.tiers.load_failed(request_id)

    def workers_said(self, report: object) -> None:
        """What the workers answered to a step's orders, beside finished requests."""
        if isinstance(report, ClearedReport):
            self.tiers.workers_cleared()

    def reset_cache(self) -> bool:
        """Nothing computed so far may be found again."""
        self.tiers.clear()
        return True

    def _relinquish(self, ticket: str | None) -> None:
        # Another request may be loading on the same ticket (n > 1, a retry): ending its lease would fail that load.
        if ticket is None or ticket in self._loading.values():
            return
        try:
            self._client.relinquish(ticket)
        except Exception as error:
            # P's lease ends by itself.
            self._complaints.warn("relinquish", "kvferry: failed to hand back a ticket: %r", error)

    def shutdown(self) -> None:
        """Ends the connection; the daemon lets all leases go."""
        self._client.close()
