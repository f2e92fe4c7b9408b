"""Prompts that the model goes on with in one way only, so that rounding cannot change its text.

A logbook in which every line is the one before it, counted on. What comes next stands in the prompt.
"""

from __future__ import annotations


def prompt(ship: str, line_count: int) -> str:
    """``line_count`` lines of about 17 tokens each, and the beginning of the next.

    The ship stands in the first line: prompts of different ships share no prefix.
    """
    return f"The {ship}, day by day.\n" + "\n".join(_line(ship, day) for day in range(1, line_count + 1)) + "\nDay"


def answer(ship: str, line_count: int) -> str:
    """How it goes on."""
    return _line(ship, line_count + 1).removeprefix("Day") + "\n"


def _line(ship: str, day: int) -> str:
    return f"Day {day}: the {ship} crosses the river and is back at night."
