"""KVFerry as a tier of vLLM's own OffloadingConnector. vLLM finds it by name::

    --kv-transfer-config '{"kv_connector": "OffloadingConnector", "kv_role": "kv_both", "kv_connector_extra_config": {
        "spec_name": "TieringOffloadingSpec", "cpu_bytes_to_use": 10000000000, "secondary_tiers": [
            {"type": "KVFerryTier", "module_path": "kvferry.vllm.tier", "socket": "/run/kvferry/kvferry.sock"}]}}'

The class is loaded when it is asked for, so that tools may import ``kvferry`` where there is no vLLM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvferry.vllm.tier.plug import KVFerryTier

__all__ = ["KVFerryTier"]


def __getattr__(name: str) -> object:
    if name == "KVFerryTier":
        from kvferry.vllm.tier.plug import KVFerryTier

        return KVFerryTier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
