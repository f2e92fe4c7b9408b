"""The scheduler's half with a scripted client, and prefills and decodes to give it."""

import json

from fake_client import FakeClient
from fake_request import NEW_PREFILL, Clock, Status, request

from kvferry.vllm.groups import GroupShape
from kvferry.vllm.params import EngineFacts
from kvferry.vllm.scheduler import SchedulerSide
from kvferry.vllm.settings import Settings

ENGINE = EngineFacts("E0", 1, 1, 1)
ONE = (GroupShape(0, 16),)
HYBRID = (GroupShape(0, 16), GroupShape(1, 16, window=32))


class Rig:
    def __init__(self, groups=ONE, adapters=None):
        self.clock = Clock()
        self.client = FakeClient()
        self.side = SchedulerSide(Settings(), self.client, groups, ENGINE, self.clock, adapters=adapters)

    def prefill(self, request_id="p", tokens=100, ids=(range(1, 8),), **fields):
        done = request(request_id, tokens, dict(NEW_PREFILL), Status.FINISHED_LENGTH_CAPPED, computed=tokens)
        vars(done).update(fields)
        return self.side.request_finished(done, tuple(list(group) for group in ids))

    def offer(self, tokens=100, **changes):
        """Parameters as another engine's prefill made them and a router brought them."""
        other = Rig(self.side._groups)
        counts = [group.block_count(tokens) for group in other.side._groups]
        firsts = [group.first_needed(tokens) for group in other.side._groups]
        ids = [[0] * first + list(range(50, 50 + n - first)) for n, first in zip(counts, firsts, strict=True)]
        kept, params = other.prefill(tokens=tokens, ids=ids)
        assert kept
        return {**json.loads(json.dumps(params)), **changes}

    def decode(self, request_id="d", tokens=100, **changes):
        return request(request_id, tokens, self.offer(tokens, **changes))
