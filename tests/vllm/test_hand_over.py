"""What should happen: prefill on P0, decode on D0, the same tokens as on one engine, and the same bytes."""

from __future__ import annotations

import copy
import threading

import pytest
from daemon import start_sidecar
from harness.completions import fresh_salt
from harness.engine import BLOCK_TOKENS, TINY_LLAMA
from pair import Pair, random_prompt


# Within one block, exactly two, one token more and two more, and many.
@pytest.mark.parametrize("token_count", [20, 64, 65, 66, 700, 2000])
def test_tokens_and_bytes_are_those_of_one_engine(pair: Pair, token_count: int) -> None:
    prompt = random_prompt(token_count, token_count)
    answer = pair.redeem(prompt, pair.offer(prompt))
    transfer = pair.last_transfer()
    assert transfer.outcome == "delivered"
    # vLLM computes the last token itself, so a block with nothing else in it stays where it is.
    block_count = -(-(token_count - 1) // BLOCK_TOKENS)
    assert len(transfer.target_blocks) == block_count
    assert transfer.bytes == block_count * TINY_LLAMA.block_bytes
    pair.same_blocks(transfer, prompt)
    assert answer.token_ids == pair.compute(pair.decode, prompt) == pair.compute(pair.prefill, prompt)


def test_only_blocks_that_the_decode_engine_lacks_are_moved(pair: Pair) -> None:
    prompt = random_prompt(1, 640)
    known = 320
    # D0 computes the first half, and keeps it in its prefix cache.
    assert pair.decode.server.complete(prompt[:known], 1).status == 200
    answer = pair.redeem(prompt, pair.offer(prompt))
    transfer = pair.last_transfer()
    assert transfer.outcome == "delivered"
    assert len(transfer.target_blocks) == (len(prompt) - known) // BLOCK_TOKENS
    pair.same_blocks(transfer, prompt, first=known // BLOCK_TOKENS)
    assert answer.token_ids == pair.compute(pair.decode, prompt)


def test_nothing_is_moved_that_the_decode_engine_has_already(pair: Pair) -> None:
    prompt = random_prompt(2, 320)
    expected = pair.compute(pair.decode, prompt)
    assert pair.redeem(prompt, pair.offer(prompt)).token_ids == expected
    delivered = pair.d.status().delivered_total
    # The last block is computed again in any case.
    assert pair.redeem(prompt, pair.offer(prompt)).token_ids == expected
    assert pair.d.status().delivered_total - delivered <= 1
    assert len(pair.last_transfer().target_blocks) == 1 or pair.d.status().delivered_total == delivered


def test_many_at_once(pair: Pair) -> None:
    prompts = [random_prompt(100 + index, 200 + 40 * index) for index in range(8)]
    expected = [pair.compute(pair.decode, prompt) for prompt in prompts]
    delivered = pair.d.status().delivered_total
    given: dict[int, list[int]] = {}

    def hand_over(index: int) -> None:
        given[index] = pair.redeem(prompts[index], pair.offer(prompts[index])).token_ids

    threads = [threading.Thread(target=hand_over, args=(index,)) for index in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert [given.get(index) for index in range(len(prompts))] == expected
    assert pair.d.status().delivered_total == delivered + len(prompts)


def test_through_the_sidecar(pair: Pair) -> None:
    front = start_sidecar(pair.stage, pair.binary, pair.decode.server, pair.prefill.server)
    prompt = random_prompt(3, 500)
    delivered = pair.d.status().delivered_total
    streamed = front.stream(prompt, 16)
    assert streamed.status == 200, streamed.text
    assert pair.d.status().delivered_total == delivered + 1
    assert streamed.token_ids == pair.compute(pair.decode, prompt)


def test_a_ticket_counts_for_one_request(pair: Pair) -> None:
    prompt = random_prompt(4, 300)
    expected = pair.compute(pair.decode, prompt)
    params = pair.offer(prompt)
    # Salted, so that the second cannot live on the blocks of the first.
    first = pair.redeem(prompt, copy.deepcopy(params), **fresh_salt())
    second = pair.redeem(prompt, copy.deepcopy(params), **fresh_salt())
    assert first.token_ids == second.token_ids == expected


def test_two_requests_with_one_ticket_at_once(pair: Pair) -> None:
    prompt = random_prompt(5, 1500)
    expected = pair.compute(pair.decode, prompt)
    params = pair.offer(prompt)
    given: list[list[int]] = []
    threads = [
        threading.Thread(target=lambda: given.append(pair.redeem(prompt, copy.deepcopy(params)).token_ids))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert given == [expected, expected]


def test_forged_tickets_move_nothing(pair: Pair) -> None:
    prompt = random_prompt(6, 300)
    expected = pair.compute(pair.decode, prompt)
    params = pair.offer(prompt)
    ticket = params["kvferry"]["ticket"]
    middle = len(ticket) // 2
    forgeries = {
        "one letter": ticket[:middle] + ("A" if ticket[middle] != "A" else "B") + ticket[middle + 1 :],
        "cut": ticket[:-4],
        "empty": "",
        "no text of ours": "../../etc/passwd\u0000" * 20,
    }
    delivered = pair.d.status().delivered_total
    for kind, forgery in forgeries.items():
        forged = copy.deepcopy(params)
        forged["kvferry"]["ticket"] = forgery
        assert pair.redeem(prompt, forged, **fresh_salt()).token_ids == expected, kind
    assert pair.d.status().delivered_total == delivered


def test_a_ticket_for_another_prompt_moves_nothing(pair: Pair) -> None:
    prompt = random_prompt(9, 300)
    expected = pair.compute(pair.decode, prompt)
    params = pair.offer(prompt)
    other = pair.offer(random_prompt(7, 300))
    delivered = pair.d.status().delivered_total
    params["kvferry"]["ticket"] = other["kvferry"]["ticket"]
    assert pair.redeem(prompt, params).token_ids == expected
    assert pair.d.status().delivered_total == delivered


def test_parameters_that_make_no_sense_are_computed(pair: Pair) -> None:
    prompt = random_prompt(8, 300)
    expected = pair.compute(pair.decode, prompt)
    params = pair.offer(prompt)
    delivered = pair.d.status().delivered_total
    for broken in (
        {"do_remote_prefill": True},
        {**params, "kvferry": None},
        {**params, "kvferry": {"version": 99, "ticket": 5}},
        {**params, "remote_block_ids": "many"},
    ):
        assert pair.redeem(prompt, broken, **fresh_salt()).token_ids == expected, broken
    assert pair.d.status().delivered_total - delivered <= 1
