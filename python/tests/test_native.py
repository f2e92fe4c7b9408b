"""The native client's tuples become our values, and our values its arguments."""

import sys
from types import SimpleNamespace

import kvferry
from kvferry import native
from kvferry.client import Copied, Found, Loaded, TierBlocks, TierChanged, TierStore


class Native:
    def __init__(self, *arguments):
        self.calls = []

    def __getattr__(self, name):
        def call(*arguments):
            self.calls.append((name, *arguments))
            return 7

        return call

    def poll(self):
        return [
            ("copied", 1, "r", None),
            ("found", 2, "r", [3, 4], [1, 0], None),
            ("loaded", 3, "r", "evicted", 5, 6, 7),
            ("tier_changed", "disk", [(0, b"a")], []),
        ]


def client(monkeypatch, start):
    module = SimpleNamespace(Client=Native)
    monkeypatch.setitem(sys.modules, "kvferry._native", module)
    monkeypatch.setattr(kvferry, "_native", module, raising=False)
    return start("/tmp/s", "E", 9)


def test_events(monkeypatch):
    assert client(monkeypatch, native.start_worker).poll() == [
        Copied(1, "r", None),
        Found(2, "r", (3, 4), (1, 0), None),
        Loaded(3, "r", "evicted", 5, 6, 7),
        TierChanged("disk", ((0, b"a"),), ()),
    ]


def test_calls(monkeypatch):
    made = client(monkeypatch, native.start_scheduler)
    assert made.lookup("r", [[b"a"]]) == 7
    made.forget(7)
    made.clear()
    assert made.load("r", 7, [TierBlocks((b"a",), (5,))], 9) == 7
    assert made.store("r", [TierStore(b"p", (b"a",), (5,))], b"t") == 7
    made.commit(7)
    assert made._client.calls == [
        ("lookup", "r", [[b"a"]]),
        ("forget", 7),
        ("clear",),
        ("load", "r", 7, [((b"a",), (5,))], 9),
        ("store", "r", [(b"p", (b"a",), (5,))], b"t"),
        ("commit", 7),
    ]
