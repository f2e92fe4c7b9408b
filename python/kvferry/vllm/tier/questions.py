"""What the daemon holds of the chunks that vLLM asks about: asked without waiting, answered a step or two later.

::

    lookup(key) -> answer() -> client.lookup(key and the chunks behind it)       unknown: vLLM asks again next step
                   client.poll -> Found -> heard()                               answer() -> held or not
    submit_load -> take(): the claim is the load's until it ends                 nobody's any more -> client.forget

vLLM asks for the first chunk that it lacks, and then for those behind it, or, in groups with a sliding window, from the
last one backwards. So a question covers the key and everything behind it that was not asked yet: one question for a
prompt in the first case, and one a chunk in the second.

An answer that does not come within the reply timeout is taken for "nothing", and every answer is asked for anew after
``ANSWER_SECONDS``, before the daemon's time limit ends its claim. A chunk whose load failed is not asked about again
for the same request, however often vLLM asks: it would wait for ever.

Clearing is ordered once: the client tells every daemon, and has a lookup fail until one has carried it out. Such a
lookup is answered "nothing". An order before each lookup would take what was stored since, for ever where lookups come
faster than the daemon clears.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum

from kvferry.client import NO_TIER, Connected, Disconnected, Found, SchedulerClient
from kvferry.vllm.complaints import Complaints, logger

# Chosen: a step asks about every waiting request for which there is room; the rest is asked about in the next.
QUESTIONS_MAX = 256
# Chosen: 65,536 tokens in chunks of 16, an eighth of a frame; what is behind them is asked for when they are there.
CHUNKS_MAX = 4096
# Chosen: well below the daemon's tier.host.claim_ms_max, 30 s unless set.
ANSWER_SECONDS = 5.0
# Chosen: how long a client that cannot ask is left alone, if it does not connect anew before.
PAUSE_SECONDS = 5.0


class Answer(Enum):
    """What is known of a chunk."""

    HELD = "held"
    NOT_HELD = "not held"
    UNKNOWN = "unknown"


@dataclass
class Question:
    """One lookup, and the claim that its answer leaves with the daemon."""

    key: int
    asked_at: float
    # How many of the first chunks are held; None: no answer yet.
    held: int | None = None
    answered_at: float = 0.0
    # Whether who asked still waits: for the answer, or to load what was found.
    waits: bool = True
    # Loads of what was found that have not ended.
    loads: int = 0
    # The claim is given back, or there is none.
    is_over: bool = False


@dataclass
class _Request:
    # By vLLM's key: the question, and the chunk's place in it.
    asked: dict[bytes, tuple[Question, int]] = field(default_factory=dict)
    failed: set[bytes] = field(default_factory=set)


class Questions:
    """All state is about requests that vLLM has not finished."""

    def __init__(
        self,
        client: SchedulerClient,
        group_count: int,
        reply_timeout_ms: int,
        complaints: Complaints,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._group_count = group_count
        self._reply_seconds = reply_timeout_ms / 1000
        self._complaints = complaints
        self._clock = clock
        self._requests: dict[str, _Request] = {}
        # Not answered, by the client's key.
        self._open: dict[int, Question] = {}
        self._paused_until = 0.0
        # An order to clear that the client has not taken.
        self._clear_owed = False

    @property
    def is_usable(self) -> bool:
        """Whether there is anybody to ask, as far as is known."""
        return self._client.is_connected() and self._clock() >= self._paused_until

    def answer(
        self, request_id: str, key: bytes, group: int, chain: Callable[[], Iterable[tuple[bytes, bytes]]]
    ) -> Answer:
        """What is known of a chunk; asks, where nobody did. ``chain`` has vLLM's and the daemon's names, from it on."""
        request = self._requests.setdefault(request_id, _Request())
        if key in request.failed:
            return Answer.NOT_HELD
        known = request.asked.get(key)
        if known is not None and self._is_stale(known[0]):
            self._drop(request, known[0])
            known = None
        if known is not None and known[1] > self._told(known[0]):
            # The answer ends at the first chunk that is not held, and says nothing of those behind it.
            question, end = known[0], self._told(known[0])
            request.asked = {
                other: (of, place) for other, (of, place) in request.asked.items() if of is not question or place <= end
            }
            known = None
        if known is None:
            if not self.is_usable:
                return Answer.NOT_HELD
            if len(self._open) >= QUESTIONS_MAX:
                # Each of them is answered or given up within the reply timeout.
                self._give_up_late()
                return Answer.UNKNOWN
            known = self._ask_chain(request_id, request, group, chain())
            if known is None:
                return Answer.NOT_HELD
        question, place = known
        if question.held is None:
            if self._clock() < question.asked_at + self._reply_seconds:
                return Answer.UNKNOWN
            self._give_up(question)
        return Answer.HELD if place < (question.held or 0) else Answer.NOT_HELD

    def _ask_chain(
        self, request_id: str, request: _Request, group: int, chain: Iterable[tuple[bytes, bytes]]
    ) -> tuple[Question, int] | None:
        keys: list[bytes] = []
        names: list[bytes] = []
        for key, name in chain:
            if len(keys) >= CHUNKS_MAX or key in request.asked or key in request.failed:
                break
            keys.append(key)
            names.append(name)
        question = self.ask(request_id, group, names)
        if question is None:
            return None
        request.asked.update((key, (question, place)) for place, key in enumerate(keys))
        return question, 0

    def ask(self, request_id: str, group: int, names: list[bytes]) -> Question | None:
        """Asks how many of a chain's first chunks are held; None: nobody can be asked. ``leave`` ends it."""
        if not self.is_usable:
            return None
        groups: list[list[bytes]] = [[] for _ in range(self._group_count)]
        groups[group] = names
        try:
            self._order_clear()
            key = self._client.lookup(request_id, groups)
        except Exception as error:
            self._paused_until = self._clock() + PAUSE_SECONDS
            self._complaints.warn("lookup", "kvferry: failed to ask what is kept of %s: %r", request_id, error)
            return None
        question = Question(key, self._clock())
        self._open[key] = question
        return question

    def is_answered(self, question: Question) -> bool:
        """Whether the answer is there, or will not be waited for."""
        if question.held is None and self._clock() >= question.asked_at + self._reply_seconds:
            self._give_up(question)
        return question.held is not None

    def _give_up_late(self) -> None:
        for question in list(self._open.values()):
            self.is_answered(question)

    def _give_up(self, question: Question) -> None:
        self._complaints.warn("late", "kvferry: no answer about what is kept in time, it is taken for nothing")
        self._open.pop(question.key, None)
        question.held, question.answered_at = 0, self._clock()
        self._end(question)

    def _told(self, question: Question) -> float:
        """The last chunk that the answer tells of."""
        return math.inf if question.held is None else question.held

    def _is_stale(self, question: Question) -> bool:
        return question.held is not None and self._clock() >= question.answered_at + ANSWER_SECONDS

    def heard(self, event: object) -> None:
        """Takes what concerns questions out of the stream of events."""
        if isinstance(event, Found):
            self._found(event)
        elif isinstance(event, Connected):
            self._paused_until = 0.0
        elif isinstance(event, Disconnected):
            # Claims go with the daemon; what is still open is answered as failed.
            for request in self._requests.values():
                request.asked.clear()

    def _found(self, found: Found) -> None:
        if found.failure == NO_TIER:
            self.no_tier()
        question = self._open.pop(found.key, None)
        if question is None:
            # Given up, and forgotten, maybe before there was something to forget.
            if found.failure is None:
                self._forget(found.key)
            return
        question.answered_at = self._clock()
        question.held = max(found.held, default=0) if found.failure is None else 0
        if found.failure is not None and found.failure != NO_TIER:
            self._complaints.warn("not found", "kvferry: failed to ask what is kept: %s", found.failure)
        if not question.held or not question.waits:
            question.is_over = False
            self._end(question)

    def no_tier(self) -> None:
        """There is nothing to be asked for before the next ``Connected``."""
        if self._paused_until != math.inf:
            logger.info("kvferry: the daemon keeps no blocks; this tier finds and keeps nothing")
        self._paused_until = math.inf

    def take(self, request_id: str, keys: Iterable[bytes]) -> list[tuple[Question | None, list[bytes]]]:
        """Ends the questions about keys that will be loaded now; with each, the question that the load needs."""
        request = self._requests.get(request_id) or _Request()
        taken: dict[int, tuple[Question | None, list[bytes]]] = {}
        for key in keys:
            question, _ = request.asked.pop(key, (None, 0))
            taken.setdefault(id(question), (question, []))[1].append(key)
        unused = {id(question) for question, place in request.asked.values() if place < (question.held or 0)}
        for number, (question, _) in taken.items():
            if question is not None:
                question.loads += 1
                question.waits = number in unused
        return list(taken.values())

    def loaded(self, question: Question | None) -> None:
        """A load that ``take`` was for has ended."""
        if question is not None:
            question.loads -= 1
            self._end_unused(question)

    def leave(self, question: Question) -> None:
        """Who asked does not wait any more."""
        question.waits = False
        self._end_unused(question)

    def _end_unused(self, question: Question) -> None:
        if not question.waits and not question.loads:
            self._end(question)

    def _end(self, question: Question) -> None:
        if not question.is_over:
            question.is_over = True
            self._forget(question.key)

    def load_failed(self, request_id: str, keys: Iterable[bytes]) -> None:
        """These are not asked about again."""
        request = self._requests.get(request_id)
        if request is not None:
            request.failed.update(keys)

    def _drop(self, request: _Request, question: Question) -> None:
        request.asked = {key: asked for key, asked in request.asked.items() if asked[0] is not question}
        self.leave(question)

    def ended(self, request_id: str) -> None:
        """The request is over."""
        request = self._requests.pop(request_id, None)
        if request is not None:
            for question in {id(question): question for question, _ in request.asked.values()}.values():
                self.leave(question)

    def clear(self) -> None:
        """Nothing stored so far may be found again."""
        for request in self._requests.values():
            while request.asked:
                self._drop(request, next(iter(request.asked.values()))[0])
        self._clear_owed = True
        try:
            self._order_clear()
        except Exception as error:
            self._complaints.warn("clear", "kvferry: failed to clear the tiers, tries again: %r", error)

    def _order_clear(self) -> None:
        if self._clear_owed:
            self._client.clear()
            self._clear_owed = False

    def _forget(self, key: int) -> None:
        try:
            self._client.forget(key)
        except Exception as error:
            # The claim ends by the daemon's time limit.
            self._complaints.warn("forget", "kvferry: failed to give back a claim: %r", error)
