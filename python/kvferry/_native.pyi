"""The native module, built from python/src/lib.rs."""

from collections.abc import Sequence

# layer_count, offset, layer_stride, block_stride, head_count, token_count, content_bytes
_Span = tuple[int, int, int, int, int, int, int]

class Client:
    """A connection to the daemon of this node. Every method but ``grant`` returns at once."""

    def __new__(cls, socket: str, engine_id: str, role: str, reply_timeout_ms: int) -> Client: ...
    def is_connected(self) -> bool: ...
    def attach(
        self,
        rank: int,
        rank_count: int,
        fingerprint: bytes,
        region_fd: int,
        order: str,
        block_count: int,
        region_bytes: int,
        groups: Sequence[Sequence[_Span]],
        model: str = "",
    ) -> None: ...
    def grant(
        self, request_id: str, groups: Sequence[Sequence[int]], lease_ms: int, binding: bytes
    ) -> tuple[int, int, str, str, int, int]:
        """Lease id, daemon epoch, ticket, host, port, lease in milliseconds."""

    def relinquish(self, ticket: str) -> None: ...
    def redeem(
        self,
        request_id: str,
        ticket: str,
        groups: Sequence[tuple[Sequence[int], Sequence[int]]],
        deadline_ms: int,
        binding: bytes,
    ) -> int: ...
    def lookup(self, request_id: str, groups: Sequence[Sequence[bytes]]) -> int: ...
    def forget(self, key: int) -> None: ...
    def watch(self) -> None: ...
    def clear(self) -> None: ...
    def load(
        self, request_id: str, claim: int, groups: Sequence[tuple[Sequence[bytes], Sequence[int]]], deadline_ms: int
    ) -> int: ...
    def store(
        self, request_id: str, groups: Sequence[tuple[bytes, Sequence[bytes], Sequence[int]]], tenant: bytes
    ) -> int: ...
    def commit(self, key: int) -> None: ...
    def abort(self, key: int) -> None: ...
    def poll(self) -> list[tuple[object, ...]]:
        """Each a kind of ``native._EVENTS`` and its fields."""

    def close(self) -> None: ...
