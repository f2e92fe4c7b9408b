"""The tokenizer of the tiny models: a token for each byte, none merged, so that any prompt is as long as it looks."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

BEGIN, END = 0, 1
# The 258 tokens in use, rounded up to what the kernels like.
VOCABULARY_SIZE = 264


def save(folder: Path) -> None:
    """Writes it where a checkpoint is."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": BEGIN, "</s>": END} | {symbol: index + 2 for index, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
