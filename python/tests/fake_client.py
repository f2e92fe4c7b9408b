"""A scripted client: does nothing by itself, remembers what it was asked, hands out the events it was given."""

from kvferry.client import Granted, LeaseEnded, TransferDone, UnavailableError


class FakeClient:
    """Both roles of the daemon's client."""

    def __init__(self):
        self.connected = True
        self.closed = 0
        self.events = []
        self.attached = []
        self.granted = []
        self.relinquished = []
        self.redeemed = {}
        self.aborted = []
        # Raised by the next calls of a method, by its name.
        self.errors = {}
        self.lease_ms = 30_000
        self.epoch = 7

    def _raise(self, name):
        if name in self.errors:
            raise self.errors[name]

    def is_connected(self):
        return self.connected

    def poll(self):
        self._raise("poll")
        events, self.events = self.events, []
        return events

    def close(self):
        self.closed += 1

    def attach(self, spec):
        self._raise("attach")
        self.attached.append(spec)

    def grant(self, request_id, groups, lease_ms, binding):
        self._raise("grant")
        if not self.connected:
            raise UnavailableError("no daemon")
        self.granted.append((request_id, [list(group) for group in groups], lease_ms))
        lease_id = len(self.granted)
        return Granted(lease_id, self.epoch, f"ticket-{lease_id}", "10.0.0.1", 7000, self.lease_ms)

    def relinquish(self, ticket):
        self._raise("relinquish")
        self.relinquished.append(ticket)

    def redeem(self, request_id, ticket, groups, deadline_ms, binding):
        self._raise("redeem")
        key = len(self.redeemed) + 100
        self.redeemed[key] = (request_id, ticket, groups, deadline_ms)
        return key

    def abort(self, key):
        self._raise("abort")
        self.aborted.append(key)

    def end_lease(self, lease_id, request_id, epoch=None):
        self.events.append(LeaseEnded(lease_id, request_id, epoch or self.epoch, "read"))

    def done(self, key, failure=None):
        self.events.append(TransferDone(key, self.redeemed[key][0], failure, 0, 0))
