"""Names of blocks: lengths, group sizes, and when there are none."""

from types import SimpleNamespace

import pytest

from kvferry.vllm import hashes
from kvferry.vllm.adapters import Adapters
from kvferry.vllm.groups import GroupShape

SMALL, LARGE = GroupShape(0, 16), GroupShape(1, 32)


def test_a_larger_block_has_the_last_of_its_hashes():
    request = SimpleNamespace(block_hashes=[bytes([n]) * 32 for n in range(5)])
    names = hashes.BlockNames((SMALL, LARGE), 16, Adapters())
    assert names.of_all(request) == [tuple(request.block_hashes), (b"\1" * 32, b"\3" * 32)]
    assert names.count(request, LARGE) == 2


@pytest.mark.parametrize("length", [16, 32])
def test_names_are_as_long_as_the_daemon_wants_them(length):
    request = SimpleNamespace(block_hashes=[b"h" * length])
    names = hashes.BlockNames((SMALL,), 16, Adapters())
    (name,) = names.of_group(request, SMALL, 0, 1)
    assert len(name) == 32
    assert hashes.as_vllm(name, names.hash_length) == b"h" * length
    assert len(hashes.as_daemon(b"h" * 64)) == 32


def test_names_of_an_adapter_s_blocks_are_told_as_vllm_s_hashes(monkeypatch):
    monkeypatch.setattr(hashes, "HASHES_KEPT_MAX", 2)
    request = SimpleNamespace(block_hashes=[bytes([n]) * 16 for n in range(3)])
    adapters = SimpleNamespace(of=lambda request: b"what it contains")
    names = hashes.BlockNames((SMALL,), 16, adapters, tells_changes=True)
    named = names.of_group(request, SMALL, 0, 3)
    assert len({len(name) for name in named}) == 1
    assert [names.hash_of(name) for name in named[1:]] == request.block_hashes[1:]
    assert names.hash_of(named[0]) == named[0][:16], "forgotten"


def test_names_that_do_not_last_are_no_names(monkeypatch):
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    on = {"enable_prefix_caching": True}
    assert "prefix caching" in hashes.why_no_hashes(SimpleNamespace())
    assert hashes.why_no_hashes(SimpleNamespace(**on, prefix_caching_hash_algo="sha256")) is None
    xxhash = SimpleNamespace(**on, prefix_caching_hash_algo="xxhash")
    assert "PYTHONHASHSEED" in hashes.why_no_hashes(xxhash)
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    assert hashes.why_no_hashes(xxhash) is None


def test_the_name_of_a_tenant():
    # As the daemon's config has it: `tenants_have_quotas_of_their_own` in src/config/tests.rs.
    digest = "35a6220627021916836455d5c9338dce1877519050945a78883db8d8b810bac6"
    assert hashes.tenant_named("team a") == bytes.fromhex(digest)
    assert hashes.tenant_named("") == b""
    assert len(hashes.tenant_named("\udc80")) == 32, "a salt that is no text"
