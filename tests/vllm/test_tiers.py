"""Blocks that outlive engines and daemons: computed once, then loaded, with the same text and the same bytes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from harness.completions import fresh_salt
from harness.engine import BLOCK_TOKENS, PREFILL, TINY_LLAMA, Engine, EngineOptions, kvferry_connector
from node import Node, tiered_node
from pair import BLOCKS, random_prompt

# 31 full blocks and a half.
PROMPT_TOKENS = 1_008


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with tiered_node("tiers") as node:
        yield node


def test_cold_warm_and_after_both_restarts(node: Node) -> None:
    prompt = random_prompt(7, PROMPT_TOKENS)
    full = PROMPT_TOKENS // BLOCK_TOKENS
    before = node.sums()
    cold = node.ask(prompt)
    assert node.loaded_bytes() == 0
    node.wait_stored(full)
    # What a prompt's blocks hold: what came to be in the engine's memory.
    computed = node.sums() - before
    assert len(computed) >= full

    node.restart_engine()
    assert not computed & node.sums(), "a new engine's memory is empty"
    loaded = node.loaded_bytes()
    assert node.ask(prompt) == cold
    # vLLM computes the last token itself, which is in a block of its own here.
    assert node.loaded_bytes() - loaded == full * TINY_LLAMA.block_bytes
    assert len(computed & node.sums()) >= full

    node.restart_daemon()
    node.restart_engine()
    assert node.ask(prompt) == cold
    assert node.loaded_bytes() == full * TINY_LLAMA.block_bytes, "counted from the daemon's start"
    assert len(computed & node.sums()) >= full


def test_from_the_disk_when_memory_is_lost(node: Node) -> None:
    prompt = random_prompt(13, PROMPT_TOKENS)
    full = PROMPT_TOKENS // BLOCK_TOKENS
    before = node.sums()
    stored = node.host_blocks()
    cold = node.ask(prompt)
    node.wait_stored(stored + full)
    computed = node.sums() - before
    on_disk = node.daemon.status().tiers["disk"]["blocks"]
    # Used again, it goes to the disk.
    node.restart_engine()
    assert node.ask(prompt) == cold
    node.daemon.wait_for(lambda status: status.tiers["disk"]["blocks"] >= on_disk + full, "writing", 20)
    node.lose_memory()
    node.restart_engine()
    assert node.ask(prompt) == cold
    tiers = node.daemon.status().tiers
    assert tiers["loaded_disk_bytes_total"] == tiers["loaded_bytes_total"] == full * TINY_LLAMA.block_bytes
    assert len(computed & node.sums()) >= full


def test_a_hand_over_moves_only_what_no_tier_has(node: Node) -> None:
    prompt = random_prompt(14, 640)
    known = 320
    stored = node.host_blocks()
    node.ask(prompt[:known])
    node.wait_stored(stored + known // BLOCK_TOKENS)
    node.restart_engine()
    # It keeps nothing in the tier that both engines share.
    connector = kvferry_connector(node.daemon.socket, tier=False)
    prefill = Engine(node.stage, EngineOptions(TINY_LLAMA, "P0", BLOCKS, connector, forked=True, thread_count=1))
    try:
        prefill.wait_ready()
        node.daemon.wait_attached("P0")
        offered = prefill.server.complete(prompt, 1, kv_transfer_params=PREFILL)
        assert offered.status == 200, offered.text
        loaded = node.loaded_bytes()
        answer = node.ask(prompt, kv_transfer_params=offered.kv_transfer_params)
    finally:
        prefill.kill()
    transfer = node.daemon.status().finished[-1]
    assert transfer.outcome == "delivered"
    assert len(transfer.target_blocks) == (len(prompt) - known) // BLOCK_TOKENS
    assert node.loaded_bytes() - loaded == known // BLOCK_TOKENS * TINY_LLAMA.block_bytes
    assert answer == node.ask(prompt, **fresh_salt())


def test_a_salt_keeps_what_is_stored_to_itself(node: Node) -> None:
    prompt = random_prompt(8, PROMPT_TOKENS)
    cold = node.ask(prompt)
    node.wait_stored(PROMPT_TOKENS // BLOCK_TOKENS)
    loaded = node.loaded_bytes()
    assert node.ask(prompt, **fresh_salt()) == cold
    assert node.loaded_bytes() == loaded


def test_an_answer_s_blocks_are_loaded_with_the_next_turn(node: Node) -> None:
    prompt = random_prompt(9, 320)
    stored = node.host_blocks()
    answer = node.engine.server.complete(prompt, 100, ignore_eos=True)
    assert answer.status == 200, answer.text
    turn = prompt + answer.token_ids + random_prompt(10, 40)
    # All that was computed: the last token of the answer was not.
    full = (len(prompt) + len(answer.token_ids) - 1) // BLOCK_TOKENS
    node.wait_stored(stored + full)
    node.restart_engine()
    loaded = node.loaded_bytes()
    warm = node.ask(turn)
    assert node.loaded_bytes() - loaded == full * TINY_LLAMA.block_bytes
    assert warm == node.ask(turn, **fresh_salt())


def test_a_daemon_that_goes_costs_a_recompute(node: Node) -> None:
    prompt = random_prompt(11, PROMPT_TOKENS)
    cold = node.ask(prompt)
    node.daemon.kill()
    assert node.ask(prompt, **fresh_salt()) == cold
    node.start_daemon()
    node.wait_attached()
    other = random_prompt(12, PROMPT_TOKENS)
    stored = node.host_blocks()
    node.ask(other)
    node.wait_stored(stored + PROMPT_TOKENS // BLOCK_TOKENS)
