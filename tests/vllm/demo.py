"""What KVFerry is for, on one machine: a prompt is prefilled by one vLLM engine and decoded by another.

::

    client -> sidecar -> engine P0 (prefill) -> daemon P, 127.0.0.1
                 |                                 | TCP
                 +-----> engine D0 (decode) <- daemon D, 127.0.0.2

Three prompts of different lengths, each compared with the same engine computing the prompt itself. Then the daemon of
P is killed while it sends, and the answer still comes. Run by `make demo`, which installs and builds what this needs.

Exit status: 0 when every line held, 1 when one did not, 130 on Ctrl-C. Nothing is left running in any case.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import logbook
from daemon import Daemon, Transfer, start_sidecar
from harness.completions import Answer, Server, fresh_salt
from harness.engine import BLOCK_TOKENS, PROCESS_COUNT, SMOLLM2, Engine, EngineOptions, kvferry_connector
from harness.processes import Stage, StageError

ROOT = Path(__file__).resolve().parents[2]
DAEMON = ROOT / "target" / "release" / "kvferry"
# Ships (no two prompts share a prefix) and how many lines make about 100, 700 and 1,500 tokens.
PROMPTS = (("Swan", 6), ("Heron", 39), ("Otter", 83))
# In bfloat16 another grouping of the same sums may round another way, and texts part sooner or later.
ANSWER_TOKENS = 12
# 9,600 tokens, 211 MiB: more than all the prompts here.
ENGINE_BLOCKS = 300
# Half of the cores for each engine: threads that wait for one another while others have their core are slow.
THREADS = max(1, (os.cpu_count() or 2) // 2)
# Of the connector. A daemon that must wait for a core may take longer than the usual 200 ms to answer.
# A prefill engine whose daemon died keeps the promised blocks until their lease ends.
LEASE_MS = 20_000
SETTINGS = {"lease_ms": LEASE_MS, "reply_timeout_ms": 2_000}
# At this rate the long prompt's 33 MiB take 8 s: time to see it move, and to kill.
SLOW_BYTES_PER_SECOND = 4 << 20
# How long D's daemon may take to notice that P's is gone, and D0 to compute the prompt (1 to 2 s on a core of its own).
NOTICE_S_MAX = 5.0
RECOVERY_S_MAX = 60.0
TIME_TO_FIRST_TOKEN = "vllm:time_to_first_token_seconds_sum"


class Verdict:
    """Which lines held."""

    def __init__(self) -> None:
        self.broken: list[str] = []

    def expect(self, held: bool, sentence: str) -> bool:
        if not held:
            self.broken.append(sentence)
        return held


class Demo:
    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._verdict = Verdict()
        self._p = Daemon(stage, DAEMON, "P", "127.0.0.1")
        self._d = Daemon(stage, DAEMON, "D", "127.0.0.2")

    def run(self) -> list[str]:
        """Plays all of it, and returns the sentences that did not hold."""
        self._start()
        self._show_table()
        self._show_kill()
        self._show_return()
        self._show_nothing_held()
        return self._verdict.broken

    def _start(self) -> None:
        start = time.monotonic()
        self._p.start()
        self._d.start()
        say(f"daemons   P on 127.0.0.1 (pid {self._p.pid}), D on 127.0.0.2 (pid {self._d.pid})")
        # Both at once: most of a start is one core importing Python modules.
        options = ((self._p, "P0"), (self._d, "D0"))
        self._prefill, self._decode = (
            Engine(
                self._stage,
                EngineOptions(
                    SMOLLM2, name, ENGINE_BLOCKS, kvferry_connector(daemon.socket, **SETTINGS), thread_count=THREADS
                ),
            )
            for daemon, name in options
        )
        say("engines   two times `vllm serve` on the CPU, SmolLM2-135M in bfloat16; about 45 s on two quiet cores")
        for engine in (self._prefill, self._decode):
            engine.wait_ready(tell=self._tell_starting)
        self._p.wait_attached("P0")
        self._d.wait_attached("D0")
        self._front = start_sidecar(self._stage, DAEMON, self._decode.server, self._prefill.server)
        for engine in (self._prefill, self._decode):
            # The first computation of an engine is slower than those after it.
            engine.server.stream(logbook.prompt("Teal", 40), 4, **fresh_salt())
        say(f"          ready after {time.monotonic() - start:.0f} s, P0 attached to P and D0 to D")
        say(f"sidecar   http://{self._front.host}:{self._front.port}, in front of D0; prefill goes to P0")

    def _tell_starting(self, seconds: float) -> None:
        counts = [min(engine.process.process_count(), PROCESS_COUNT) for engine in (self._prefill, self._decode)]
        say(f"          {seconds:.0f} s: P0 has {counts[0]} of its {PROCESS_COUNT} processes, D0 has {counts[1]}")

    def _show_table(self) -> None:
        say("")
        say(" prompt    KV cache  transfer   verified    same on P    first token  recomputed   text")
        say(" tokens       moved                bytes        and D           on D        on D")
        for ship, line_count in PROMPTS:
            self._show_row(ship, line_count)

    def _show_row(self, ship: str, line_count: int) -> None:
        prompt = logbook.prompt(ship, line_count)
        handed = Timed(self._decode, self._front, prompt)
        transfer = self._last_transfer()
        # Compared before anything else may use the blocks.
        same, compared = self._compare_blocks(transfer, handed.answer.prompt_tokens)
        computed = Timed(self._decode, self._decode.server, prompt, **fresh_salt())
        moved = len(transfer.target_blocks) * SMOLLM2.block_bytes
        text = handed.answer.text
        is_text_equal = text == computed.answer.text and logbook.answer(ship, line_count).startswith(text)
        say(
            f"{handed.answer.prompt_tokens:7,}{mebibytes(moved):>12}{transfer.micros / 1000:>7.0f} ms"
            f"{transfer.bytes:>11,}{same:>5} of{compared:>3} blocks"
            f"{handed.first_s * 1000:>9.0f} ms{computed.first_s * 1000:>9.0f} ms   "
            f"{'equal' if is_text_equal else 'DIFFERENT'}"
        )
        row = f"{handed.answer.prompt_tokens} tokens"
        expect = self._verdict.expect
        expect(handed.answer.status == 200, f"{row}: the sidecar answered {handed.answer.status}: {text}")
        expect(transfer.is_delivered, f"{row}: the transfer ended as: {transfer.outcome}")
        needed = -(-(handed.answer.prompt_tokens - 1) // BLOCK_TOKENS)
        expect(len(transfer.target_blocks) == needed, f"{row}: {transfer.target_blocks} moved, {needed} blocks hold it")
        expect(transfer.bytes == moved, f"{row}: {transfer.bytes} bytes verified of {moved}")
        expect(same == compared > 0, f"{row}: {compared - same} blocks differ between P and D")
        expect(is_text_equal, f"{row}: {text!r} by hand-over, {computed.answer.text!r} computed on D")

    def _compare_blocks(self, transfer: Transfer, prompt_tokens: int) -> tuple[int, int]:
        """How many blocks hold the same bytes on P and D, and how many were compared.

        Not compared is the block that D has gone on writing in: vLLM computes a prompt's last token itself.
        """
        count = (prompt_tokens - 1) // BLOCK_TOKENS
        if not transfer.is_delivered:
            return 0, count
        held = self._p.checksums("P0", transfer.source_blocks[:count])
        received = self._d.checksums("D0", transfer.target_blocks[:count])
        return sum(a == b for a, b in zip(held, received, strict=True)), count

    def _show_kill(self) -> None:
        expect = self._verdict.expect
        ship, line_count = "Gannet", PROMPTS[-1][1]
        say("")
        say(f"P's daemon starts again, held to {mebibytes(SLOW_BYTES_PER_SECOND)}/s so that a transfer can be caught.")
        self._p.end()
        self._p.start(bytes_per_second_max=SLOW_BYTES_PER_SECOND)
        self._p.wait_attached("P0")
        failed_before = self._d.status().failed_total
        request = Request(self._front, logbook.prompt(ship, line_count))
        request.start()
        self._p.wait_for(lambda status: status.serving_count > 0, "serving", RECOVERY_S_MAX)
        # Well inside: some of the bytes have arrived, most have not.
        time.sleep(1.0)
        status = self._d.status()
        is_caught = expect(status.reading_count == 1, "no transfer was in flight when P's daemon was killed")
        pid = self._p.pid
        self._p.kill()
        killed = time.monotonic()
        say(f"  kill -9 {pid}  P's daemon, {'with a transfer in flight' if is_caught else 'NOTHING IN FLIGHT'}")
        status = self._d.wait_for(lambda now: now.failed_total > failed_before, "told of the loss", NOTICE_S_MAX)
        last = status.finished[-1]
        say(f"  D's daemon noticed within {time.monotonic() - killed:.2f} s: {last.outcome}; nothing of it was used")
        expect(status.failed_total == failed_before + 1, "D's daemon counted more than the one failed transfer")
        expect(not last.is_delivered, "D's daemon delivered what it cannot have received")
        request.join(RECOVERY_S_MAX)
        answer = request.answer
        if not expect(answer is not None and answer.status == 200, f"after the kill: no answer, {answer}"):
            return
        assert answer is not None
        computed = Timed(self._decode, self._decode.server, logbook.prompt(ship, line_count), **fresh_salt())
        is_equal = expect(
            answer.text == computed.answer.text,
            f"after the kill: {answer.text!r} instead of {computed.answer.text!r}",
        )
        say(
            f"  D0 computed the prompt: answer complete {request.ended - killed:.1f} s after the kill, "
            f"text {'equal' if is_equal else 'DIFFERENT'}"
        )
        for engine in (self._prefill, self._decode):
            again = engine.server.complete(logbook.prompt("Salmon", 6), ANSWER_TOKENS, **fresh_salt())
            works = expect(again.status == 200 and engine.is_serving(), f"{engine.name} does not serve after the kill")
            say(f"  {engine.name} {'serves' if works else 'IS DOWN'}")

    def _show_return(self) -> None:
        self._p.start()
        self._p.wait_attached("P0")
        handed = Timed(self._decode, self._front, logbook.prompt("Beaver", PROMPTS[-1][1]))
        transfer = self._last_transfer()
        works = self._verdict.expect(
            handed.answer.status == 200 and transfer.is_delivered,
            f"with P's daemon back, a hand-over ended as: {transfer.outcome}",
        )
        moved = mebibytes(transfer.bytes)
        say(
            f"  P's daemon is back: {moved} handed over in {transfer.micros / 1000:.0f} ms"
            if works
            else "  NO HAND-OVER"
        )

    def _show_nothing_held(self) -> None:
        for daemon in (self._p, self._d):
            daemon.wait_quiet(within_s=10)
        deadline = time.monotonic() + 2 * LEASE_MS / 1000
        engines = (self._prefill, self._decode)
        while not (is_idle := all(engine.is_idle() for engine in engines)) and time.monotonic() < deadline:
            time.sleep(0.1)
        self._verdict.expect(is_idle, "an engine still holds blocks of finished requests")
        say("")
        say(f"no lease, no transfer left; engines hold {'no block' if is_idle else 'BLOCKS'} for finished requests")

    def _last_transfer(self) -> Transfer:
        finished = self._d.status().finished
        return finished[-1] if finished else Transfer("", "none was made", 0, 0, [], [])


class Timed:
    """A streamed answer, with the time to its first token as the decode engine counts it: from the moment when the
    request reached that engine, so that prefill on another one is left out."""

    def __init__(self, engine: Engine, server: Server, prompt: str, **options: str) -> None:
        before = engine.metric(TIME_TO_FIRST_TOKEN)
        self.answer: Answer = server.stream(prompt, ANSWER_TOKENS, **options)
        self.first_s = engine.metric(TIME_TO_FIRST_TOKEN) - before


class Request(threading.Thread):
    """A completion under way while something is done to the daemons."""

    def __init__(self, server: Server, prompt: str) -> None:
        super().__init__(daemon=True)
        self._server = server
        self._prompt = prompt
        self.answer: Answer | None = None
        self.ended = 0.0

    def run(self) -> None:
        self.answer = self._server.stream(self._prompt, ANSWER_TOKENS)
        self.ended = time.monotonic()


def mebibytes(count: int) -> str:
    return f"{count / (1 << 20):.2f} MiB"


def say(line: str) -> None:
    print(line, flush=True)


def main() -> int:
    say("KVFerry: prefill on one vLLM engine, decode on another; two daemons carry the KV cache over TCP\n")
    start = time.monotonic()
    logs = ROOT / "target" / "logs"
    broken = []
    try:
        with Stage("demo", logs) as stage:
            try:
                broken = Demo(stage).run()
                if broken:
                    stage.save_logs()
            except StageError as error:
                stage.save_logs()
                broken = [str(error)]
            say("ending engines, daemons and sidecar")
    except KeyboardInterrupt:
        say("\ninterrupted: everything that was started has been ended and removed")
        return 130
    say(f"ended after {time.monotonic() - start:.0f} s; no process and no file left")
    if broken:
        say("\nDID NOT HOLD:")
        for sentence in broken:
            say(f"  - {sentence}")
        say(f"logs: {logs / 'demo'}")
        return 1
    say("\nevery line held")
    return 0


if __name__ == "__main__":
    sys.exit(main())
