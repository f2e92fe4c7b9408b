"""What the local tiers hold of waiting requests' prompts: asked without waiting, answered some steps later.

::

    get_num_new_matched_tokens -> tokens() -> client.lookup          unknown: None, and vLLM asks again
                                  client.poll -> Found -> heard()    tokens() -> how many of the first tokens are held
    update_state_after_alloc   -> take(): the claim goes into a load order, or is forgotten

Each lookup that finds something leaves a claim with the daemon, which ends in a load or in ``forget``; the daemon's own
time limit ends the rest. An answer that does not come within the reply timeout is taken for "nothing", and the
daemon is left alone for a while.

Clearing is ordered once: the client tells every daemon, and has a lookup fail until one has carried it out. Such a
lookup is answered "nothing".

A load that failed is not tried again before the request has computed something, however often vLLM asks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kvferry.client import NO_TIER, Connected, Disconnected, Found, SchedulerClient
from kvferry.vllm.complaints import Complaints, logger
from kvferry.vllm.groups import GroupShape
from kvferry.vllm.hashes import BlockNames

# Chosen: vLLM asks about every waiting request for which it has room; the rest of a long queue is asked about later.
LOOKUPS_MAX = 64
# Chosen: a claim that waited this long for room is made anew, before the daemon's time limit takes it.
CLAIM_SECONDS = 5.0
# Chosen: how long a daemon that does not answer is left alone, if it does not connect anew before.
PAUSE_SECONDS = 5.0


@dataclass(frozen=True)
class Claim:
    """What was found, and may be loaded."""

    key: int
    # Blocks from the first on, for each group.
    held: tuple[int, ...]
    on_disk: tuple[int, ...]


@dataclass
class _Lookup:
    """One question about one request."""

    key: int
    asked_at: float
    # None: no answer yet. A claim of key 0 stands for "nothing".
    claim: Claim | None = None
    found_at: float = 0.0


class Lookups:
    """All state is about requests that wait for their blocks."""

    def __init__(
        self,
        client: SchedulerClient,
        groups: tuple[GroupShape, ...],
        names: BlockNames,
        reply_timeout_ms: int,
        complaints: Complaints,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._groups = groups
        self._names = names
        self._reply_seconds = reply_timeout_ms / 1000
        self._complaints = complaints
        self._clock = clock
        # Where a prefix may end: at the end of a block in every group.
        self.step_tokens = math.lcm(*(group.block_size for group in groups)) if groups else 1
        # In when first asked about, out at allocation or at the request's end.
        self._lookups: dict[str, _Lookup] = {}
        # Requests whose load was ordered and that have computed nothing since.
        self._tried: set[str] = set()
        self._paused_until = 0.0
        # Set while a cleared cache may still be written to by a step under way.
        self.suspended = False
        # An order to clear that the client has not taken.
        self._clear_owed = False

    @property
    def is_paused(self) -> bool:
        """Whether there are no tiers to ask, as far as is known."""
        return self._clock() < self._paused_until

    def tokens(self, request: Any, poll: Callable[[], None]) -> int | None:
        """How many of a request's first tokens the tiers hold; None while nobody knows. ``poll`` hears events."""
        request_id = request.request_id
        lookup = self._lookups.get(request_id)
        if lookup is not None and self._is_stale(lookup):
            self.drop(request_id)
            lookup = None
        if lookup is None:
            if request_id in self._tried or self.suspended or self.is_paused:
                return 0
            if getattr(request, "skip_reading_prefix_cache", False) or request.num_tokens <= self.step_tokens:
                return 0
            if sum(waiting.claim is None for waiting in self._lookups.values()) >= LOOKUPS_MAX:
                return None
            lookup = self._ask(request)
            if lookup is None:
                return 0
        if lookup.claim is None:
            poll()
        if lookup.claim is None:
            if self._clock() < lookup.asked_at + self._reply_seconds:
                return None
            self._complaints.warn("lookup", "kvferry: no answer about %s in time, nothing is loaded", request_id)
            lookup.claim = self._nothing()
            # Once is enough: the next requests do not wait for a daemon that hangs.
            self._paused_until = max(self._paused_until, self._clock() + PAUSE_SECONDS)
        return self._usable(request, lookup.claim)

    def _usable(self, request: Any, claim: Claim) -> int:
        held = min(count * group.block_size for count, group in zip(claim.held, self._groups, strict=True))
        # The last token is always computed: its output is wanted.
        usable = min(held, int(request.num_tokens) - 1)
        return usable // self.step_tokens * self.step_tokens

    def _is_stale(self, lookup: _Lookup) -> bool:
        return bool(lookup.claim and lookup.claim.key and self._clock() >= lookup.found_at + CLAIM_SECONDS)

    def _nothing(self) -> Claim:
        zeros = (0,) * len(self._groups)
        return Claim(0, zeros, zeros)

    def _ask(self, request: Any) -> _Lookup | None:
        request_id = request.request_id
        try:
            self._order_clear()
            key = self._client.lookup(request_id, self._names.of_all(request))
        except Exception as error:
            self._paused_until = self._clock() + PAUSE_SECONDS
            self._complaints.warn("lookup", "kvferry: failed to ask what is kept of %s: %r", request_id, error)
            return None
        lookup = _Lookup(key, self._clock())
        self._lookups[request_id] = lookup
        return lookup

    def heard(self, event: object) -> None:
        """Takes what concerns lookups out of the stream of events."""
        if isinstance(event, Found):
            self._found(event)
        elif isinstance(event, Connected):
            self._paused_until = 0.0
        elif isinstance(event, Disconnected):
            # Claims go with the daemon; those still asked for are answered as failed.
            for lookup in self._lookups.values():
                lookup.claim = lookup.claim and self._nothing()

    def clear(self) -> None:
        """Nothing stored so far may be found by any lookup from now on."""
        self._clear_owed = True
        try:
            self._order_clear()
        except Exception as error:
            self._complaints.warn("clear", "kvferry: failed to clear the tiers, tries again: %r", error)

    def _order_clear(self) -> None:
        if self._clear_owed:
            self._client.clear()
            self._clear_owed = False

    def _found(self, found: Found) -> None:
        if found.failure == NO_TIER:
            logger.info("kvferry: the daemon keeps no blocks; prompts come from other engines alone")
            self._paused_until = math.inf
        lookup = self._lookups.get(found.request_id)
        if lookup is None or lookup.key != found.key or lookup.claim is not None:
            # Nobody waits for it any more.
            if found.failure is None:
                self._forget(found.key)
            return
        counts = len(self._groups)
        if found.failure is not None or len(found.held) != counts or len(found.on_disk) != counts:
            lookup.claim = self._nothing()
            return
        lookup.claim = Claim(found.key, found.held, found.on_disk)
        lookup.found_at = self._clock()
        if not any(found.held):
            self._forget(found.key)
            lookup.claim = self._nothing()

    def take(self, request_id: str, for_load: bool) -> Claim | None:
        """Ends the question at allocation. The claim is the caller's if it loads, and forgotten if not."""
        lookup = self._lookups.get(request_id)
        if lookup is None or lookup.claim is None or not for_load:
            self.drop(request_id)
        else:
            del self._lookups[request_id]
            self._tried.add(request_id)
        return lookup.claim if lookup is not None else None

    def computed(self, request_id: str) -> None:
        """The request runs: after a preemption it may load again."""
        self._tried.discard(request_id)

    def drop(self, request_id: str) -> None:
        """Nothing will be loaded by what was asked so far."""
        lookup = self._lookups.pop(request_id, None)
        # One without an answer is forgotten when its answer comes.
        if lookup is not None and lookup.claim is not None and lookup.claim.key:
            self._forget(lookup.claim.key)

    def ended(self, request_id: str) -> None:
        """The request is over."""
        self.drop(request_id)
        self._tried.discard(request_id)

    def drop_all(self) -> None:
        """What was found may not be loaded any more."""
        for request_id in list(self._lookups):
            self.drop(request_id)

    def give_back(self, key: int) -> None:
        """A claim that was taken for a load that never went out."""
        self._forget(key)

    def _forget(self, key: int) -> None:
        try:
            self._client.forget(key)
        except Exception as error:
            # The claim ends by the daemon's time limit.
            self._complaints.warn("forget", "kvferry: failed to give back a claim: %r", error)
