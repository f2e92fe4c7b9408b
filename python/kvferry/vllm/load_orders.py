"""From where each block of a load comes: the engine's own cache has the first, the local tiers the next, P the rest.

::

    0 ....... local ............. near ............... total ........ prompt
      vLLM    |  tiers, whole     |  the ticket's      |   computed
              |  blocks of every  |  blocks            |
              |  group            |                    |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kvferry.client import GroupBlocks, TierBlocks
from kvferry.vllm.groups import GroupShape
from kvferry.vllm.lookups import Claim
from kvferry.vllm.metadata import LoadOrder, TierLoad
from kvferry.vllm.params import Offer
from kvferry.vllm.tiers import Tiers


@dataclass
class Candidate:
    """A request that has not been given blocks yet."""

    # None: no other engine holds anything for it, or its parameters are no use.
    offer: Offer | None = None
    is_read: bool = False
    # Tokens found in this engine's own cache when it was last asked about.
    local_tokens: int = 0
    # Up to here by this engine's cache and the local tiers; never less than the above.
    near_tokens: int = 0


def load_order(
    groups: tuple[GroupShape, ...],
    tiers: Tiers,
    request: Any,
    candidate: Candidate,
    blocks: Any,
    external_tokens: int,
    claim: Claim | None,
) -> LoadOrder:
    """What to fetch for a request into the blocks that vLLM gave it.

    Raises:
        LookupError: the blocks are not what the answer to vLLM was about.
    """
    local, near = candidate.local_tokens, candidate.near_tokens
    total = local + external_tokens
    offer = candidate.offer if total > near else None
    if total < near or (total > near and offer is None) or (near > local and claim is None):
        raise LookupError(f"{total} tokens are not what was matched")
    from_tiers: list[TierBlocks] = []
    from_ticket: list[GroupBlocks] = []
    for index, group in enumerate(groups):
        listed = blocks.blocks[group.group_id]
        positions = [
            position
            for position in range(local // group.block_size, group.block_count(total))
            if not listed[position].is_null
        ]
        for position in positions:
            if listed[position].block_hash is not None:
                raise LookupError(f"block {position} of group {group.group_id} is shared with other requests")
        near_end = near // group.block_size
        ahead = [position for position in positions if position < near_end]
        behind = positions[len(ahead) :]
        from_tiers.append(tiers.blocks(request, group, ahead, listed))
        if offer is not None:
            held = offer.groups[index]
            if not all(held.first <= position < held.count for position in behind):
                raise LookupError(f"P does not hold all of blocks {behind} of group {group.group_id}")
        from_ticket.append(GroupBlocks(tuple(behind), tuple(listed[position].block_id for position in behind)))
    tier = TierLoad(claim.key, tuple(from_tiers)) if claim is not None and near > local else None
    if offer is None:
        return LoadOrder(request.request_id, None, (), tier=tier)
    # Our own prompt's digest: the holder compares it with what the ticket's blocks were computed from.
    return LoadOrder(request.request_id, offer.ticket, tuple(from_ticket), bytes.fromhex(offer.digest), tier)


def count_hits(
    groups: tuple[GroupShape, ...], candidate: Candidate, external_tokens: int, claim: Claim | None
) -> tuple[int, int, int]:
    """How many of a load's tokens come from host memory, from disk, and from another engine.

    A token counts as read from disk where a block of any group that holds it may be: the daemon says how many, not
    which.
    """
    near = candidate.near_tokens - candidate.local_tokens
    if claim is None or near <= 0:
        return 0, 0, external_tokens
    on_disk = max(count * group.block_size for count, group in zip(claim.on_disk, groups, strict=True))
    disk = min(near, on_disk)
    return near - disk, disk, external_tokens - near
