"""Counts the instructions of small, always equal pieces of work, and compares them with baseline.toml.

usage: python3 benches/instructions [accept]

::

    cargo build (profile `instructions`) -> callgrind, once for each work -> count -> baseline.toml: within 10 %?

Counts do not depend on how busy the machine is: the same binary gives the same numbers. More than 10 % above the
baseline fails. More than 10 % below fails as well, or the next growth would hide in it; `accept` takes the new counts
as the baseline, and the commit that does so says why. Counts of another compiler or another valgrind are not compared,
only shown. Why not iai-callgrind: it needs a runner of its own version, installed beside cargo.

valgrind shows programs a CPU without AVX-512, so checksums are counted on the path of the crate `crc32c`; the faster
one is measured by `cargo bench -p kvferry-memory --bench sum`.

Exit status: 0 when all counts are within bounds or nothing could be compared, 1 when one is not, 2 for wrong usage.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BASELINE = Path(__file__).resolve().parent / "baseline.toml"
ACCEPT = "python3 benches/instructions accept"
# Packages whose bench `instructions` is counted.
PACKAGES = ("kvferry-client", "kvferry-transport-tcp")
# How far a count may be from its baseline, either way.
CHANGE_MAX = 0.10
# A work runs a few million instructions; callgrind makes that a second.
WORK_LIMIT_S = 120
HEADER = """\
# Instructions of each work of benches/instructions, and what they were counted with.
# Made by `python3 benches/instructions accept`; a commit that changes it says why.
"""


class CountError(Exception):
    """Counting itself did not work."""


def build() -> list[Path]:
    """The programs to count in."""
    command = ["cargo", "build", "--locked", "--profile", "instructions", "--bench", "instructions"]
    command += [word for package in PACKAGES for word in ("--package", package)]
    built = subprocess.run(
        [*command, "--message-format", "json-render-diagnostics"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if built.returncode != 0:
        raise CountError(f"`{' '.join(command)}` ended with status {built.returncode}")
    messages = [json.loads(line) for line in built.stdout.splitlines()]
    programs = [Path(message["executable"]) for message in messages if message.get("executable")]
    if len(programs) != len(PACKAGES):
        raise CountError(f"cargo built {len(programs)} programs for {len(PACKAGES)} packages")
    return programs


def count(program: Path, work: str) -> int:
    """Instructions of one work, of everything that `measured` calls."""
    tool = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=*measured*"]
    # The same small environment each time: what it holds lies on the stack.
    ran = subprocess.run(
        [*tool, program, work],
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=WORK_LIMIT_S,
        check=False,
    )
    found = re.search(r"Collected : (\d+)", ran.stderr)
    if ran.returncode != 0 or found is None or int(found[1]) == 0:
        raise CountError(f"callgrind counted nothing in {work}:\n{ran.stderr[-2000:]}")
    return int(found[1])


def first_line(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]


def judge(name: str, was: int | None, now: int) -> str | None:
    """What is wrong with a count, if anything."""
    if was is None:
        return f"{name} has no baseline"
    change = now / was - 1
    if abs(change) <= CHANGE_MAX:
        return None
    if change > 0:
        return f"{name} takes {change:+.1%} instructions ({was:,} -> {now:,})"
    return f"{name} got better by {-change:.1%} ({was:,} -> {now:,})"


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["accept"]):
        print(__doc__, file=sys.stderr)
        return 2
    if shutil.which("valgrind") is None:
        print("skipped: instruction counts (no valgrind on the PATH; `apt-get install valgrind`)")
        return 0
    tools = {"rustc": first_line("rustc", "--version"), "valgrind": first_line("valgrind", "--version")}
    works = [(program, work) for program in build() for work in names_of(program)]
    counts = {work: count(program, work) for program, work in works}
    if arguments == ["accept"]:
        lines = [f'{name} = "{said}"' for name, said in tools.items()]
        lines += ["", "[instructions]", *(f"{name} = {counts[name]}" for name in sorted(counts))]
        BASELINE.write_text(HEADER + "\n".join(lines) + "\n")
        print(f"{len(counts)} counts are the baseline now: {BASELINE.relative_to(ROOT)}")
        return 0
    baseline = tomllib.loads(BASELINE.read_text())
    known = baseline["instructions"]
    for name, now in counts.items():
        change = f"{now / known[name] - 1:+.2%}" if name in known else "new"
        print(f"  {name:16} {now:>12,} {change:>8}")
    other = [f"{name} is {said!r}, not {baseline[name]!r}" for name, said in tools.items() if baseline[name] != said]
    if other:
        print(f"skipped: comparing instruction counts ({'; '.join(other)}); `{ACCEPT}` makes a baseline for these")
        return 0
    wrong = [said for name, now in counts.items() if (said := judge(name, known.get(name), now))]
    wrong += [f"{name} has a baseline, but no work is called so" for name in known if name not in counts]
    for said in wrong:
        print(f"FAILED: {said}")
    if wrong:
        print(f"If that is meant: `{ACCEPT}`, and say why in the commit. Bounds are {CHANGE_MAX:.0%} either way.")
    return 1 if wrong else 0


def names_of(program: Path) -> list[str]:
    """The names of a program's works."""
    return subprocess.run([program], capture_output=True, text=True, check=True).stdout.split()


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except CountError as error:
        print(f"FAILED: {error}")
        sys.exit(1)
