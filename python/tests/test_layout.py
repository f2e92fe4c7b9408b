"""The layout: read from vLLM's plan, and refused wherever a tensor lies elsewhere."""

from types import SimpleNamespace

import pytest

from kvferry.client import Layout, Span
from kvferry.vllm.groups import UnsupportedError
from kvferry.vllm.layout import check_tensors, describe

BASE = 0x7F00_0000_0000


class Tensor:
    """A view, as far as addresses go."""

    def __init__(self, address, shape, strides, width=2):
        self.address, self.shape, self.strides, self.width = address, shape, strides, width

    def data_ptr(self):
        return self.address

    def stride(self):
        return self.strides

    def element_size(self):
        return self.width


def attention(heads=2, tokens=32, content=256):
    return SimpleNamespace(num_heads=heads, num_states=tokens, state_content_size_bytes=content)


def placed(layers, layer_stride, block_stride, offset=0, size=1 << 20):
    return SimpleNamespace(
        size=size, layers=layers, layer_stride=layer_stride, block_stride=block_stride, offset=offset
    )


def plan(order="LBHNC", blocks=8, spec=None, tensors=None, groups=None):
    page = 2 * 32 * 256
    tensors = tensors if tensors is not None else [placed(["a", "b"], page * blocks, page)]
    groups = groups or [SimpleNamespace(layer_names=["a", "b"], kv_cache_spec=spec or attention())]
    return SimpleNamespace(kv_cache_layout=order, num_blocks=blocks, kv_cache_tensors=tensors, kv_cache_groups=groups)


def views(config):
    """What vLLM's create_kv_cache_views makes of the plan, in 2-byte elements, layer by layer; LBHNC and BLHNC."""
    made = {}
    for tensor in config.kv_cache_tensors:
        for index, name in enumerate(tensor.layers):
            address = BASE + tensor.offset + index * tensor.layer_stride
            made[name] = Tensor(address, (config.num_blocks, 2, 32, 128), (tensor.block_stride // 2, 4096, 128, 1))
    return made


def test_a_plain_plan():
    layout = describe(plan())
    assert layout == Layout("LBHNC", 8, 1 << 20, ((Span(2, 0, 131072, 16384, 2, 32, 256),),))
    check_tensors(layout, plan(), views(plan()), BASE)


def test_groups_overlay_the_same_bytes():
    page = 16384
    config = plan(
        order="BLHNC",
        tensors=[placed(["a", "b"], page, 2 * page), placed(["c", "d"], page, 2 * page)],
        groups=[
            SimpleNamespace(layer_names=["a", "b"], kv_cache_spec=attention()),
            SimpleNamespace(layer_names=["x"], kv_cache_spec=attention(), enable_kv_transfer=False),
            SimpleNamespace(layer_names=["c", "d"], kv_cache_spec=attention()),
        ],
    )
    layout = describe(config)
    assert len(layout.groups) == 2
    assert layout.groups[0] == layout.groups[1]
    check_tensors(layout, config, views(config), BASE)


def test_layers_of_unlike_shape_have_spans_of_their_own():
    specs = SimpleNamespace(kv_cache_specs={"a": attention(content=256), "b": attention(content=128)})
    config = plan(
        tensors=[placed(["a"], 0, 16384), placed(["b"], 0, 8192, offset=131072)],
        groups=[SimpleNamespace(layer_names=["a", "b"], kv_cache_spec=specs)],
    )
    spans = describe(config).groups[0]
    assert [(span.offset, span.content_bytes) for span in spans] == [(0, 256), (131072, 128)]


@pytest.mark.parametrize(
    "config",
    [
        plan(order=None),
        plan(order="HND"),
        plan(tensors=[]),
        plan(tensors=[placed(["a"], 1, 1), placed(["b"], 1, 1, size=5)]),
        plan(tensors=[placed(["a"], 1, 1)]),
        plan(tensors=[placed(["a", "b", "c"], 1, 1)]),
    ],
)
def test_plans_that_cannot_be_told_are_refused(config):
    with pytest.raises(UnsupportedError):
        describe(config)


def test_kernel_blocks_that_fill_their_block():
    config = plan()
    split = {name: Tensor(view.address, (16, 2, 16, 128), (4096, 2048, 128, 1)) for name, view in views(config).items()}
    check_tensors(describe(config), config, split, BASE)
    padded = plan(tensors=[placed(["a", "b"], 20000 * 8, 20000)])
    split = {name: Tensor(view.address, (16, 2, 16, 128), (5000, 2048, 128, 1)) for name, view in views(padded).items()}
    with pytest.raises(UnsupportedError, match="kernel blocks"):
        check_tensors(describe(padded), padded, split, BASE)


@pytest.mark.parametrize(
    "wrong",
    [
        {"address": BASE + 2},
        {"address": BASE - 16384},
        {"shape": (9, 2, 32, 128)},
        {"shape": (8, 3, 32, 128)},
        {"shape": (8, 2, 33, 128)},
        {"shape": (8, 2, 32, 64)},
        {"shape": (8, 2, 0, 128)},
        {"shape": (8, 32, 256)},
        {"strides": (8193, 4096, 128, 1)},
        {"strides": (8192, 128, 256, 1)},
        {"strides": (8192, 4096, 128, 2)},
        {"width": 4},
    ],
)
def test_a_tensor_that_lies_elsewhere_is_refused(wrong):
    config = plan()
    tensors = views(config)
    vars(tensors["a"]).update(wrong)
    with pytest.raises(UnsupportedError, match="layer a"):
        check_tensors(describe(config), config, tensors, BASE)


def test_a_layer_that_is_missing_is_refused():
    config = plan()
    tensors = views(config)
    del tensors["b"]
    with pytest.raises(UnsupportedError, match="layer b"):
        check_tensors(describe(config), config, tensors, BASE)


def test_the_stride_of_a_single_head_means_nothing():
    spec = attention(heads=1)
    config = plan(spec=spec, tensors=[placed(["a", "b"], 8192 * 8, 8192)])
    tensors = {name: Tensor(view.address, (8, 1, 32, 128), (4096, 1, 128, 1)) for name, view in views(config).items()}
    check_tensors(describe(config), config, tensors, BASE)


@pytest.mark.parametrize("name", ["LBHNC", "LBNHC", "BLHNC", "BLNHC", "LHBNC", "BHLNC"])
def test_every_order_matches_what_vllm_makes(name):
    """vLLM's own views, where vLLM is installed."""
    torch = pytest.importorskip("torch")
    interface = pytest.importorskip("vllm.v1.kv_cache_interface")
    order = pytest.importorskip("vllm.v1.kv_cache_layout").KVCacheLayout[name]
    spec = interface.FullAttentionSpec(block_size=32, num_kv_heads=2, head_size=64, dtype=torch.bfloat16)
    strides = interface.compute_layout_strides(spec, 8, 3, order)
    size = 3 * 8 * spec.page_size_bytes
    tensor = interface.KVCacheTensor(size, ["a", "b", "c"], layer_stride=strides[0], block_stride=strides[1])
    config = interface.KVCacheConfig(
        num_blocks=8,
        kv_cache_tensors=[tensor],
        kv_cache_groups=[interface.KVCacheGroupSpec(["a", "b", "c"], spec)],
        kv_cache_layout=name,
    )
    buffer = torch.zeros(size, dtype=torch.int8)
    made = interface.create_kv_cache_views(buffer, spec, 8, order, tensor)
    caches = dict(zip("abc", made, strict=True))
    layout = describe(config)
    check_tensors(layout, config, caches, buffer.data_ptr())
    with pytest.raises(UnsupportedError):
        check_tensors(layout, config, {**caches, "b": caches["a"]}, buffer.data_ptr())
