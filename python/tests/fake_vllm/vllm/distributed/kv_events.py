"""FAKE of ``vllm.distributed.kv_events``."""

from types import SimpleNamespace

MEDIUM_CPU = "CPU"
MEDIUM_STORAGE = "STORAGE"


class BlockStored(SimpleNamespace):
    pass


class BlockRemoved(SimpleNamespace):
    pass
