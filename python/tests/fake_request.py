"""Requests, blocks and clocks as the scheduler's half sees them."""

from enum import IntEnum, auto
from types import SimpleNamespace


class Status(IntEnum):
    """vLLM's RequestStatus, the part that matters."""

    WAITING = auto()
    WAITING_FOR_REMOTE_KVS = auto()
    RUNNING = auto()
    PREEMPTED = auto()
    FINISHED_STOPPED = auto()
    FINISHED_LENGTH_CAPPED = auto()
    FINISHED_ABORTED = auto()
    FINISHED_ERROR = auto()


NEW_PREFILL = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def request(request_id="r", tokens=100, params=None, status=Status.WAITING, computed=0):
    prompt = list(range(tokens)) if isinstance(tokens, int) else list(tokens)
    return SimpleNamespace(
        request_id=request_id,
        kv_transfer_params=params,
        prompt_token_ids=prompt,
        prompt_embeds=None,
        prompt_is_token_ids=None,
        num_prompt_tokens=len(prompt),
        num_tokens=len(prompt),
        num_computed_tokens=computed,
        lora_request=None,
        mm_features=[],
        status=status,
    )


def block(block_id, block_hash=None):
    return SimpleNamespace(block_id=block_id, block_hash=block_hash, is_null=block_id == 0)


def blocks(*groups):
    """Groups of block ids as vLLM's KVCacheBlocks; a negative id is a block that has a hash, so is shared."""
    listed = tuple([block(abs(b), "hash" if b < 0 else None) for b in group] for group in groups)
    return SimpleNamespace(blocks=listed)
