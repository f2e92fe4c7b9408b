"""The vLLM connector. vLLM finds it by name::

    --kv-transfer-config '{"kv_connector": "KVFerryConnector", "kv_connector_module_path": "kvferry.vllm",
                           "kv_role": "kv_both", "kv_load_failure_policy": "recompute"}'

The class is loaded when it is asked for, so that tools may import ``kvferry`` where there is no vLLM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvferry.vllm.connector import KVFerryConnector

__all__ = ["KVFerryConnector"]


def __getattr__(name: str) -> object:
    if name == "KVFerryConnector":
        from kvferry.vllm.connector import KVFerryConnector

        return KVFerryConnector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
