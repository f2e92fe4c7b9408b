"""A model of three KV cache groups, two of them with a sliding window: kept in the tiers, loaded, and handed over.

What an engine holds of a prompt is compared block by block, group by group, where it lies in its memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from harness.completions import fresh_salt
from harness.engine import BLOCK_TOKENS, STEP_TOKENS, TINY_GEMMA3
from node import Node, Sums, holder, tiered_node
from pair import ANSWER_TOKENS, random_prompt
from windows import before, behind, count, needed

# 31 full blocks and a half: the windows have passed most of them.
PROMPT_TOKENS = 1_008
FULL = PROMPT_TOKENS // BLOCK_TOKENS
GROUPS = len(TINY_GEMMA3.windows)
# Five prompts of this length at once.
BLOCKS = 512


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with tiered_node("groups", TINY_GEMMA3, block_count=BLOCKS) as node:
        yield node


@pytest.fixture(scope="module")
def prefill(node: Node) -> Iterator[Node]:
    """A prefill engine with a daemon of its own."""
    prefill = holder(node, 1)
    prefill.wait_attached()
    yield prefill
    prefill.engine.kill()
    prefill.daemon.end()


def positions_of(tables: Sequence[Sequence[int | None]]) -> list[list[int]]:
    """For each group the positions at which there is something."""
    return [[position for position, found in enumerate(table) if found] for table in tables]


def same_where_needed(warm: Sums, cold: Sums, token_count: int) -> None:
    """Fails unless ``warm`` has exactly the blocks that the windows reach, with the bytes of ``cold``."""
    wanted = needed(TINY_GEMMA3, token_count)
    assert positions_of([warm[0, group] for group in range(GROUPS)]) == list(map(list, wanted))
    for group, positions in enumerate(wanted):
        found, computed = warm[0, group], cold[0, group]
        assert [found[position] for position in positions] == [computed[position] for position in positions], group


def distinct_where_needed(sums: Sums, token_count: int) -> None:
    """Fails unless every block that the windows reach is there, no two alike."""
    wanted = needed(TINY_GEMMA3, token_count)
    reached = [sums[0, group][position] for group, positions in enumerate(wanted) for position in positions]
    assert None not in reached
    assert len(set(reached)) == count(wanted)


def test_the_engine_has_three_groups(node: Node) -> None:
    prompt = random_prompt(20, PROMPT_TOKENS)
    offered = node.offer(prompt)
    tables = offered["remote_block_ids"]
    assert len(tables) == GROUPS == 3
    # Each has a list of its own. The windows' groups have let go of what the windows have passed.
    assert positions_of(tables) == list(map(list, needed(TINY_GEMMA3, PROMPT_TOKENS)))
    blocks = [block for table in tables for block in table if block]
    assert len(set(blocks)) == len(blocks)
    node.give_back(offered)


def test_cold_warm_and_after_both_restarts(node: Node) -> None:
    prompt = random_prompt(7, PROMPT_TOKENS)
    stored = node.host_blocks()
    before = node.sums()
    cold_sums = node.held(prompt)
    # Blocks of zeros would be equal too.
    distinct_where_needed(cold_sums, FULL * BLOCK_TOKENS)
    computed = node.sums() - before
    # All of every group, also what its window has passed since.
    node.wait_stored(stored + GROUPS * FULL)
    cold = node.ask(prompt)
    assert node.loaded_bytes() == 0

    node.restart_engine()
    loaded = node.loaded_bytes()
    assert node.ask(prompt) == cold
    # vLLM computes the last token itself, which is in a block of its own here.
    moved = count(needed(TINY_GEMMA3, FULL * BLOCK_TOKENS)) * TINY_GEMMA3.block_bytes
    assert node.loaded_bytes() - loaded == moved
    same_where_needed(node.held(prompt), cold_sums, FULL * BLOCK_TOKENS)

    node.restart_daemon()
    node.restart_engine()
    assert node.ask(prompt) == cold
    assert node.loaded_bytes() == moved, "counted from the daemon's start"
    same_where_needed(node.held(prompt), cold_sums, FULL * BLOCK_TOKENS)
    # Nothing was there twice.
    assert node.host_blocks() == stored + GROUPS * FULL

    # A beginning of it, for which the windows reach what they have passed for the whole of it.
    short = prompt[:400]
    warm = node.ask(short)
    full = len(short) // BLOCK_TOKENS
    moved += count(needed(TINY_GEMMA3, full * BLOCK_TOKENS)) * TINY_GEMMA3.block_bytes
    assert node.loaded_bytes() == moved
    warm_sums = node.held(short)
    distinct_where_needed(warm_sums, full * BLOCK_TOKENS)
    assert {found for sums in warm_sums.values() for found in sums if found is not None} <= computed
    assert warm == node.ask(short, **fresh_salt())


def test_a_prompt_of_several_steps_is_kept_though_each_gives_away_what_the_windows_have_passed(node: Node) -> None:
    prompt = random_prompt(23, 3_000)
    assert len(prompt) > STEP_TOKENS
    full = len(prompt) // BLOCK_TOKENS
    stored = node.host_blocks()
    cold = node.ask(prompt)
    node.wait_stored(stored + GROUPS * full)
    node.restart_engine()
    loaded = node.loaded_bytes()
    assert node.ask(prompt) == cold
    assert node.loaded_bytes() - loaded == count(needed(TINY_GEMMA3, full * BLOCK_TOKENS)) * TINY_GEMMA3.block_bytes


def test_from_the_disk_when_memory_is_lost(node: Node) -> None:
    prompt = random_prompt(13, PROMPT_TOKENS)
    stored = node.host_blocks()
    on_disk = node.daemon.status().tiers["disk"]["blocks"]
    cold_sums = node.held(prompt)
    node.wait_stored(stored + GROUPS * FULL)
    cold = node.ask(prompt)
    # Used again, it goes to the disk.
    node.restart_engine()
    assert node.ask(prompt) == cold
    wanted = on_disk + GROUPS * FULL
    node.daemon.wait_for(lambda status: status.tiers["disk"]["blocks"] >= wanted, "writing", 20)
    node.lose_memory()
    node.restart_engine()
    assert node.ask(prompt) == cold
    tiers = node.daemon.status().tiers
    moved = count(needed(TINY_GEMMA3, FULL * BLOCK_TOKENS)) * TINY_GEMMA3.block_bytes
    assert tiers["loaded_disk_bytes_total"] == tiers["loaded_bytes_total"] == moved
    same_where_needed(node.held(prompt), cold_sums, FULL * BLOCK_TOKENS)


def test_a_salt_keeps_what_is_stored_to_itself(node: Node) -> None:
    prompt = random_prompt(8, PROMPT_TOKENS)
    stored = node.host_blocks()
    cold = node.ask(prompt)
    node.wait_stored(stored + GROUPS * FULL)
    loaded = node.loaded_bytes()
    assert node.ask(prompt, **fresh_salt()) == cold
    assert node.loaded_bytes() == loaded
    # Kept once more, under the salt.
    node.wait_stored(stored + 2 * GROUPS * FULL)


def test_an_answer_s_blocks_are_loaded_with_the_next_turn(node: Node) -> None:
    # All of it is within the windows, which slide while the answer comes.
    prompt = random_prompt(9, 120)
    stored = node.host_blocks()
    answer = node.engine.server.complete(prompt, 100, ignore_eos=True)
    assert answer.status == 200, answer.text
    turn = prompt + answer.token_ids + random_prompt(10, 40)
    # All that was computed: the last token of the answer was not.
    full = (len(prompt) + len(answer.token_ids) - 1) // BLOCK_TOKENS
    assert needed(TINY_GEMMA3, full * BLOCK_TOKENS)[0].start > 0
    node.wait_stored(stored + GROUPS * full)
    node.restart_engine()
    loaded = node.loaded_bytes()
    warm = node.ask(turn)
    moved = count(needed(TINY_GEMMA3, full * BLOCK_TOKENS))
    assert node.loaded_bytes() - loaded == moved * TINY_GEMMA3.block_bytes
    assert warm == node.ask(turn, **fresh_salt())


def test_what_the_windows_have_passed_is_not_kept(node: Node) -> None:
    prompt = random_prompt(15, PROMPT_TOKENS)
    node.daemon.kill()
    cold = node.ask(prompt)
    node.start_daemon()
    node.wait_attached()
    stored = node.host_blocks()
    # The engine has it in its own cache, but of the groups with a window only the end.
    assert node.ask(prompt) == cold
    node.wait_stored(stored + FULL)
    node.restart_engine()
    loaded = node.loaded_bytes()
    # A beginning of one group is of no use.
    assert node.ask(prompt) == cold
    assert node.loaded_bytes() == loaded
    # The other groups' blocks, and none of the first a second time.
    node.wait_stored(stored + GROUPS * FULL)
    assert node.host_blocks() == stored + GROUPS * FULL


# Within the window, as long as it, and with the windows' first blocks passed.
@pytest.mark.parametrize("token_count", [100, 129, PROMPT_TOKENS])
def test_a_hand_over_moves_what_the_windows_reach(node: Node, prefill: Node, token_count: int) -> None:
    prompt = random_prompt(token_count, token_count)
    offered = prefill.offer(prompt)
    assert len(offered["remote_block_ids"]) == GROUPS
    answer = node.ask(prompt, kv_transfer_params=offered)
    transfer = node.daemon.status().finished[-1]
    assert transfer.outcome == "delivered"
    # vLLM computes the last token itself.
    moved = needed(TINY_GEMMA3, token_count - 1)
    assert [len(blocks) for blocks in transfer.target_groups] == [len(positions) for positions in moved]
    assert transfer.bytes == count(moved) * TINY_GEMMA3.block_bytes
    for group, positions in enumerate(moved):
        assert transfer.source_groups[group] == offered["remote_block_ids"][group][positions.start : positions.stop]
        # The last one has been written on in.
        source, target = transfer.source_groups[group][:-1], transfer.target_groups[group][:-1]
        held = prefill.daemon.checksums("P0", source, group)
        assert node.daemon.checksums("E0", target, group) == held
        assert len(set(held)) == len(positions) - 1
    assert answer == node.ask(prompt, **fresh_salt())


def test_a_hand_over_moves_only_what_no_tier_has(node: Node, prefill: Node) -> None:
    prompts = {known: random_prompt(known, 640) for known in (320, 576)}
    for known, prompt in prompts.items():
        stored = node.host_blocks()
        # With the answer no block more becomes full.
        assert 10 + ANSWER_TOKENS < BLOCK_TOKENS
        node.ask(prompt[: known + 10])
        node.wait_stored(stored + GROUPS * known // BLOCK_TOKENS)
    node.restart_engine()
    for known, prompt in prompts.items():
        loaded = node.loaded_bytes()
        answer = node.ask(prompt, kv_transfer_params=prefill.offer(prompt))
        transfer = node.daemon.status().finished[-1]
        assert transfer.outcome == "delivered"
        # Of 320 known tokens the windows need none, of 576 half of what they reach.
        wanted = needed(TINY_GEMMA3, len(prompt) - 1)
        behind_tiers = behind(wanted, known // BLOCK_TOKENS)
        assert [len(blocks) for blocks in transfer.target_groups] == [len(positions) for positions in behind_tiers]
        in_tiers = before(wanted, known // BLOCK_TOKENS)
        assert node.loaded_bytes() - loaded == count(in_tiers) * TINY_GEMMA3.block_bytes
        assert answer == node.ask(prompt, **fresh_salt())
