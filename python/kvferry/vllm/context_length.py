"""Whether ``--max-model-len`` decides what KV cache means, and how.

For most models it only says how long a prompt may be, and engines that differ in it share what they have. What was read
in vLLM 0.32, where it says more:

* LongRoPE (Phi-3, Phi-3.5, Phi-4-mini): ``phi3_long_rope_scaled_rope.py`` takes the long factors for all positions if
  the engine may go beyond ``original_max_position_embeddings``, and the short ones if not.
* Llama 4: ``llama4.py`` tunes the temperature of attention beyond 32,768 unless a generation config says otherwise.
* ``DynamicNTKScalingRotaryEmbedding`` and ``FourierRotaryEmbedding`` compute with a length that most models take from
  their configuration, and some from the engine (``cohere_compass.py``, ``minimax_m2.py``, ``plamo3.py``).

In the other kinds of RoPE a length is that of a table, or comes from the configuration (``original_max_position``).
A kind that is not known here counts as one that depends.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_LONG = ("longrope", "su")
# "dynamic" with "alpha" is independent, too.
_INDEPENDENT = (
    "bailing_mrope",
    "deepseek_llama_scaling",
    "deepseek_yarn",
    "default",
    "linear",
    "llama3",
    "mllama4",
    "mrope",
    "ntk",
    "openpangu",
    "proportional",
    "yarn",
)
_LLAMA4_TUNED_ABOVE = 32_768


def length_facts(config: Mapping[str, Any], max_model_len: int | None) -> list[str]:
    """What a model's KV cache depends on of the engine's ``max_model_len``; empty: nothing.

    Args:
        config: the model's configuration, as plain values.
        max_model_len: None where nobody says; then only whether this is empty means something.
    """
    facts = set()
    for part, outer in _parts(config, {}):
        if str(part.get("model_type", "")).startswith("llama4"):
            facts.add(f"llama4 {_is_above(max_model_len, _LLAMA4_TUNED_ABOVE)}")
        kind = part.get("rope_type", part.get("type"))
        if part.get("use_fope"):
            facts.add(f"fope {max_model_len}")
        elif kind in _LONG:
            original = part.get("original_max_position_embeddings", outer.get("original_max_position_embeddings"))
            facts.add(f"longrope {_is_above(max_model_len, original)}")
        elif _is_rope(part) and kind not in _INDEPENDENT and not (kind == "dynamic" and "alpha" in part):
            facts.add(f"{kind} {max_model_len}")
    return sorted(facts)


def _is_above(max_model_len: int | None, limit: Any) -> str:
    if max_model_len is None or type(limit) is not int:
        # Whoever cannot compare says all of it.
        return f"{max_model_len} of {limit}"
    return "long" if max_model_len > limit else "short"


def _is_rope(part: Mapping[str, Any]) -> bool:
    return "rope_type" in part or ("type" in part and ("factor" in part or "rope_theta" in part))


def _parts(
    config: Mapping[str, Any], outer: Mapping[str, Any]
) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """A configuration and all that lie within it, each with what the ones around it say."""
    yield config, outer
    inner = {**outer, **{key: value for key, value in config.items() if not isinstance(value, Mapping)}}
    for value in config.values():
        if isinstance(value, Mapping):
            yield from _parts(value, inner)
