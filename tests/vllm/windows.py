"""Which blocks of a prompt each KV cache group needs: all of them, or those that its window still reaches."""

from __future__ import annotations

from harness.engine import BLOCK_TOKENS, Model


def needed(model: Model, token_count: int) -> list[range]:
    """For each group the blocks that the token behind the first ``token_count`` looks at, and what it is in itself."""
    end = -(-token_count // BLOCK_TOKENS)
    # The window counts the token that looks back.
    firsts = (0 if window is None else max(0, token_count - window + 1) // BLOCK_TOKENS for window in model.windows)
    return [range(first, end) for first in firsts]


def count(groups: list[range]) -> int:
    """The blocks of all groups."""
    return sum(map(len, groups))


def before(groups: list[range], end: int) -> list[range]:
    """What of it is in front of this block."""
    return [range(min(group.start, end), min(group.stop, end)) for group in groups]


def behind(groups: list[range], first: int) -> list[range]:
    """What of it begins with this block."""
    return [range(max(group.start, first), max(group.stop, first)) for group in groups]
