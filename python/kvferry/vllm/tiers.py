"""The local tiers as the scheduler's half sees them: what they hold of a prompt, what they are given, what is cleared.

::

    SchedulerSide -> Tiers -> lookups.py       what is held, and claims on it
                           -> store_orders.py  what is kept, and which blocks change hands
                           -> clear()          nothing computed so far may be found again

Clearing has to reach three places. The daemon forgets what was committed (``client.clear``). Steps under way may still
commit blocks of before, so the next step's metadata tells the workers to drop theirs; until all have said that they
did, nothing is looked up or stored. Then the daemon is told once more, before anything is looked up or stored again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from kvferry.client import SchedulerClient, TierBlocks, TierChanged
from kvferry.vllm.adapters import Adapters
from kvferry.vllm.complaints import Complaints
from kvferry.vllm.groups import GroupShape
from kvferry.vllm.hashes import BlockNames
from kvferry.vllm.lookups import Claim, Lookups
from kvferry.vllm.metadata import KVFerryMetadata, StoreOrder
from kvferry.vllm.store_orders import StoreOrders


class Tiers:
    """One for each engine. Without a ``hash_block_size`` there are none, and every answer is "nothing"."""

    def __init__(
        self,
        client: SchedulerClient,
        groups: tuple[GroupShape, ...],
        hash_block_size: int | None,
        reply_timeout_ms: int,
        complaints: Complaints,
        clock: Callable[[], float] = time.monotonic,
        tells_changes: bool = False,
        namespace: str = "",
        adapters: Adapters | None = None,
    ) -> None:
        self._client = client
        self._groups = groups
        self._is_on = hash_block_size is not None and bool(groups)
        self._names = BlockNames(groups, hash_block_size or 1, adapters or Adapters(), tells_changes)
        self._lookups = Lookups(client, groups, self._names, reply_timeout_ms, complaints, clock)
        self._orders = StoreOrders(groups, self._names, clock, namespace)
        # Last stores of finished requests, for the next step.
        self._last: list[StoreOrder] = []
        # Changes nobody has taken yet; None: nobody will.
        self._changes: list[TierChanged] | None = [] if tells_changes else None
        # The next step's metadata says that the cache was cleared.
        self._clears = False
        # Steps that said so and that the workers have not answered for.
        self._clearing_steps = 0

    # -- requests -------------------------------------------------------------------------------------------------

    def tokens(self, request: Any, poll: Callable[[], None]) -> int | None:
        """How many of the request's first tokens are held, whole blocks; None while nobody knows."""
        if not self._is_on or not self._names.are_known(request):
            return 0
        return self._lookups.tokens(request, poll)

    def admitted(self, request: Any, loads: bool) -> Claim | None:
        """The request has got blocks. The claim is the caller's where it ``loads``."""
        if not self._is_on:
            return None
        claim = self._lookups.take(request.request_id, loads)
        self._orders.admit(request, claim.held if claim else None)
        return claim

    def blocks(self, request: Any, group: GroupShape, positions: Sequence[int], listed: Sequence[Any]) -> TierBlocks:
        """What to load into which of the request's blocks."""
        names = tuple(self._names.of_group(request, group, position, position + 1)[0] for position in positions)
        return TierBlocks(names, tuple(listed[position].block_id for position in positions))

    def load_into(self, blocks: Any) -> None:
        """vLLM's blocks of a request that will be loaded: those without a hash are written to."""
        if self._is_on:
            tables = blocks.blocks
            self._orders.load_into(
                block.block_id for table in tables for block in table if not block.is_null and block.block_hash is None
            )

    def give_back(self, claim_key: int) -> None:
        """A claim whose load never went out."""
        self._lookups.give_back(claim_key)

    def load_failed(self, request_id: str) -> None:
        """What was held is not, or is damaged; it is stored again."""
        self._orders.load_failed(request_id)

    def finished(self, request: Any, tables: Sequence[Sequence[int]], whole: bool) -> bool:
        """The request is over. True: its blocks should wait for their copies."""
        request_id = request.request_id
        self._lookups.ended(request_id)
        # What is in flight may be ahead of the outputs.
        computed = request.num_computed_tokens - getattr(request, "num_in_flight_tokens", 0)
        last, waits = self._orders.finish(request_id, tables, computed, whole and self._may_store())
        if last is not None:
            self._last.append(last)
        return waits

    # -- steps ----------------------------------------------------------------------------------------------------

    def _may_store(self) -> bool:
        usable = self._is_on and not self._lookups.suspended and not self._lookups.is_paused
        return usable and self._client.is_connected()

    def step(self, output: Any, orders: KVFerryMetadata) -> None:
        """Adds this step's orders."""
        if not self._is_on or output is None:
            return
        for request_id in output.num_scheduled_tokens:
            self._lookups.computed(request_id)
        stores, orders.written = self._orders.orders(output, self._may_store())
        orders.stores = self._last + stores
        orders.cleared = self._clears
        self._last = []
        if self._clears:
            self._clears = False
            self._clearing_steps += 1

    def heard(self, event: object) -> None:
        """Takes what concerns the tiers out of the stream of events."""
        self._lookups.heard(event)
        if isinstance(event, TierChanged) and self._changes is not None:
            self._changes.append(event)

    # -- clearing -------------------------------------------------------------------------------------------------

    def clear(self) -> None:
        """Nothing computed so far may be found again: the weights may have changed."""
        if not self._is_on:
            return
        self._lookups.drop_all()
        self._lookups.suspended = True
        self._orders.clear()
        self._last.clear()
        self._clears = True
        self._lookups.clear()

    def workers_cleared(self) -> None:
        """All ranks have dropped what was not committed when a step told them to."""
        self._clearing_steps -= 1
        if self._clearing_steps <= 0 and not self._clears:
            self._lookups.clear()
            self._lookups.suspended = False

    # -- events ---------------------------------------------------------------------------------------------------

    def take_changes(self) -> list[tuple[str, bool, int, list[bytes]]]:
        """Tier, stored or not, group id, vLLM's hashes: what came and went since the last call."""
        if not self._changes:
            return []
        changes, self._changes = self._changes, []
        told = []
        for change in changes:
            for stored, pairs in ((True, change.stored), (False, change.removed)):
                for index, group in enumerate(self._groups):
                    hashes = [self._names.hash_of(name) for number, name in pairs if number == index]
                    if hashes:
                        told.append((change.tier, stored, group.group_id, hashes))
        return told
