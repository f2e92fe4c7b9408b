"""Makes a Gemma 3 of six layers with random weights, four of which look back over a window: vLLM puts them into three
KV cache groups, two with the window and one without. As the tiny Llama: a vocabulary of bytes, and float32.

usage: build_tiny_gemma3.py FOLDER (with the Python of target/vllm)
"""

from __future__ import annotations

import sys
from pathlib import Path

import byte_tokenizer
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

SEED = 0
# Tokens, the one that looks back included.
WINDOW = 128
# Twice over: vLLM makes groups of equally many layers, so four with a window are two groups.
PATTERN = ["sliding_attention", "sliding_attention", "full_attention"]


def main(folder: Path) -> None:
    byte_tokenizer.save(folder)
    torch.manual_seed(SEED)
    config = Gemma3TextConfig(
        vocab_size=byte_tokenizer.VOCABULARY_SIZE,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2 * len(PATTERN),
        layer_types=2 * PATTERN,
        sliding_window=WINDOW,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=8192,
        # Queries and keys are normalised, so that this alone says how sharply a token looks at single others.
        query_pre_attn_scalar=4,
        tie_word_embeddings=False,
        initializer_range=0.2,
        pad_token_id=byte_tokenizer.BEGIN,
        bos_token_id=byte_tokenizer.BEGIN,
        eos_token_id=byte_tokenizer.END,
    )
    Gemma3ForCausalLM(config).to(torch.float32).save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
