"""Where a worker's blocks lie in memory: read from vLLM's plan, and held against the tensors it made.

::

    kv_cache_config.kv_cache_tensors -> describe() -> Layout -> check_tensors() against register_kv_caches' tensors

vLLM 0.32 makes one buffer a worker; ``KVCacheTensor`` (``v1/kv_cache_interface.py``) places same-shaped layers in it,
block ``b`` of layer ``l`` at ``offset + l * layer_stride + b * block_stride``, and ``register_kv_caches`` gets one view
``[B, H, N, C]`` a layer. Where the kernel's blocks are smaller than the manager's, a view counts kernel blocks, several
dense ones to a block; block ids are the manager's. The inside of a block belongs to the attention backend, so blocks
move whole. If anything differs from what is expected here, nothing is shared: a wrong address is someone else's KV.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvferry.client import Layout, Span
from kvferry.vllm.groups import UnsupportedError, transferred_groups

ORDERS = ("BHLNC", "BLHNC", "BLNHC", "LBHNC", "LBNHC", "LHBNC")


def describe(kv_cache_config: Any) -> Layout:
    """The layout that vLLM planned for this worker.

    Raises:
        UnsupportedError: the plan holds something that cannot be told to the daemon.
    """
    order = kv_cache_config.kv_cache_layout
    if order not in ORDERS:
        raise UnsupportedError(f"KV cache layout {order!r} is not one of {', '.join(ORDERS)}")
    tensors = kv_cache_config.kv_cache_tensors
    sizes = {tensor.size for tensor in tensors}
    if len(sizes) != 1:
        raise UnsupportedError(f"the KV cache is {len(sizes)} buffers instead of one")
    groups = []
    for index, group in transferred_groups(kv_cache_config):
        names = set(group.layer_names)
        spans = [_span(index, group, tensor, names) for tensor in tensors if names & set(tensor.layers)]
        if sum(span.layer_count for span in spans) != len(names):
            raise UnsupportedError(f"not all layers of KV cache group {index} have memory of their own")
        groups.append(tuple(spans))
    return Layout(order, kv_cache_config.num_blocks, sizes.pop(), tuple(groups))


def _span(index: int, group: Any, tensor: Any, names: set[str]) -> Span:
    if not set(tensor.layers) <= names:
        raise UnsupportedError(f"a part of the KV cache belongs to group {index} and to others")
    spec = _spec_of(group, tensor.layers[0])
    return Span(
        layer_count=len(tensor.layers),
        offset=tensor.offset,
        layer_stride=tensor.layer_stride,
        block_stride=tensor.block_stride,
        head_count=spec.num_heads,
        token_count=spec.num_states,
        content_bytes=spec.state_content_size_bytes,
    )


def _spec_of(group: Any, layer_name: str) -> Any:
    unlike = getattr(group.kv_cache_spec, "kv_cache_specs", None)
    return unlike[layer_name] if unlike else group.kv_cache_spec


def check_tensors(layout: Layout, kv_cache_config: Any, kv_caches: Mapping[str, Any], base_address: int) -> None:
    """Holds every layer's tensor against the layout.

    Raises:
        UnsupportedError: a tensor lies elsewhere or has another shape than the layout says.
    """
    spans: dict[str, tuple[Span, int]] = {}
    for (_, group), described in zip(transferred_groups(kv_cache_config), layout.groups, strict=True):
        names = set(group.layer_names)
        tensors = [tensor for tensor in kv_cache_config.kv_cache_tensors if names & set(tensor.layers)]
        for tensor, span in zip(tensors, described, strict=True):
            spans.update((name, (span, place)) for place, name in enumerate(tensor.layers))
    for name, (span, place) in spans.items():
        tensor = kv_caches.get(name)
        if tensor is None:
            raise UnsupportedError(f"layer {name} was not registered")
        address = base_address + span.offset + place * span.layer_stride
        if tensor.data_ptr() != address:
            raise UnsupportedError(f"layer {name} lies {tensor.data_ptr() - address} bytes from where it should")
        _check_view(name, tensor, span, layout)


def _check_view(name: str, tensor: Any, span: Span, layout: Layout) -> None:
    shape, width = tuple(tensor.shape), tensor.element_size()
    if len(shape) != 4 or shape[2] <= 0 or span.token_count % shape[2]:
        raise UnsupportedError(f"layer {name} has the shape {shape}, not blocks, heads, tokens, content")
    pieces = span.token_count // shape[2]
    expected = (layout.block_count * pieces, span.head_count, shape[2], span.content_bytes // width)
    if shape != expected or span.content_bytes % width:
        raise UnsupportedError(f"layer {name} has the shape {shape}, not {expected}")
    if pieces > 1 and span.block_stride != span.head_count * span.token_count * span.content_bytes:
        raise UnsupportedError(f"layer {name} has kernel blocks that do not fill their block")
    steps = tuple(tensor.stride())
    for axis, expected_step in _strides(span, layout, shape[2], pieces).items():
        place = "BHNC".index(axis)
        # The stride of an axis of length one means nothing.
        if shape[place] > 1 and steps[place] * width != expected_step:
            raise UnsupportedError(f"layer {name} steps {steps[place] * width} bytes along {axis}, not {expected_step}")
    if shape[3] > 1 and steps[3] != 1:
        raise UnsupportedError(f"layer {name} has content that is not dense")


def _strides(span: Span, layout: Layout, tokens: int, pieces: int) -> dict[str, int]:
    """Byte strides of a view's axes: the given ones, and for heads and tokens the dense size of what lies inside."""
    axes = {
        "L": (span.layer_count, span.layer_stride),
        "B": (layout.block_count * pieces, span.block_stride // pieces),
        "H": (span.head_count, None),
        "N": (tokens, None),
    }
    strides, inner = {}, span.content_bytes
    for axis in reversed(layout.order[:-1]):
        length, given = axes[axis]
        strides[axis] = inner if given is None else given
        inner = strides[axis] * length
    del strides["L"]
    return strides
