"""Free TCP ports for programs that must be told theirs."""

from __future__ import annotations

import random
import socket

# Below the ports that the kernel hands out to connections, so that none of those takes one before it is bound.
FIRST, LAST = 20_000, 30_000
TRIES_MAX = 200
_given: set[int] = set()


def free_port(address: str = "127.0.0.1") -> int:
    """A port that nobody listens on, and that this function did not give before.

    Raises:
        OSError: none was found.
    """
    for _ in range(TRIES_MAX):
        port = random.randrange(FIRST, LAST)
        if port in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind((address, port))
            except OSError:
                continue
        _given.add(port)
        return port
    raise OSError(f"no free port on {address} between {FIRST} and {LAST}")
