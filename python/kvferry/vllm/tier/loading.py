"""Chunks out of the daemon's tiers into vLLM's host memory.

::

    part waits for slots -> client.load into them -> Loaded -> copied out -> settled          (fails at any point)
    deadline, drain      -> settled as failed at once; its slots are free when the daemon has answered

A load is all or nothing with the daemon, so a job is cut into parts: one that fails leaves the others' chunks usable.
The claim of the lookup stays with all of a job's parts and is given back behind the last; ``client.load`` is not told
of it, because the daemon would end it with the first part.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from kvferry.client import DAEMON_GONE, Loaded, TierBlocks, WorkerClient
from kvferry.vllm.complaints import Complaints
from kvferry.vllm.tier.jobs import Job, Jobs
from kvferry.vllm.tier.questions import Question, Questions
from kvferry.vllm.tier.staging import Staging

# No claim has this key: see the module.
NO_CLAIM = 0


@dataclass
class LoadPart:
    """Chunks of one question, in step."""

    job: Job
    group: int
    keys: list[bytes]
    names: list[bytes]
    rows: list[int]
    question: Question | None
    slots: list[int] = field(default_factory=list)
    # Settled as failed, though the daemon has not answered.
    is_given_up: bool = False


class Loads:
    """Every part of a load from its submission to its end."""

    def __init__(
        self,
        client: WorkerClient,
        group_count: int,
        staging: Staging,
        questions: Questions,
        jobs: Jobs,
        complaints: Complaints,
    ) -> None:
        self._client = client
        self._group_count = group_count
        self._staging = staging
        self._questions = questions
        self._jobs = jobs
        self._complaints = complaints
        self._waiting: deque[LoadPart] = deque()
        # Parts that the daemon has and has not answered, by the client's key.
        self._asked: dict[int, LoadPart] = {}
        self._copies: list[tuple[LoadPart, Future[None]]] = []

    def add(self, parts: Sequence[LoadPart]) -> None:
        """Takes a job's parts in; ``start`` goes on with them."""
        self._waiting.extend(parts)

    @property
    def are_waiting(self) -> bool:
        """Whether a part waits for slots."""
        return bool(self._waiting)

    def start(self, now: float) -> None:
        """Asks for as much as there are slots for, first come first served."""
        while self._waiting:
            part = self._waiting[0]
            if part.job.ends_at <= now or not self._client.is_connected():
                self._waiting.popleft()
                self._fail(part)
                continue
            slots = self._staging.take(len(part.keys))
            if not slots:
                return
            if len(slots) < len(part.keys):
                part = self._split(part, len(slots))
            else:
                self._waiting.popleft()
            part.slots = slots
            self._ask(part, max(1, int((part.job.ends_at - now) * 1000)))

    def _split(self, part: LoadPart, count: int) -> LoadPart:
        """Cuts the first ``count`` chunks off a part that has to wait for more slots."""
        first = LoadPart(part.job, part.group, part.keys[:count], part.names[:count], part.rows[:count], part.question)
        if part.question is not None:
            part.question.loads += 1
        del part.keys[:count], part.names[:count], part.rows[:count]
        return first

    def _ask(self, part: LoadPart, deadline_ms: int) -> None:
        groups = [TierBlocks() for _ in range(self._group_count)]
        groups[part.group] = TierBlocks(tuple(part.names), tuple(part.slots))
        try:
            key = self._client.load(part.job.request_id, NO_CLAIM, groups, deadline_ms)
        except Exception as error:
            self._complaints.warn("load", "kvferry: failed to ask for chunks of %s: %r", part.job.request_id, error)
            self._staging.give_back(part.slots)
            self._fail(part)
            return
        self._asked[key] = part

    def answered(self, event: Loaded) -> None:
        """The daemon writes to a part's slots no more, or cannot be asked any more."""
        part = self._asked.pop(event.key, None)
        if part is None:
            self._complaints.warn("stale", "kvferry: ignored a stale answer for %s", event.request_id)
            return
        if event.failure is None and not part.is_given_up:
            self._copies.append((part, self._staging.copy_out(part.slots, part.rows)))
            return
        self._staging.give_back(part.slots, rest=event.failure == DAEMON_GONE)
        if not part.is_given_up:
            self._complaints.warn(
                "load failed", "kvferry: chunks of %s are not loaded: %s", part.job.request_id, event.failure
            )
            self._fail(part)

    def step(self, now: float) -> None:
        """Settles what was copied and what takes too long."""
        copies, self._copies = self._copies, []
        for part, copy in copies:
            if not copy.done():
                self._copies.append((part, copy))
                continue
            self._staging.give_back(part.slots)
            if copy.exception() is not None:
                self._complaints.warn("copy", "kvferry: failed to copy chunks: %r", copy.exception())
                self._fail(part)
                continue
            self._questions.loaded(part.question)
            self._jobs.settle(part.job, part.keys, True)
        for key, part in self._asked.items():
            if not part.is_given_up and part.job.ends_at <= now:
                self._complaints.warn("deadline", "kvferry: a load of %s takes too long", part.job.request_id)
                self._give_up(key, part)

    def give_up_all(self) -> None:
        """Nothing but copies under way touches vLLM's memory from here on."""
        while self._waiting:
            self._fail(self._waiting.popleft())
        for key, part in self._asked.items():
            if not part.is_given_up:
                self._give_up(key, part)

    def _give_up(self, key: int, part: LoadPart) -> None:
        part.is_given_up = True
        try:
            self._client.abort(key)
        except Exception as error:
            self._complaints.warn("abort", "kvferry: failed to call off a load: %r", error)
        self._fail(part)

    def _fail(self, part: LoadPart) -> None:
        self._questions.loaded(part.question)
        self._questions.load_failed(part.job.request_id, part.keys)
        self._jobs.settle(part.job, part.keys, False)
