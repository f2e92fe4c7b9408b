"""A hash of everything that two engines must agree on before one may decode from the other's blocks.

::

    vLLM's configuration, the groups, the tensors -> facts (plain JSON) -> canonical JSON -> SHA-256 -> attach

Daemons move bytes between equal ranks of engines of equal fingerprints only. One is the same on all ranks of an engine,
because a ticket carries one for all. What may differ stays out: the number of blocks, where they lie, ports, paths. A
model is known by its content, since the same model lies in different folders on different nodes, and different ones in
folders of the same name: its configuration, and samples of its weights (weights.py). LoRA adapters come and go with
requests: they are in the names of blocks and in the digests of prompts (adapters.py).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from kvferry.vllm.context_length import length_facts
from kvferry.vllm.groups import layer_specs, transferred_groups
from kvferry.vllm.weights import weights_digest

# Counts up when blocks of two releases of this connector no longer mean the same.
PROTOCOL_VERSION = 2
# Parts of a model's configuration that say where it came from, not what it is; and what vLLM's model classes write into
# it of the engine, which counts where context_length.py says so.
CONFIG_NOISE = ("_commit_hash", "_name_or_path", "max_model_len", "transformers_version")


def fingerprint(facts: Mapping[str, Any]) -> bytes:
    """32 bytes; equal for equal facts, on any machine."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).digest()


def engine_facts(
    vllm_config: Any, kv_cache_config: Any, kv_caches: Mapping[str, Any], backends: Iterable[str], version: str
) -> dict[str, Any]:
    """Gathers the facts of an engine, as any of its worker ranks sees them.

    Args:
        vllm_config: vLLM's configuration.
        kv_cache_config: the plan of this worker's cache.
        kv_caches: its tensors by layer.
        backends: names of the attention backends, which decide what the inside of a block means.
        version: vLLM's version, for the same reason.
    """
    parallel = vllm_config.parallel_config
    cache = vllm_config.cache_config
    return {
        "attention": sorted(set(backends)),
        "cache_dtype": str(cache.cache_dtype),
        "connector": PROTOCOL_VERSION,
        "draft": _draft_facts(getattr(vllm_config, "speculative_config", None)),
        "groups": [
            _group_facts(group, kv_caches, parallel.pipeline_parallel_size)
            for _, group in transferred_groups(kv_cache_config)
        ],
        "model": _model_facts(vllm_config.model_config),
        "parallel": {
            "dcp": getattr(parallel, "decode_context_parallel_size", 1),
            "pcp": getattr(parallel, "prefill_context_parallel_size", 1),
            "pp": parallel.pipeline_parallel_size,
            "tp": parallel.tensor_parallel_size,
        },
        "vllm": version,
    }


def attention_names(vllm_config: Any, backends: Iterable[Any]) -> list[str]:
    """The backends' names, and what they packed for: CPU attention packs keys by the instruction set it found.

    ``layer.isa`` is set by ``CPUAttentionMetadataBuilder`` (``v1/attention/backends/cpu_attn.py``) before the caches
    are registered; other backends have none.
    """
    names = [backend.get_name() for backend in backends]
    layers = vllm_config.compilation_config.static_forward_context.values()
    return names + [f"isa {layer.isa}" for layer in layers if getattr(layer, "isa", None)]


def _group_facts(group: Any, kv_caches: Mapping[str, Any], pp_size: int) -> dict[str, Any]:
    return {
        # Pipeline ranks have layers of their own; those follow from the model and the sizes, and plans count them.
        "layers": list(group.layer_names) if pp_size == 1 else [],
        "specs": [_spec_facts(spec) for spec in layer_specs(group.kv_cache_spec)],
        # The kernel's own block, which may be a part of the manager's, and the width it reads.
        "views": sorted({f"{tuple(kv_caches[name].shape[1:])} {kv_caches[name].dtype}" for name in group.layer_names}),
    }


def _spec_facts(spec: Any) -> dict[str, Any]:
    names = (
        "attention_chunk_size",
        "block_size",
        "cache_dtype_str",
        "dtype",
        "head_size",
        "head_size_v",
        "kv_quant_mode",
        "model_version",
        "num_kv_heads",
        "num_head_slots",
        "sliding_window",
        "state_content_bytes",
    )
    facts = {name: str(getattr(spec, name)) for name in names if hasattr(spec, name)}
    return {"kind": type(spec).__name__, **facts}


def _draft_facts(speculative: Any) -> dict[str, Any] | None:
    """A speculator's layers are in the cache too, and read what the target computed."""
    draft = getattr(speculative, "draft_model_config", None)
    if speculative is None:
        return None
    return {"method": str(speculative.method), "model": _model_facts(draft) if draft is not None else None}


def _model_facts(model: Any) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "config": _config_digest(model.hf_config),
        "dtype": str(model.dtype),
        "length": length_facts(model.hf_config.to_dict(), model.max_model_len),
        "quantization": str(model.quantization),
    }
    if os.path.exists(model.model):
        return {**facts, "weights": weights_digest(model.model)}
    # A name on a model hub: the commit is what the name meant when it was looked up.
    commit = getattr(model.hf_config, "_commit_hash", None)
    return {**facts, "commit": str(commit), "name": model.model, "revision": str(model.revision)}


def model_name(model: Any) -> str:
    """What people call a model: as it is served, else where it is. No part of the fingerprint."""
    served = getattr(model, "served_model_name", None)
    if isinstance(served, list | tuple):
        served = served[0] if served else None
    return str(served or getattr(model, "model", ""))


def _config_digest(hf_config: Any) -> str:
    config = {key: value for key, value in hf_config.to_dict().items() if key not in CONFIG_NOISE}
    return fingerprint(config).hex()
