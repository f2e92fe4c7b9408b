"""Measures the time to the first token of a decode engine: recompute, vLLM's NixlConnector and KVFerry, interleaved.

::

    engines of each contender start -> warm-up round -> N rounds, one contender running at a time -> idle windows
        -> table on the terminal, JSON lines, a section of benches/RESULTS.md

usage: benches/vllm [--rounds N] [--contenders A,B] [--daemon-priority P] | benches/vllm --report FILE

A run of all contenders, at least ten rounds and no priority rewrites the section and benches/results/vllm.jsonl; any
other is a trial whose JSON lines go to target/logs/. ``--report`` writes the section again from such a file. Run by
`make bench-vllm`, which installs and builds what this needs.

Exit status: 0 when it was measured to the end and every answer of ours was right, also where a target was missed; 1
when something failed; 130 on Ctrl-C. Nothing is left running in any case.
"""

from __future__ import annotations

import argparse
import datetime
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "vllm"))

import machine
import report
import rounds
import samples
import section
import summary
from contenders import Contender, machine_busy_s, start_kvferry, start_nixl, start_recompute
from harness.processes import Stage, StageError

ROOT = Path(__file__).resolve().parents[2]
DAEMON = ROOT / "target" / "release" / "kvferry"
NIXL = ROOT / "target" / "nixl"
LOGS = ROOT / "target" / "logs"
RESULTS = ROOT / "benches" / "results" / "vllm.jsonl"
TRIAL = LOGS / "bench-vllm.jsonl"
DOCUMENT = ROOT / "benches" / "RESULTS.md"
FULL_ROUNDS = 10
# Chosen: long enough for a paused engine to have its pages and its sockets back, short beside a round.
SETTLE_S = 1.0
# vLLM's processes spin for a moment after their last step.
IDLE_SETTLE_S = 5.0
# 10 ms ticks: one is 0.05 % of this.
IDLE_WINDOW_S = 20.0
REST_S_MAX = 25.0
POLL_S = 0.1
STARTS: dict[str, Callable[[Stage, int | None], Contender]] = {
    "recompute": lambda stage, _: start_recompute(stage),
    "nixl": lambda stage, _: start_nixl(stage, NIXL),
    "kvferry": lambda stage, priority: start_kvferry(stage, DAEMON, priority),
}


class Benchmark:
    def __init__(self, stage: Stage, names: Sequence[str], round_count: int, priority: int | None) -> None:
        self._names = names
        self._round_count = round_count
        self.samples: list[samples.Sample] = []
        self.idle: list[samples.Idle] = []
        self._contenders = {name: STARTS[name](stage, priority) for name in names}

    def run(self) -> None:
        self._wait_ready()
        start = time.monotonic()
        for number in range(-1, self._round_count):
            self._round(number)
            if number >= 0:
                spent_s = time.monotonic() - start
                rest_s = spent_s / (number + 2) * (self._round_count - number - 1)
                say(f"   about {rest_s + len(self._names) * (IDLE_SETTLE_S + IDLE_WINDOW_S):.0f} s left")
        for name in self._names:
            self._watch_idle(name)

    def _wait_ready(self) -> None:
        start = time.monotonic()
        count = sum(len(contender.engines) for contender in self._contenders.values())
        say(f"starting {count} engines: a minute or two on two cores")
        for contender in self._contenders.values():
            contender.wait_ready(lambda seconds: say(f"  {seconds:.0f} s"))
        for contender in self._contenders.values():
            contender.pause()
        say(f"ready after {time.monotonic() - start:.0f} s")

    def _round(self, number: int) -> None:
        """Round -1 warms up."""
        title = f"round {number + 1:2} of {self._round_count}" if number >= 0 else "warm-up"
        say(f"{title:14}first token of {max(rounds.LENGTHS):,}, ms:", end="", flush=True)
        for name in rounds.order(self._names, max(number, 0)):
            contender = self._contenders[name]
            contender.go_on()
            time.sleep(SETTLE_S)
            for length in rounds.LENGTHS:
                request = contender.ask(rounds.prompt(number, length))
                if number >= 0:
                    self.samples.append(samples.Sample(number, name, length, request))
            say(f"  {name} {request.first_s * 1000:,.0f}" if request.failure is None else f"  {name} failed", end="")
            wait_rest(contender)
            contender.pause()
        if number < 0:
            say("")

    def _watch_idle(self, name: str) -> None:
        contender = self._contenders[name]
        say(f"idle for {IDLE_WINDOW_S:.0f} s: {name}", end="")
        contender.go_on()
        time.sleep(IDLE_SETTLE_S)
        start = time.monotonic()
        engines_s, daemons_s, busy_s = contender.engine_cpu_s(), contender.daemon_cpu_s(), machine_busy_s()
        time.sleep(IDLE_WINDOW_S)
        window_s = time.monotonic() - start
        engines = (contender.engine_cpu_s() - engines_s) / window_s
        daemons = (contender.daemon_cpu_s() - daemons_s) / window_s
        others = max(0.0, (machine_busy_s() - busy_s) / window_s - engines - daemons)
        contender.pause()
        self.idle.append(samples.Idle(name, window_s, engines, daemons, others))
        say(f"  engines {engines:.3f} cores, daemons {daemons:.4f}")


def wait_rest(contender: Contender) -> None:
    """Until no block is held for a request that is over, so that nothing of it falls into the next turn."""
    deadline = time.monotonic() + REST_S_MAX
    while not all(engine.is_idle() for engine in contender.engines) and time.monotonic() < deadline:
        time.sleep(POLL_S)


def say(line: str, end: str = "\n", flush: bool = True) -> None:
    print(line, end=end, flush=flush)


def measure(names: Sequence[str], round_count: int, priority: int | None) -> int:
    start = time.monotonic()
    started = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    is_full = list(names) == list(STARTS) and round_count >= FULL_ROUNDS and priority is None
    with Stage("bench-vllm", LOGS) as stage:
        benchmark = Benchmark(stage, names, round_count, priority)
        benchmark.run()
        stage.save_logs()
        say("ending engines and daemons")
    run = samples.Run(
        machine=machine.describe(),
        commit=machine.commit(ROOT),
        command=f"make bench-vllm{'' if is_full else ' (a trial: ' + shlex.join(sys.argv[1:]) + ')'}",
        started=started,
        took_s=time.monotonic() - start,
        versions=machine.versions(next((ROOT / "target" / "vllm" / "lib").glob("python3.*/site-packages")), NIXL),
        rounds=round_count,
    )
    results = samples.Results(run, benchmark.samples, benchmark.idle)
    place = RESULTS if is_full else TRIAL
    samples.write(results, place)
    say(f"\n{report.terminal(results)}\n")
    say(f"every request: {place}")
    if is_full:
        section.rewrite(DOCUMENT, report.section(results))
        say(f"section rewritten: {DOCUMENT}")
    else:
        say(f"a trial: {DOCUMENT.name} stays as it is")
    return judge(results)


def judge(results: samples.Results) -> int:
    """A missed target is a result; a failed or a wrong answer is not."""
    wrong = [claim for claim in summary.correctness(results) if claim.held is False]
    for claim in wrong:
        say(f"DID NOT HOLD: {claim.sentence}: {claim.measured}")
    return 1 if wrong else 0


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="benches/vllm", description="Time to the first token of a decode engine.")
    parser.add_argument("--rounds", type=int, default=FULL_ROUNDS, help="how many rounds are counted (default: 10)")
    parser.add_argument("--contenders", default=",".join(STARTS), help=f"of {', '.join(STARTS)} (default: all)")
    parser.add_argument(
        "--daemon-priority", type=int, help="a trial with this limits.realtime_priority of the daemons (default: unset)"
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the section again from a file of results")
    options = parser.parse_args(arguments)
    names = options.contenders.split(",")
    if options.daemon_priority is not None and not 0 <= options.daemon_priority <= 99:
        parser.error("--daemon-priority is 0 to 99")
    if options.rounds < 1 or not set(names) <= STARTS.keys() or len(set(names)) != len(names):
        parser.error(f"--rounds is at least 1, --contenders some of {', '.join(STARTS)}, each once")
    try:
        if options.report is not None:
            section.rewrite(DOCUMENT, report.section(samples.read(options.report.read_text().splitlines())))
            return 0
        return measure(names, options.rounds, options.daemon_priority)
    except (OSError, StageError, ValueError) as error:
        print(f"\nfailed: {error}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted: everything that was started has been ended and removed", file=sys.stderr, flush=True)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
