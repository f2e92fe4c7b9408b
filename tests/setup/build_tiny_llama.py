"""Makes a Llama of two layers with random weights and a vocabulary of bytes: small enough for tests, and float32, so
that the same prompt gives the same text whichever way its KV came about.

usage: build_tiny_llama.py FOLDER (with the Python of target/vllm)
"""

from __future__ import annotations

import sys
from pathlib import Path

import byte_tokenizer
import torch
from transformers import LlamaConfig, LlamaForCausalLM

SEED = 0


def main(folder: Path) -> None:
    byte_tokenizer.save(folder)
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=byte_tokenizer.VOCABULARY_SIZE,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=8192,
        # Ten times the usual spread: the most likely token then leads by far, and rounding cannot change it.
        initializer_range=0.2,
        tie_word_embeddings=True,
        bos_token_id=byte_tokenizer.BEGIN,
        eos_token_id=byte_tokenizer.END,
    )
    LlamaForCausalLM(config).to(torch.float32).save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
