"""`make bench-tiers`: KVFerry's host memory and disk beside their ceilings and rivals.

    set up (target/peers) -> rounds -> first tokens in vLLM -> benches/results/tiers.jsonl -> a section of RESULTS.md

It is made of what `benches/peers` is made of: the same rounds, rows, figures and verdicts. A run of all settings and
peers and at least five rounds (ten of first tokens) rewrites the section; any other is a trial, whose files go to
target/peers/trial/.
Exit status: 0 when the run was complete, whatever it found; 1 when it could not run; 130 on Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "peers"))
sys.path.insert(2, str(Path(__file__).resolve().parents[2] / "tests" / "vllm"))

import installation
import machine
import results
import rounds
from cells import Setting
from disk import FILE, LMCACHE, Fio, Lmcache
from first_token import WAYS, FirstToken, node
from harness.processes import StageError
from limits import BlockCopy
from memory import Dict, MooncakeStore, Redis, server
from our_tiers import OURS, Tiers
from peer import Peer
from places import SETTINGS
from promises import PAGE
from rows import Row, read
from under_load import FLOOR, IDLE, Daemons

RESULTS = installation.ROOT / "benches" / "RESULTS.md"
RAW = installation.ROOT / "benches" / "results"
TRIAL = installation.WORK / "trial"
ROUNDS_MIN = 5
LIMIT_S = 60 * 60.0
REDIS = installation.Environment("redis", ("redis==8.1.0",))
PACKAGES: installation.Packages = {
    "fio": lambda: installation.has("fio"),
    "gcc": lambda: installation.has("gcc"),
    "redis-tools": lambda: server() is not None,
    **installation.RIVAL_PACKAGES,
}
PEERS: tuple[Peer, ...] = (
    Tiers(OURS, "KVFerry", ("host", "look-up", "disk")),
    Daemons(OURS, "KVFerry", ("beside", "restart")),
    BlockCopy("copy-program", "copy by a C program", ("host",)),
    MooncakeStore("mooncake", "Mooncake's store, local", ("host",)),
    Dict("dict", "Python dict", ("look-up",)),
    Redis("redis", "Redis, pipelined", ("look-up",)),
    Fio("fio", "fio", ("disk",)),
    Lmcache("lmcache", "LMCache fs_native", ("disk",)),
)
# Ceilings that are measured in our own turns, and ways of asking one engine.
BESIDE = {"memcpy": "memcpy of the same blocks", "hash-set": "HashSet of the same hashes"} | WAYS
BESIDE |= {IDLE: "KVFerry without offload", FLOOR: "KVFerry beside a copy of the idle class"}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-tiers", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS_MIN)
    names = [setting.name for setting in SETTINGS]
    parser.add_argument("--only", default="", help=f"settings, of {','.join(names)}")
    parser.add_argument("--no-build", action="store_true", help="use what is there")
    parser.add_argument("--from", dest="source", type=Path, help="only write the section again, from these raw lines")
    asked = parser.parse_args()
    unknown = [name for name in asked.only.split(",") if name and name not in names]
    if unknown or asked.rounds < 1:
        parser.error(f"at least one round, and settings of {', '.join(names)}")
    return asked


def main() -> int:
    asked = arguments()
    if asked.source is not None:
        results.rewrite(RESULTS, results.text(results.read_meta(asked.source), read(asked.source), PAGE), PAGE)
        return 0
    # A SIGTERM unwinds as Ctrl-C does, so that children end and folders go.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return run(asked)
    except KeyboardInterrupt:
        print("\ninterrupted: the tables are as they were", flush=True)
        return 130
    finally:
        (installation.WORK / FILE).unlink(missing_ok=True)


def run(asked: argparse.Namespace) -> int:
    begun = time.monotonic()
    settings = [setting for setting in SETTINGS if not asked.only or setting.name in asked.only.split(",")]
    partial = bool(asked.only) or asked.rounds < ROUNDS_MIN
    notes = prepare(build=not asked.no_build)
    peers, why_not = present(PEERS)
    notes += why_not
    for note in notes:
        print(note, flush=True)
    meta = {
        "facts": {**machine.facts(installation.ROOT, command(asked)), "rivals": versions()},
        "titles": {peer.name: peer.title for peer in PEERS} | BESIDE,
        "notes": notes,
        "rounds": asked.rounds,
    }
    folder = TRIAL if partial else RAW
    folder.mkdir(parents=True, exist_ok=True)
    measured: list[Row] = []
    with (folder / "tiers.jsonl").open("w") as lines:
        print(json.dumps({"meta": meta}), file=lines, flush=True)

        def record(row: Row) -> None:
            measured.append(row)
            print(row.to_json(), file=lines, flush=True)

        memory_and_disk = [setting for setting in settings if setting.name != "ttft"]
        rounds.Run(memory_and_disk, peers, asked.rounds, installation.WORK, record, say, LIMIT_S).all_rounds()
        try:
            first_tokens([setting for setting in settings if setting.name == "ttft"], asked.rounds, record)
        except (StageError, OSError) as error:
            print(f"first tokens: {error}", file=sys.stderr)
            record(Row(0, "ttft", "host", error=f"{error}".splitlines()[0]))
    section = results.text(meta, measured, PAGE)
    page = TRIAL / "RESULTS.md" if partial else RESULTS
    results.rewrite(page, section, PAGE)
    print(section.partition("### Targets")[2], results.summary(measured, PAGE), sep="\n")
    print(f"\n{page.relative_to(installation.ROOT)} written after {time.monotonic() - begun:.0f} s", flush=True)
    return 0


def first_tokens(settings: Sequence[Setting], round_count: int, record: Callable[[Row], None]) -> None:
    """Twice as many rounds, of single prompts, with one engine for all of them."""
    if settings:
        with node() as asked:
            ways = [FirstToken(name, asked) for name in WAYS]
            rounds.Run(settings, ways, 2 * round_count, installation.WORK, record, say, LIMIT_S).all_rounds()


def prepare(*, build: bool) -> list[str]:
    """Makes all there is to make. Returns what could not be made, a sentence each."""
    notes = installation.install(PACKAGES, (installation.MOONCAKE, REDIS, LMCACHE))
    notes += installation.program("block_copy")
    return notes + (installation.build() if build else [])


def present(peers: Sequence[Peer]) -> tuple[list[Peer], list[str]]:
    """Those that this machine can run, and a sentence about each of the others."""
    why = {peer.name: peer.missing(installation.WORK) for peer in peers}
    left_out = [f"skipped {peer.title}: {why[peer.name]}" for peer in peers if why[peer.name] is not None]
    return [peer for peer in peers if why[peer.name] is None], left_out


def versions() -> str:
    """Of what is compared with."""
    packages = [each.requirements[0].replace("==", " ") for each in (installation.MOONCAKE, LMCACHE, REDIS)]
    programs: list[list[str]] = [["fio", "--version"], ["redis-cli", "--version"]]
    told = [
        subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()
        for words in programs
        if installation.has(words[0])
    ]
    return ", ".join([*packages, *told])


def say(text: str) -> None:
    print(text, flush=True)


def command(asked: argparse.Namespace) -> str:
    """How this run is made again."""
    words = {"ROUNDS": str(asked.rounds) if asked.rounds != ROUNDS_MIN else "", "ONLY": asked.only}
    return " ".join(["make bench-tiers", *(f"{name}={value}" for name, value in words.items() if value)])


if __name__ == "__main__":
    sys.exit(main())
