"""The scheduler's part of keeping blocks: which are whole after this step, and which are written to in it.

::

    get_num_new_matched_tokens, update_state_after_alloc -> admit(): from which block on
    build_connector_meta -> orders(): new whole blocks of each scheduled request -> metadata.stores
                            blocks that this step gives to somebody            -> metadata.written
    request_finished     -> finish(): what became whole with the last output

A block is whole when all its tokens are known (it has a hash) and their KV is computed by the end of this step. With
steps in flight ``num_computed_tokens`` runs ahead of the outputs, and with drafts ahead of the truth; the hashes do
not. vLLM's prefix cache counts alike (``KVCacheManager.allocate_slots``: ``num_tokens_to_cache``).

Blocks that a load filled are ordered only behind it, and only where it went well: else the request never runs on them.
A request that was under way when the cache was cleared orders nothing more, since its blocks may come from weights that
are gone.

Why ``written`` is all that the workers have to know about blocks that change hands is in stores.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kvferry.client import TierStore
from kvferry.vllm.groups import GroupShape
from kvferry.vllm.hashes import BlockNames, tenant_of
from kvferry.vllm.metadata import StoreOrder

# How long the blocks of a finished request wait for stores that were ordered; chosen, many times what a copy takes.
SETTLE_SECONDS = 2.0


@dataclass
class _Progress:
    """One request that runs or will."""

    request: Any
    # For each group: the first position that is not kept and not ordered yet.
    next: list[int]
    ordered_at: float = -SETTLE_SECONDS


class StoreOrders:
    """All state is about requests that have blocks, and about blocks given away since the last step."""

    def __init__(
        self, groups: tuple[GroupShape, ...], names: BlockNames, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._groups = groups
        self._names = names
        self._clock = clock
        # In at admission, out at the request's end or when the cache is cleared.
        self._progress: dict[str, _Progress] = {}
        # Blocks that loads were ordered into since the last step.
        self._written: set[int] = set()

    def admit(self, request: Any, held: tuple[int, ...] | None) -> None:
        """The request has got its blocks; ``held`` of each group's are kept already, None: not known."""
        progress = self._progress.get(request.request_id)
        if progress is None:
            progress = _Progress(request, [0] * len(self._groups))
            self._progress[request.request_id] = progress
        if held is not None:
            progress.next = list(held)

    def load_into(self, block_ids: Iterable[int]) -> None:
        """These blocks are written to from the next step on."""
        self._written.update(block_ids)

    def load_failed(self, request_id: str) -> None:
        """What was said to be kept is not, or is damaged."""
        if request_id in self._progress:
            self._progress[request_id].next = [0] * len(self._groups)

    def clear(self) -> None:
        """Nothing that is computed so far may be kept."""
        self._progress.clear()

    def orders(self, output: Any, may_store: bool) -> tuple[list[StoreOrder], tuple[int, ...]]:
        """This step's stores, and the blocks whose owner changed since the last one."""
        computed = self._look_through(output)
        written, self._written = self._written - {0}, set()
        state = getattr(output, "kv_connector_block_state", None)
        if not may_store or state is None:
            return [], tuple(written)
        stores = []
        for request_id, scheduled in output.num_scheduled_tokens.items():
            progress = self._progress.get(request_id)
            if progress is None or request_id not in computed:
                continue
            total = computed[request_id] + scheduled
            if any(self._whole(progress, total)[index] > first for index, first in enumerate(progress.next)):
                tables = state.get_block_ids(request_id)
                if tables is not None:
                    stores.append(self._order(progress, total, tables))
        return [order for order in stores if order is not None], tuple(written)

    def _look_through(self, output: Any) -> dict[str, int]:
        """Tokens computed before this step, by request; notes the blocks that this step gives away."""
        computed = {}
        for new in output.scheduled_new_reqs:
            computed[new.req_id] = new.num_computed_tokens
            self._written.update(self._behind(new.block_ids, new.num_computed_tokens))
        cached = output.scheduled_cached_reqs
        for request_id, tables, count in zip(
            cached.req_ids, cached.new_block_ids, cached.num_computed_tokens, strict=True
        ):
            computed[request_id] = count
            if tables is None:
                continue
            # A resumed request's tables are whole, and begin with blocks that it found in vLLM's own cache.
            resumed = request_id in cached.resumed_req_ids
            self._written.update(self._behind(tables, count) if resumed else (b for table in tables for b in table))
        for copy in getattr(output, "kv_cache_block_copies", None) or ():
            self._written.add(copy.dst_block_id)
        return computed

    def _behind(self, tables: Sequence[Sequence[int]], computed: int) -> Iterator[int]:
        sizes = {group.group_id: group.block_size for group in self._groups}
        for group_id, table in enumerate(tables):
            # A group that is not transferred: none of its blocks is in a store of now.
            first = computed // sizes[group_id] if group_id in sizes else 0
            yield from table[first:]

    def _whole(self, progress: _Progress, total: int) -> list[int]:
        return [min(total // group.block_size, self._names.count(progress.request, group)) for group in self._groups]

    def _order(self, progress: _Progress, total: int, tables: Sequence[Sequence[int]]) -> StoreOrder | None:
        request = progress.request
        kept = []
        for index, (group, end) in enumerate(zip(self._groups, self._whole(progress, total), strict=True)):
            table = tables[group.group_id]
            end = min(end, len(table))
            first = progress.next[index]
            # Null blocks stand where the window has passed; what is stored follows them.
            nulls = [position for position in range(first, end) if not table[position]]
            first = nulls[-1] + 1 if nulls else first
            if first >= end:
                kept.append(TierStore())
                continue
            parent = self._names.of_group(request, group, first - 1, first)[0] if first else b""
            kept.append(TierStore(parent, self._names.of_group(request, group, first, end), tuple(table[first:end])))
            progress.next[index] = end
        if not any(group.blocks for group in kept):
            return None
        progress.ordered_at = self._clock()
        return StoreOrder(request.request_id, tuple(kept), tenant_of(request))

    def finish(
        self, request_id: str, tables: Sequence[Sequence[int]], computed: int, whole: bool
    ) -> tuple[StoreOrder | None, bool]:
        """The request is over: its last store, and whether its blocks should wait for what was ordered.

        Nothing depends on the wait: see stores.py. It keeps a store from being lost when room is short, and the engine
        in step until the store is committed.
        """
        progress = self._progress.pop(request_id, None)
        if progress is None or not whole or not any(map(any, tables)):
            return None, False
        last = self._order(progress, computed, tables)
        return last, self._clock() < progress.ordered_at + SETTLE_SECONDS
