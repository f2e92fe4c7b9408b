"""A scripted client: does nothing by itself, remembers what it was asked, hands out the events it was given."""

from kvferry.client import (
    NO_TIER,
    Copied,
    Found,
    Granted,
    LeaseEnded,
    Loaded,
    TransferDone,
    UnavailableError,
)


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
        # None: the daemon has no tiers. Else every lookup is answered by the test, with ``found``.
        self.tiers = None
        self.lookups = {}
        self.forgotten = []
        self.cleared = 0
        self.loads = {}
        self.stores = {}
        self.committed = []
        self.keys = 100
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
        key = self._key()
        self.redeemed[key] = (request_id, ticket, groups, deadline_ms)
        return key

    def _key(self):
        self.keys += 1
        return self.keys - 1

    def lookup(self, request_id, groups):
        self._raise("lookup")
        key = self._key()
        self.lookups[key] = (request_id, [list(group) for group in groups])
        if self.tiers is None:
            self.found(key, failure=NO_TIER)
        return key

    def forget(self, key):
        self._raise("forget")
        self.forgotten.append(key)

    def watch(self):
        self.watching = True

    def clear(self):
        self._raise("clear")
        self.cleared += 1

    def load(self, request_id, claim, groups, deadline_ms):
        self._raise("load")
        key = self._key()
        self.loads[key] = (request_id, claim, groups, deadline_ms)
        return key

    def store(self, request_id, groups, tenant):
        self._raise("store")
        key = self._key()
        self.stores[key] = (request_id, groups, tenant)
        return key

    def commit(self, key):
        self._raise("commit")
        self.committed.append(key)

    def found(self, key, held=(), on_disk=(), failure=None):
        self.events.append(Found(key, self.lookups[key][0], tuple(held), tuple(on_disk), failure))

    def loaded(self, key, failure=None):
        self.events.append(Loaded(key, self.loads[key][0], failure, 0, 0, 0))

    def copied(self, key, failure=None):
        self.events.append(Copied(key, self.stores[key][0], failure))

    def abort(self, key):
        self._raise("abort")
        self.aborted.append(key)

    def end_lease(self, lease_id, request_id, epoch=None):
        self.events.append(LeaseEnded(lease_id, request_id, epoch or self.epoch, "read"))

    def done(self, key, failure=None):
        self.events.append(TransferDone(key, self.redeemed[key][0], failure, 0, 0))
