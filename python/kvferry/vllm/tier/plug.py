"""KVFerry behind vLLM's host memory: a secondary tier of ``TieringOffloadingSpec``.

::

    GPU <-> host memory: vLLM          host memory <-> daemon, and what it keeps: here
    lookup       -> chains.py, questions.py -> HIT, MISS; RETRY while nobody knows
    submit_store -> storing.py  -> staging.py -> client.store, commit
    submit_load  -> loading.py  -> client.load -> staging.py
    get_finished_jobs (once a step) -> hears the daemon, goes on with everything, tells what is over

Runs in vLLM's scheduler process, and no call waits for the daemon: one that hangs costs ``reply_timeout_ms`` a request
and ``transfer_deadline_ms`` a job, and one that is away costs nothing but misses. The daemon sees one engine of one
rank, whose blocks are the slots of the staging area, with a group for each of vLLM's; so it keeps a chunk under the
hash and the group that vLLM gave it.

``drain_jobs`` is called by ``reset_cache`` alone, when the weights may have changed. vLLM expects tiers to keep what
they have; that would serve old KV cache for new weights, so ours is cleared, on this node for this fingerprint.

Steps of the engine are its clock: a load takes the steps in which its lookup is answered, the daemon has delivered, and
the copy is over. vLLM keeps stepping while there are jobs.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, ClassVar

import vllm
from vllm.v1.kv_offload.base import Locality, LookupResult, Medium, OffloadingEvent, RequestOffloadingContext
from vllm.v1.kv_offload.tiering.base import JobResult, SecondaryTierManager

from kvferry import native
from kvferry.client import (
    AttachSpec,
    Client,
    Connected,
    Copied,
    Disconnected,
    Event,
    Layout,
    Loaded,
    Refused,
    Span,
    TierChanged,
)
from kvferry.vllm.complaints import Complaints
from kvferry.vllm.hashes import HASH_BYTES, as_daemon, as_vllm, tenant_named
from kvferry.vllm.tier.chains import GROUP_BYTES, Chains, group_of
from kvferry.vllm.tier.identity import tier_fingerprint
from kvferry.vllm.tier.jobs import Job, Jobs
from kvferry.vllm.tier.loading import LoadPart, Loads
from kvferry.vllm.tier.questions import Answer, Questions
from kvferry.vllm.tier.settings import parse
from kvferry.vllm.tier.staging import Staging
from kvferry.vllm.tier.storing import StorePiece, Stores

_RESULTS = {Answer.HELD: LookupResult.HIT, Answer.NOT_HELD: LookupResult.MISS, Answer.UNKNOWN: LookupResult.RETRY}
_MEDIA = {"disk": Medium.STORAGE, "host": Medium.CPU}


class KVFerryTier(SecondaryTierManager):
    """vLLM makes one for each engine; see settings.py for what may be configured."""

    medium: ClassVar[Medium] = Medium.CPU

    def __init__(
        self,
        offloading_spec: Any,
        primary_kv_view: memoryview,
        tier_type: str,
        backpressure_detector: Any = None,
        locality: str | None = None,
        **written: Any,
    ) -> None:
        super().__init__(offloading_spec, primary_kv_view, tier_type, backpressure_detector)
        settings = parse(written)
        config = offloading_spec.config
        self.locality = Locality(locality) if locality is not None else Locality.LOCAL
        self._deadline_seconds = settings.transfer_deadline_ms / 1000
        # The daemon's number of each of vLLM's groups.
        self._groups = {group.group_id: number for number, group in enumerate(config.groups)}
        self._group_ids = [group.group_id for group in config.groups]
        self._chains = Chains(
            {group.group_id: group.tokens_per_block * config.cache.blocks_per_chunk for group in config.groups}
        )
        chunk_count, row_bytes = primary_kv_view.shape or (0, 0)
        fingerprint = tier_fingerprint(config, row_bytes, settings.revision, vllm.__version__)
        slot_count = max(1, min(chunk_count, (settings.staging_mib << 20) // row_bytes))
        self._staging = Staging(primary_kv_view, slot_count)
        # The connector of the same engine, if there is one, has the engine's own name.
        engine_id = f"{config.engine_id}.tier"
        self._scheduler = native.start_scheduler(settings.socket, engine_id, settings.reply_timeout_ms)
        self._worker = native.start_worker(settings.socket, engine_id, settings.reply_timeout_ms)
        self._worker.attach(self._spec(fingerprint, str(config.model.name)))
        self._complaints = Complaints()
        self._jobs = Jobs()
        group_count = len(self._groups)
        self._questions = Questions(self._scheduler, group_count, settings.reply_timeout_ms, self._complaints)
        moving = (self._worker, group_count, self._staging, self._questions, self._jobs, self._complaints)
        self._loads = Loads(*moving)
        self._stores = Stores(*moving, tenant_named(settings.namespace))
        self._tells_events = bool(config.enable_kv_cache_events)
        if self._tells_events:
            self._scheduler.watch()
        self._events: list[OffloadingEvent] = []
        # How long vLLM's hashes are; known from the first key on.
        self._hash_bytes: int | None = None

    def _spec(self, fingerprint: bytes, model: str) -> AttachSpec:
        staging = self._staging
        assert staging.fd is not None
        span = Span(1, 0, staging.row_bytes, staging.row_bytes, 1, 1, staging.row_bytes)
        # The groups share the slots: each is for whatever chunk is on its way.
        groups = ((span,),) * len(self._groups)
        layout = Layout("BLHNC", staging.slot_count, staging.slot_count * staging.row_bytes, groups)
        return AttachSpec(0, 1, layout, fingerprint, staging.fd, model)

    # -- lookups --------------------------------------------------------------------------------------------------

    def lookup(self, key: bytes, req_context: Any) -> LookupResult:
        """Whether the daemon has a chunk; RETRY while nobody knows."""
        group = self._groups.get(group_of(key))
        if group is None or not self._worker.is_connected():
            return LookupResult.MISS

        def chain() -> Iterable[tuple[bytes, bytes]]:
            return ((following, self._name(following)) for following in self._chains.from_key(req_context, key))

        return _RESULTS[self._questions.answer(req_context.req_id, key, group, chain)]

    def _name(self, key: bytes) -> bytes:
        self._hash_bytes = len(key) - GROUP_BYTES
        return as_daemon(key[:-GROUP_BYTES])

    def on_new_request(self, req_context: Any) -> RequestOffloadingContext:
        """Chunks are stored as they come into being; those that were stored before are there."""
        return RequestOffloadingContext()

    def on_request_finished(self, req_context: Any) -> None:
        """Gives back what the request found and did not load."""
        self._questions.ended(req_context.req_id)

    # -- jobs -----------------------------------------------------------------------------------------------------

    def submit_store(self, job_metadata: Any) -> None:
        """Begins to copy chunks out of vLLM's host memory."""
        rows = {key: int(row) for key, row in zip(job_metadata.keys, job_metadata.chunk_ids, strict=True)}
        job = self._begin(job_metadata, is_load=False)
        pieces = []
        for parent, keys in self._chains.pieces(job_metadata.req_context, rows):
            group = self._groups.get(group_of(keys[0]))
            if group is None:
                self._jobs.settle(job, keys, False)
                continue
            names = [self._name(key) for key in keys]
            before = self._name(parent) if parent is not None else None
            pieces.append(StorePiece(job, group, before, keys, names, [rows[key] for key in keys]))
        self._stores.add(pieces)
        self._stores.start(time.monotonic())

    def submit_load(self, job_metadata: Any) -> None:
        """Begins to bring chunks into vLLM's host memory."""
        rows = {key: int(row) for key, row in zip(job_metadata.keys, job_metadata.chunk_ids, strict=True)}
        job = self._begin(job_metadata, is_load=True)
        parts = []
        for question, keys in self._questions.take(job.request_id, rows):
            for number in sorted({self._groups[group_of(key)] for key in keys}):
                of = [key for key in keys if self._groups[group_of(key)] == number]
                names = [self._name(key) for key in of]
                parts.append(LoadPart(job, number, of, names, [rows[key] for key in of], question))
        self._loads.add(parts)
        self._loads.start(time.monotonic())

    def _begin(self, metadata: Any, is_load: bool) -> Job:
        now = time.monotonic()
        ends_at = now + self._deadline_seconds
        job = Job(metadata.job_id, metadata.req_context.req_id, is_load, now, ends_at, len(metadata.keys))
        self._jobs.begin(job)
        return job

    def get_finished_jobs(self) -> Iterable[JobResult]:
        """Hears the daemon, goes on with everything, and says what is over."""
        self._hear()
        now = time.monotonic()
        self._loads.step(now)
        self._stores.step(now)
        # Loads first: requests wait for them.
        self._loads.start(now)
        if not self._loads.are_waiting:
            self._stores.start(now)
        return [self._result(job, now) for job in self._jobs.take_finished()]

    def _result(self, job: Job, now: float) -> JobResult:
        return JobResult(
            job_id=job.job_id,
            success=not job.failed,
            successful_keys=tuple(job.moved) if job.is_load and job.failed and job.moved else None,
            transfer_time=now - job.started_at,
            transfer_bytes=len(job.moved) * self._staging.row_bytes,
        )

    def drain_jobs(self) -> None:
        """Ends all jobs, waiting for our own copies alone, and clears what is kept: see the module."""
        self._hear()
        self._staging.wait_idle()
        now = time.monotonic()
        self._loads.step(now)
        self._loads.give_up_all()
        self._stores.give_up_all()
        self._questions.clear()

    # -- the daemon -----------------------------------------------------------------------------------------------

    def _hear(self) -> None:
        for event in self._poll(self._scheduler):
            if isinstance(event, TierChanged):
                self._changed(event)
            else:
                self._questions.heard(event)
        for event in self._poll(self._worker):
            if isinstance(event, Loaded):
                self._loads.answered(event)
            elif isinstance(event, Copied):
                self._stores.answered(event, time.monotonic())
            elif isinstance(event, Refused):
                self._complaints.warn("attach", "kvferry: the daemon will not have this tier: %s", event.message)
            elif isinstance(event, Connected | Disconnected):
                self._stores.forget_committed()

    def _poll(self, client: Client) -> Iterable[Event]:
        try:
            return client.poll()
        except Exception as error:
            self._complaints.warn("poll", "kvferry: failed to hear from the daemon: %r", error)
            return ()

    def _changed(self, event: TierChanged) -> None:
        medium, length = _MEDIA.get(event.tier), self._hash_bytes
        # A longer hash cannot be told from its name.
        if not self._tells_events or medium is None or length is None or length > HASH_BYTES:
            return
        for removed, pairs in ((False, event.stored), (True, event.removed)):
            keys: list[Any] = [
                as_vllm(name, length) + self._group_ids[number].to_bytes(GROUP_BYTES, "big")
                for number, name in pairs
                if number < len(self._group_ids)
            ]
            if keys:
                self._events.append(OffloadingEvent(keys, medium, removed, self.locality, self.tier_type))

    def take_events(self) -> Iterable[OffloadingEvent]:
        """What came into the node's tiers and left them."""
        events, self._events = self._events, []
        return events

    def shutdown(self) -> None:
        """Ends both connections, and lets go of vLLM's memory."""
        self._staging.wait_idle()
        self._scheduler.close()
        self._worker.close()
        self._staging.close()
        # vLLM closes the mapping next, which must not be in use then.
        self._primary_kv_view = memoryview(b"")
