"""A hash of everything that two engines must agree on before one may use the chunks that the other stored.

A tier is given vLLM's ``OffloadingConfig`` and not its whole configuration. So it sees the model's name, the sizes and
the plan of the cache, and does not see the attention backend, ``--hf-overrides``, ``--quantization``, the speculator,
``--max-model-len`` or a hub's revision. A model in a folder is known by its files; for one from a hub the operator has
to say which commit it is (``revision``), because the same name means other weights tomorrow, and so for one whose KV
cache depends on ``--max-model-len`` (context_length.py). The algorithm and the seed of vLLM's block hashes are left
out, as in hashes.py: engines that differ in them name equal blocks differently.

Of LoRA a tier sees nothing: not whether it is on, and of a request the keys alone, in which there are an adapter's name
and path and nothing of its files (``_gen_lora_extra_hash_keys`` in ``v1/core/kv_cache_utils.py``). An adapter that is
trained anew in its place needs another ``revision``, or another path; the README says so.

One row of vLLM's host memory holds the bytes of all ranks of one chunk, rank after rank (``SharedOffloadRegion``), so
there is one fingerprint and one "rank" for the whole engine, and the parallel sizes are part of it.
"""

from __future__ import annotations

import json
import os
from typing import Any

from kvferry.vllm.context_length import length_facts
from kvferry.vllm.fingerprint import CONFIG_NOISE, fingerprint
from kvferry.vllm.weights import weights_digest

# Counts up when rows of two releases of this tier no longer mean the same.
PROTOCOL_VERSION = 2


def tier_fingerprint(config: Any, row_bytes: int, revision: str, version: str) -> bytes:
    """32 bytes; equal for engines whose rows mean the same.

    Args:
        config: vLLM's ``OffloadingConfig``.
        row_bytes: of one chunk, padding included.
        revision: the operator's own word.
        version: vLLM's.

    Raises:
        ValueError: the model is not in a folder, or depends on what vLLM does not tell, and nobody said which it is.
    """
    parallel = config.parallel
    return fingerprint(
        {
            "cache": {
                "blocks_per_chunk": config.cache.blocks_per_chunk,
                "dtype": config.model.dtype,
                "tokens_per_hash": config.cache.tokens_per_hash,
            },
            "groups": [[group.group_id, group.tokens_per_block, list(group.layer_names)] for group in config.groups],
            "layout": {
                "canonical": config.canonical_layout,
                "name": config.kv_cache_layout,
                "replicated": config.replicated_layout,
                "row_bytes": row_bytes,
                "worker_bytes": config.worker_kv_bytes_per_block,
            },
            "model": _model_facts(config.model.name, revision),
            "parallel": {
                "dcp": parallel.dcp_size,
                "pcp": parallel.pcp_size,
                "pp": parallel.pp_size,
                "tp": parallel.tp_size,
                "world": parallel.world_size,
            },
            # What the connector stores is another thing under the same hashes.
            "tier": PROTOCOL_VERSION,
            "vllm": version,
        }
    )


def _model_facts(name: str, revision: str) -> dict[str, Any]:
    if os.path.exists(name):
        config = _config(name)
        if not revision and length_facts(config or {}, None):
            raise ValueError(
                f"secondary_tiers: what the KV cache of {name!r} means depends on --max-model-len, which vLLM does not "
                'tell its tiers: KVFerryTier needs "revision" beside "type", another one for each length'
            )
        return {"config": _config_digest(config), "revision": revision, "weights": weights_digest(name)}
    if not revision:
        raise ValueError(
            f"secondary_tiers: the model {name!r} comes from a hub, where a name does not say which weights it means: "
            'KVFerryTier needs "revision" beside "type", such as the commit'
        )
    return {"name": name, "revision": revision}


def _config(path: str) -> dict[str, Any] | None:
    """A folder's config.json; None where there is none."""
    file = os.path.join(path, "config.json")
    if not os.path.exists(file):
        return None
    with open(file, encoding="utf-8") as text:
        config: dict[str, Any] = json.load(text)
    return config


def _config_digest(config: dict[str, Any] | None) -> str | None:
    """Without what says where it came from."""
    if config is None:
        return None
    return fingerprint({key: value for key, value in config.items() if key not in CONFIG_NOISE}).hex()
