"""Changes of the node's tiers as vLLM's KV events, which leave by the engine's own publisher.

The daemon tells hashes only. So a stored block's event has no tokens, no block size and no parent, as those of vLLM's
OffloadingConnector have none where it knows none (``offloading/events.py``: ``_placeholder_stored``): a subscriber
knows them from the event of the engine's own cache, where the block was before. Several engines of one fingerprint at
one daemon each tell the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vllm.distributed.kv_events import MEDIUM_CPU, MEDIUM_STORAGE, BlockRemoved, BlockStored
from vllm.v1.core.kv_cache_utils import maybe_convert_block_hash

_MEDIA = {"disk": MEDIUM_STORAGE, "host": MEDIUM_CPU}


def as_kv_events(changes: Iterable[tuple[str, bool, int, list[bytes]]]) -> list[Any]:
    """One event for each change: tier, stored or removed, group id, hashes."""
    events: list[Any] = []
    for tier, is_stored, group_id, hashes in changes:
        medium = _MEDIA.get(tier)
        if medium is None:
            continue
        named = [maybe_convert_block_hash(block_hash) for block_hash in hashes]
        if not is_stored:
            events.append(BlockRemoved(block_hashes=named, medium=medium, group_idx=group_id))
            continue
        events.append(
            BlockStored(
                block_hashes=named,
                parent_block_hash=None,
                token_ids=[],
                block_size=0,
                lora_id=None,
                medium=medium,
                lora_name=None,
                group_idx=group_id,
            )
        )
    return events
