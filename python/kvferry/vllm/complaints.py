"""Warnings that cannot flood a log: one line of each kind a minute, and how many were left out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

# vLLM gives handlers to the logger "vllm" alone, so ours are below it.
logger = logging.getLogger("vllm.kvferry")

# Chosen: an operator sees that it goes on, and a burst of bad requests costs one line.
REPEAT_SECONDS = 60.0


class Complaints:
    """Counts complaints by kind and logs the first of each kind in a while."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # Kind -> (when it was last logged, how many were left out since).
        self._seen: dict[str, tuple[float, int]] = {}

    def warn(self, kind: str, text: str, *args: object) -> None:
        """Logs ``text % args``, unless one of this kind was logged within the last minute."""
        now = self._clock()
        logged_at, left_out = self._seen.get(kind, (-REPEAT_SECONDS, 0))
        if now - logged_at < REPEAT_SECONDS:
            self._seen[kind] = (logged_at, left_out + 1)
            return
        self._seen[kind] = (now, 0)
        if left_out:
            logger.warning(text + " (and %d more like it)", *args, left_out)
        else:
            logger.warning(text, *args)
