"""The order of turns, child processes, our C programs, and namespaces that go away."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import network
from cells import LARGE, SETTINGS
from children import Conversation, PeerError, output
from conftest import PEERS
from peer import Peer, Turn
from rounds import Run, possible
from rows import Row

DEADLINE_S = 20.0
LO = SETTINGS[0]


class Recorder(Peer):
    """A peer that only says that it had its turn."""

    def __init__(self, name: str, error: str | None = None) -> None:
        super().__init__(name, name, (LO.name,))
        self._error = error

    def measure(self, turn: Turn) -> None:
        if self._error is not None:
            raise PeerError(self._error)
        turn.record(self.row(turn, LARGE[0]))


def run(peers: list[Peer], rounds: int, work: Path, limit_s: float = 1e9) -> tuple[list[Row], list[str]]:
    rows: list[Row] = []
    said: list[str] = []
    Run([LO], peers, rounds, work, rows.append, said.append, limit_s).all_rounds()
    return rows, said


def test_everybody_has_a_turn_in_every_round_and_nobody_is_always_first(tmp_path: Path) -> None:
    rows, said = run([Recorder("a"), Recorder("b"), Recorder("c")], 3, tmp_path)
    assert [row.peer for row in rows] == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]
    assert [row.round for row in rows] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert all("left" in line for line in said)


def test_a_failure_is_a_result(tmp_path: Path) -> None:
    rows, said = run([Recorder("a", "it broke"), Recorder("b")], 1, tmp_path)
    assert [(row.peer, row.error) for row in rows] == [("a", "it broke"), ("b", None)]
    assert "  a: it broke" in said


def test_no_round_begins_that_cannot_end_in_time(tmp_path: Path) -> None:
    rows, said = run([Recorder("a")], 5, tmp_path, limit_s=-1.0)
    assert [row.round for row in rows] == [0]
    assert said[-1].startswith("no time for round 2")


def test_a_child_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(PeerError, match="ended with 3: it is raining"):
        output(["sh", "-c", "echo it is raining >&2; exit 3"], log=tmp_path / "log", limit_s=DEADLINE_S)
    with pytest.raises(PeerError, match="had not ended after"):
        output(["sleep", "1000"], log=tmp_path / "log", limit_s=0.0)


def test_a_conversation_is_a_line_for_a_line(tmp_path: Path) -> None:
    echo = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"
    with Conversation([sys.executable, "-c", echo], log=tmp_path / "echo.log") as child:
        assert child.ask(DEADLINE_S, do="this") == {"do": "this"}
        with pytest.raises(PeerError, match="no"):
            child.ask(DEADLINE_S, error="no")
        with pytest.raises(PeerError, match="had not answered"):
            child.receive(0.0)
    with (
        Conversation(["sh", "-c", "echo oh >&2"], log=tmp_path / "gone.log") as child,
        pytest.raises(PeerError, match=r"gone.*: oh"),
    ):
        child.receive(DEADLINE_S)


def _gone(pid: int) -> bool:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        status = Path(f"/proc/{pid}/status")
        try:
            if "State:\tZ" in status.read_text():
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


def _harness(body: str) -> subprocess.Popen[str]:
    start = f"import signal, sys\nsys.path.insert(0, {str(PEERS)!r})\n"
    start += "signal.signal(signal.SIGTERM, signal.default_int_handler)\nfrom pathlib import Path\n"
    return subprocess.Popen([sys.executable, "-c", start + body], stdout=subprocess.PIPE, text=True)


def test_children_die_with_a_killed_harness(tmp_path: Path) -> None:
    body = f"""
from children import start
child = start(["sleep", "1000"], log=Path({str(tmp_path)!r}) / "log")
print(child.pid, flush=True)
child.wait()
"""
    harness = _harness(body)
    assert harness.stdout is not None
    child = int(harness.stdout.readline())
    harness.kill()
    harness.communicate()
    assert _gone(child)


root_only = pytest.mark.skipif(network.why_not() is not None, reason=f"{network.why_not()}")
CABLE = """
import network, time
with network.cable({rate!r}) as place:
    print(place.initiator_namespace, place.target_namespace, flush=True)
    time.sleep(1000)
"""


@root_only
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_namespaces_go_when_a_run_is_interrupted(number: signal.Signals) -> None:
    harness = _harness(CABLE.format(rate=None))
    assert harness.stdout is not None
    names = harness.stdout.readline().split()
    assert [(network.NAMESPACES / name).exists() for name in names] == [True, True]
    harness.send_signal(number)
    harness.communicate(timeout=DEADLINE_S)
    assert [(network.NAMESPACES / name).exists() for name in names] == [False, False]


@root_only
def test_namespaces_of_a_killed_run_go_with_the_next() -> None:
    harness = _harness(CABLE.format(rate="10gbit"))
    assert harness.stdout is not None
    names = harness.stdout.readline().split()
    harness.kill()
    harness.communicate()
    assert (network.NAMESPACES / names[0]).exists()
    with network.cable() as place:
        assert [(network.NAMESPACES / name).exists() for name in names] == [False, False]
        command = [*place.at_initiator(), "ip", "-4", "-brief", "address"]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert f"{place.initiator_ip}/24" in shown
    assert not (network.NAMESPACES / place.initiator_namespace).exists()


def test_a_machine_without_namespaces_says_what_it_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "why_not", lambda: "network namespaces need root")
    settings, notes = possible(SETTINGS)
    assert [setting.name for setting in settings] == ["lo", "lo-busy", "copy"]
    assert notes == ["skipped veth, veth-busy, link: network namespaces need root"]


@pytest.mark.skipif(shutil.which("gcc") is None, reason="our programs need gcc")
def test_the_programs_move_what_they_say(tmp_path: Path) -> None:
    options = {
        "raw_sockets": ["--block", "16384", "--region", f"{8 << 20}", "--budget", "0.01"],
        "block_copy": ["--block", "16384", "--region", f"{8 << 20}", "--budget", "0.01"],
        "ping_pong": ["--budget", "0.01"],
    }
    for name, words in options.items():
        program = tmp_path / name
        source = PEERS / "programs" / f"{name}.c"
        subprocess.run(["gcc", "-O2", "-Wall", "-Werror", "-o", program, source, "-lpthread"], check=True)
        lines = output([program, *words], log=tmp_path / "log", limit_s=60.0).splitlines()
        rows = [json.loads(line) for line in lines]
        assert rows, name
        assert all(row.get("verified", True) for row in rows), rows
        assert all(row.get("gbps", row.get("p50_us")) > 0 for row in rows), rows
    bad = subprocess.run([tmp_path / "raw_sockets", "--block", "0"], capture_output=True, check=False)
    assert bad.returncode == 2


def test_this_process_left_nothing_behind() -> None:
    left = [name for name in network.NAMESPACES.glob("*") if f"peers{os.getpid()}" in name.name]
    assert left == []
