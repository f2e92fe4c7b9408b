"""Chunks out of vLLM's host memory into the daemon's tiers.

::

    piece waits for slots -> copied in -> is its parent kept? -> client.store -> Copied -> client.commit -> settled
    deadline, drain       -> settled as failed once no copy reads vLLM's row; its slots wait for the daemon's answer

A commit is always right: vLLM holds a job's rows unchanged until the job is settled, and from the copy on the daemon
reads a slot, which nobody writes to before ``Copied``.

The daemon keeps a block only while the one before it is kept, because an engine could not use it. So a piece names the
chunk before its first (chains.py). Where that is not kept, vLLM may still have it, and goes on behind it; the piece
begins a chain of its own then. Whether it is kept is known of what was committed a moment ago and asked of the rest,
and the claim that a "yes" leaves keeps it there until the piece is copied.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from kvferry.client import NO_TIER, Copied, TierStore, WorkerClient
from kvferry.vllm.complaints import Complaints
from kvferry.vllm.tier.jobs import Job, Jobs
from kvferry.vllm.tier.questions import Question, Questions
from kvferry.vllm.tier.staging import Staging

# Chosen: a long prompt is prefilled in steps, each a job, within this time; later the daemon is asked.
COMMITTED_SECONDS = 5.0
# Chosen: the last chunk of that many pieces.
COMMITTED_MAX = 4096


@dataclass
class StorePiece:
    """Chunks that follow each other, in step."""

    job: Job
    group: int
    # The daemon's name of the chunk before the first; None: there is none, or nobody knows it.
    parent: bytes | None
    keys: list[bytes]
    names: list[bytes]
    rows: list[int]
    slots: list[int] = field(default_factory=list)
    # Whether the parent is kept; asked before the store.
    question: Question | None = None
    # Settled as failed, though the daemon has not answered.
    is_given_up: bool = False


class Stores:
    """Every piece of a store from its submission to its end."""

    def __init__(
        self,
        client: WorkerClient,
        group_count: int,
        staging: Staging,
        questions: Questions,
        jobs: Jobs,
        complaints: Complaints,
        tenant: bytes = b"",
    ) -> None:
        self._client = client
        self._group_count = group_count
        self._staging = staging
        self._questions = questions
        self._jobs = jobs
        self._complaints = complaints
        self._tenant = tenant
        # Half of the slots are left to loads, which requests wait for.
        self._spare = staging.slot_count // 2
        self._waiting: deque[StorePiece] = deque()
        # In the order of submission: a piece may need the one before it.
        self._copies: list[tuple[StorePiece, Future[None]]] = []
        # Pieces that the daemon has and has not answered, by the client's key.
        self._asked: dict[int, StorePiece] = {}
        # Group and name of last chunks that were committed, and when.
        self._committed: OrderedDict[tuple[int, bytes], float] = OrderedDict()

    def add(self, pieces: Sequence[StorePiece]) -> None:
        """Takes a job's pieces in; ``start`` goes on with them."""
        self._waiting.extend(pieces)

    def start(self, now: float) -> None:
        """Copies as much as there are slots for, first come first served."""
        while self._waiting:
            piece = self._waiting[0]
            if piece.job.ends_at <= now or not self._questions.is_usable:
                self._waiting.popleft()
                self._fail(piece)
                continue
            slots = self._staging.take(len(piece.keys), self._spare)
            if not slots:
                return
            if len(slots) < len(piece.keys):
                piece = self._split(piece, len(slots))
            else:
                self._waiting.popleft()
            piece.slots = slots
            self._copies.append((piece, self._staging.copy_in(piece.rows, slots)))

    def _split(self, piece: StorePiece, count: int) -> StorePiece:
        """Cuts the first ``count`` chunks off a piece that has to wait for more slots."""
        keys, names, rows = piece.keys[:count], piece.names[:count], piece.rows[:count]
        first = StorePiece(piece.job, piece.group, piece.parent, keys, names, rows)
        del piece.keys[:count], piece.names[:count], piece.rows[:count]
        piece.parent = names[-1]
        return first

    def step(self, now: float) -> None:
        """Hands on what was copied, and settles what takes too long."""
        copies, self._copies = self._copies, []
        for piece, copy in copies:
            if not copy.done():
                self._copies.append((piece, copy))
            elif copy.exception() is not None:
                self._complaints.warn("copy", "kvferry: failed to copy chunks: %r", copy.exception())
                self._drop(piece)
            elif piece.job.ends_at <= now or not self._questions.is_usable:
                self._drop(piece)
            elif self._parent_is_known(piece, now):
                self._store(piece)
            else:
                self._copies.append((piece, copy))
        for key, piece in self._asked.items():
            if not piece.is_given_up and piece.job.ends_at <= now:
                self._complaints.warn("deadline", "kvferry: a store of %s takes too long", piece.job.request_id)
                self._give_up(key, piece)

    def _parent_is_known(self, piece: StorePiece, now: float) -> bool:
        """Whether it is clear if the parent is kept; forgets a parent that is not."""
        if piece.parent is None:
            return True
        if piece.question is None:
            if self._committed.get((piece.group, piece.parent), -COMMITTED_SECONDS) + COMMITTED_SECONDS > now:
                return True
            if any(other.group == piece.group and piece.parent in other.names for other in self._under_way(piece)):
                return False
            piece.question = self._questions.ask(piece.job.request_id, piece.group, [piece.parent])
        if piece.question is None:
            piece.parent = None
            return True
        if not self._questions.is_answered(piece.question):
            return False
        if not piece.question.held:
            piece.parent = None
        return True

    def _under_way(self, piece: StorePiece) -> list[StorePiece]:
        others = [other for other, _ in self._copies if other is not piece]
        return others + [other for other in self._asked.values() if not other.is_given_up]

    def _store(self, piece: StorePiece) -> None:
        groups = [TierStore() for _ in range(self._group_count)]
        groups[piece.group] = TierStore(piece.parent or b"", tuple(piece.names), tuple(piece.slots))
        try:
            key = self._client.store(piece.job.request_id, groups, self._tenant)
        except Exception as error:
            self._complaints.warn("store", "kvferry: failed to store chunks of %s: %r", piece.job.request_id, error)
            self._drop(piece)
            return
        self._asked[key] = piece

    def answered(self, event: Copied, now: float) -> None:
        """The daemon reads a piece's slots no more. What it read is vouched for here, and only here."""
        piece = self._asked.pop(event.key, None)
        if piece is None:
            self._complaints.warn("stale", "kvferry: ignored a stale answer about chunks of %s", event.request_id)
            return
        # One that is lost and still reads them cannot get them committed any more.
        self._staging.give_back(piece.slots)
        if piece.is_given_up:
            return
        failure = event.failure
        if failure == NO_TIER:
            self._questions.no_tier()
            self._fail(piece)
            return
        if failure is None:
            try:
                self._client.commit(event.key)
            except Exception as error:
                failure = repr(error)
        if failure is not None:
            self._complaints.warn("not kept", "kvferry: chunks of %s are not kept: %s", piece.job.request_id, failure)
            self._fail(piece)
            return
        self._committed[piece.group, piece.names[-1]] = now
        self._committed.move_to_end((piece.group, piece.names[-1]))
        while len(self._committed) > COMMITTED_MAX:
            self._committed.popitem(last=False)
        self._end_question(piece)
        self._jobs.settle(piece.job, piece.keys, True)

    def forget_committed(self) -> None:
        """The daemon may have another memory now."""
        self._committed.clear()

    def give_up_all(self) -> None:
        """Nothing of what is under way is kept. The caller has waited for all copies."""
        while self._waiting:
            self._fail(self._waiting.popleft())
        for piece, _ in self._copies:
            self._drop(piece)
        self._copies.clear()
        for key, piece in self._asked.items():
            if not piece.is_given_up:
                self._give_up(key, piece)
        self._committed.clear()

    def _give_up(self, key: int, piece: StorePiece) -> None:
        piece.is_given_up = True
        try:
            self._client.abort(key)
        except Exception as error:
            self._complaints.warn("abort", "kvferry: failed to call off a store: %r", error)
        self._fail(piece)

    def _drop(self, piece: StorePiece) -> None:
        self._staging.give_back(piece.slots)
        self._fail(piece)

    def _fail(self, piece: StorePiece) -> None:
        self._end_question(piece)
        self._jobs.settle(piece.job, piece.keys, False)

    def _end_question(self, piece: StorePiece) -> None:
        if piece.question is not None:
            self._questions.leave(piece.question)
