"""Every contender is first in turn, and no prompt begins like another."""

from __future__ import annotations

from collections import Counter

import rounds

NAMES = ["recompute", "nixl", "kvferry"]
ROUNDS = range(-1, 30)
# Of 32 tokens; a token has at least a character.
BLOCK_CHARACTERS = 32


def test_every_contender_begins_equally_often() -> None:
    assert Counter(rounds.order(NAMES, number)[0] for number in range(9)) == dict.fromkeys(NAMES, 3)
    assert all(sorted(rounds.order(NAMES, number)) == sorted(NAMES) for number in range(9))


def test_no_two_prompts_share_their_first_block() -> None:
    beginnings = [rounds.prompt(number, length)[:BLOCK_CHARACTERS] for number in ROUNDS for length in rounds.LENGTHS]
    assert len(set(beginnings)) == len(beginnings)


def test_prompts_of_one_length_are_equally_long() -> None:
    for length in rounds.LENGTHS:
        assert len({len(rounds.prompt(number, length)) for number in ROUNDS}) == 1
