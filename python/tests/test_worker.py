"""A worker's half, order by order."""

import pytest
from fake_client import FakeClient
from fake_request import Clock

from kvferry.client import DAEMON_GONE, Connected, Disconnected, GroupBlocks, Refused, TransferDone
from kvferry.vllm.metadata import KVFerryMetadata, LoadOrder
from kvferry.vllm.settings import Settings
from kvferry.vllm.worker import DEADLINE_MARGIN_SECONDS, GONE_SECONDS, WorkerSide

ORDER = LoadOrder("d", "ticket", (GroupBlocks((0, 1), (5, 6)),))


class Rig:
    def __init__(self):
        self.clock = Clock()
        self.client = FakeClient()
        self.side = WorkerSide(Settings(), self.client, self.clock, self.clock.sleep)
        self.step = 0

    def obey(self, **orders):
        self.step += 1
        self.side.obey(KVFerryMetadata(step=self.step, **orders))

    def report(self):
        report = self.side.report()
        return report.finished_sending, report.finished_recving, report.failed_recving


NOTHING = (set(), set(), set())


def test_a_load_is_redeemed_and_reported_once():
    rig = Rig()
    rig.obey(loads=[ORDER])
    assert rig.client.redeemed == {100: ("d", "ticket", ORDER.groups, 20_000)}
    assert rig.report() == NOTHING
    rig.client.done(100)
    rig.client.done(100)
    assert rig.report() == (set(), {"d"}, set())
    assert rig.report() == NOTHING


def test_a_failed_load_is_both_finished_and_failed():
    rig = Rig()
    rig.obey(loads=[ORDER])
    rig.client.done(100, "lease_ended")
    assert rig.report() == (set(), {"d"}, {"d"})
    assert rig.report() == NOTHING


def test_an_order_that_cannot_be_given_fails_at_once():
    rig = Rig()
    rig.client.errors["redeem"] = OverflowError("not a block")
    rig.obey(loads=[ORDER], lost=["e"])
    assert rig.report() == (set(), {"d", "e"}, {"d", "e"})


def test_without_a_daemon_a_load_fails_at_once():
    rig = Rig()
    rig.client.connected = False
    rig.obey(loads=[ORDER])
    assert rig.client.redeemed == {}
    assert rig.report() == (set(), {"d"}, {"d"})


def test_ended_leases_are_passed_on():
    rig = Rig()
    rig.obey(released=["p", "q"])
    assert rig.report() == ({"p", "q"}, set(), set())
    assert rig.report() == NOTHING


def test_one_step_s_orders_are_obeyed_once():
    rig = Rig()
    orders = KVFerryMetadata(step=1, loads=[ORDER], released=["p"])
    for _ in range(2):
        rig.side.obey(orders)
    assert len(rig.client.redeemed) == 1
    assert rig.report()[0] == {"p"}
    rig.side.obey(orders)
    assert rig.report() == NOTHING


@pytest.mark.parametrize("strange", [None, object(), {}, "orders"])
def test_strange_metadata_is_ignored(strange):
    rig = Rig()
    rig.side.obey(strange)
    assert rig.report() == NOTHING


def test_a_restarted_scheduler_s_steps_are_obeyed():
    rig = Rig()
    rig.side.obey(KVFerryMetadata(step=500))
    rig.side.obey(KVFerryMetadata(step=1, released=["p"]))
    assert rig.report()[0] == {"p"}


def test_an_abort_waits_for_the_daemon():
    rig = Rig()
    rig.obey(loads=[ORDER])
    rig.obey(aborts=["d"])
    rig.obey(aborts=["d", "unknown"])
    assert rig.client.aborted == [100]
    assert rig.report() == NOTHING
    rig.client.done(100, "cancelled")
    assert rig.report() == (set(), {"d"}, {"d"})


def test_an_abort_that_comes_too_late_changes_nothing():
    rig = Rig()
    rig.obey(loads=[ORDER])
    rig.client.done(100)
    rig.obey(aborts=["d"])
    assert rig.report() == (set(), {"d"}, set())
    rig.obey(aborts=["d"])
    assert rig.report() == NOTHING


def test_an_id_that_ended_and_came_back_keeps_its_new_load():
    rig = Rig()
    rig.obey(loads=[ORDER])
    rig.client.done(100)
    rig.report()
    rig.obey(aborts=["d"], loads=[ORDER])
    assert rig.client.aborted == []
    rig.client.events.append(TransferDone(100, "d", None, 0, 0))
    assert rig.report() == NOTHING
    rig.client.done(101)
    assert rig.report() == (set(), {"d"}, set())


def test_a_second_load_for_one_request_is_not_made():
    rig = Rig()
    rig.obey(loads=[ORDER, ORDER])
    assert len(rig.client.redeemed) == 1
    rig.client.done(100)
    assert rig.report() == (set(), {"d"}, set())


def test_a_late_load_is_called_off_not_reported():
    rig = Rig()
    rig.obey(loads=[ORDER])
    rig.clock.now += 20 + DEADLINE_MARGIN_SECONDS - 0.1
    rig.report()
    assert rig.client.aborted == []
    rig.clock.now += 0.1
    for _ in range(3):
        assert rig.report() == NOTHING
    assert rig.client.aborted == [100]
    rig.client.done(100)
    assert rig.report() == (set(), {"d"}, set())


def test_a_load_whose_daemon_went_is_reported_when_nothing_can_land():
    rig = Rig()
    rig.obey(loads=[ORDER])
    rig.client.done(100, DAEMON_GONE)
    rig.client.events.append(Disconnected())
    assert rig.report() == NOTHING
    rig.obey(aborts=["d"], loads=[ORDER])
    rig.clock.now += GONE_SECONDS
    assert rig.report() == (set(), {"d"}, {"d"})
    rig.clock.now += GONE_SECONDS
    assert rig.report() == NOTHING


@pytest.mark.parametrize("method", ["abort", "poll"])
def test_a_client_that_fails_does_not_fail_the_engine(method):
    rig = Rig()
    rig.obey(loads=[ORDER])
    rig.client.errors[method] = OSError("broken")
    rig.obey(aborts=["d"])
    assert rig.report() == NOTHING
    rig.client.errors.clear()
    rig.client.done(100, "x")
    assert rig.report() == (set(), {"d"}, {"d"})


def test_other_events_are_of_no_consequence():
    rig = Rig()
    rig.client.events += [Connected(1), Refused("layout"), TransferDone(3, "unknown", None, 0, 0)]
    assert rig.report() == NOTHING


def test_shutdown_ends_the_connection():
    rig = Rig()
    rig.side.shutdown()
    assert rig.client.closed == 1
