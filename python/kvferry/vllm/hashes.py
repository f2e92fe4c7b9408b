"""The names of blocks: vLLM's own hashes, cut to the groups' block sizes and brought to the daemon's 32 bytes.

::

    request.block_hashes (one each hash_block_size tokens) -> of_group -> 32 bytes each -> lookup, load, store
    TierChanged -> hash_of -> KV events

A hash covers all tokens before it, images and salt (``hash_block_tokens`` in ``v1/core/kv_cache_utils.py``), and of a
LoRA adapter its name and path. What the adapter contains is put into the name here (adapters.py); where nobody knows
it, blocks have no names. The chain of hashes begins with a seed. So engines whose algorithm or seed differ name equal
blocks differently and find nothing of each other's: neither has to be in the fingerprint, which decides about P/D
too, where hashes play no part. A chain whose seed is random for each process is of no use in a tier that outlives it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any

from kvferry.vllm.adapters import Adapters
from kvferry.vllm.groups import GroupShape

HASH_BYTES = 32
# Chosen: some 15 MB, where an engine with LoRA publishes events. The event of a block forgotten here has a hash that
# vLLM does not know.
HASHES_KEPT_MAX = 65_536
# As vLLM's _NON_CRYPTO_HASH_FUNCTIONS, by the names of --prefix-caching-hash-algo.
_RANDOMLY_SEEDED = ("xxhash", "xxhash_cbor")


def why_no_hashes(cache_config: Any) -> str | None:
    """Why this engine's blocks have no names that last; None: they have."""
    if not getattr(cache_config, "enable_prefix_caching", False):
        return "prefix caching is off, which says that no request uses what another left"
    algorithm = getattr(cache_config, "prefix_caching_hash_algo", "")
    if algorithm in _RANDOMLY_SEEDED and os.environ.get("PYTHONHASHSEED") is None:
        return f"{algorithm} is seeded at random in each process unless PYTHONHASHSEED is set"
    return None


def as_daemon(block_hash: bytes) -> bytes:
    """The daemon's 32 bytes for a hash; shorter ones are filled up, as ``as_vllm`` undoes."""
    if len(block_hash) > HASH_BYTES:
        return hashlib.sha256(block_hash).digest()
    return bytes(block_hash).ljust(HASH_BYTES, b"\0")


def as_vllm(name: bytes, length: int) -> bytes:
    """The hash that ``as_daemon`` made a name of, ``length`` bytes of it."""
    return name[:length]


def tenant_named(name: str) -> bytes:
    """A tenant as the daemon has it: ``[tier.tenants."NAME"]`` in its config is a quota for the same; empty: nobody."""
    # Text of requests may hold what is no text.
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest() if name else b""


def tenant_of(request: Any, namespace: str) -> bytes:
    """Whose quota this request's blocks count against: its salt's, or that of the engine's namespace.

    Who may find them is another matter, and lies in the hashes, which have the salt in them.
    """
    return tenant_named(str(getattr(request, "cache_salt", None) or namespace))


class BlockNames:
    """The names of a request's blocks in each group."""

    def __init__(
        self, groups: tuple[GroupShape, ...], hash_block_size: int, adapters: Adapters, tells_changes: bool = False
    ) -> None:
        self._groups = groups
        self._hash_block_size = hash_block_size
        self._adapters = adapters
        # vLLM's hashes of blocks that were named with an adapter, oldest first; None: nobody asks.
        self._hashes: dict[bytes, bytes] | None = {} if tells_changes else None
        # How long vLLM's hashes are; known from the first one on.
        self.hash_length = HASH_BYTES

    def are_known(self, request: Any) -> bool:
        """Whether blocks of this request have names now."""
        return self._adapters.of(request) is not None

    def count(self, request: Any, group: GroupShape) -> int:
        """How many full blocks of the group have a name."""
        if not self.are_known(request):
            return 0
        return len(request.block_hashes) // (group.block_size // self._hash_block_size)

    def of_group(self, request: Any, group: GroupShape, first: int, end: int) -> tuple[bytes, ...]:
        """The names of the blocks at positions ``first`` to ``end``.

        As vLLM's ``BlockHashListWithBlockSize``: the last hash inside a larger block covers all of it.

        Raises:
            LookupError: nobody knows what the request's adapter contains.
        """
        adapter = self._adapters.of(request)
        if adapter is None:
            raise LookupError("nobody knows what its LoRA adapter contains")
        hashes: Sequence[bytes] = request.block_hashes
        scale = group.block_size // self._hash_block_size
        if hashes:
            self.hash_length = min(len(hashes[0]), HASH_BYTES)
        return tuple(self._name(hashes[(position + 1) * scale - 1], adapter) for position in range(first, end))

    def _name(self, block_hash: bytes, adapter: bytes) -> bytes:
        if not adapter:
            return as_daemon(block_hash)
        name = hashlib.sha256(adapter + block_hash).digest()
        if self._hashes is not None:
            self._hashes[name] = bytes(block_hash)
            if len(self._hashes) > HASHES_KEPT_MAX:
                del self._hashes[next(iter(self._hashes))]
        return name

    def hash_of(self, name: bytes) -> bytes:
        """The hash that a name was made of."""
        return (self._hashes or {}).get(name) or as_vllm(name, self.hash_length)

    def of_all(self, request: Any) -> list[tuple[bytes, ...]]:
        """The names of all full blocks, for each group."""
        return [self.of_group(request, group, 0, self.count(request, group)) for group in self._groups]
