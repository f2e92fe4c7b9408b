"""A worker's stores, step by step: what is committed, and what is not."""

from fake_client import FakeClient
from fake_request import Clock

from kvferry.client import DAEMON_GONE, Copied, TierStore
from kvferry.vllm import stores
from kvferry.vllm.metadata import KVFerryMetadata, StoreOrder
from kvferry.vllm.settings import Settings
from kvferry.vllm.store_orders import SETTLE_SECONDS
from kvferry.vllm.worker import WorkerSide


def order(request_id="r", blocks=(5, 6)):
    return StoreOrder(request_id, (TierStore(b"", tuple(bytes([b]) * 32 for b in blocks), tuple(blocks)),), b"")


class Rig:
    def __init__(self, **settings):
        self.clock, self.client = Clock(), FakeClient()
        self.side = WorkerSide(Settings(**settings), self.client, self.clock, self.sleep)
        self.number = 0
        # What the daemon does meanwhile: seconds from now on, and a call.
        self.meanwhile = []

    def sleep(self, seconds):
        self.clock.sleep(seconds)
        due = [what for at, what in self.meanwhile if at <= self.clock.now]
        self.meanwhile = [(at, what) for at, what in self.meanwhile if at > self.clock.now]
        for what in due:
            what()

    def later(self, seconds, what):
        self.meanwhile.append((self.clock.now + seconds, what))

    def waited(self, **orders):
        """How long a step waits before it begins, in milliseconds."""
        began = self.clock.now
        self.begin(**orders)
        return round((self.clock.now - began) * 1000)

    def begin(self, **orders):
        self.number += 1
        self.orders = KVFerryMetadata(step=self.number, **orders)
        self.side.begin_step(self.orders)

    def end(self):
        self.side.obey(self.orders)
        self.side.end_step()
        return self.side.report()

    def step(self, **orders):
        self.begin(**orders)
        return self.end()


def test_a_store_goes_out_behind_its_step_and_is_committed_when_copied():
    rig = Rig()
    rig.begin(stores=[order()])
    rig.side.obey(rig.orders)
    assert rig.client.stores == {}
    rig.end()
    assert rig.client.stores == {100: ("r", order().groups, b"")}
    rig.step()
    assert rig.client.committed == []
    rig.client.copied(100)
    rig.client.copied(100)
    rig.step()
    assert rig.client.committed == [100]


def test_one_step_s_stores_go_out_once():
    rig = Rig()
    rig.step(stores=[order()])
    rig.side.obey(rig.orders)
    rig.side.end_step()
    assert len(rig.client.stores) == 1


def test_a_block_that_is_given_away_is_never_committed():
    rig = Rig()
    rig.step(stores=[order("a", (5, 6)), order("b", (7,)), order("c", (6, 8))])
    rig.step(written=(6,))
    assert rig.client.aborted == [100, 102]
    for key in (100, 101, 102):
        rig.client.copied(key)
    rig.step()
    assert rig.client.committed == [101]
    assert not rig.side._stores._by_block


def test_what_was_copied_before_the_step_that_writes_is_committed():
    rig = Rig()
    rig.step(stores=[order()])
    rig.client.copied(100)
    rig.begin(written=(5,))
    assert rig.client.committed == [100]


def test_what_is_copied_behind_the_step_that_writes_is_not():
    rig = Rig()
    rig.step(stores=[order()])
    rig.begin(written=(5,))
    rig.client.copied(100)
    rig.end()
    assert rig.client.committed == []


def test_a_step_waits_for_copies_of_what_it_would_write_over():
    rig = Rig()
    rig.step(stores=[order("a", (5, 6)), order("b", (7,)), order("c", (8,))])
    rig.later(0.010, lambda: rig.client.copied(100))
    rig.later(0.020, lambda: rig.client.copied(101, "full"))
    assert rig.waited(written=(6, 7)) == 20
    assert rig.client.committed == [100]
    assert rig.client.aborted == []


def test_a_copy_that_takes_longer_is_given_up_and_none_is_waited_for_for_a_while():
    rig = Rig()
    rig.step(stores=[order("a", (5,)), order("b", (6,)), order("c", (7,)), order("d", (8,))])
    assert rig.waited(written=(5,)) == 50
    assert rig.client.aborted == [100]
    assert rig.waited(written=(6,)) == 0
    rig.clock.now += 9.9
    rig.side.obey(rig.orders)
    rig.step(stores=[order("e", (9,))])
    assert rig.waited(written=(9,)) == 0
    rig.clock.now += 0.1
    rig.side.obey(rig.orders)
    rig.step(stores=[order("f", (10,))])
    assert rig.waited(written=(10,)) == 50


def test_nobody_waits_for_what_is_lost_anyway():
    for orders in ({"cleared": True}, {"loses_all": True}, {"written": (6,)}, {"written": ()}):
        rig = Rig()
        rig.step(stores=[order("a", (5,))])
        assert rig.waited(**{"written": (5,), **orders}) == 0, orders


def test_nobody_waits_without_a_daemon_or_where_that_was_set():
    rig = Rig()
    rig.step(stores=[order("a", (5,))])
    rig.client.connected = False
    assert rig.waited(written=(5,)) == 0
    rig = Rig(store_wait_ms=0)
    rig.step(stores=[order("a", (5,))])
    assert rig.waited(written=(5,)) == 0
    assert rig.client.aborted == [100]


def test_a_step_waits_once():
    rig = Rig()
    rig.step(stores=[order("a", (5,))])
    assert rig.waited(written=(5,), stores=[order("b", (5,))]) == 50
    rig.end()
    # vLLM may say it again.
    began = rig.clock.now
    rig.clock.now = began + 20
    rig.side.begin_step(rig.orders)
    assert rig.clock.now == began + 20
    rig.client.copied(101)
    rig.step()
    assert rig.client.committed == [101]


def test_a_step_that_writes_and_stores_the_same_block_stores_the_new_content():
    rig = Rig()
    rig.step(stores=[order("old", (5,))])
    rig.step(written=(5,), stores=[order("new", (5,))])
    rig.client.copied(100)
    rig.client.copied(101)
    rig.step()
    assert rig.client.committed == [101]


def test_a_runner_that_does_not_say_when_steps_begin_stores_nothing():
    rig = Rig()
    rig.step(stores=[order()])
    rig.side.obey(KVFerryMetadata(step=7, stores=[order("b", (9,))]))
    rig.side.end_step()
    assert list(rig.client.stores) == [100]
    rig.client.copied(100)
    rig.side.report()
    assert rig.client.committed == []


def test_clearing_drops_what_is_under_way_and_says_so_once():
    rig = Rig()
    rig.step(stores=[order()])
    assert not rig.side.take_cleared()
    rig.step(cleared=True, stores=[order("new", (9,))])
    assert rig.side.take_cleared()
    assert not rig.side.take_cleared()
    rig.client.copied(100)
    rig.client.copied(101)
    rig.step()
    assert rig.client.committed == [101]


def test_a_step_of_unknown_writes_loses_all():
    rig = Rig()
    rig.step(stores=[order()])
    rig.step(loses_all=True)
    rig.client.copied(100)
    rig.step()
    assert rig.client.committed == []


def test_failures_are_not_committed():
    rig = Rig()
    rig.step(stores=[order("a", (5,)), order("b", (6,))])
    rig.client.copied(100, "full")
    rig.client.copied(101, DAEMON_GONE)
    rig.client.events.append(Copied(999, "unknown", None))
    rig.step()
    assert rig.client.committed == []
    assert not rig.side._stores._stores


def test_a_finished_request_leaves_when_its_copies_are_done():
    rig = Rig()
    rig.step(stores=[order("r", (5,))])
    assert rig.step(released=["r", "other"], stores=[order("r", (6,))]).finished_sending == {"other"}
    rig.client.copied(100)
    assert rig.step().finished_sending == set()
    rig.client.copied(101, "full")
    assert rig.step().finished_sending == {"r"}
    assert rig.step().finished_sending == set()


def test_a_finished_request_is_not_held_for_long():
    rig = Rig()
    rig.step(stores=[order()], released=["r"])
    rig.clock.now += SETTLE_SECONDS - 0.1
    assert rig.step().finished_sending == set()
    rig.clock.now += 0.1
    assert rig.step().finished_sending == {"r"}
    # The block goes on to somebody else, and the store with it.
    rig.step(written=(5,))
    rig.client.copied(100)
    rig.step()
    assert rig.client.committed == []


def test_stores_are_limited(monkeypatch):
    monkeypatch.setattr(stores, "STORES_MAX", 2)
    rig = Rig()
    rig.step(stores=[order("a", (5,)), order("b", (6,)), order("c", (7,))])
    assert len(rig.client.stores) == 2
    rig.client.copied(100)
    rig.step(stores=[order("d", (8,))])
    assert len(rig.client.stores) == 3


def test_a_store_that_hangs_is_called_off():
    rig = Rig()
    rig.step(stores=[order()])
    rig.clock.now += stores.STORE_SECONDS
    rig.step()
    rig.step()
    assert rig.client.aborted == [100]
    rig.client.copied(100)
    rig.step()
    assert rig.client.committed == []


def test_without_a_daemon_nothing_is_stored():
    rig = Rig()
    rig.client.connected = False
    assert rig.step(stores=[order()], released=["r"]).finished_sending == {"r"}
    assert rig.client.stores == {}


def test_a_client_that_fails_costs_the_store_alone():
    rig = Rig()
    rig.client.errors["store"] = OSError("broken")
    assert rig.step(stores=[order()], released=["r"]).finished_sending == {"r"}
    rig.client.errors.clear()
    rig.step(stores=[order("s", (9,))])
    rig.client.errors["commit"] = OSError("broken")
    rig.client.copied(100)
    rig.step()
    rig.client.errors["abort"] = OSError("broken")
    rig.step(stores=[order("t", (10,))])
    rig.step(written=(10,))
    assert rig.client.committed == []
