"""KV cache groups as the scheduler's half needs them: how tokens map to positions of a request's block list."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

# Specs whose blocks hold a fixed run of tokens each and may be copied as they are, by class name. vLLM's subclasses of
# these add state of their own (sinks, rings, replay windows), so only the exact classes count.
FULL = ("FullAttentionSpec", "MLAAttentionSpec")
WINDOWED = ("SlidingWindowSpec", "ChunkedLocalAttentionSpec")


class UnsupportedError(Exception):
    """KVFerry cannot carry this engine's KV cache; the text says why."""


@dataclass(frozen=True)
class GroupShape:
    """One transferred group."""

    # Its index among all of the engine's groups.
    group_id: int
    # Tokens of one block.
    block_size: int
    # Tokens that the next token can look back on, itself included; None: all of them.
    window: int | None = None
    # The next token looks back to the last multiple of this; None: no chunks.
    chunk: int | None = None

    def block_count(self, token_count: int) -> int:
        """How many blocks the first tokens take."""
        return -(-token_count // self.block_size)

    def first_needed(self, token_count: int) -> int:
        """The first position that is looked at once ``token_count`` tokens are there.

        As vLLM's ``get_num_skipped_tokens`` (``v1/core/single_type_kv_cache_manager.py``), which decides where a
        request's list holds null blocks.
        """
        skipped = 0
        if self.window is not None:
            skipped = max(0, token_count - self.window + 1)
        elif self.chunk is not None:
            skipped = token_count // self.chunk * self.chunk
        return skipped // self.block_size


def layer_specs(spec: Any) -> list[Any]:
    """The specs of a group's layers: a group of unlike layers lists them, any other has one for all."""
    unlike = getattr(spec, "kv_cache_specs", None)
    return list(unlike.values()) if unlike else [spec]


def transferred_groups(kv_cache_config: Any) -> list[tuple[int, Any]]:
    """Index and spec of the groups that belong to a request's state."""
    return [
        (index, group)
        for index, group in enumerate(kv_cache_config.kv_cache_groups)
        if getattr(group, "enable_kv_transfer", True)
    ]


def group_shapes(kv_cache_config: Any, parallel_config: Any) -> tuple[GroupShape, ...]:
    """Describes the groups of an engine.

    Raises:
        UnsupportedError: a group holds more than plain attention blocks.
    """
    for axis in ("decode_context_parallel_size", "prefill_context_parallel_size"):
        if getattr(parallel_config, axis, 1) > 1:
            raise UnsupportedError(f"{axis} above 1 spreads a block over ranks")
    groups = transferred_groups(kv_cache_config)
    if not groups:
        raise UnsupportedError("the model has no KV cache")
    return tuple(_shape(index, group) for index, group in groups)


def _shape(index: int, group: Any) -> GroupShape:
    specs = layer_specs(group.kv_cache_spec)
    kinds = {type(spec).__name__ for spec in specs}
    odd = sorted(kinds - set(FULL) - set(WINDOWED))
    if odd:
        raise UnsupportedError(f"KV cache group {index} holds {', '.join(odd)}")
    if getattr(group, "host_resident", False):
        raise UnsupportedError(f"KV cache group {index} lives in host memory apart from the KV cache")
    if any(getattr(spec, "tokens_per_state", 1) != 1 for spec in specs):
        raise UnsupportedError(f"KV cache group {index} packs several tokens into one state")
    # Only full attention layers share a group with others; a window belongs to the whole group.
    first = group.kv_cache_spec if not hasattr(group.kv_cache_spec, "kv_cache_specs") else specs[0]
    window = chunk = None
    if "SlidingWindowSpec" in kinds:
        window = _agreed(index, specs, "sliding_window") + _agreed(index, specs, "extra_retained_tokens")
    elif "ChunkedLocalAttentionSpec" in kinds:
        chunk = _agreed(index, specs, "attention_chunk_size")
    return GroupShape(index, first.block_size, window, chunk)


def _agreed(index: int, specs: Iterable[Any], name: str) -> int:
    values = {getattr(spec, name, 0) for spec in specs}
    if len(values) != 1:
        raise UnsupportedError(f"the layers of KV cache group {index} differ in {name}")
    return int(values.pop())
