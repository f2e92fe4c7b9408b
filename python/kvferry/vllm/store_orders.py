"""The scheduler's part of keeping blocks: which are whole after this step, and which are written to in it.

::

    get_num_new_matched_tokens, update_state_after_alloc -> admit(): from which block on
    build_connector_meta -> orders(): new whole blocks of each scheduled request -> metadata.stores
                            blocks that this step gives to somebody            -> metadata.written
    request_finished     -> finish(): what became whole with the last output

A block is whole when all its tokens are known (it has a hash) and their KV is computed by the end of this step. With
steps in flight ``num_computed_tokens`` runs ahead of the outputs, and with drafts ahead of the truth; the hashes do
not. vLLM's prefix cache counts alike (``KVCacheManager.allocate_slots``: ``num_tokens_to_cache``).

What is looked up are beginnings. So where a group has null blocks in between (its window has passed what was never
kept, as behind a local hit or a ticket), nothing more of it is stored for this request: no lookup would get there. A
block that several requests have is ordered once, for a while.

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
# A position that no request reaches.
_NEVER = 1 << 62


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
        self,
        groups: tuple[GroupShape, ...],
        names: BlockNames,
        clock: Callable[[], float] = time.monotonic,
        namespace: str = "",
    ) -> None:
        self._groups = groups
        self._names = names
        self._clock = clock
        self._namespace = namespace
        # In at admission, out at the request's end or when the cache is cleared.
        self._progress: dict[str, _Progress] = {}
        # Blocks that loads were ordered into since the last step.
        self._written: set[int] = set()
        # When blocks were last ordered, by group and name, oldest first.
        self._recent: dict[tuple[int, bytes], float] = {}

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
        self._recent.clear()

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
        self._forget_old()
        kept = tuple(
            self._group_order(progress, index, min(end, len(tables[self._groups[index].group_id])), tables)
            for index, end in enumerate(self._whole(progress, total))
        )
        if not any(group.blocks for group in kept):
            return None
        progress.ordered_at = self._clock()
        return StoreOrder(request.request_id, kept, tenant_of(request, self._namespace))

    def _group_order(self, progress: _Progress, index: int, end: int, tables: Sequence[Sequence[int]]) -> TierStore:
        group, first = self._groups[index], progress.next[index]
        if first >= end:
            return TierStore()
        table = tables[group.group_id]
        if not all(table[first:end]):
            progress.next[index] = _NEVER
            return TierStore()
        progress.next[index] = end
        names = self._names.of_group(progress.request, group, first, end)
        known = next((n for n, name in enumerate(names) if (index, name) not in self._recent), len(names))
        if known == len(names):
            return TierStore()
        now = self._clock()
        self._recent.update({(index, name): now for name in names[known:]})
        before = first + known
        parent = self._names.of_group(progress.request, group, before - 1, before)[0] if before else b""
        return TierStore(parent, names[known:], tuple(table[before:end]))

    def _forget_old(self) -> None:
        now = self._clock()
        while self._recent:
            name, ordered_at = next(iter(self._recent.items()))
            if now < ordered_at + SETTLE_SECONDS:
                return
            del self._recent[name]

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
