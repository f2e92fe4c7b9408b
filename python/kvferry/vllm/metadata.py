"""What the scheduler's half tells the workers' half in each step.

vLLM pickles it to every worker process. With one process for all it hands over the very object, so workers only read.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorHandshakeMetadata, KVConnectorMetadata

from kvferry.client import GroupBlocks


@dataclass(frozen=True)
class LoadOrder:
    """Fetch these blocks of a ticket for a request that waits for them."""

    request_id: str
    ticket: str
    groups: tuple[GroupBlocks, ...]
    # Names this engine's prompt to the holder, which lets only the right one read.
    binding: bytes = b""


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
    # Requests whose lease has ended: report them as sent, so that vLLM takes the blocks back.
    released: list[str] = field(default_factory=list)


@dataclass
class KVFerryHandshake(KVConnectorHandshakeMetadata):
    """What one worker says about itself when its memory is set up."""

    # Why this worker's memory cannot be shared, or None when it is.
    refusal: str | None = None
