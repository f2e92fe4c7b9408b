"""What the scheduler's half tells the workers' half in each step.

vLLM pickles it to every worker process. With one process for all it hands over the very object, so workers only read.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorWorkerMetadata,
)

from kvferry.client import GroupBlocks, TierBlocks, TierStore


@dataclass(frozen=True)
class TierLoad:
    """The part of a load that the local tiers have."""

    claim: int
    groups: tuple[TierBlocks, ...]


@dataclass(frozen=True)
class LoadOrder:
    """Fetch these blocks, of a ticket, of the local tiers or of both, for a request that waits for them."""

    request_id: str
    # None: the tiers have all of it.
    ticket: str | None
    groups: tuple[GroupBlocks, ...]
    # Names this engine's prompt to the holder, which lets only the right one read.
    binding: bytes = b""
    tier: TierLoad | None = None


@dataclass(frozen=True)
class StoreOrder:
    """Keep these blocks, which are whole when this step has been computed."""

    request_id: str
    groups: tuple[TierStore, ...]
    tenant: bytes


@dataclass
class KVFerryMetadata(KVConnectorMetadata):
    """One step's orders. Every worker rank gets the same and answers for itself; vLLM counts the answers."""

    # Goes up by one each step, so that a worker obeys each only once.
    step: int = 0
    # Requests that ended while their load was under way: stop, and report the load as soon as nothing can land.
    aborts: list[str] = field(default_factory=list)
    loads: list[LoadOrder] = field(default_factory=list)
    # Requests that wait for a load which cannot be asked for: report it failed at once.
    lost: list[str] = field(default_factory=list)
    # Finished requests that nobody reads any more: report them as sent, so that vLLM takes the blocks back, once what
    # was ordered stored of them is copied.
    released: list[str] = field(default_factory=list)
    stores: list[StoreOrder] = field(default_factory=list)
    # Blocks that this step gives to a request, to be computed or loaded into: whatever was in them is lost.
    written: tuple[int, ...] = ()
    # The cache was cleared: nothing that is not committed may be, and the answer is a ``ClearedReport``.
    cleared: bool = False
    # It is not known what this step writes: nothing under way may be vouched for.
    loses_all: bool = False


@dataclass
class ClearedReport(KVConnectorWorkerMetadata):
    """A worker has dropped all that was not committed when the cache was cleared."""

    def aggregate(self, other: KVConnectorWorkerMetadata) -> KVConnectorWorkerMetadata:
        """All ranks obey one step together."""
        return self


@dataclass
class KVFerryHandshake(KVConnectorHandshakeMetadata):
    """What one worker says about itself when its memory is set up."""

    # Why this worker's memory cannot be shared, or None when it is.
    refusal: str | None = None
