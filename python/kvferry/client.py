"""What the connector asks of the local daemon: two small protocols, the values they exchange, and the native client.

::

    SchedulerSide -> SchedulerClient.grant / relinquish -> daemon        daemon -> poll() -> LeaseEnded
    WorkerSide    -> WorkerClient.attach / redeem / abort -> daemon      daemon -> poll() -> TransferDone

No call waits for the daemon except ``grant``, and that for at most the reply timeout. A client without a daemon keeps
looking for one in the background; meanwhile ``grant`` fails at once and ``redeem`` completes as failed. Tests script
these protocols instead of running a daemon.
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


@dataclass(frozen=True)
class GroupBlocks:
    """Which of a lease's blocks go where, in one KV cache group: pairs, in step."""

    # Indexes into the group's list that the lease was granted on.
    positions: tuple[int, ...] = field(default=())
    # Block ids of this engine.
    targets: tuple[int, ...] = field(default=())


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


Event = TransferDone | LeaseEnded | Connected | Disconnected | Refused

# Why a transfer failed whose daemon can no longer be asked.
DAEMON_GONE = "daemon_gone"


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

    def abort(self, key: int) -> None:
        """Asks to stop a transfer. Its ``TransferDone`` still follows, once."""
        ...
