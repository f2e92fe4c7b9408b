"""`make bench-peers`: KVFerry, its rivals and the machine's limits, side by side.

    set up (target/peers) -> rounds -> benches/results/peers.jsonl -> a section of benches/RESULTS.md
                                                                   -> charts: benches/results/peers.html

A run of all settings and peers and at least five rounds rewrites that section; any other is a trial, whose files go to
target/peers/trial/.
Exit status: 0 when the run was complete, whatever it found; 1 when it could not run; 130 on Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from pathlib import Path

import installation
import machine
import report
import results
import rounds
from cells import SETTINGS
from limits import LIMITS
from network import NetworkError
from ours import KVFERRIES, draw
from rivals import RIVALS
from rows import Row, read

RESULTS = installation.ROOT / "benches" / "RESULTS.md"
RAW = installation.ROOT / "benches" / "results"
TRIAL = installation.WORK / "trial"
# The whole run, from nothing, is to end within half an hour.
LIMIT_S = 29 * 60
ROUNDS_MIN = 5
PEERS = (*KVFERRIES, *RIVALS, *LIMITS)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-peers", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS_MIN)
    names = ",".join(setting.name for setting in SETTINGS)
    parser.add_argument("--only", default="", help=f"settings, of {names}")
    parser.add_argument("--peers", default="", help=f"peers, of {','.join(peer.name for peer in PEERS)}")
    parser.add_argument("--no-build", action="store_true", help="use what is there")
    parser.add_argument("--from", dest="source", type=Path, help="only write the section again, from these raw lines")
    asked = parser.parse_args()
    for given, known in ((asked.only, names.split(",")), (asked.peers, [peer.name for peer in PEERS])):
        unknown = [name for name in given.split(",") if name and name not in known]
        if unknown:
            parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
    if asked.rounds < 1:
        parser.error("at least one round")
    return asked


def main() -> int:
    asked = arguments()
    if asked.source is not None:
        results.rewrite(RESULTS, results.text(results.read_meta(asked.source), read(asked.source)))
        return 0
    # A SIGTERM unwinds as Ctrl-C does, so that children end and namespaces go.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return run(asked)
    except KeyboardInterrupt:
        print("\ninterrupted: the tables are as they were", flush=True)
        return 130


def run(asked: argparse.Namespace) -> int:
    begun = time.monotonic()
    only, peer_names = asked.only.split(","), asked.peers.split(",")
    partial = bool(asked.only or asked.peers) or asked.rounds < ROUNDS_MIN
    notes = installation.prepare(build_kvferry=not asked.no_build)
    peers = []
    for peer in PEERS:
        if asked.peers and peer.name not in peer_names:
            continue
        why = peer.missing(installation.WORK)
        if why is None:
            peers.append(peer)
        else:
            notes.append(f"skipped {peer.title}: {why}")
    settings, why_not = rounds.possible([s for s in SETTINGS if not asked.only or s.name in only])
    notes += why_not
    for note in notes:
        print(note, flush=True)
    meta = {
        "facts": machine.facts(installation.ROOT, command(asked)),
        "titles": {peer.name: peer.title for peer in PEERS},
        "notes": notes,
        "rounds": asked.rounds,
    }
    folder = TRIAL if partial else RAW
    folder.mkdir(exist_ok=True)
    raw = folder / "peers.jsonl"
    with raw.open("w") as lines:
        print(json.dumps({"meta": meta}), file=lines, flush=True)
        measured: list[Row] = []

        def record(row: Row) -> None:
            measured.append(row)
            print(row.to_json(), file=lines, flush=True)

        limit_s = LIMIT_S - (time.monotonic() - begun)
        order = rounds.Run(settings, peers, asked.rounds, installation.WORK, record, say, limit_s)
        try:
            order.all_rounds()
        except NetworkError as error:
            print(f"stopped: {error}", file=sys.stderr)
            return 1
    page = TRIAL / "RESULTS.md" if partial else RESULTS
    results.rewrite(page, results.text(meta, measured))
    lines_for_report = folder / "peers-report.jsonl"
    report.write(lines_for_report, meta["titles"], measured)
    print(results.summary(measured))
    print(f"\n{page.relative_to(installation.ROOT)} written after {time.monotonic() - begun:.0f} s", flush=True)
    # One page of charts with every figure beside its ceiling; the tables stand without it.
    draw(lines_for_report, folder / "peers.html")
    return 0


def say(text: str) -> None:
    print(text, flush=True)


def command(asked: argparse.Namespace) -> str:
    """How this run is made again."""
    words = {
        "ROUNDS": str(asked.rounds) if asked.rounds != ROUNDS_MIN else "",
        "ONLY": asked.only,
        "PEERS": asked.peers,
    }
    return " ".join(["make bench-peers", *(f"{name}={value}" for name, value in words.items() if value)])


if __name__ == "__main__":
    sys.exit(main())
