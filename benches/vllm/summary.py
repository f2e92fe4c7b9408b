"""What the samples say: medians, ratios within a round, and whether each claim held."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from rounds import LENGTHS
from samples import Request, Results

OURS = "kvferry"
LONG = max(LENGTHS)
# The targets: the decode leg's time to first token for the longest prompt, against each rival.
FIRST_TOKEN_RATIO_MAX = {"recompute": 0.15, "nixl": 0.5}
# Cores, of each daemon.
IDLE_DAEMON_MAX = 0.005
DAEMON_COUNT = 2


@dataclass(frozen=True)
class Spread:
    """The middle and the ends of several measurements of one thing."""

    median: float
    least: float
    most: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """None where nothing was measured."""
        found = list(values)
        return cls(statistics.median(found), min(found), max(found), len(found)) if found else None

    def tell(self, scale: float = 1.0, digits: int = 0) -> str:
        """``159 [142-201]``."""
        middle, least, most = (f"{value * scale:,.{digits}f}" for value in (self.median, self.least, self.most))
        return f"{middle} [{least}-{most}]"


@dataclass(frozen=True)
class Claim:
    """One sentence that a run can show to be wrong."""

    sentence: str
    target: str
    measured: str
    # None: this run did not measure it.
    held: bool | None
    falsified_by: str

    @property
    def verdict(self) -> str:
        return {True: "held", False: "MISSED", None: "not measured"}[self.held]


def contenders(results: Results) -> list[str]:
    """In the order in which they were first asked."""
    return list(dict.fromkeys(sample.contender for sample in results.samples))


def answered(results: Results, contender: str, length: int) -> dict[int, Request]:
    """The requests that got an answer, by round."""
    return {
        sample.round: sample.request
        for sample in results.samples
        if (sample.contender, sample.length) == (contender, length) and sample.request.failure is None
    }


def failures(results: Results, contender: str, length: int) -> list[str]:
    return [
        sample.request.failure
        for sample in results.samples
        if (sample.contender, sample.length) == (contender, length) and sample.request.failure is not None
    ]


def spread(results: Results, contender: str, length: int, value: Callable[[Request], float]) -> Spread | None:
    return Spread.of(value(request) for request in answered(results, contender, length).values())


def ratios(
    results: Results, contender: str, rival: str, length: int, value: Callable[[Request], float]
) -> Spread | None:
    """The contender's figure over the rival's in the same round, of all rounds in which both answered."""
    ours, theirs = answered(results, contender, length), answered(results, rival, length)
    both = ours.keys() & theirs.keys()
    return Spread.of(value(ours[number]) / value(theirs[number]) for number in both if value(theirs[number]) > 0)


def first_s(request: Request) -> float:
    return request.first_s


def claims(results: Results) -> list[Claim]:
    speed = [_first_token(results, rival, limit) for rival, limit in FIRST_TOKEN_RATIO_MAX.items()]
    return [*speed, _idle_daemon(results), *correctness(results)]


def correctness(results: Results) -> list[Claim]:
    """Without these no figure means anything."""
    return [_equal_answers(results), _fetched(results), _fresh(results)]


def _first_token(results: Results, rival: str, limit: float) -> Claim:
    ratio = ratios(results, OURS, rival, LONG, first_s)
    return Claim(
        f"decode leg's time to first token, {LONG:,} tokens, over {rival}'s",
        f"at most {limit:g}",
        ratio.tell(digits=3) if ratio else "-",
        ratio.median <= limit if ratio else None,
        f"a run on a quiet machine of this class whose median ratio within a round is above {limit:g}",
    )


def _idle_daemon(results: Results) -> Claim:
    found = [idle for idle in results.idle if idle.contender == OURS]
    each = found[0].daemons / DAEMON_COUNT if found else None
    return Claim(
        "an idle daemon's use of a core",
        f"at most {IDLE_DAEMON_MAX:.1%}",
        f"{each:.2%} over {found[0].window_s:.0f} s" if each is not None else "-",
        each <= IDLE_DAEMON_MAX if each is not None else None,
        "two idle daemons that together use more than twice that over the window",
    )


def _equal_answers(results: Results) -> Claim:
    compared = differing = 0
    for length in LENGTHS:
        by_round: dict[int, list[list[int]]] = {}
        for contender in contenders(results):
            for number, request in answered(results, contender, length).items():
                by_round.setdefault(number, []).append(request.token_ids)
        for answers in by_round.values():
            compared += len(answers) - 1
            differing += sum(answer != answers[0] or not answer for answer in answers[1:])
    return Claim(
        "every contender's answer to one prompt is the same tokens",
        "all",
        f"{compared - differing} of {compared}",
        differing == 0 if compared else None,
        "one answer whose greedy tokens differ from another contender's",
    )


def _fetched(results: Results) -> Claim:
    """vLLM computes at least a prompt's last token itself, and one token less may be asked for."""
    requests = [sample.request for sample in results.samples if sample.contender == OURS]
    whole = [request for request in requests if request.failure is None and _is_fetched(request)]
    return Claim(
        "every decode leg of ours was fetched, none computed in its place",
        "all",
        f"{len(whole)} of {len(requests)}",
        len(whole) == len(requests) if requests else None,
        "one decode leg that failed, or whose tokens D did not count as fetched",
    )


def _is_fetched(request: Request) -> bool:
    return request.prompt_tokens > 1 and request.fetched_tokens >= request.prompt_tokens - 1


def _fresh(results: Results) -> Claim:
    cached = sum(sample.request.cached_tokens for sample in results.samples)
    return Claim(
        "no prompt was in the cache of the engine that decoded it",
        "0 tokens",
        f"{cached:,} tokens",
        cached == 0 if results.samples else None,
        "one token that D counts as found in its own prefix cache",
    )
