"""What the connector asks of the local daemon: two small protocols, the values they exchange, and the native client.

::

    SchedulerSide -> SchedulerClient.grant / relinquish -> daemon        daemon -> poll() -> LeaseEnded
                     SchedulerClient.lookup / forget / clear                            -> Found, TierChanged
    WorkerSide    -> WorkerClient.attach / redeem / abort -> daemon      daemon -> poll() -> TransferDone
                     WorkerClient.load / store / commit                                 -> Loaded, Copied

No call waits for the daemon except ``grant``, and that for at most the reply timeout. A client without a daemon keeps
looking for one in the background; meanwhile ``grant`` fails at once and everything that is answered by an event is
answered as failed. The keys of one connection are all different, whatever they were given for. Tests script these
protocols instead of running a daemon.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol


class ClientError(Exception):
    """The daemon could not do what was asked."""


class RefusedError(ClientError):
    """The daemon answered, and the answer is no. Asking for something else may succeed."""


class UnavailableError(ClientError):
    """No daemon answered in time. Asking again is useless until one is connected."""


@dataclass(frozen=True)
class Granted:
    """A lease that the daemon keeps on the engine's blocks."""

    lease_id: int
    # Lease ids are unique within one start of the daemon only.
    daemon_epoch: int
    # Opaque and authenticated; for the other engine, by way of the router.
    ticket: str
    # Where the daemon listens for other daemons; a hint for routers, the ticket carries its own.
    host: str
    port: int
    # The lease never lives longer than this, counted from before the answer was sent.
    lease_ms: int


@dataclass(frozen=True)
class Span:
    """Layers of equal shape at equal distance; ``LayerSpan`` of the daemon. Offsets and strides are in bytes."""

    layer_count: int
    offset: int
    layer_stride: int
    block_stride: int
    head_count: int
    token_count: int
    content_bytes: int


@dataclass(frozen=True)
class Layout:
    """How one worker lays its blocks out in its region."""

    # Axes of memory, outermost first, for example "LBHNC".
    order: str
    block_count: int
    region_bytes: int
    # The spans of each transferred KV cache group.
    groups: tuple[tuple[Span, ...], ...]


@dataclass(frozen=True)
class AttachSpec:
    """One rank's memory and what it holds. The client remembers it and sends it again to a restarted daemon."""

    rank: int
    rank_count: int
    layout: Layout
    fingerprint: bytes
    # A sealed memfd; the client duplicates it.
    region_fd: int
    # What people call the model, for people alone.
    model: str = ""


@dataclass(frozen=True)
class GroupBlocks:
    """Which of a lease's blocks go where, in one KV cache group: pairs, in step."""

    # Indexes into the group's list that the lease was granted on.
    positions: tuple[int, ...] = field(default=())
    # Block ids of this engine.
    targets: tuple[int, ...] = field(default=())


@dataclass(frozen=True)
class TierBlocks:
    """Which blocks of the local tiers go where, in one KV cache group: pairs, in step."""

    # What vLLM calls the blocks; 32 bytes each.
    hashes: tuple[bytes, ...] = field(default=())
    # Block ids of this engine.
    blocks: tuple[int, ...] = field(default=())


@dataclass(frozen=True)
class TierStore:
    """Blocks of one KV cache group that follow each other in one chain of hashes, to be kept: pairs, in step."""

    # The hash of the block before the first; empty where the first is the prompt's.
    parent: bytes = b""
    hashes: tuple[bytes, ...] = field(default=())
    # Block ids of this engine.
    blocks: tuple[int, ...] = field(default=())


@dataclass(frozen=True)
class TransferDone:
    """The one answer to a ``redeem``. From here on the daemon does not touch the target blocks.

    With one exception: ``daemon_gone`` comes as soon as the connection is lost, see worker.py.
    """

    key: int
    request_id: str
    # Why nothing of it may be used, as a short word; None when every byte was delivered and verified.
    failure: str | None
    bytes: int
    micros: int


@dataclass(frozen=True)
class Loaded:
    """The one answer to a ``load``, all or nothing. What holds for ``TransferDone`` holds here."""

    key: int
    request_id: str
    # Why nothing of it may be used, as a short word; None when every block is there and verified.
    failure: str | None
    bytes: int
    micros: int
    # How much of it was read from disk.
    disk_bytes: int


@dataclass(frozen=True)
class Copied:
    """The one answer to a ``store``: the daemon will not read its blocks again, and nobody finds them yet."""

    key: int
    request_id: str
    # Why nothing of it is kept, as a short word; None when all of it was copied.
    failure: str | None


@dataclass(frozen=True)
class Found:
    """The one answer to a ``lookup``. Without a failure there is a claim under its key: see ``lookup``."""

    key: int
    request_id: str
    # How many of each group's first blocks every rank has in some local tier.
    held: tuple[int, ...]
    # How many of those have to be read from disk.
    on_disk: tuple[int, ...]
    # A short word; ``NO_TIER`` when the daemon keeps no blocks at all.
    failure: str | None


@dataclass(frozen=True)
class TierChanged:
    """Blocks of this engine's fingerprint came into a tier or left it."""

    # "host" or "disk".
    tier: str
    # Pairs of group and hash.
    stored: tuple[tuple[int, bytes], ...]
    removed: tuple[tuple[int, bytes], ...]


@dataclass(frozen=True)
class LeaseEnded:
    """The daemon let a lease go: nothing reads its blocks any more."""

    lease_id: int
    request_id: str
    daemon_epoch: int
    reason: str


@dataclass(frozen=True)
class Connected:
    """A daemon answered."""

    daemon_epoch: int


@dataclass(frozen=True)
class Disconnected:
    """The daemon went away."""


@dataclass(frozen=True)
class Refused:
    """The daemon will not have this process or its memory. The client tries again after a while."""

    message: str


Event = Connected | Copied | Disconnected | Found | LeaseEnded | Loaded | Refused | TierChanged | TransferDone

# Why something failed whose daemon can no longer be asked.
DAEMON_GONE = "daemon_gone"
# Why nothing is found where no tier is configured. It stays so until the next ``Connected``.
NO_TIER = "no_tier"


class Client(Protocol):
    """What both halves of the connector need."""

    def is_connected(self) -> bool:
        """Whether a daemon is there now, and has this process's memory where there is any. Costs nothing."""
        ...

    def poll(self) -> Sequence[Event]:
        """What happened since the last call, in order. Never waits."""
        ...

    def close(self) -> None:
        """Ends the connection; the daemon unmaps and releases what belonged to it."""
        ...


class SchedulerClient(Client, Protocol):
    """The scheduler process's connection."""

    def grant(self, request_id: str, groups: Sequence[Sequence[int]], lease_ms: int, binding: bytes) -> Granted:
        """Leases blocks to whoever shows the ticket. Waits at most the reply timeout.

        ``groups`` holds the request's block ids in each transferred group, in order; 0 is the null block. The ticket
        is redeemed only by who names the same ``binding``, at most 64 bytes: what the blocks were computed from.
        """
        ...

    def relinquish(self, ticket: str) -> None:
        """Tells the holder of a ticket's lease that nobody will come for it. Fire and forget."""
        ...

    def lookup(self, request_id: str, groups: Sequence[Sequence[bytes]]) -> int:
        """Asks what the local tiers hold of a prompt, and returns the key of the ``Found`` that will follow.

        ``groups`` holds the hashes of the prompt's full blocks in each transferred group, in order from the first.
        What was found is kept from eviction, as a claim under the key, until all ranks have loaded, ``forget``, or the
        daemon's time limit. Whose request it is does not matter: a block's hash has the cache salt in it.
        """
        ...

    def forget(self, key: int) -> None:
        """Tells the daemon that nobody will load under this claim. Fire and forget."""
        ...

    def watch(self) -> None:
        """Asks every daemon from now on to tell ``TierChanged``. Where nobody polls, some are dropped."""
        ...

    def clear(self) -> None:
        """Nothing stored so far is found by lookups from now on, for engines of this fingerprint. Fire and forget.

        What is not committed is dropped. The client tells each daemon that it connects to, until one has answered a
        lookup behind that; while a daemon is at it, lookups fail.
        """
        ...


class WorkerClient(Client, Protocol):
    """One worker rank's connection."""

    def attach(self, spec: AttachSpec) -> None:
        """Shares this rank's memory. Remembered and sent to every daemon that is connected from now on."""
        ...

    def redeem(
        self, request_id: str, ticket: str, groups: Sequence[GroupBlocks], deadline_ms: int, binding: bytes
    ) -> int:
        """Asks for a ticket's blocks and returns the key of the ``TransferDone`` that will follow."""
        ...

    def load(self, request_id: str, claim: int, groups: Sequence[TierBlocks], deadline_ms: int) -> int:
        """Asks for blocks of the local tiers under a claim, and returns the key of the ``Loaded`` that will follow."""
        ...

    def store(self, request_id: str, groups: Sequence[TierStore], tenant: bytes) -> int:
        """Asks to copy blocks into the local tiers, and returns the key of the ``Copied`` that will follow.

        ``tenant``, at most 64 bytes, is whose quota they count against; empty: nobody's in particular.
        """
        ...

    def commit(self, key: int) -> None:
        """Vouches that no block of a store was written to before its ``Copied`` came: now lookups may find them.

        Fire and forget. A store that is never committed is never found.
        """
        ...

    def abort(self, key: int) -> None:
        """Asks to stop a transfer, a load or a store. Its answer still follows, once."""
        ...
