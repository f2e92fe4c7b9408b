"""kv_connector_extra_config: defaults, bounds, unknown keys."""

import pytest

from kvferry.vllm import settings


def test_nothing_written_means_the_defaults():
    assert settings.parse(None) == settings.parse({}) == settings.Settings()


def test_what_is_written_counts():
    parsed = settings.parse({"socket": "/tmp/s", "lease_ms": 5000, "reply_timeout_ms": 50, "transfer_deadline_ms": 900})
    assert parsed == settings.Settings("/tmp/s", 5000, 50, 900)
    assert not settings.parse({"tier": False}).tier
    assert settings.parse({"store_wait_ms": 0}).store_wait_ms == 0
    assert settings.parse({"namespace": "team a"}).namespace == "team a"


def test_unknown_keys_are_refused_and_the_known_ones_named():
    with pytest.raises(ValueError, match="sockett") as caught:
        settings.parse({"sockett": "/tmp/s"})
    for name in ("socket", "lease_ms", "reply_timeout_ms", "transfer_deadline_ms"):
        assert repr(name) in str(caught.value)


@pytest.mark.parametrize(
    "written",
    [
        {"socket": "relative"},
        {"socket": 3},
        {"lease_ms": 999},
        {"lease_ms": "30000"},
        {"lease_ms": True},
        {"lease_ms": 1e4},
        {"reply_timeout_ms": 0},
        {"transfer_deadline_ms": 10**9},
        {"store_wait_ms": -1},
        {"store_wait_ms": 5001},
        {"tier": "yes"},
        {"tier": 1},
        {"namespace": 7},
        {"namespace": "x" * 257},
    ],
)
def test_senseless_values_are_refused_by_name(written):
    with pytest.raises(ValueError, match=next(iter(written))):
        settings.parse(written)
