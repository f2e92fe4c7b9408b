"""What is written down can be read again, tables have every row, and a section replaces itself and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import report
import samples
import section
from samples import Idle, Results, Sample
from test_summary import ANSWER, RUN, firsts, results_of

EVERYONE = [
    sample
    for length in (100, 700, 1500)
    for sample in [
        *firsts("recompute", 1.0, 1.1, length=length),
        *firsts("nixl", 0.5, 0.6, length=length),
        *firsts("kvferry", 0.1, 0.3, length=length),
    ]
]
IDLE = [Idle("nixl", 20.0, 1.94, 0.0, 0.01), Idle("kvferry", 20.0, 0.02, 0.001, 0.01)]


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    written = results_of(*EVERYONE, idle=IDLE)
    samples.write(written, tmp_path / "below" / "results.jsonl")
    read = samples.read((tmp_path / "below" / "results.jsonl").read_text().splitlines())
    assert read == Results(RUN, list(EVERYONE), IDLE)


@pytest.mark.parametrize(
    "line", ["", "[]", "{}", '{"kind": "ran"}', '{"kind": "request", "round": 1}', '{"kind": "run"}']
)
def test_foreign_lines_are_refused(line: str) -> None:
    with pytest.raises(ValueError, match="line 1 is not a result"):
        samples.read([line])


def test_results_without_a_run_are_refused() -> None:
    with pytest.raises(ValueError, match="0 lines tell of a run"):
        samples.read([])


def test_every_length_and_contender_has_a_row() -> None:
    rows = report.rows(results_of(*EVERYONE))
    assert [row[:2] for row in rows] == [
        [length, name] for length in ("100", "700", "1,500") for name in ("recompute", "NixlConnector", "KVFerry")
    ]
    ours = rows[-1]
    assert ours[2] == "200 [100-300]"
    assert ours[3] == "0.19 [0.10-0.27]"
    assert ours[4] == "0.35 [0.20-0.50]"
    assert ours[5] == "50 [50-50]"
    assert ours[-1] == "-"


def test_failed_requests_are_counted_in_their_row() -> None:
    failed = Sample(2, "nixl", 1500, samples.Request(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, [], "timed out"))
    rows = report.rows(results_of(*EVERYONE, failed))
    (row,) = [row for row in rows if row[:2] == ["1,500", "NixlConnector"]]
    assert row[2] == "550 [500-600]"
    assert row[-1] == "1"


def test_a_contender_that_never_answered_has_no_figures() -> None:
    failed = Sample(0, "kvferry", 1500, samples.Request(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, [], "refused"))
    rows = report.rows(results_of(failed))
    assert rows[-1] == ["1,500", "KVFerry", *["-"] * 8, "1"]


def test_columns_of_a_table_stand_below_one_another() -> None:
    lines = report.table(("a", "b", "c"), [["1", "long", "22"], ["2", "x", "3"]]).splitlines()
    assert lines == ["a  b      c", "1  long  22", "2  x      3"]


def test_the_section_has_machine_commit_command_and_every_verdict() -> None:
    text = report.section(results_of(*EVERYONE, idle=IDLE))
    for part in (
        "| machine | machine |",
        "| commit | commit |",
        "`command`",
        "| held |",
        "| MISSED |",
        "| KVFerry | 2 |",
    ):
        assert part in text
    # What others wrote is found by these.
    assert section.BEGIN not in text


def test_a_section_is_added_once_and_then_replaced(tmp_path: Path) -> None:
    place = tmp_path / "RESULTS.md"
    section.rewrite(place, "## First\n")
    assert place.read_text() == f"# Results\n\n{section.BEGIN}\n## First\n{section.END}\n"
    place.write_text(f"before\n{place.read_text()}after\n")
    section.rewrite(place, "## Second")
    assert place.read_text() == f"before\n# Results\n\n{section.BEGIN}\n## Second\n{section.END}\nafter\n"


@pytest.mark.parametrize(
    "text",
    [
        section.BEGIN,
        section.END,
        f"{section.END}{section.BEGIN}",
        f"{section.BEGIN}{section.END}{section.BEGIN}{section.END}",
    ],
)
def test_broken_markers_are_not_written_over(text: str) -> None:
    with pytest.raises(section.MarkerError):
        section.replace(text, "## New")


@pytest.mark.parametrize(("others_s", "words"), [(0.2, "0.10 cores, quiet"), (0.4, "0.20 cores, NOT QUIET")])
def test_a_machine_with_other_programs_shows(others_s: float, words: str) -> None:
    # Two seconds each.
    disturbed = Sample(0, "kvferry", 1500, replace(ANSWER, others_cpu_s=others_s))
    results = results_of(disturbed)
    assert words in report.terminal(results)
    assert words in report.section(results)
    assert report.other_programs(results_of()) == 0.0


def test_a_missed_target_shows() -> None:
    slow = results_of(*firsts("kvferry", 1.0), *firsts("recompute", 1.0))
    assert [row[3] for row in report.claim_rows(slow) if "recompute" in row[0]] == ["MISSED"]
    assert ANSWER.failure is None
