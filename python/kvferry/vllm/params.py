"""``kv_transfer_params``: what travels from the prefill engine through the router to the decode engine.

::

    P: offer() -> response of the prefill leg -> router, unread -> request of the decode leg -> D: read_offer()

The keys are NixlConnector's (vLLM 0.32, ``nixl/pull_scheduler.py``), so that routers and sidecars written for it pass
them through, and one of ours::

    "kvferry": {"version": 1, "ticket": "...", "digest": "<see prompt.py>"}

Only the ticket is authentic, and only the daemons can tell. Everything else may have been lost or altered on the way
and is used to notice early that a load cannot work, never to decide that one may. Readers accept any Python value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvferry.client import Granted

VERSION = 1
# Chosen: tickets are a few hundred bytes; a longer text is not one of ours and is not worth a message to the daemon.
TICKET_LENGTH_MAX = 4096
# How vLLM is told each size in which two engines have to agree.
_SIZES = {
    "tp_size": "--tensor-parallel-size",
    "dcp_size": "--decode-context-parallel-size",
    "pp_size": "--pipeline-parallel-size",
}


class MalformedError(ValueError):
    """The parameters are not what a KVFerry prefill engine of this engine's shape sends; the text says which part."""


@dataclass(frozen=True)
class HeldBlocks:
    """Which positions of one group's block list the prefill engine holds: ``first`` up to ``count``."""

    # The blocks before it have slid out of the attention window and are gone.
    first: int
    count: int


@dataclass(frozen=True)
class Offer:
    """A prefill that another engine holds for us."""

    ticket: str
    # See prompt.py.
    digest: str
    token_count: int
    groups: tuple[HeldBlocks, ...]


@dataclass(frozen=True)
class EngineFacts:
    """What routers are told about this engine."""

    engine_id: str
    tp_size: int
    dcp_size: int
    pp_size: int


def offer(
    engine: EngineFacts,
    granted: Granted,
    request_id: str,
    groups: Sequence[Sequence[int]],
    token_count: int,
    digest: str,
) -> dict[str, Any]:
    """The parameters that a finished prefill answers with; JSON all through."""
    return {
        "do_remote_prefill": True,
        "do_remote_decode": False,
        "remote_block_ids": [list(group) for group in groups],
        "remote_engine_id": engine.engine_id,
        "remote_request_id": request_id,
        "remote_host": granted.host,
        "remote_port": granted.port,
        "tp_size": engine.tp_size,
        "dcp_size": engine.dcp_size,
        "pp_size": engine.pp_size,
        "remote_num_tokens": token_count,
        "remote_blocks_expiry_time": None,
        "transfer_mode": "pull",
        "kvferry": {"version": VERSION, "ticket": granted.ticket, "digest": digest},
    }


def wants_prefill(params: object) -> bool:
    """Whether the blocks of this request are to be fetched from elsewhere."""
    return isinstance(params, dict) and params.get("do_remote_prefill") is True


def wants_decode(params: object) -> bool:
    """Whether the blocks of this request are to be kept for elsewhere."""
    return isinstance(params, dict) and params.get("do_remote_decode") is True


def find_ticket(params: object) -> str | None:
    """The ticket, where there is something that looks like one, however broken the rest is."""
    ours = params.get("kvferry") if isinstance(params, Mapping) else None
    ticket = ours.get("ticket") if isinstance(ours, Mapping) else None
    if isinstance(ticket, str) and 0 < len(ticket) <= TICKET_LENGTH_MAX:
        return ticket
    return None


def read_offer(params: object, group_count: int, engine: EngineFacts) -> Offer:
    """Reads the parameters of a request that ``engine`` is to decode.

    Raises:
        MalformedError: for anything but what ``offer`` makes, or from an engine whose KV cache is spread differently.
    """
    if not isinstance(params, Mapping):
        raise MalformedError("not a mapping")
    ours = params.get("kvferry")
    if not isinstance(ours, Mapping):
        raise MalformedError("no kvferry part: the prefill engine runs another connector, or the router dropped it")
    version = ours.get("version")
    if type(version) is not int or version != VERSION:
        raise MalformedError(f"kvferry version is not {VERSION}: both engines need the same release")
    ticket = find_ticket(params)
    if ticket is None:
        raise MalformedError("no ticket")
    digest = ours.get("digest")
    if not isinstance(digest, str):
        raise MalformedError("no digest")
    _check_sizes(params, engine)
    token_count = params.get("remote_num_tokens")
    if type(token_count) is not int or token_count <= 0:
        raise MalformedError("remote_num_tokens is not a positive number")
    lists = params.get("remote_block_ids")
    if not isinstance(lists, (list, tuple)) or len(lists) != group_count:
        raise MalformedError(f"remote_block_ids is not a list of {group_count} lists")
    return Offer(ticket, digest, token_count, tuple(held_blocks(blocks) for blocks in lists))


def _check_sizes(params: Mapping[str, Any], engine: EngineFacts) -> None:
    # The daemon would refuse the ticket, since fingerprints differ; here the text can say what to do about it.
    for name, flag in _SIZES.items():
        theirs, ours = params.get(name), getattr(engine, name)
        if type(theirs) is not int:
            raise MalformedError(f"{name} is not a number: the router dropped or altered it")
        if theirs != ours:
            raise MalformedError(
                f"{name} is {theirs} on the prefill engine and {ours} on this one, so that a rank's blocks hold other "
                f"parts of the model: start both with the same {flag}"
            )


def held_blocks(blocks: object) -> HeldBlocks:
    """Which positions of a block list are there.

    Raises:
        MalformedError: it is no list of block ids, or has null blocks where vLLM puts none.
    """
    if not isinstance(blocks, (list, tuple)) or any(type(block) is not int or block < 0 for block in blocks):
        raise MalformedError("remote_block_ids holds something that is not a list of block ids")
    # Block 0 is vLLM's null block: it stands where a block has slid out of the window.
    first = next((index for index, block in enumerate(blocks) if block), len(blocks))
    if 0 in blocks[first:]:
        raise MalformedError("remote_block_ids has a null block behind a real one")
    return HeldBlocks(first, len(blocks))
