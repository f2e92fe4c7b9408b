"""The scheduler's half with a daemon that has tiers, requests whose blocks have names, and steps to give it."""

from types import SimpleNamespace

from fake_request import blocks, request
from scheduler_rig import ENGINE, ONE
from scheduler_rig import Rig as PlainRig

from kvferry.vllm.scheduler import SchedulerSide
from kvferry.vllm.settings import Settings

DAEMON_NAMES = [bytes([n]) * 32 for n in range(200)]


def named(tokens=100, request_id="r", **fields):
    new = request(request_id, tokens)
    new.block_hashes = DAEMON_NAMES[: tokens // 16]
    vars(new).update(fields)
    return new


def output(computed, scheduled, tables, new=(), resumed=()):
    """What vLLM's scheduler says of a step: by request, tokens computed before, scheduled now, and tables."""
    cached = [request_id for request_id in scheduled if request_id not in new]
    return SimpleNamespace(
        scheduled_new_reqs=[
            SimpleNamespace(req_id=i, block_ids=tables[i], num_computed_tokens=computed[i]) for i in new
        ],
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=cached,
            new_block_ids=[tables[i] if i in resumed else None for i in cached],
            num_computed_tokens=[computed[i] for i in cached],
            resumed_req_ids=set(resumed),
        ),
        num_scheduled_tokens=scheduled,
        kv_connector_block_state=SimpleNamespace(get_block_ids=tables.get),
        kv_cache_block_copies=None,
    )


NOTHING = output({}, {}, {})


class Rig(PlainRig):
    def __init__(self, groups=ONE, hash_block_size=16, namespace="", adapters=None):
        super().__init__(groups)
        self.client.tiers = True
        settings = Settings(namespace=namespace)
        self.side = SchedulerSide(settings, self.client, groups, ENGINE, self.clock, hash_block_size, True, adapters)

    def ask(self, of, local=0):
        return self.side.get_num_new_matched_tokens(of, local)

    def answer(self, *held, on_disk=None, key=None):
        self.client.found(key or max(self.client.lookups), held, on_disk or (0,) * len(held))

    def matched(self, of, *held, local=0, on_disk=None):
        assert self.ask(of, local) == (None, False)
        self.answer(*held, on_disk=on_disk)
        return self.ask(of, local)

    def step(self, out=NOTHING):
        return self.side.build_connector_meta(out)


def admitted(rig, of, held=None):
    rig.ask(of)
    if held is not None:
        rig.answer(held)
        rig.ask(of)
    rig.side.update_state_after_alloc(of, blocks([]), 0)
