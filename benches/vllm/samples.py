"""What was measured, as it is written down: one JSON object a line.

::

    Contender.ask -> Request -> Sample (with round, contender, length) -> JSON lines -> summary.py -> table, section
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Request:
    """One prompt, from its first leg to its last token."""

    prompt_tokens: int
    # The prefill leg; 0 where D computes the prompt.
    prefill_s: float
    # From sending the decode leg to its first token.
    first_s: float
    # Of that, as the reading daemon tells it: from D's order to fetch until all is verified. 0 without daemons.
    transfer_s: float
    # Both legs, all tokens.
    total_s: float
    engines_cpu_s: float
    daemons_cpu_s: float
    # Of everything else on the machine in that time, the kernel's own threads included.
    others_cpu_s: float
    # Of the prompt's tokens on D: from another engine, and from D's own cache.
    fetched_tokens: int
    cached_tokens: int
    token_ids: list[int] = field(default_factory=list)
    # Why there is no answer.
    failure: str | None = None


@dataclass(frozen=True)
class Sample:
    round: int
    contender: str
    # Which of the lengths, in tokens, roughly.
    length: int
    request: Request


@dataclass(frozen=True)
class Idle:
    """A contender that is asked nothing."""

    contender: str
    window_s: float
    # Cores' worth: 1.0 is one core all the time.
    engines: float
    daemons: float
    others: float


@dataclass(frozen=True)
class Run:
    """Where, from what and how."""

    machine: str
    commit: str
    command: str
    started: str
    took_s: float
    versions: str
    rounds: int


@dataclass(frozen=True)
class Results:
    run: Run
    samples: Sequence[Sample]
    idle: Sequence[Idle]


def write(results: Results, path: Path) -> None:
    lines = [{"kind": "run", **asdict(results.run)}]
    lines += [{"kind": "request", **asdict(sample)} for sample in results.samples]
    lines += [{"kind": "idle", **asdict(idle)} for idle in results.idle]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def read(lines: Iterable[str]) -> Results:
    """What ``write`` wrote.

    Raises:
        ValueError: a line is not one of its.
    """
    runs, samples, idle = [], [], []
    for number, line in enumerate(lines, start=1):
        try:
            document: dict[str, Any] = json.loads(line)
            kind = document.pop("kind")
            if kind == "run":
                runs.append(Run(**document))
            elif kind == "request":
                samples.append(Sample(**{**document, "request": Request(**document["request"])}))
            elif kind == "idle":
                idle.append(Idle(**document))
            else:
                raise ValueError(f"no such kind: {kind}")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"line {number} is not a result of this benchmark: {error}") from error
    if len(runs) != 1:
        raise ValueError(f"{len(runs)} lines tell of a run; one was expected")
    return Results(runs[0], samples, idle)
