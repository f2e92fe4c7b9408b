"""Turns SmolLM2-135M's 4-bit GGUF file into the plain bfloat16 checkpoint that vLLM loads.

usage: build_smollm2.py WEIGHTS.gguf FOLDER (with the Python of target/vllm)
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def main(weights: Path, folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        weights.parent,
        gguf_file=weights.name,
        dtype=torch.bfloat16,
        # Left alone, the weights stay packed in a format that only this library reads.
        quantization_config=GgufConfig(dequantize=True),
    )
    # The saved weights are plain, and the configuration must not say otherwise.
    model.config.__dict__.pop("quantization_config", None)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name).save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
