"""A digest of what the blocks of a prompt were computed from, and of which blocks those are.

A ticket proves whose blocks they are, not that they belong to this prompt: a router may mix two requests up, and the
two engines may tokenise one text differently. The prefill engine sends this digest along and the decode engine
compares it with its own prompt, and with the rest of what it was sent, before it asks for anything.
"""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Iterable
from typing import Any

from kvferry.vllm.params import HeldBlocks


def prompt_digest(request: Any, token_count: int, groups: Iterable[HeldBlocks], adapter: bytes | None) -> str | None:
    """SHA-256 over the first ``token_count`` tokens, whatever else their KV depends on, and what is held of it.

    Args:
        request: vLLM's.
        token_count: how many of its tokens.
        groups: what is held of each group.
        adapter: what the request's LoRA adapter contains (adapters.py): empty: it has none; None: nobody knows.

    Returns:
        None where the prompt is not made of ``token_count`` tokens (it is shorter, or holds embeddings), or where it is
        not known what its KV depends on.
    """
    if adapter is None:
        return None
    tokens = request.prompt_token_ids
    if tokens is None or len(tokens) < token_count:
        return None
    if getattr(request, "prompt_embeds", None) is not None or getattr(request, "prompt_is_token_ids", None) is not None:
        return None
    words = array("I", tokens[:token_count])
    if words.itemsize != 4:
        raise RuntimeError("array('I') is not 32 bits wide here")
    if sys.byteorder == "big":
        words.byteswap()
    digest = hashlib.sha256(f"kvferry prompt 1 {token_count}\0".encode())
    digest.update(words.tobytes())
    lora = getattr(request, "lora_request", None)
    # An adapter's path may be another on another node, and its content another under the same path.
    digest.update(f"\0lora {getattr(lora, 'lora_name', '')!r}{adapter.hex()}".encode())
    # Images and sounds are placeholder tokens in the prompt; their identity is their content's hash.
    for feature in getattr(request, "mm_features", None) or ():
        position = feature.mm_position
        digest.update(f"\0mm {feature.identifier!r} {position.offset} {position.length}".encode())
    for held in groups:
        digest.update(f"\0held {held.first} {held.count}".encode())
    return digest.hexdigest()
