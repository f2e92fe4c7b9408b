"""What is read from other programs, and what is written for people."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import report
import results
from cells import LARGE, LATENCY, Cell
from children import PeerError
from figures import Spread
from limits import parse_iperf
from ours import parse
from rows import Row, read

META = {
    "facts": {"command": "`make bench-peers`", "commit": "abc"},
    "titles": {"kvferry": "KVFerry", "raw-sockets": "raw sockets", "mooncake": "Mooncake"},
    "notes": ["skipped NIXL: it was not installed"],
    "rounds": 2,
}
RAW = Cell("any", 1024, 65536)
ROWS = [
    Row(0, "lo", "kvferry", LARGE[0], gbps=4.0, p50_us=1.0, cpu_s_per_gb=0.5, verified=True, transfers=3, load=1.5),
    Row(1, "lo", "kvferry", LARGE[0], gbps=4.5, p50_us=1.0, cpu_s_per_gb=0.5, verified=True, transfers=3, load=2.5),
    Row(0, "lo", "raw-sockets", RAW, gbps=3.0, verified=True, way={"wait": "sleep"}),
    Row(0, "lo", "raw-sockets", RAW, gbps=5.0, verified=True, way={"wait": "spin"}),
    Row(1, "lo", "raw-sockets", RAW, gbps=5.0, verified=True, way={"wait": "spin"}),
    Row(0, "lo", "mooncake", LARGE[0], error="it returned -1"),
    Row(1, "lo", "mooncake", LARGE[0], error="it returned -1"),
    Row(0, "lo", "mooncake", LARGE[1], gbps=9.0, verified=False),
]


def test_the_page_says_what_was_measured() -> None:
    lines = results.text(META, ROWS).splitlines()
    target = next(line for line in lines if line.startswith("| TCP loopback, verified | read 1024 x 64 KiB"))
    # 4.0 of 5.0 and 4.5 of 5.0: the median ratio is 0.85.
    assert target == (
        "| TCP loopback, verified | read 1024 x 64 KiB | >= 0.9 | 4.25 [4.00-4.50] | 5.00 (raw sockets) "
        "| 0.85 [0.80-0.90] | **missed** |"
    )
    assert any(line.startswith("| raw sockets (wait spin) | 5.00") for line in lines)
    assert "| lo | Mooncake | read 1024 x 64 KiB | it returned -1 | 2 |" in lines
    assert "| lo | Mooncake | write 1024 x 64 KiB | what landed is not what was sent | 1 |" in lines
    assert "- skipped NIXL: it was not installed" in lines
    assert "| load average during the run | 1.5 to 2.5, the peers' own included |" in lines
    assert "| rounds | 2 |" in lines


def test_what_was_not_measured_is_not_met() -> None:
    page = results.text(META, [])
    assert "**met**" not in page
    assert "**missed**" not in page
    assert page.count("**not measured**") > 10
    assert "| rounds | 0 of 2 |" in page


def test_every_claim_says_what_would_prove_it_wrong() -> None:
    claims = [line for line in results.text(META, ROWS).splitlines() if line.startswith("- **")]
    assert len(claims) > 5
    assert all("*Wrong if* `make bench-peers` shows " in line for line in claims)


def test_tables_have_as_many_columns_as_heads() -> None:
    heads = 0
    for line in results.text(META, ROWS).splitlines():
        if line.startswith("|---"):
            heads = line.count("|")
        elif line.startswith("|") and heads:
            assert line.count("|") == heads, line
        elif not line.startswith("|"):
            heads = 0


def test_the_section_is_rewritten_and_the_rest_stays(tmp_path: Path) -> None:
    page = tmp_path / "RESULTS.md"
    results.rewrite(page, "## First\n")
    assert page.read_text() == f"# Results\n\n{results.PEERS.begin}\n## First\n{results.PEERS.end}\n"
    page.write_text("# Results\n\n<!-- another begin -->\n## Other\n<!-- another end -->\n")
    results.rewrite(page, "## First\n")
    once = page.read_text()
    assert once.startswith(
        f"# Results\n\n{results.PEERS.begin}\n## First\n{results.PEERS.end}\n\n<!-- another begin -->\n## Other"
    )
    results.rewrite(page, "## Second\n")
    assert page.read_text() == once.replace("First", "Second")


@pytest.mark.parametrize(
    "text", [results.PEERS.begin, results.PEERS.end, f"{results.PEERS.end}\n{results.PEERS.begin}"]
)
def test_a_page_without_sound_markers_is_left_alone(tmp_path: Path, text: str) -> None:
    page = tmp_path / "RESULTS.md"
    page.write_text(text)
    with pytest.raises(ValueError, match="must stand between"):
        results.rewrite(page, "## First")
    assert page.read_text() == text


def test_spreads_are_short() -> None:
    assert results.spread(Spread(3.0512, 2.0, 4.0, 5)) == "3.05 [2.00-4.00]"
    assert results.spread(Spread(3.0, 3.0, 3.0, 1), 1) == "3.0"
    assert results.spread(None) == "-"


def test_raw_lines_are_read_back(tmp_path: Path) -> None:
    raw = tmp_path / "peers.jsonl"
    raw.write_text("\n".join([json.dumps({"meta": META}), *(row.to_json() for row in ROWS)]) + "\n")
    assert read(raw) == ROWS
    assert results.text(results.read_meta(raw), read(raw)) == results.text(META, ROWS)


def test_the_report_has_a_line_for_each_peer_with_its_ceilings(tmp_path: Path) -> None:
    path = tmp_path / "report.jsonl"
    report.write(path, META["titles"], ROWS)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["peer"] for line in lines] == ["KVFerry", "Mooncake"]
    ours = lines[0]
    assert (ours["gbps"], ours["gbps_min"], ours["gbps_max"]) == (4.25, 4.0, 4.5)
    assert ours["rounds"] == [{"gbps": 4.0}, {"gbps": 4.5}]
    assert ours["ceilings"] == {"raw_sockets_gbps": 5.0}
    assert (ours["cell"]["direction"], ours["cell"]["blocks"], ours["verified"]) == ("read", 1024, True)
    assert lines[1]["verified"] is False


def test_who_sleeps_is_held_against_a_ping_pong_that_sleeps(tmp_path: Path) -> None:
    path = tmp_path / "report.jsonl"
    ping_pong = Cell("any", 1, 64)
    rows = [
        Row(0, "lo", "kvferry", LATENCY[0], gbps=0.01, p50_us=10.0),
        Row(0, "lo", "kvferry-sleeping", LATENCY[0], gbps=0.01, p50_us=90.0),
        Row(0, "lo", "ping-pong", ping_pong, p50_us=6.0, way={"way": "tcp", "wait": "spin"}),
        Row(0, "lo", "ping-pong", ping_pong, p50_us=75.0, way={"way": "tcp", "wait": "sleep"}),
    ]
    report.write(path, META["titles"], rows)
    lines = {line["peer"]: line for line in map(json.loads, path.read_text().splitlines())}
    assert lines["KVFerry"]["ceilings"] == {"tcp_ping_pong_p50_us": 6.0}
    assert lines["kvferry-sleeping"]["ceilings"] == {"tcp_ping_pong_p50_us": 75.0}
    assert (lines["KVFerry"]["setting"], lines["kvferry-sleeping"]["setting"]) == ("lo", "lo, asleep")


def test_iperf_is_read() -> None:
    assert parse_iperf('{"end": {"sum_received": {"bits_per_second": 8e9}}}') == 1.0
    for bad in ("", "{}", "busy", '{"end": {}}'):
        with pytest.raises(PeerError, match="unknown"):
            parse_iperf(bad)
    with pytest.raises(PeerError, match="the server is busy"):
        parse_iperf('{"error": "the server is busy"}')


def test_our_own_rows_are_read() -> None:
    assert parse('{"gbps": 1}\n\n{"gbps": 2}\n') == [{"gbps": 1}, {"gbps": 2}]
    for bad in ("", "\n", "gbps"):
        with pytest.raises(PeerError, match="kvferry bench printed"):
            parse(bad)
