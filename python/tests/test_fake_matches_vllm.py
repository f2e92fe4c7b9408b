"""The fake of vLLM says what vLLM says: same classes, same methods, same parameters. Needs the real vLLM."""

import importlib
import importlib.util
import inspect
import pathlib

import pytest

FAKE = pathlib.Path(__file__).resolve().parent / "fake_vllm"
MODULES = {
    "vllm.distributed.kv_events",
    "vllm.distributed.kv_transfer.kv_connector.utils",
    "vllm.distributed.kv_transfer.kv_connector.v1.base",
    "vllm.platforms",
    "vllm.v1.core.kv_cache_utils",
    "vllm.v1.metrics.cache_hit_source",
}


def is_real():
    spec = importlib.util.find_spec("vllm")
    return spec is not None and not str(spec.origin).startswith(str(FAKE))


pytestmark = [pytest.mark.vllm, pytest.mark.skipif(not is_real(), reason="vLLM is not installed")]


def fake_module(name):
    path = (FAKE / name.replace(".", "/")).with_suffix(".py")
    spec = importlib.util.spec_from_file_location("fake_of_" + name.replace(".", "_"), path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parameters(function):
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


def test_the_list_of_fake_modules_is_whole():
    found = {
        str(path.relative_to(FAKE).with_suffix("")).replace("/", ".")
        for path in FAKE.rglob("*.py")
        if path.name != "__init__.py"
    }
    assert found == MODULES


@pytest.mark.parametrize("name", sorted(MODULES))
def test_everything_public_exists_in_the_real_module(name):
    fake, real = fake_module(name), importlib.import_module(name)
    for attribute, value in vars(fake).items():
        if not attribute.startswith(("_", "Fake")) and getattr(value, "__module__", fake.__name__) == fake.__name__:
            assert hasattr(real, attribute), f"{name} has no {attribute}"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_signatures_are_the_real_ones(name):
    fake, real = fake_module(name), importlib.import_module(name)
    for attribute, value in vars(fake).items():
        if getattr(value, "__module__", None) != fake.__name__ or attribute.startswith(("_", "Fake")):
            continue
        theirs = getattr(real, attribute)
        if inspect.isfunction(value):
            assert parameters(value) == parameters(theirs), attribute
        elif inspect.isclass(value):
            compare_class(value, theirs)


def compare_class(fake, real):
    assert getattr(fake, "__abstractmethods__", frozenset()) == getattr(real, "__abstractmethods__", frozenset())
    for name, method in vars(fake).items():
        theirs = inspect.getattr_static(real, name, None)
        if inspect.isfunction(method):
            assert parameters(method) == parameters(theirs), f"{fake.__name__}.{name}"
        elif isinstance(method, property):
            assert isinstance(theirs, property), f"{fake.__name__}.{name}"


def test_our_hooks_have_the_real_parameters():
    from vllm.distributed.kv_transfer.kv_connector.v1 import base

    from kvferry.vllm import KVFerryConnector

    for name, method in vars(KVFerryConnector).items():
        theirs = getattr(base.KVConnectorBase_V1, name, None) or getattr(base.SupportsHMA, name, None)
        if inspect.isfunction(method) and not name.startswith("_"):
            assert theirs is not None, f"{name} is not a hook of vLLM"
            assert parameters(method) == parameters(theirs), name
