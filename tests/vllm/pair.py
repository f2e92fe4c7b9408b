"""A prefill engine and a decode engine with a daemon each, as the tests see them."""

from __future__ import annotations

import contextlib
import http.client
import random
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from daemon import Daemon, Transfer
from harness.completions import Answer, fresh_salt
from harness.engine import BLOCK_TOKENS, PREFILL, TINY_LLAMA, Engine, EngineOptions, kvferry_connector
from harness.processes import Stage, StageError

# 16 MiB of KV, 8,192 tokens.
BLOCKS = 256
# Long enough for a machine that is busy with other things, short enough to wait for.
LEASE_MS = 10_000
# The longest that may be set: what these tests are about must not depend on how busy the machine is.
REPLY_TIMEOUT_MS = 5_000
# 94 blocks, 5.9 MiB: at the slowest rate that a daemon takes, 6 s under way.
LONG_TOKENS = 3_000
SLOW_BYTES_PER_SECOND = 1 << 20
ANSWER_TOKENS = 16
# Between the first byte and the last of a long transfer at the slow rate.
MIDDLE_S = 1.0
POLL_S = 0.05


class Pair:
    def __init__(self, stage: Stage, binary: Path) -> None:
        self.stage = stage
        self.binary = binary
        self.p = Daemon(stage, binary, "P", "127.0.0.1")
        self.d = Daemon(stage, binary, "D", "127.0.0.2")
        self.p.start()
        self.d.start()
        self._is_slow = False
        settings = {"lease_ms": LEASE_MS, "reply_timeout_ms": REPLY_TIMEOUT_MS}
        p_side, d_side = (kvferry_connector(daemon.socket, **settings) for daemon in (self.p, self.d))
        options = EngineOptions(TINY_LLAMA, "P0", BLOCKS, p_side, forked=True, thread_count=1)
        self.prefill = Engine(stage, options)
        self.decode = Engine(stage, replace(options, engine_id="D0", connector=d_side))
        self.wait_attached()

    def wait_attached(self) -> None:
        for engine, daemon in ((self.prefill, self.p), (self.decode, self.d)):
            engine.wait_ready()
            daemon.wait_attached(engine.name)

    def restore(self) -> None:
        """Starts again what was killed or slowed down."""
        was_whole = not self._is_slow and all(
            part.is_running() for part in (self.p, self.d, self.prefill.process, self.decode.process)
        )
        if was_whole:
            return
        for engine in (self.prefill, self.decode):
            if not engine.process.is_running():
                engine.restart()
                engine.wait_ready()
        for daemon in (self.d, self.p):
            if not daemon.is_running():
                daemon.start()
        if self._is_slow:
            self.slow_down(False)
        self.wait_attached()

    def slow_down(self, is_slow: bool = True) -> None:
        """Starts P's daemon again so that a long transfer from it takes seconds, or as it was before."""
        self._is_slow = is_slow
        if self.p.is_running():
            self.p.end()
        self.p.start(bytes_per_second_max=SLOW_BYTES_PER_SECOND if is_slow else None)
        if self.d.is_running():
            self.wait_attached()

    def wait_rest(self, within_s: float) -> None:
        """Waits until no lease, transfer, request or held block is left.

        Raises:
            StageError: something is left after that time.
        """
        deadline = time.monotonic() + within_s
        for daemon in (self.p, self.d):
            daemon.wait_quiet(max(0.0, deadline - time.monotonic()))
        for engine in (self.prefill, self.decode):
            self.wait_idle(engine, max(1.0, deadline - time.monotonic()))
        for daemon in (self.p, self.d):
            # One engine, one worker, one region.
            daemon.wait_for(lambda status: status.region_count == 1, "down to one region", 2.0)

    def wait_idle(self, engine: Engine, within_s: float) -> None:
        deadline = time.monotonic() + within_s
        while not engine.is_idle():
            if time.monotonic() > deadline:
                raise StageError(f"{engine.name} still holds blocks or requests after {within_s:.0f} s")
            time.sleep(POLL_S)

    def offer(self, prompt: list[int], **options: Any) -> dict[str, Any]:
        """The prefill leg: what P0 hands to the router."""
        answer = self.prefill.server.complete(prompt, 1, kv_transfer_params=PREFILL, **options)
        assert answer.status == 200, answer.text
        assert answer.kv_transfer_params is not None
        assert answer.kv_transfer_params["do_remote_prefill"] is True
        return answer.kv_transfer_params

    def redeem(self, prompt: list[int], params: dict[str, Any], **options: Any) -> Answer:
        """The decode leg, as a router would send it."""
        answer = self.decode.server.complete(prompt, ANSWER_TOKENS, kv_transfer_params=params, **options)
        assert answer.status == 200, answer.text
        return answer

    def compute(self, engine: Engine, prompt: list[int]) -> list[int]:
        """What an engine says that computes everything itself."""
        answer = engine.server.complete(prompt, ANSWER_TOKENS, **fresh_salt())
        assert answer.status == 200, answer.text
        return answer.token_ids

    def last_transfer(self) -> Transfer:
        """The transfer to D that ended last."""
        return self.d.status().finished[-1]

    def same_blocks(self, transfer: Transfer, prompt: list[int], first: int = 0) -> None:
        """Fails unless P's and D's bytes are equal in every moved block but the one that D has gone on writing in.

        ``first`` is the first of the prompt's blocks that was moved.
        """
        count = (len(prompt) - 1) // BLOCK_TOKENS - first
        held = self.p.checksums("P0", transfer.source_blocks[:count])
        received = self.d.checksums("D0", transfer.target_blocks[:count])
        assert received == held
        # Blocks of zeros would be equal too.
        assert len(set(held)) == count

    def logs(self) -> list[Path]:
        return sorted(self.stage.folder.glob("*.log"))


class Redeeming(threading.Thread):
    """A decode leg under way."""

    def __init__(self, pair: Pair, prompt: list[int], params: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self._pair = pair
        self._prompt = prompt
        self._params = params
        self._answer: Answer | None = None
        self.start()

    def run(self) -> None:
        server = self._pair.decode.server
        # An engine that is killed hangs up; whoever waits for the answer then sees that there is none.
        with contextlib.suppress(OSError, http.client.HTTPException):
            self._answer = server.complete(self._prompt, ANSWER_TOKENS, kv_transfer_params=self._params)

    def wait_in_flight(self) -> None:
        """Returns in the middle of the transfer."""
        self._pair.p.wait_for(lambda status: status.serving_count > 0, "serving", 20)
        time.sleep(MIDDLE_S)
        assert self._pair.d.status().reading_count == 1

    def token_ids(self, within_s: float = 60.0) -> list[int]:
        self.join(within_s)
        assert self._answer is not None, f"no answer within {within_s} s"
        assert self._answer.status == 200, self._answer.text
        return self._answer.token_ids


def random_prompt(seed: int, token_count: int) -> list[int]:
    """Tokens that no other seed's prompt begins with."""
    source = random.Random(seed)
    return [source.randrange(2, 258) for _ in range(token_count)]
