"""Engines of two ranks, with one KV head each: kept in the tiers, loaded, and handed over, rank by rank."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from harness.completions import fresh_salt
from harness.engine import BLOCK_TOKENS, TINY_LLAMA
from node import LEASE_MS, Node, Sums, holder, tiered_node
from pair import random_prompt

# 31 full blocks and a half.
PROMPT_TOKENS = 1_008
FULL = PROMPT_TOKENS // BLOCK_TOKENS
RANKS = 2


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with tiered_node("ranks", tensor_parallel_size=RANKS) as node:
        yield node


def assert_whole(sums: Sums) -> None:
    """Fails unless both ranks have every block, each its own: ranks that were swapped would be seen."""
    assert sorted(sums) == [(rank, 0) for rank in range(RANKS)]
    assert len({found for of_rank in sums.values() for found in of_rank if found is not None}) == RANKS * FULL


def test_cold_warm_and_after_both_restarts(node: Node) -> None:
    prompt = random_prompt(7, PROMPT_TOKENS)
    cold_sums = node.held(prompt)
    assert_whole(cold_sums)
    cold = node.ask(prompt)
    assert node.loaded_bytes() == 0
    node.wait_stored(RANKS * FULL)

    node.restart_engine()
    loaded = node.loaded_bytes()
    assert node.ask(prompt) == cold
    # vLLM computes the last token itself, which is in a block of its own here.
    assert node.loaded_bytes() - loaded == FULL * TINY_LLAMA.block_bytes
    assert node.held(prompt) == cold_sums

    node.restart_daemon()
    node.restart_engine()
    assert node.ask(prompt) == cold
    assert node.loaded_bytes() == FULL * TINY_LLAMA.block_bytes, "counted from the daemon's start"
    assert node.held(prompt) == cold_sums
    assert node.host_blocks() == RANKS * FULL


def test_from_the_disk_when_memory_is_lost(node: Node) -> None:
    prompt = random_prompt(13, PROMPT_TOKENS)
    stored = node.host_blocks()
    on_disk = node.daemon.status().tiers["disk"]["blocks"]
    cold_sums = node.held(prompt)
    assert_whole(cold_sums)
    cold = node.ask(prompt)
    node.wait_stored(stored + RANKS * FULL)
    # Used again, it goes to the disk.
    node.restart_engine()
    assert node.ask(prompt) == cold
    wanted = on_disk + RANKS * FULL
    node.daemon.wait_for(lambda status: status.tiers["disk"]["blocks"] >= wanted, "writing", 20)
    node.lose_memory()
    node.restart_engine()
    assert node.ask(prompt) == cold
    tiers = node.daemon.status().tiers
    assert tiers["loaded_disk_bytes_total"] == tiers["loaded_bytes_total"] == FULL * TINY_LLAMA.block_bytes
    assert node.held(prompt) == cold_sums


def test_an_answer_s_blocks_are_loaded_with_the_next_turn(node: Node) -> None:
    prompt = random_prompt(9, 320)
    stored = node.host_blocks()
    answer = node.engine.server.complete(prompt, 100, ignore_eos=True)
    assert answer.status == 200, answer.text
    turn = prompt + answer.token_ids + random_prompt(10, 40)
    # All that was computed: the last token of the answer was not.
    full = (len(prompt) + len(answer.token_ids) - 1) // BLOCK_TOKENS
    node.wait_stored(stored + RANKS * full)
    node.restart_engine()
    loaded = node.loaded_bytes()
    warm = node.ask(turn)
    assert node.loaded_bytes() - loaded == full * TINY_LLAMA.block_bytes
    assert warm == node.ask(turn, **fresh_salt())


def test_a_hand_over_moves_every_rank_s_blocks(node: Node) -> None:
    prompt = random_prompt(16, PROMPT_TOKENS)
    prefill = holder(node, RANKS)
    try:
        prefill.wait_attached()
        offered = prefill.offer(prompt)
        assert offered["tp_size"] == RANKS
        delivered = node.daemon.status().delivered_total
        answer = node.ask(prompt, kv_transfer_params=offered)
        status = node.daemon.status()
        # One for each rank, which reads from the one of its number; block ids are the same on both.
        assert status.delivered_total == delivered + RANKS
        transfers = status.finished[-RANKS:]
        assert [transfer.outcome for transfer in transfers] == ["delivered"] * RANKS
        assert sum(transfer.bytes for transfer in transfers) == (FULL + 1) * TINY_LLAMA.block_bytes
        (targets,) = {tuple(transfer.target_blocks) for transfer in transfers}
        sums: Sums = {}
        for rank in range(RANKS):
            held = prefill.daemon.checksums("P0", offered["remote_block_ids"][0][:FULL], rank=rank)
            assert node.daemon.checksums("E0", targets[:FULL], rank=rank) == held
            sums[rank, 0] = list(held)
        assert_whole(sums)
    finally:
        prefill.engine.kill()
        prefill.daemon.end()
    assert answer == node.ask(prompt, **fresh_salt())


def test_an_offer_of_an_engine_of_one_rank_is_computed(node: Node) -> None:
    prompt = random_prompt(17, PROMPT_TOKENS)
    prefill = holder(node, 1)
    try:
        prefill.wait_attached()
        offered = prefill.offer(prompt)
        assert offered["tp_size"] == 1
        before = node.daemon.status()
        loaded = node.loaded_bytes()
        answer = node.ask(prompt, kv_transfer_params=offered)
        after = node.daemon.status()
        # Neither moved nor tried: the daemon would have refused it.
        assert (after.delivered_total, after.failed_total) == (before.delivered_total, before.failed_total)
        assert [transfer.request for transfer in after.finished] == [transfer.request for transfer in before.finished]
        assert node.loaded_bytes() == loaded
        # P need not wait for the end of the lease.
        prefill.daemon.wait_quiet(LEASE_MS / 2000)
    finally:
        prefill.engine.kill()
        prefill.daemon.end()
    assert answer == node.ask(prompt, **fresh_salt())
    log = node.engine.process.log.read_text(errors="replace")
    assert "tp_size is 1 on the prefill engine and 2 on this one" in log
    assert "start both with the same --tensor-parallel-size" in log
