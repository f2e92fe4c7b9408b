"""KV memory that the daemon can map: vLLM's one allocation lands in a sealed memfd instead of anonymous memory.

::

    get_mem_pool_context() -> vLLM enters it -> torch.zeros(size, dtype=int8) -> memfd, sealed, mapped -> tensor over it

vLLM 0.32 allocates a worker's whole KV cache with one ``torch.zeros`` of int8 (``allocate_kv_cache`` in
``v1/worker/utils.py``), inside the context that the connector gives (``initialize_from_config`` in
``v1/worker/gpu_worker.py``, which CPU workers inherit). Only that call is taken, by its dtype, device and size; every
other one passes. A fresh memfd reads as zeros, so nothing is written. The seals make its size final: a mapping of it
can never fault for having shrunk. Copies nothing, and needs no room in /dev/shm.
"""

from __future__ import annotations

import mmap
import os
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from kvferry.vllm.memfd import sealed_memfd


class SharedMemory:
    """A worker's KV cache buffer, once vLLM has asked for it."""

    def __init__(self, size: int) -> None:
        self.size = size
        # The memfd and where it is mapped; None until allocated, and where that failed.
        self.fd: int | None = None
        self.address: int | None = None
        # Why there is no memfd, for the log.
        self.failure = "vLLM did not allocate its KV cache where it used to"

    def context(self) -> AbstractContextManager[Any]:
        """What vLLM is to allocate its KV cache in."""
        mode: AbstractContextManager[Any] = _Allocation(self)
        return mode

    def allocate(self) -> torch.Tensor | None:
        """Makes the buffer, or says in ``failure`` why it could not."""
        if self.fd is not None:
            return None
        try:
            fd = sealed_memfd("kvferry-kv", self.size)
            try:
                mapping = mmap.mmap(fd, self.size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
            except BaseException:
                os.close(fd)
                raise
        except (AttributeError, OSError, ValueError) as error:
            self.failure = f"no memfd of {self.size} bytes: {error}"
            return None
        # The tensor keeps the mapping alive.
        tensor = torch.frombuffer(mapping, dtype=torch.int8)
        self.fd, self.address = fd, tensor.data_ptr()
        return tensor

    def close(self) -> None:
        """Drops our hold on the memfd; the tensors keep theirs."""
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None


class _Allocation(TorchFunctionMode):
    """Answers the one ``torch.zeros`` that makes the KV cache."""

    def __init__(self, memory: SharedMemory) -> None:
        super().__init__()
        self._memory = memory

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.zeros and args == (self._memory.size,) and kwargs.get("dtype") is torch.int8:
            device = torch.device(kwargs.get("device") or "cpu")
            tensor = self._memory.allocate() if device.type == "cpu" else None
            if tensor is not None:
                return tensor
        return func(*args, **kwargs)
