"""vLLM's transfer jobs, from their submission to the one result each.

A job is cut into parts, which go their way by themselves (loading.py, storing.py). It is over when none of them touches
vLLM's memory any more and each has come to an end; what of a load arrived is told key by key.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Job:
    """One ``TransferJob``."""

    job_id: int
    request_id: str
    is_load: bool
    started_at: float
    # When what is not done is given up.
    ends_at: float
    # Chunks that have not come to an end.
    left: int
    # Keys that were moved.
    moved: list[bytes] = field(default_factory=list)
    failed: list[bytes] = field(default_factory=list)


class Jobs:
    """Those under way, and those that vLLM has not been told about."""

    def __init__(self) -> None:
        self.open: dict[int, Job] = {}
        self._finished: list[Job] = []

    def begin(self, job: Job) -> None:
        """Takes a job in; one of nothing is over at once."""
        self.open[job.job_id] = job
        self._end_if_done(job)

    def settle(self, job: Job, keys: Iterable[bytes], is_moved: bool) -> None:
        """Some of a job's chunks have come to an end."""
        settled = list(keys)
        (job.moved if is_moved else job.failed).extend(settled)
        job.left -= len(settled)
        assert job.left >= 0, f"job {job.job_id} came to an end twice"
        self._end_if_done(job)

    def _end_if_done(self, job: Job) -> None:
        if job.left == 0:
            del self.open[job.job_id]
            self._finished.append(job)

    def take_finished(self) -> list[Job]:
        """Each job once."""
        finished, self._finished = self._finished, []
        return finished
