"""The digest of a prompt: what changes it, and what has none."""

from types import SimpleNamespace

import pytest
from fake_request import request

from kvferry.vllm.params import HeldBlocks
from kvferry.vllm.prompt import prompt_digest

HELD = (HeldBlocks(0, 2), HeldBlocks(1, 2))


def digest(tokens=range(20), count=20, held=HELD, adapter=b"", **fields):
    asked = request("r", list(tokens))
    vars(asked).update(fields)
    return prompt_digest(asked, count, held, adapter)


def feature(identifier="image", offset=3, length=4):
    return SimpleNamespace(identifier=identifier, mm_position=SimpleNamespace(offset=offset, length=length))


def test_it_is_the_same_on_every_machine():
    assert digest() == "879d32bcc98fe7e425aa7c3b22f14414e86d5c8cb87b00be122a122d9b002d14"


def test_tokens_behind_the_count_do_not_matter():
    assert digest(tokens=range(30)) == digest()


@pytest.mark.parametrize(
    "other",
    [
        {"tokens": range(1, 21)},
        {"tokens": [*range(19), 2**31]},
        {"count": 19},
        {"held": HELD[:1]},
        {"held": (HeldBlocks(0, 2), HeldBlocks(0, 2))},
        {"lora_request": SimpleNamespace(lora_name="tuned"), "adapter": b"1"},
        {"lora_request": SimpleNamespace(lora_name="x"), "adapter": b"2"},
        {"mm_features": [feature()]},
        {"mm_features": [feature("other")]},
        {"mm_features": [feature(offset=2)]},
        {"mm_features": [feature(), feature()]},
    ],
)
def test_what_the_blocks_depend_on_changes_it(other):
    x = SimpleNamespace(lora_name="x")
    others = [digest(), digest(mm_features=[feature("third")]), digest(lora_request=x, adapter=b"1")]
    assert digest(**other) not in others


@pytest.mark.parametrize(
    "without",
    [
        {"adapter": None},
        {"tokens": range(19)},
        {"prompt_token_ids": None},
        {"prompt_embeds": object()},
        {"prompt_is_token_ids": [True]},
    ],
)
def test_what_is_not_all_tokens_has_none(without):
    assert digest(**without) is None
