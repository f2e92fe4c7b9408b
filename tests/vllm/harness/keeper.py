"""Ends what a stage started when the stage's own process is killed and cannot.

Started by the stage with a pipe as its standard input, on which it is told each session. The end of that input without
a word of farewell means that the stage is gone. (A death signal from the kernel is not enough: an engine that is still
starting does not end on SIGTERM, and SIGKILL would reach one of its processes only.)
"""

from __future__ import annotations

import shutil
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness.sessions import Session, SurvivorError

FAREWELL = "farewell"


def main() -> None:
    # Whoever ends the stage with Ctrl-C or by its group must not end this.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sessions: dict[int, Session] = {}
    for line in sys.stdin:
        word = line.strip()
        if word == FAREWELL:
            return
        if word.startswith("-"):
            sessions.pop(int(word[1:]), None)
        else:
            sessions[int(word)] = Session(int(word))
    for session in sessions.values():
        try:
            session.kill()
        except SurvivorError as error:
            print(error, file=sys.stderr)
    shutil.rmtree(sys.argv[1], ignore_errors=True)


if __name__ == "__main__":
    main()
