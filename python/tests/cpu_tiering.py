"""vLLM's TieringOffloadingSpec with a worker for CPUs: vLLM's own refuses them, since it copies with CUDA.

Everything else is vLLM's: the connector, its scheduler's half, the region in /dev/shm, the tiers.
"""

from vllm.v1.kv_offload.base import OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec


class CpuTieringSpec(TieringOffloadingSpec):
    def get_worker(self, kv_caches):
        if self._worker is None:
            region = SharedOffloadRegion(
                engine_id=self._engine_id,
                num_chunks=self.num_chunks,
                rank=0,
                kv_bytes_per_chunk=self.kv_bytes_per_chunk,
                cpu_page_size=self.cpu_page_size_per_worker,
            )
            self._worker = CpuWorker(kv_caches, region)
        return self._worker


class CpuWorker(OffloadingWorker):
    """Copies at once, one block a chunk, one group."""

    def __init__(self, kv_caches, region):
        self.region = region
        self.pairs = [
            (cache.tensor, region.create_next_worker_view(cache.page_size_bytes)) for cache in kv_caches.tensors
        ]
        self.finished = []
        self.loaded = 0

    def submit_store(self, job_id, source, target):
        for block, chunk in zip(source.block_ids, target.chunk_ids, strict=True):
            for cache, rows in self.pairs:
                rows[chunk] = cache[block]
        self.finished.append(TransferResult(job_id, True))
        return True

    def submit_load(self, job_id, source, target):
        for chunk, block in zip(source.chunk_ids, target.block_ids, strict=True):
            for cache, rows in self.pairs:
                cache[block] = rows[chunk]
        self.loaded += len(target.block_ids)
        self.finished.append(TransferResult(job_id, True))
        return True

    def get_finished(self):
        finished, self.finished = self.finished, []
        return finished

    def wait(self, job_ids):
        pass

    def shutdown(self):
        self.pairs.clear()
        self.region.cleanup()
