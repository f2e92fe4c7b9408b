"""Its section of `benches/RESULTS.md`: machine, targets with verdicts, claims, and every figure behind them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cells import SETTINGS, Cell, Setting
from figures import Source, Spread, Unit, by_round, fits, ways
from rows import Row
from targets import CLAIMS, Claim, Judged, judge, verdict

Meta = dict[str, Any]


@dataclass(frozen=True)
class Page:
    """A benchmark's section, but for its figures."""

    # The command that writes it. What stands between the markers of that name is rewritten; the rest is others'.
    name: str
    head: str
    elsewhere: str
    claims: Sequence[Claim]
    settings: Sequence[Setting]
    # What else the rows show, as lines of Markdown.
    more: Callable[[Sequence[Row]], list[str]] = lambda _: []

    @property
    def begin(self) -> str:
        return f"<!-- {self.name} begin -->"

    @property
    def end(self) -> str:
        return f"<!-- {self.name} end -->"


HEAD = """\
## KVFerry beside its rivals

Written by `make bench-peers`; do not edit. Only ratios within one run mean anything: this is one machine at one time,
and both ends share it. Rates are GB/s (10^9 bytes), shown as median [lowest to highest] over the rounds. In every round
each peer has one turn in each setting, and the order moves on by one from round to round. Both ends have 1 GiB of
shared memory, filled with content in which every word is different; blocks are drawn in random order from all of it,
landings are wiped before each cell and compared after it (in full in the first round, a sixteenth of the blocks after
that). Everybody moves for 150 ms before a figure is taken, for the scheduler to find each of several threads its place;
what takes longer than that for one transfer, and iperf3, is timed from the start. iperf3 alone sends one warm buffer
and verifies nothing.
"""

ELSEWHERE = """\
Rings and the idle daemon are measured by `kvferry bench` and the tests; the whole path through vLLM by `make
bench-vllm`.
"""


def read_meta(path: Path) -> Meta:
    """What the run wrote about itself in the first line of its raw file."""
    with path.open() as lines:
        meta: Meta = json.loads(lines.readline())["meta"]
    return meta


PEERS = Page("bench-peers", HEAD, ELSEWHERE, CLAIMS, SETTINGS)


def text(meta: Meta, rows: Sequence[Row], page: Page = PEERS) -> str:
    """The whole section."""
    judged = [(claim, [judge(target, rows) for target in claim.targets]) for claim in page.claims]
    # One setting may have more rounds than the others; the first one measured has as many as were asked for.
    rounds = len({row.round for row in rows if row.setting == rows[0].setting})
    parts = [page.head, "### Machine and run\n", *_facts(meta, rows, rounds)]
    parts += ["\n### Targets\n", *targets([one for _, several in judged for one in several], meta["titles"])]
    parts += ["\n" + page.elsewhere, "### Claims, and what would prove them wrong\n"]
    parts += [
        f"- **{verdict(several)}**: {claim.text} *Wrong if* `make {page.name}` shows {claim.falsified_by}."
        for claim, several in judged
    ]
    for setting in page.settings:
        found = [row for row in rows if row.setting == setting.name]
        if found:
            parts += [
                f"\n### {setting.title[0].upper()}{setting.title[1:]}\n",
                *_setting(setting, found, meta["titles"]),
            ]
    parts += page.more(rows)
    parts += _failures(rows, meta["titles"])
    return "\n".join(parts) + "\n"


def rewrite(path: Path, section: str, page: Page = PEERS) -> None:
    """Puts the section between its markers; first in the file where it has none yet.

    Raises:
        ValueError: the markers do not enclose one section.
    """
    begin, end = page.begin, page.end
    framed = f"{begin}\n{section.strip()}\n{end}"
    title, _, rest = (path.read_text() if path.exists() else "").partition("\n")
    whole = f"{title}\n{rest}" if title.startswith("# ") else f"# Results\n\n{title}\n{rest}"
    counts = whole.count(begin), whole.count(end)
    start, stop = whole.find(begin), whole.find(end)
    if counts == (0, 0):
        title, _, rest = whole.partition("\n")
        path.write_text(f"{title}\n\n{framed}\n\n{rest.strip()}".rstrip() + "\n")
    elif counts == (1, 1) and start < stop:
        path.write_text(whole[:start] + framed + whole[stop + len(end) :])
    else:
        raise ValueError(f"{path}: the section must stand between one {begin!r} and one {end!r} after it")


def summary(rows: Sequence[Row], page: Page = PEERS) -> str:
    """What the terminal gets at the end: a line for each claim."""
    lines = ["", "claims:"]
    for claim in page.claims:
        several = [judge(target, rows) for target in claim.targets]
        ratios = [one.comparison.ratio.median for one in several if one.comparison is not None]
        told = f" ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else ""
        lines.append(f"  {verdict(several):12} {claim.text}{told}")
    return "\n".join(lines)


def spread(found: Spread | None, digits: int = 2) -> str:
    """``3.05 [2.86-3.34]``, or a dash."""
    if found is None:
        return "-"
    if found.count == 1:
        return f"{found.median:.{digits}f}"
    return f"{found.median:.{digits}f} [{found.low:.{digits}f}-{found.high:.{digits}f}]"


def table(head: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table; the first column is text, the others are figures."""
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    return lines + [f"| {' | '.join(line)} |" for line in body]


def _facts(meta: Meta, rows: Sequence[Row], rounds: int) -> list[str]:
    loads = [row.load for row in rows if row.load is not None]
    facts = dict(meta["facts"])
    if loads:
        facts["load average during the run"] = f"{min(loads):.1f} to {max(loads):.1f}, the peers' own included"
    facts["rounds"] = f"{rounds}" if rounds == meta["rounds"] else f"{rounds} of {meta['rounds']}"
    lines = table(["what", "value"], [[name, value] for name, value in facts.items()])
    lines[1] = "|---|---|"
    if meta["notes"]:
        lines += ["", "Not part of this run:", "", *(f"- {note}" for note in meta["notes"])]
    return lines


def targets(judged: Sequence[Judged], titles: dict[str, str]) -> list[str]:
    """Each target with our figure, the best other's and the verdict."""
    body = []
    for one in judged:
        target, comparison = one.target, one.comparison
        sign = ">=" if target.higher_is_better else "<="
        shown = ["-", "-", "-"]
        if comparison is not None:
            digits = 2 if target.higher_is_better else 1
            best = titles.get(comparison.best, comparison.best)
            against = f"{comparison.theirs.median:.{digits}f} ({best})"
            shown = [spread(comparison.ours, digits), against, spread(comparison.ratio)]
        asked = f"{sign} {target.factor}" if target.bound is None else f"{sign} {target.bound * target.factor:g} us"
        body.append([target.what, f"{target.cell}", asked, *shown, f"**{one.verdict}**"])
    head = ["what", "cell", "target", "KVFerry, GB/s or us", "the best other", "ratio in the round", "verdict"]
    return table(head, body)


def _setting(setting: Setting, rows: Sequence[Row], titles: dict[str, str]) -> list[str]:
    moved = [cell for cell in setting.cells if cell.bytes > 1 << 20]
    single = [cell for cell in setting.cells if setting.timed or cell.bytes <= 1 << 20]
    parts = []
    more: tuple[tuple[str, list[Cell], Unit, int], ...] = (
        ("GB/s:", moved, "gbps", 2),
        ("CPU seconds for each GB, both ends together:", moved, "cpu_s_per_gb", 2),
        ("Median of one transfer, us:", single, "p50_us", 1),
        ("99th percentile of one transfer, us:", single, "p99_us", 1),
    )
    for told, cells, unit, digits in more:
        lines = _figures(setting.name, cells, rows, titles, unit, digits)
        if cells and len(lines) > 2:
            parts += ["", told, "", *lines]
    return parts[1:]


def _figures(
    setting: str, cells: Sequence[Cell], rows: Sequence[Row], titles: dict[str, str], unit: Unit, digits: int
) -> list[str]:
    """One line for each peer and way of it that has a figure for one of the cells."""
    body = []
    for peer, title in titles.items():
        for way in ways(rows, setting, peer):
            # Of the sources, only these very rows: a way that is part of another is not it.
            mine = [row for row in rows if row.peer == peer and tuple(row.way.items()) == way]
            found = [
                by_round([row for row in mine if fits(row, cell)], setting, Source(peer), cell, unit) for cell in cells
            ]
            if any(found):
                told = ", ".join(f"{name} {value}" for name, value in way)
                name = f"{title} ({told})" if told else title
                body.append([name, *(spread(Spread.of(values.values()), digits) for values in found)])
    return table(["peer", *(str(cell) for cell in cells)], body)


def _failures(rows: Sequence[Row], titles: dict[str, str]) -> list[str]:
    wrong: dict[tuple[str, str, str, str], int] = {}
    for row in rows:
        why = row.error or ("what landed is not what was sent" if row.verified is False else None)
        if why is not None:
            key = (row.setting, titles.get(row.peer, row.peer), str(row.cell or "all"), why)
            wrong[key] = wrong.get(key, 0) + 1
    if not wrong:
        return []
    lines = table(["setting", "peer", "cell", "what it said", "times"], [[*key, str(n)] for key, n in wrong.items()])
    return ["\n### Failures, which are results\n", *lines]
