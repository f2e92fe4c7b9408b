"""A model of vLLM's scheduler and workers around the two halves of the connector, with vLLM's own assertions.

Written after vLLM 0.32: ``v1/core/sched/scheduler.py`` (schedule, finish_requests, update_from_output and what they
call), ``KVOutputAggregator``, and the order of hooks in a worker's step. Simplified: a request computes in chunks of a
fixed size, and samples one token in each further step. ``depth`` steps may be in flight, as with asynchronous
scheduling or pipelines; the workers do them in order, some time after they were scheduled. Block contents are modelled:
a block holds what was last written to it, also when it is free.
"""

import pickle
from collections import deque
from types import SimpleNamespace

from fake_request import Status, block, request
from sim_pool import HASH_TOKENS, Pool, hash_of

from kvferry.vllm.metadata import ClearedReport
from kvferry.vllm.params import EngineFacts
from kvferry.vllm.scheduler import SchedulerSide
from kvferry.vllm.settings import Settings
from kvferry.vllm.worker import WorkerSide

CHUNK = 64


class Engine:
    def __init__(self, name, node, groups, clock, rng, ranks=1, depth=1, pool=60, policy="recompute"):
        self.name, self.groups, self.rng, self.ranks, self.depth, self.policy = name, groups, rng, ranks, depth, policy
        # Turns of the clock are longer than a daemon takes: only what hangs is not answered in time.
        settings = Settings(reply_timeout_ms=1000)
        facts = EngineFacts(name, ranks, 1, 1)
        self.side = SchedulerSide(settings, node.scheduler_client(self), groups, facts, clock, HASH_TOKENS, True)
        self.world = node.world
        clients = [node.worker_client(self, rank) for rank in range(ranks)]
        self.workers = [WorkerSide(settings, client, clock, self.world.sleep) for client in clients]
        self.pool = Pool(pool, rng)
        # What each rank's memory holds, by block: (tokens, group, position, weights).
        self.memory = [{} for _ in range(ranks)]
        # Counts up when the weights change; what was computed before is of no use after.
        self.weights = 0
        self.requests, self.waiting, self.running = {}, [], []
        self.finished_recving, self.failed_recving = set(), set()
        self.in_flight = deque()
        self.results = {}
        # How often the workers are behind the scheduler, where they may be.
        self.lag = 0.5
        self.counts = {"sending": {}, "recving": {}}
        self.failed_pending = set()
        # How many loads were decoded from, and how many tokens of them the local tiers had.
        self.received = self.near = 0

    # -- what a client does ---------------------------------------------------------------------------------------

    def add(self, request_id, prompt, params, max_tokens=1, salt=None):
        new = request(request_id, prompt, params)
        new.max_tokens, new.table, new.made, new.epoch, new.cache_salt = max_tokens, None, 0, None, salt
        new.tokens, new.block_hashes, new.weights, new.near = list(prompt), [], 0, 0
        self.hash_blocks(new)
        assert request_id not in self.requests, "duplicate request id"
        self.requests[request_id] = new
        self.waiting.append(new)

    @staticmethod
    def hash_blocks(known):
        for end in range((len(known.block_hashes) + 1) * HASH_TOKENS, len(known.tokens) + 1, HASH_TOKENS):
            known.block_hashes.append(hash_of(known.tokens[:end], known.cache_salt))

    def change_weights(self):
        """``reset_prefix_cache(reset_running_requests=True, reset_connector=True)``, which raises in use."""
        while self.running:
            self.preempt(self.running[-1])
        if self.pool.reset():
            self.weights += 1
            assert self.side.reset_cache()

    def abort(self, request_id):
        self.finish({request_id}, Status.FINISHED_ABORTED)

    def has_requests(self):
        return bool(self.requests or self.in_flight)

    # -- a step ---------------------------------------------------------------------------------------------------

    def step(self):
        """One turn of the core's loop: schedule, and process the oldest output when the pipeline is full."""
        if self.requests:
            self.in_flight.append(self.schedule())
        for flight in self.in_flight:
            # In order, and at the latest when its output is wanted.
            if flight.reports is None:
                if flight is not self.in_flight[0] and self.rng.random() < self.lag:
                    break
                self.execute(flight)
        if self.in_flight and (len(self.in_flight) >= self.depth or not self.requests):
            flight = self.in_flight.popleft()
            self.update(flight.scheduled, flight.reports)

    def schedule(self):
        self.admitted, self.grown, self.writes = {}, {}, []
        for waiting in list(self.waiting):
            if waiting.status == Status.WAITING_FOR_REMOTE_KVS and not self.promote(waiting):
                continue
            if waiting.num_computed_tokens == 0 and not self.admit(waiting):
                continue
            if waiting.request_id not in self.admitted:
                self.side.update_state_after_alloc(waiting, self.listed(waiting.table, 0), 0)
                self.admitted[waiting.request_id] = waiting.num_computed_tokens
            self.waiting.remove(waiting)
            waiting.status = Status.RUNNING
            self.running.append(waiting)
        if self.running and self.rng.random() < 0.03:
            self.preempt(self.rng.choice(self.running))
        computed, scheduled = {}, []
        for running in list(self.running):
            before = running.num_computed_tokens
            while running in self.running and not self.compute(running):
                # Out of blocks: the last one in makes room, as in vLLM.
                self.preempt(self.running[-1])
            if running in self.running and running.num_computed_tokens > before:
                computed[running.request_id] = before
                is_last = running.num_computed_tokens >= running.num_tokens
                scheduled.append((running, running.epoch, is_last))
        meta = self.side.build_connector_meta(self.output(computed))
        return SimpleNamespace(scheduled=scheduled, sent=pickle.dumps(meta), writes=self.writes, reports=None)

    def output(self, computed):
        """vLLM's SchedulerOutput; resumed requests as the one or the other of its runners has them."""
        new, cached = [], SimpleNamespace(req_ids=[], new_block_ids=[], num_computed_tokens=[], resumed_req_ids=set())
        for request_id, before in computed.items():
            table = tuple(list(ids) for ids in self.requests[request_id].table)
            is_new = request_id in self.admitted
            if is_new and self.rng.random() < 0.5:
                new.append(SimpleNamespace(req_id=request_id, block_ids=table, num_computed_tokens=before))
                continue
            cached.req_ids.append(request_id)
            cached.num_computed_tokens.append(before)
            cached.new_block_ids.append(table if is_new else self.grown.get(request_id))
            if is_new:
                cached.resumed_req_ids.add(request_id)
        return SimpleNamespace(
            scheduled_new_reqs=new,
            scheduled_cached_reqs=cached,
            num_scheduled_tokens={i: self.requests[i].num_computed_tokens - before for i, before in computed.items()},
            kv_connector_block_state=SimpleNamespace(get_block_ids=lambda i: self.requests[i].table),
            kv_cache_block_copies=None,
        )

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
        local, shared = self.local_hit(waiting)
        external, asynchronous = self.side.get_num_new_matched_tokens(waiting, local)
        if external is None:
            assert not asynchronous
            return False
        assert external >= 0
        assert asynchronous == (external > 0)
        total = local + external
        assert total <= waiting.num_tokens
        wanted = total if asynchronous else min(waiting.num_tokens, local + CHUNK)
        table = self.allocate(shared, wanted)
        if table is None:
            return False
        waiting.table, waiting.weights = table, self.weights
        self.side.update_state_after_alloc(waiting, self.listed(table, local), external)
        waiting.epoch = object()
        if asynchronous:
            waiting.status = Status.WAITING_FOR_REMOTE_KVS
            waiting.num_computed_tokens = total
            assert sum(self.side.hits) == external
            waiting.near = sum(self.side.hits[:2])
            return False
        waiting.num_computed_tokens = local
        self.admitted[waiting.request_id] = local
        return True

    def local_hit(self, waiting):
        """The longest beginning of which every group has here what is looked at."""
        for tokens in range((waiting.num_tokens - 1) // 32 * 32, 0, -32):
            shared = [
                [0] * first + [self.pool.find(group.group_id, self.hash_at(waiting, group, p)) for p in range(first, n)]
                for group in self.groups
                for first, n in [(group.first_needed(tokens), tokens // group.block_size)]
            ]
            if all(block_id is not None for ids in shared for block_id in ids):
                return tokens, shared
        return 0, [[] for _ in self.groups]

    @staticmethod
    def hash_at(known, group, position):
        return known.block_hashes[(position + 1) * (group.block_size // HASH_TOKENS) - 1]

    def allocate(self, shared, wanted):
        """A table of blocks for each group, null where the window has passed; None when there are too few."""
        shape = [(group.first_needed(wanted), group.block_count(wanted)) for group in self.groups]
        fresh = sum(n - max(first, len(ids)) for (first, n), ids in zip(shape, shared, strict=True))
        shared = [[0] * min(first, len(ids)) + ids[first:] for (first, _), ids in zip(shape, shared, strict=True)]
        held = {b for ids in shared for b in ids if b and self.pool.users[b] == 0}
        if fresh > len(self.pool.free) - len(held):
            return None
        for ids in shared:
            for block_id in filter(None, ids):
                self.pool.share(block_id)
        table = []
        for (first, count), ids in zip(shape, shared, strict=True):
            ids = [0] * first + ids[first:]
            table.append(ids + [self.pool.take() for _ in range(count - len(ids))])
        return table

    def listed(self, table, local):
        listed = []
        for group, ids in zip(self.groups, table, strict=True):
            whole = local // group.block_size
            listed.append([block(b, "hash" if b and position < whole else None) for position, b in enumerate(ids)])
        return SimpleNamespace(blocks=tuple(listed))

    def compute(self, running):
        """A forward pass over a chunk of what is not computed yet; False: out of blocks."""
        computed = running.num_computed_tokens
        total = min(running.num_tokens, computed + CHUNK)
        if computed >= total:
            return True
        self.drop_passed(running, computed)
        missing = [group.block_count(total) - len(ids) for group, ids in zip(self.groups, running.table, strict=True)]
        if sum(max(0, count) for count in missing) > len(self.pool.free):
            return False
        fresh = tuple([self.pool.take() for _ in range(count)] for count in missing)
        if any(fresh):
            self.grown[running.request_id] = fresh
        for group, ids, new in zip(self.groups, running.table, fresh, strict=True):
            ids.extend(new)
            for position in range(computed // group.block_size, group.block_count(total)):
                if ids[position]:
                    self.writes.append((ids[position], self.content(running, group, position, total)))
        self.name_blocks(running, total)
        running.num_computed_tokens = total
        return True

    def drop_passed(self, running, computed):
        """What has slid out of the window is freed, whoever may still be copying it."""
        for group, ids in zip(self.groups, running.table, strict=True):
            for position in range(min(group.first_needed(computed), len(ids))):
                if ids[position]:
                    self.pool.put_back(ids[position])
                    ids[position] = 0

    def name_blocks(self, known, total):
        for group, ids in zip(self.groups, known.table, strict=True):
            for position in range(min(total, len(known.block_hashes) * HASH_TOKENS) // group.block_size):
                if ids[position]:
                    self.pool.name(group.group_id, self.hash_at(known, group, position), ids[position])

    def preempt(self, running):
        self.running.remove(running)
        self.release(running)
        running.status, running.num_computed_tokens = Status.PREEMPTED, 0
        running.epoch = None
        self.waiting.insert(0, running)

    def execute(self, flight):
        flight.reports = []
        for rank, worker in enumerate(self.workers):
            meta = pickle.loads(flight.sent)
            self.world.nudge()
            worker.begin_step(meta)
            self.world.nudge()
            for block_id, content in flight.writes:
                self.memory[rank][block_id] = content
            worker.obey(meta)
            worker.end_step()
            report = worker.report()
            report.cleared = worker.take_cleared()
            flight.reports.append(report)

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
        for running, epoch, is_last in scheduled:
            if running.status == Status.RUNNING and running.epoch is epoch and is_last:
                self.sample(running)
        self.finish(errors, Status.FINISHED_ERROR)
        self.side.loads_over(recving or None, failed)
        if reports[0].cleared:
            assert all(report.cleared for report in reports)
            self.side.workers_said(ClearedReport())
        self.check_changes(self.side.tiers.take_changes())
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
            running.tokens.append(7000 + running.made)
            self.hash_blocks(running)

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
        if known.table is not None:
            # remove_skipped_blocks: what has slid out of the window is freed before the connector sees the table.
            self.drop_passed(known, known.num_computed_tokens)
        table = known.table or [[] for _ in self.groups]
        clipped = [ids[: g.block_count(known.num_computed_tokens)] for g, ids in zip(self.groups, table, strict=True)]
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
                    self.pool.put_back(block_id)
        known.table = None

    @staticmethod
    def content(known, group, position, total):
        covered = min((position + 1) * group.block_size, total)
        return (tuple(known.tokens[:covered]), group.group_id, position, known.weights)

    def owns(self, request_id, block_id):
        known = self.requests.get(request_id)
        return known is not None and any(block_id in ids for ids in known.table or ())

    def check_received(self, known):
        """No token is decoded from KV that is not what this prompt's prefill computed."""
        for group, ids in zip(self.groups, known.table, strict=True):
            for position in range(group.first_needed(known.num_computed_tokens), len(ids)):
                needed = min((position + 1) * group.block_size, known.num_computed_tokens)
                for memory in self.memory:
                    tokens, group_id, place, _ = memory[ids[position]]
                    assert tokens[:needed] == tuple(known.tokens[:needed]), "KV of another prompt"
                    assert (group_id, place) == (group.group_id, position), "KV of another place"
        self.received += 1
        self.near += known.near
        self.name_blocks(known, known.num_computed_tokens)

    def check_changes(self, changes):
        for tier, _, group_id, hashes in changes:
            assert tier in ("host", "disk")
            assert group_id in [group.group_id for group in self.groups]
            assert all(len(block_hash) == 32 for block_hash in hashes)
