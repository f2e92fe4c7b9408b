"""FAKE of ``vllm.v1.metrics.cache_hit_source``."""

from enum import Enum


class CacheHitSource(str, Enum):
    P2P = "p2p"
