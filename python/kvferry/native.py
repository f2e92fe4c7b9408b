"""The native client behind the protocols of client.py: turns its plain tuples into our values, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from kvferry.client import (
    AttachSpec,
    Connected,
    Copied,
    Disconnected,
    Event,
    Found,
    Granted,
    GroupBlocks,
    LeaseEnded,
    Loaded,
    Refused,
    SchedulerClient,
    TierBlocks,
    TierChanged,
    TierStore,
    TransferDone,
    WorkerClient,
)


def _found(key: int, request_id: str, held: Sequence[int], on_disk: Sequence[int], failure: str | None) -> Found:
    return Found(key, request_id, tuple(held), tuple(on_disk), failure)


def _tier_changed(tier: str, stored: Sequence[tuple[int, bytes]], removed: Sequence[tuple[int, bytes]]) -> TierChanged:
    return TierChanged(tier, tuple(stored), tuple(removed))


# One for each kind of tuple that ``_native.Client.poll`` makes; the rest of a tuple are the value's fields, in order.
_EVENTS: dict[str, Callable[..., Event]] = {
    "connected": Connected,
    "copied": Copied,
    "disconnected": Disconnected,
    "found": _found,
    "lease_ended": LeaseEnded,
    "loaded": Loaded,
    "refused": Refused,
    "tier_changed": _tier_changed,
    "transfer_done": TransferDone,
}


def start_scheduler(socket: str, engine_id: str, reply_timeout_ms: int) -> SchedulerClient:
    """Starts to connect as an engine's scheduler process. Succeeds without a daemon."""
    return _NativeClient(socket, engine_id, "scheduler", reply_timeout_ms)


def start_worker(socket: str, engine_id: str, reply_timeout_ms: int) -> WorkerClient:
    """Starts to connect as one of an engine's worker processes. Succeeds without a daemon."""
    return _NativeClient(socket, engine_id, "worker", reply_timeout_ms)


class _NativeClient:
    """Both roles; the daemon refuses what does not fit the role."""

    def __init__(self, socket: str, engine_id: str, role: str, reply_timeout_ms: int) -> None:
        from kvferry import _native

        self._client: Any = _native.Client(socket, engine_id, role, reply_timeout_ms)

    def is_connected(self) -> bool:
        return bool(self._client.is_connected())

    def poll(self) -> list[Event]:
        return [_EVENTS[kind](*fields) for kind, *fields in self._client.poll()]

    def close(self) -> None:
        self._client.close()

    def grant(self, request_id: str, groups: Sequence[Sequence[int]], lease_ms: int, binding: bytes) -> Granted:
        return Granted(*self._client.grant(request_id, groups, lease_ms, binding))

    def relinquish(self, ticket: str) -> None:
        self._client.relinquish(ticket)

    def lookup(self, request_id: str, groups: Sequence[Sequence[bytes]]) -> int:
        return int(self._client.lookup(request_id, groups))

    def forget(self, key: int) -> None:
        self._client.forget(key)

    def watch(self) -> None:
        self._client.watch()

    def clear(self) -> None:
        self._client.clear()

    def attach(self, spec: AttachSpec) -> None:
        layout = spec.layout
        groups = [
            [
                (
                    span.layer_count,
                    span.offset,
                    span.layer_stride,
                    span.block_stride,
                    span.head_count,
                    span.token_count,
                    span.content_bytes,
                )
                for span in spans
            ]
            for spans in layout.groups
        ]
        self._client.attach(
            spec.rank,
            spec.rank_count,
            spec.fingerprint,
            spec.region_fd,
            layout.order,
            layout.block_count,
            layout.region_bytes,
            groups,
            spec.model,
        )

    def redeem(
        self, request_id: str, ticket: str, groups: Sequence[GroupBlocks], deadline_ms: int, binding: bytes
    ) -> int:
        wanted = [(group.positions, group.targets) for group in groups]
        return int(self._client.redeem(request_id, ticket, wanted, deadline_ms, binding))

    def load(self, request_id: str, claim: int, groups: Sequence[TierBlocks], deadline_ms: int) -> int:
        wanted = [(group.hashes, group.blocks) for group in groups]
        return int(self._client.load(request_id, claim, wanted, deadline_ms))

    def store(self, request_id: str, groups: Sequence[TierStore], tenant: bytes) -> int:
        kept = [(group.parent, group.hashes, group.blocks) for group in groups]
        return int(self._client.store(request_id, kept, tenant))

    def commit(self, key: int) -> None:
        self._client.commit(key)

    def abort(self, key: int) -> None:
        self._client.abort(key)
