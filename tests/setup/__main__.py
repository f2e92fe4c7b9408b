"""Installs what KVFerry's commands need and this machine lacks; nothing that is there already is made again.

::

    packages (apt) -> tools -> vllm -> nixl -> models -> daemon -> wheel   everything else goes under target/

``python3 tests/setup NAME...`` brings the named parts up to date, with what they need themselves. Each part keeps a
stamp: a hash of all that went into it. A part without the right stamp is made again from nothing, so one that was
interrupted is never mistaken for a whole one. Needs python3, pip, gcc, make and cargo, and root for apt alone.

Exit status: 0 when everything asked for is there, 1 when something could not be made (the last lines say what to do),
130 on Ctrl-C.
"""

from __future__ import annotations

import fcntl
import signal
import sys
import time
from pathlib import Path

import artifacts
import environments
import machine
import models
from progress import SetupError

ROOT = Path(__file__).resolve().parents[2]

# Every part with the parts it is made with, in the order in which they are made.
PARTS = {
    "packages": (machine.install_packages, ()),
    "tools": (environments.install_tools, ("packages",)),
    "vllm": (environments.install_vllm, ("tools",)),
    "nixl": (environments.install_nixl, ("vllm",)),
    "models": (models.prepare, ("vllm",)),
    "daemon": (artifacts.build_daemon, ()),
    "wheel": (artifacts.build_wheel, ("tools", "vllm")),
}


def closure(names: list[str]) -> list[str]:
    """The parts that ``names`` need, in the order in which they are made."""
    wanted: set[str] = set()
    while names:
        name = names.pop()
        if name not in wanted:
            wanted.add(name)
            names.extend(PARTS[name][1])
    return [name for name in PARTS if name in wanted]


def main(arguments: list[str]) -> int:
    unknown = [name for name in arguments if name not in PARTS]
    if unknown or not arguments:
        print(f"usage: python3 tests/setup NAME...\nNAME: {', '.join(PARTS)}", file=sys.stderr)
        return 2
    # A SIGTERM unwinds as Ctrl-C does, so that children are ended and nothing half made is left without a mark.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    start = time.monotonic()
    target = ROOT / "target"
    target.mkdir(exist_ok=True)
    try:
        with (target / "setup.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print("another setup is at work in this checkout: waiting for it", flush=True)
                fcntl.flock(lock, fcntl.LOCK_EX)
            machine.check(ROOT)
            for name in closure(arguments):
                PARTS[name][0](ROOT)
    except SetupError as error:
        print(f"\nsetup failed: {error}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        print("\nsetup interrupted; the next run goes on from here", file=sys.stderr, flush=True)
        return 130
    print(f"setup complete in {time.monotonic() - start:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
