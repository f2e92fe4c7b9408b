"""``KVFerryConnector``: vLLM's hooks, each one call into the scheduler's or the worker's half.

vLLM makes one object in the scheduler's process and one in every worker; which half it is depends on the role. What
vLLM expects of each hook, and why the halves answer as they do, is in scheduler.py and worker.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorTransferResults,
    KVConnectorWorkerMetadata,
    SupportsHMA,
)
from vllm.v1.metrics.cache_hit_source import CacheHitSource

from kvferry import native
from kvferry.client import AttachSpec
from kvferry.vllm import settings
from kvferry.vllm.adapters import Adapters, lora_facts
from kvferry.vllm.complaints import logger
from kvferry.vllm.groups import GroupShape, UnsupportedError, group_shapes, transferred_groups
from kvferry.vllm.hashes import why_no_hashes
from kvferry.vllm.metadata import ClearedReport, KVFerryHandshake
from kvferry.vllm.params import EngineFacts
from kvferry.vllm.scheduler import SchedulerSide
from kvferry.vllm.worker import WorkerSide

if TYPE_CHECKING:
    from kvferry.vllm.kv_memory import SharedMemory

_WITHOUT_US = "kvferry: the engine serves without KVFerry, every prompt is computed here: %s"


class KVFerryConnector(KVConnectorBase_V1, SupportsHMA):
    """Carries KV cache between engines through the KVFerry daemon of the node."""

    # How vLLM's statistics name the tokens that come from here.
    _cache_hit_source = CacheHitSource.P2P

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        transfer = vllm_config.kv_transfer_config
        self._settings = settings.parse(transfer.kv_connector_extra_config)
        self._config = vllm_config
        self._cache = kv_cache_config
        self._scheduler: SchedulerSide | None = None
        self._worker: WorkerSide | None = None
        self._memory: SharedMemory | None = None
        # Why this worker shares nothing; None once it does.
        self._refusal: str | None = "its KV cache was never registered"
        if role == KVConnectorRole.SCHEDULER:
            self._scheduler = self._start_scheduler(transfer)
        else:
            self._worker = self._start_worker(transfer)

    def _start_scheduler(self, transfer: Any) -> SchedulerSide:
        parallel = self._config.parallel_config
        engine = EngineFacts(
            engine_id=transfer.engine_id,
            tp_size=parallel.tensor_parallel_size,
            dcp_size=getattr(parallel, "decode_context_parallel_size", 1),
            pp_size=parallel.pipeline_parallel_size,
        )
        refusal = None
        try:
            groups = group_shapes(self._cache, parallel)
        except UnsupportedError as error:
            groups, refusal = (), str(error)
            logger.error(_WITHOUT_US, error)
        if transfer.kv_load_failure_policy != "recompute":
            logger.warning(
                "kvferry: kv_load_failure_policy is %r, so a request whose blocks cannot be fetched ends with an "
                'error. Set "kv_load_failure_policy": "recompute" in --kv-transfer-config to compute it instead.',
                transfer.kv_load_failure_policy,
            )
        client = native.start_scheduler(self._settings.socket, transfer.engine_id, self._settings.reply_timeout_ms)
        if self._publishes_events():
            client.watch()
        side = SchedulerSide(
            self._settings,
            client,
            groups,
            engine,
            hash_block_size=self._hash_block_size(groups) if self._settings.tier and groups else None,
            tells_changes=self._publishes_events(),
            adapters=Adapters(lora_facts(self._config), self._settings.reply_timeout_ms / 1000),
        )
        side.refusal = refusal
        return side

    def _hash_block_size(self, groups: tuple[GroupShape, ...]) -> int | None:
        """How many tokens one of vLLM's block hashes stands for; None: blocks have no names, so none are kept."""
        reason = why_no_hashes(self._config.cache_config)
        if reason is None:
            from vllm.v1.core.kv_cache_utils import resolve_kv_cache_block_sizes

            try:
                _, size = resolve_kv_cache_block_sizes(self._cache, self._config)
                if not any(group.block_size % size for group in groups):
                    return int(size)
                reason = f"hashes of {size} tokens do not fit its blocks"
            except Exception as error:
                reason = repr(error)
        logger.warning("kvferry: no blocks are kept in the daemon's tiers: %s", reason)
        return None

    def _publishes_events(self) -> bool:
        events = getattr(self._config, "kv_events_config", None)
        return bool(events is not None and events.enable_kv_cache_events)

    def _start_worker(self, transfer: Any) -> WorkerSide:
        client = native.start_worker(self._settings.socket, transfer.engine_id, self._settings.reply_timeout_ms)
        self._client = client
        return WorkerSide(self._settings, client)

    # -- worker ---------------------------------------------------------------------------------------------------

    def get_mem_pool_context(self) -> AbstractContextManager[Any] | None:
        """Puts the KV cache into a memfd, where it is made in host memory."""
        from vllm.platforms import current_platform

        sizes = {tensor.size for tensor in self._cache.kv_cache_tensors}
        if current_platform.device_type != "cpu" or len(sizes) != 1:
            return None
        from kvferry.vllm.kv_memory import SharedMemory

        self._memory = SharedMemory(sizes.pop())
        return self._memory.context()

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        """Shares the KV cache with the daemon, or says in one line why not."""
        try:
            self._attach(kv_caches)
            self._refusal = None
        except UnsupportedError as error:
            self._refusal = str(error)
        except Exception as error:
            self._refusal = f"failed to describe its KV cache: {error!r}"
        if self._refusal is not None:
            logger.error(_WITHOUT_US, self._refusal)

    def _attach(self, kv_caches: dict[str, Any]) -> None:
        import vllm
        from vllm.distributed.kv_transfer.kv_connector.utils import get_current_attn_backends

        from kvferry.vllm import fingerprint
        from kvferry.vllm.layout import check_tensors, describe

        parallel = self._config.parallel_config
        group_shapes(self._cache, parallel)
        if self._memory is None:
            raise UnsupportedError("its KV cache is not in host memory, which is all that can be shared yet")
        if self._memory.fd is None or self._memory.address is None:
            raise UnsupportedError(self._memory.failure)
        if getattr(self._config.cache_config, "calculate_kv_scales", False):
            raise UnsupportedError("calculate_kv_scales gives each engine scales of its own")
        layout = describe(self._cache)
        check_tensors(layout, self._cache, kv_caches, self._memory.address)
        names = [name for _, group in transferred_groups(self._cache) for name in group.layer_names]
        backends = get_current_attn_backends(self._config, names)
        attention = fingerprint.attention_names(self._config, backends)
        facts = fingerprint.engine_facts(self._config, self._cache, kv_caches, attention, vllm.__version__)
        print_ = fingerprint.fingerprint(facts)
        model = fingerprint.model_name(self._config.model_config)
        spec = AttachSpec(parallel.rank, parallel.world_size, layout, print_, self._memory.fd, model)
        self._client.attach(spec)
        logger.info(
            "kvferry: rank %d shares %d blocks, %d bytes, with %s as fingerprint %s",
            parallel.rank,
            layout.block_count,
            layout.region_bytes,
            self._settings.socket,
            print_.hex()[:16],
        )

    def get_handshake_metadata(self) -> KVConnectorHandshakeMetadata | None:
        """Tells the scheduler's half whether this rank's memory is shared."""
        return KVFerryHandshake(self._refusal)

    def handle_preemptions(self, kv_connector_metadata: KVConnectorMetadata) -> None:
        """A step begins, and has written nothing yet: see stores.py."""
        if self._worker is not None:
            self._worker.begin_step(kv_connector_metadata)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Passes the step's orders on; waits for nothing."""
        if self._worker is not None and self.has_connector_metadata():
            self._worker.obey(self._get_connector_metadata())

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Loads are whole before their request runs."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        """Blocks are read where they are, when they are whole."""

    def wait_for_save(self) -> None:
        """The step's forward pass is over: what it made whole may be copied. Waits for nothing."""
        if self._worker is not None:
            self._worker.end_step()

    def build_connector_worker_meta(self) -> KVConnectorWorkerMetadata | None:
        """Tells the scheduler's half that a clearing of the cache was obeyed."""
        return ClearedReport() if self._worker is not None and self._worker.take_cleared() else None

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        """What ended since the last step."""
        if self._worker is None:
            return KVConnectorTransferResults()
        report = self._worker.report()
        return KVConnectorTransferResults(
            finished_sending=report.finished_sending,
            finished_recving=report.finished_recving,
            failed_recving=report.failed_recving,
        )

    # -- scheduler ------------------------------------------------------------------------------------------------

    def set_xfer_handshake_metadata_pp_aware(
        self, metadata: dict[tuple[int, int], KVConnectorHandshakeMetadata]
    ) -> None:
        """Hears from the workers whether their memory is shared. One that is not makes every load fail."""
        refusals = [word.refusal for word in metadata.values() if isinstance(word, KVFerryHandshake) and word.refusal]
        if self._scheduler is not None and self._scheduler.refusal is None and refusals:
            self._scheduler.refusal = refusals[0]

    def get_loaded_kv_cache_group_ids(self, request: Any) -> tuple[int, ...]:
        """A load brings the request's own blocks, of every group."""
        return tuple(index for index, _ in transferred_groups(self._cache))

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        """How much of a prompt the local tiers and other engines hold; None: ask again."""
        return self._scheduling().get_num_new_matched_tokens(request, num_computed_tokens)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Orders the load of what the tiers and other engines hold."""
        self._scheduling().update_state_after_alloc(request, blocks, num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        """This step's orders for the workers."""
        return self._scheduling().build_connector_meta(scheduler_output)

    def update_connector_output(self, connector_output: Any) -> None:
        """Hears which loads all workers have reported."""
        side = self._scheduling()
        side.loads_over(connector_output.finished_recving, connector_output.failed_recving)
        side.workers_said(connector_output.kv_connector_worker_meta)

    def get_external_cache_hit_sources(self, request: Any, num_external_tokens: int) -> dict[CacheHitSource, int]:
        """Where the tokens of the load that was ordered just now come from."""
        sources = (CacheHitSource.HOST, CacheHitSource.DISK, CacheHitSource.P2P)
        counts = dict(zip(sources, self._scheduling().hits, strict=True))
        if sum(counts.values()) != num_external_tokens:
            return {CacheHitSource.EXTERNAL_UNSPECIFIED: num_external_tokens} if num_external_tokens else {}
        return {source: count for source, count in counts.items() if count}

    def take_events(self) -> Iterable[Any]:
        """What came into the node's tiers and left them, as KV events."""
        changes = self._scheduling().tiers.take_changes()
        if not changes:
            return ()
        from kvferry.vllm.tier_events import as_kv_events

        return as_kv_events(changes)

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """As below, for models of one group."""
        return self._scheduling().request_finished(request, (block_ids,))

    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Leases a finished prefill's blocks out, and holds what is being copied."""
        return self._scheduling().request_finished(request, block_ids)

    def reset_cache(self) -> bool | None:
        """Nothing computed so far may be found again; the weights may have changed."""
        return self._scheduling().reset_cache()

    def _scheduling(self) -> SchedulerSide:
        if self._scheduler is None:
            raise RuntimeError("a hook of the scheduler was called in a worker")
        return self._scheduler

    def shutdown(self) -> None:
        """Ends the connection to the daemon, which takes leases and memory back."""
        for side in (self._scheduler, self._worker):
            if side is not None:
                side.shutdown()
        if self._memory is not None:
            self._memory.close()
