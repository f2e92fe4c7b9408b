"""Which chunk comes before which: a request's keys by where they end in its tokens.

vLLM asks a tier about one key at a time, and gives it stores as keys in no order. What it says besides is where each
key of the request ends (``ReqContext.set_offload_key_position``; the scheduler does so for all keys of a request before
it first asks). ``get_offload_key_position`` answers for one key; to go from a position to a key there is only the
mapping behind it, which is private. Where a vLLM should not have it, each chunk is a chain of its own: it is asked for,
kept and evicted by itself.

A partial tail's key ends inside a chunk and stands behind the last whole one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# As ``make_offload_key`` of ``v1/kv_offload/base.py``: the block's hash, then the cache group.
GROUP_BYTES = 4


def group_of(key: bytes) -> int:
    """The KV cache group that a key is of."""
    return int.from_bytes(key[-GROUP_BYTES:], "big")


class Chains:
    """Reads requests' chains out of vLLM's contexts; keeps nothing."""

    def __init__(self, tokens_per_chunk: Mapping[int, int]) -> None:
        self._tokens_per_chunk = dict(tokens_per_chunk)

    def from_key(self, context: Any, key: bytes) -> list[bytes]:
        """The key and all whole chunks of its group behind it."""
        chain = [key]
        group = group_of(key)
        step = self._tokens_per_chunk.get(group)
        position = context.get_offload_key_position(key)
        if step is None or position is None or position % step:
            return chain
        by_end = self._by_end(context, group)
        while (following := by_end.get(position + step)) is not None:
            chain.append(following)
            position += step
        return chain

    def pieces(self, context: Any, keys: Iterable[bytes]) -> list[tuple[bytes | None, list[bytes]]]:
        """Cuts keys into runs of one group that follow each other; each with the key before it, None: the first."""
        by_group: dict[int, list[tuple[int, bytes]]] = {}
        for key in keys:
            position = context.get_offload_key_position(key)
            by_group.setdefault(group_of(key), []).append((-1 if position is None else position, key))
        pieces: list[tuple[bytes | None, list[bytes]]] = []
        for group, ended in by_group.items():
            step = self._tokens_per_chunk.get(group)
            by_end = self._by_end(context, group)
            last: bytes | None = None
            for position, key in sorted(ended):
                parent = by_end.get((position - 1) // step * step) if step and position > 0 else None
                if last is not None and parent == last:
                    pieces[-1][1].append(key)
                else:
                    pieces.append((parent, [key]))
                last = key
        return pieces

    def _by_end(self, context: Any, group: int) -> dict[int, bytes]:
        step = self._tokens_per_chunk.get(group)
        positions = getattr(context, "_offload_key_positions", None) or {}
        return {end: key for key, end in positions.items() if step and end % step == 0 and group_of(key) == group}
