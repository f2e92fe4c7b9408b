"""Asks a Redis server which of so many keys it has, in one pipeline. Runs in the environment that has its client.

    redis_end.py SOCKET KEYS ASKED RUNS

Two ways: ``client`` is redis-py's pipeline, what a Python program would write; ``wire`` is the same commands prepared
beforehand and sent over a bare socket, which leaves what Redis itself and the socket need. Prints a line of JSON each.
"""

from __future__ import annotations

import json
import random
import socket
import sys
import time
from collections.abc import Callable
from statistics import median

import redis


def main(path: str, key_count: int, asked_count: int, runs: int) -> None:
    client = redis.Redis(unix_socket_path=path)
    dice = random.Random(1)
    keys = [dice.randbytes(32) for _ in range(key_count)]
    for start in range(0, key_count, 10_000):
        client.mset(dict.fromkeys(keys[start : start + 10_000], b""))
    asked = dice.choices(keys, k=asked_count)

    def by_client() -> int:
        pipeline = client.pipeline(transaction=False)
        for key in asked:
            pipeline.exists(key)
        return sum(pipeline.execute())

    bare = socket.socket(socket.AF_UNIX)
    bare.connect(path)
    request = b"".join(b"*2\r\n$6\r\nEXISTS\r\n$32\r\n%b\r\n" % key for key in asked)
    answer_bytes = len(b":1\r\n") * asked_count

    def by_wire() -> int:
        bare.sendall(request)
        answer = b""
        while len(answer) < answer_bytes:
            answer += bare.recv(1 << 20)
        return answer.count(b":1\r\n")

    ways: dict[str, Callable[[], int]] = {"client": by_client, "wire": by_wire}
    for name, ask in ways.items():
        seconds = []
        for _ in range(runs):
            start_s = time.perf_counter()
            found = ask()
            seconds.append(time.perf_counter() - start_s)
            if found != asked_count:
                raise SystemExit(f"{name}: {found} of {asked_count} keys found")
        print(json.dumps({"way": name, "p50_us": median(seconds) * 1e6}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
