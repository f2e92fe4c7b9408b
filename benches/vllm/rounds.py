"""Which contender is asked what, and when: the order of the requests and their prompts.

::

    round 1   recompute 100 700 1,500   nixl 100 700 1,500   kvferry 100 700 1,500
    round 2   nixl ...                  kvferry ...          recompute ...            every contender is first in turn
    ...

In one round every contender gets the same prompts, so that ratios are between equal requests that were made within a
minute. No prompt begins like one before it: the first of its blocks has a number of its own, and block hashes are
chained, so no cache of an engine holds any of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import logbook

# Tokens, roughly, and how many lines make them.
LENGTHS = {100: 5, 700: 40, 1500: 88}
# All of the same number of digits, so that prompts of one length have the same number of tokens.
FIRST_SERIAL = 2000


def order(contenders: Sequence[str], round_number: int) -> list[str]:
    """Each round begins with the contender after the one that the round before began with."""
    first = round_number % len(contenders)
    return [*contenders[first:], *contenders[:first]]


def prompt(round_number: int, length: int) -> str:
    """The prompt of one length in one round, for every contender."""
    serial = FIRST_SERIAL + round_number * len(LENGTHS) + list(LENGTHS).index(length)
    return f"Logbook {serial}.\n{logbook.prompt('Swan', LENGTHS[length])}"
