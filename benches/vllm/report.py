"""The results for people: a table on the terminal, and a section of RESULTS.md."""

from __future__ import annotations

from collections.abc import Sequence

import summary
from rounds import LENGTHS
from samples import Idle, Request, Results

NAMES = {"recompute": "recompute", "nixl": "NixlConnector", "kvferry": "KVFerry"}
MISSING = "-"
# Chosen: 0.05 is what this benchmark and the kernel use beside the engines on a machine with nothing else to do.
QUIET_CORES_MAX = 0.15
COLUMNS = (
    "prompt",
    "contender",
    "decode leg: first token, ms",
    "over recompute",
    "over nixl",
    "transfer, ms",
    "prefill leg, ms",
    "total, ms",
    "CPU s, engines",
    "CPU s, daemons",
    "failed",
)
IDLE_COLUMNS = ("idle, cores", "engines", "engines in all", "daemons in all", "others", "over, s")
CLAIM_COLUMNS = ("claim", "target", "measured", "verdict", "what would falsify it")


def rows(results: Results) -> list[list[str]]:
    """One for each prompt length and contender."""
    return [_row(results, length, name) for length in LENGTHS for name in summary.contenders(results)]


def _row(results: Results, length: int, name: str) -> list[str]:
    def tell(spread: summary.Spread | None, scale: float = 1.0, digits: int = 0) -> str:
        return spread.tell(scale, digits) if spread else MISSING

    def over(rival: str) -> str:
        return MISSING if name == rival else tell(summary.ratios(results, name, rival, length, summary.first_s), 1, 2)

    def of(value: str, scale: float = 1.0, digits: int = 0) -> str:
        return tell(summary.spread(results, name, length, lambda request: _number(request, value)), scale, digits)

    def known(value: str) -> str:
        requests = summary.answered(results, name, length).values()
        return of(value, 1000) if any(_number(request, value) > 0 for request in requests) else MISSING

    failed = len(summary.failures(results, name, length))
    return [
        f"{length:,}",
        NAMES.get(name, name),
        of("first_s", 1000),
        over("recompute"),
        over("nixl"),
        known("transfer_s"),
        known("prefill_s"),
        of("total_s", 1000),
        of("engines_cpu_s", digits=2),
        of("daemons_cpu_s", digits=2),
        str(failed) if failed else MISSING,
    ]


def _number(request: Request, value: str) -> float:
    return float(getattr(request, value))


def idle_rows(idle: Sequence[Idle]) -> list[list[str]]:
    return [
        [
            NAMES.get(each.contender, each.contender),
            "1" if each.contender == "recompute" else "2",
            f"{each.engines:.3f}",
            f"{each.daemons:.4f}",
            f"{each.others:.3f}",
            f"{each.window_s:.0f}",
        ]
        for each in idle
    ]


def claim_rows(results: Results) -> list[list[str]]:
    return [
        [claim.sentence, claim.target, claim.measured, claim.verdict, claim.falsified_by]
        for claim in summary.claims(results)
    ]


def table(columns: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Columns of equal width; the first two to the left, figures to the right."""
    widths = [max(len(line[i]) for line in (columns, *body)) for i in range(len(columns))]

    def line(cells: Sequence[str]) -> str:
        placed = [
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(placed).rstrip()

    return "\n".join([line(columns), *(line(cells) for cells in body)])


def markdown_table(columns: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *body]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def other_programs(results: Results) -> float:
    """How many cores everything else on the machine used while requests were under way."""
    asked_s = sum(sample.request.total_s for sample in results.samples)
    return sum(sample.request.others_cpu_s for sample in results.samples) / asked_s if asked_s > 0 else 0.0


def disturbance(results: Results) -> str:
    """What a reader must know about the machine before believing a ratio."""
    cores = other_programs(results)
    verdict = "quiet" if cores <= QUIET_CORES_MAX else "NOT QUIET: ratios and verdicts of speed mean little"
    return f"{cores:.2f} cores, {verdict}"


def terminal(results: Results) -> str:
    parts = [table(COLUMNS, rows(results)), table(IDLE_COLUMNS, idle_rows(results.idle))]
    parts += [f"other programs meanwhile: {disturbance(results)}"]
    parts += [table(CLAIM_COLUMNS[:4], [row[:4] for row in claim_rows(results)])]
    return "\n\n".join(parts)


def section(results: Results) -> str:
    """Markdown, from the heading on."""
    run = results.run
    return f"""## End to end in vLLM: `make bench-vllm`

First token on a decode engine D: computed there, fetched by vLLM's NixlConnector, fetched by KVFerry. SmolLM2-135M in
bfloat16 on CPU engines, {run.rounds} prompts of each length, each asked of every contender.

| | |
| --- | --- |
| machine | {run.machine} |
| commit | {run.commit} |
| command | `{run.command}` |
| versions | {run.versions} |
| when | {run.started}, took {run.took_s:.0f} s |
| other programs meanwhile | {disturbance(results)} |

Median [min-max]. Ratios are between requests for the same prompt in the same round; their median is given.

{markdown_table(COLUMNS, rows(results))}

*Decode leg: first token* runs from sending the request to D until its first token is back: fetching (or computing) and
one step of the model. *Transfer* is the part of it that KVFerry's daemons need, from D's order to fetch until every
byte is verified; NixlConnector does not tell its own. *Total* has the prefill leg in it and all the answer's tokens.
*CPU s* is what all processes of the contender's engines and daemons used in that time.

{markdown_table(IDLE_COLUMNS, idle_rows(results.idle))}

{markdown_table(CLAIM_COLUMNS, claim_rows(results))}

How it was run. Recompute has one engine without a connector; each connector has a pair of engines of its own, one
thread of compute for each half of the cores. KVFerry's pair has a daemon for each engine, with TCP between them;
NixlConnector has its default settings and the transports that UCX finds best, shared memory among them. In each round
every contender gets the same three new prompts, in turns; the contender that begins changes from round to round. Only
one contender has the cores at a time: the others' engines are stopped (SIGSTOP, both of a pair together), because
NixlConnector's progress threads use up the cores also when nothing is asked of them. A contender runs
again for a moment before it is asked. The first round is not counted. The legs are sent by the benchmark itself,
without a router.
"""
