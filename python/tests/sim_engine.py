"""A model of vLLM's scheduler and workers around the two halves of the connector, with vLLM's own assertions.

Written after vLLM 0.32: ``v1/core/sched/scheduler.py`` (schedule, finish_requests, update_from_output and what they
call), ``KVOutputAggregator``, and the order of hooks in a worker's step. Simplified: a request computes all its tokens
in one step, and samples one more in each further one. ``depth`` steps may be in flight, as with asynchronous
scheduling or pipelines. Block contents are modelled: a block holds what was last written to it.
"""

import pickle
from collections import deque
from types import SimpleNamespace

from fake_request import Status, block, request

from kvferry.vllm.params import EngineFacts
from kvferry.vllm.scheduler import SchedulerSide
from kvferry.vllm.settings import Settings
from kvferry.vllm.worker import WorkerSide

FREE = ((), None, None)


class Engine:
    def __init__(self, name, node, groups, clock, rng, ranks=1, depth=1, pool=60, policy="recompute"):
        self.name, self.groups, self.rng, self.ranks, self.depth, self.policy = name, groups, rng, ranks, depth, policy
        settings = Settings()
        self.side = SchedulerSide(settings, node.scheduler_client(self), groups, EngineFacts(name, ranks, 1, 1), clock)
        self.workers = [WorkerSide(settings, node.worker_client(self, rank), clock) for rank in range(ranks)]
        self.pool = pool
        self.free = list(range(1, pool + 1))
        # What each rank's memory holds, by block: (prompt, group, position), or nothing of use.
        self.memory = [{} for _ in range(ranks)]
        self.requests, self.waiting, self.running = {}, [], []
        self.finished_recving, self.failed_recving = set(), set()
        self.in_flight = deque()
        self.results = {}
        self.counts = {"sending": {}, "recving": {}}
        self.failed_pending = set()
        # How many loads were decoded from.
        self.received = 0

    # -- what a client does ---------------------------------------------------------------------------------------

    def add(self, request_id, prompt, params, max_tokens=1, local=0):
        """``local``: tokens that this engine's own cache holds."""
        new = request(request_id, prompt, params)
        new.max_tokens, new.local, new.table, new.made, new.epoch = max_tokens, local, None, 0, None
        assert request_id not in self.requests, "duplicate request id"
        self.requests[request_id] = new
        self.waiting.append(new)

    def abort(self, request_id):
        self.finish({request_id}, Status.FINISHED_ABORTED)

    def has_requests(self):
        return bool(self.requests or self.in_flight)

    # -- a step ---------------------------------------------------------------------------------------------------

    def step(self):
        """One turn of the core's loop: schedule, and process the oldest output when the pipeline is full."""
        if self.requests:
            scheduled, meta = self.schedule()
            sent = pickle.dumps(meta)
            self.in_flight.append((scheduled, [self.execute(worker, sent) for worker in self.workers]))
        if self.in_flight and (len(self.in_flight) >= self.depth or not self.requests):
            self.update(*self.in_flight.popleft())

    def schedule(self):
        for waiting in list(self.waiting):
            if waiting.status == Status.WAITING_FOR_REMOTE_KVS and not self.promote(waiting):
                continue
            if waiting.num_computed_tokens == 0 and not self.admit(waiting):
                continue
            self.waiting.remove(waiting)
            waiting.status = Status.RUNNING
            self.running.append(waiting)
        if self.running and self.rng.random() < 0.03:
            self.preempt(self.rng.choice(self.running))
        for running in list(self.running):
            while running in self.running and not self.compute(running):
                # Out of blocks: the last one in makes room, as in vLLM.
                self.preempt(self.running[-1])
        return [(running, running.epoch) for running in self.running], self.side.build_connector_meta(None)

    def promote(self, waiting):
        if waiting.request_id not in self.finished_recving:
            return False
        self.finished_recving.remove(waiting.request_id)
        if waiting.request_id in self.failed_recving:
            self.failed_recving.remove(waiting.request_id)
            assert waiting.num_computed_tokens == 0
            self.release(waiting)
        else:
            self.check_received(waiting)
        waiting.status = Status.WAITING
        return True

    def admit(self, waiting):
        local = waiting.local if self.rng.random() < 0.8 else 0
        external, asynchronous = self.side.get_num_new_matched_tokens(waiting, local)
        assert external >= 0
        assert asynchronous == (external > 0)
        total = local + external
        assert total <= waiting.num_tokens
        wanted = total if asynchronous else waiting.num_tokens
        table = self.allocate(waiting, local, wanted)
        if table is None:
            return False
        waiting.table = table
        self.side.update_state_after_alloc(waiting, self.listed(table, local), external)
        waiting.epoch = object()
        if asynchronous:
            waiting.status = Status.WAITING_FOR_REMOTE_KVS
            waiting.num_computed_tokens = total
            return False
        waiting.num_computed_tokens = local
        return True

    def allocate(self, waiting, local, wanted):
        """A table of blocks for each group, null where the window has passed; None when there are too few."""
        shape = [(group.first_needed(wanted), group.block_count(wanted)) for group in self.groups]
        if sum(count - first for first, count in shape) > len(self.free):
            return None
        self.rng.shuffle(self.free)
        table = [[0] * first + [self.free.pop() for _ in range(count - first)] for first, count in shape]
        for group, ids in zip(self.groups, table, strict=True):
            for position, block_id in enumerate(ids[: local // group.block_size]):
                self.write(block_id, self.content(waiting, group, position))
        return table

    def listed(self, table, local):
        listed = []
        for group, ids in zip(self.groups, table, strict=True):
            whole = local // group.block_size
            listed.append([block(b, "hash" if b and position < whole else None) for position, b in enumerate(ids)])
        return SimpleNamespace(blocks=tuple(listed))

    def compute(self, running):
        """A forward pass over what is not computed yet, which writes the blocks it covers; False: out of blocks."""
        computed = running.num_computed_tokens
        if computed >= running.num_tokens:
            return True
        for group, ids in zip(self.groups, running.table, strict=True):
            missing = group.block_count(running.num_tokens) - len(ids)
            if missing > len(self.free):
                return False
            ids.extend(self.free.pop() for _ in range(missing))
            for position in range(computed // group.block_size, len(ids)):
                if ids[position]:
                    self.write(ids[position], self.content(running, group, position))
        running.num_computed_tokens = running.num_tokens
        return True

    def preempt(self, running):
        self.running.remove(running)
        self.release(running)
        running.status, running.num_computed_tokens = Status.PREEMPTED, 0
        running.epoch = None
        self.waiting.insert(0, running)

    def execute(self, worker, sent):
        meta = pickle.loads(sent)
        worker.obey(meta)
        return worker.report()

    def update(self, scheduled, reports):
        sending, recving, failed = self.aggregate(reports)
        errors = set()
        for request_id in failed:
            known = self.requests.get(request_id)
            if known is not None and known.status == Status.WAITING_FOR_REMOTE_KVS:
                if self.policy == "recompute":
                    known.num_computed_tokens = 0
                    self.failed_recving.add(request_id)
                else:
                    errors.add(request_id)
        for running, epoch in scheduled:
            if running.status != Status.RUNNING or running.epoch is not epoch:
                continue
            if running.num_computed_tokens >= running.num_tokens:
                self.sample(running)
        self.finish(errors, Status.FINISHED_ERROR)
        self.side.loads_over(recving or None)
        for request_id in recving:
            assert request_id in self.requests, f"{request_id} is not known: this kills vLLM"
            known = self.requests[request_id]
            if known.status == Status.WAITING_FOR_REMOTE_KVS:
                assert request_id not in self.finished_recving
                self.finished_recving.add(request_id)
            else:
                assert known.status >= Status.FINISHED_STOPPED
                self.forget(known)
        for request_id in sending:
            assert request_id in self.requests, f"{request_id} is not known: this kills vLLM"
            assert self.requests[request_id].status >= Status.FINISHED_STOPPED
            self.forget(self.requests[request_id])

    def aggregate(self, reports):
        """KVOutputAggregator: an id counts once every rank has reported it."""
        whole = {"sending": set(), "recving": set()}
        for report in reports:
            for kind, ids in (("sending", report.finished_sending), ("recving", report.finished_recving)):
                for request_id in ids:
                    self.counts[kind][request_id] = self.counts[kind].get(request_id, self.ranks) - 1
                    if self.counts[kind][request_id] == 0:
                        del self.counts[kind][request_id]
                        whole[kind].add(request_id)
            self.failed_pending |= report.failed_recving
        failed = self.failed_pending & whole["recving"]
        self.failed_pending -= failed
        return whole["sending"], whole["recving"], failed

    def sample(self, running):
        running.made += 1
        if running.made >= running.max_tokens:
            self.running.remove(running)
            running.status = self.rng.choice([Status.FINISHED_LENGTH_CAPPED, Status.FINISHED_STOPPED])
            self.end(running, False)
        else:
            running.num_tokens += 1

    def finish(self, request_ids, status):
        for request_id in request_ids:
            known = self.requests.get(request_id)
            if known is None or known.status >= Status.FINISHED_STOPPED:
                continue
            (self.running if known in self.running else self.waiting).remove(known)
            delay = known.status == Status.WAITING_FOR_REMOTE_KVS and request_id not in self.finished_recving
            self.finished_recving.discard(request_id)
            self.failed_recving.discard(request_id)
            known.status = status
            self.end(known, delay)

    def end(self, known, delay):
        table = known.table or [[] for _ in self.groups]
        clipped = [ids[: g.block_count(known.num_computed_tokens)] for g, ids in zip(self.groups, table, strict=True)]
        # remove_skipped_blocks: what has slid out of the window is freed before the connector sees the table.
        for group, ids in zip(self.groups, clipped, strict=True):
            for position in range(min(group.first_needed(known.num_computed_tokens), len(ids))):
                ids[position] = 0
        kept, params = self.side.request_finished(known, tuple(clipped))
        self.results[known.request_id] = (known.status, params)
        if not (delay or kept):
            self.forget(known)

    def forget(self, known):
        self.release(known)
        del self.requests[known.request_id]

    # -- memory ---------------------------------------------------------------------------------------------------

    def release(self, known):
        for ids in known.table or ():
            for block_id in ids:
                if block_id:
                    # Whoever gets it next writes to it.
                    self.write(block_id, FREE)
                    self.free.append(block_id)
        known.table = None

    def write(self, block_id, content):
        for memory in self.memory:
            memory[block_id] = content

    @staticmethod
    def content(known, group, position):
        covered = min((position + 1) * group.block_size, known.num_prompt_tokens)
        return (tuple(known.prompt_token_ids[:covered]), group.group_id, position)

    def owns(self, request_id, block_id):
        known = self.requests.get(request_id)
        return known is not None and any(block_id in ids for ids in known.table or ())

    def check_received(self, known):
        """No token is decoded from KV that is not what this prompt's prefill computed."""
        for group, ids in zip(self.groups, known.table, strict=True):
            for position in range(group.first_needed(known.num_computed_tokens), len(ids)):
                needed = min((position + 1) * group.block_size, known.num_computed_tokens)
                for memory in self.memory:
                    tokens, group_id, place = memory[ids[position]]
                    assert tokens[:needed] == tuple(known.prompt_token_ids[:needed]), "KV of another prompt"
                    assert (group_id, place) == (group.group_id, position), "KV of another place"
        self.received += 1
