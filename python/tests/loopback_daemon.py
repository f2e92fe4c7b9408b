"""A daemon inside the test's process, for one engine that is both ends: copies leased blocks within the shared memory.

Unlike the scripted client it moves real bytes, so that a real engine decodes from what it delivered.
"""

import mmap

from loopback_tier import LoopbackTier

from kvferry.client import Granted, LeaseEnded, RefusedError, TransferDone


class LoopbackDaemon:
    def __init__(self):
        self.spec = None
        self.memory = None
        self.leases = {}
        self.waiting = {}
        self.scheduler_events = []
        self.worker_events = []
        self.relinquished = []
        self.delivered = 0
        self.keys = 1000
        # What becomes of redeems: "deliver", "hold" until told otherwise, or the word of a failure.
        self.mode = "deliver"
        self.connected = True
        self.tier = LoopbackTier(self)

    def start_scheduler(self, *_):
        """In place of kvferry.native.start_scheduler."""
        return _Loopback(self, self.scheduler_events)

    def start_worker(self, *_):
        """In place of kvferry.native.start_worker."""
        return _Loopback(self, self.worker_events)

    def end(self, ticket, reason):
        request_id, _, lease_id = self.leases.pop(ticket)
        self.scheduler_events.append(LeaseEnded(lease_id, request_id, 1, reason))

    def settle(self):
        """Answers every redeem that waits, by the mode."""
        for key, (request_id, ticket, groups) in list(self.waiting.items()):
            if self.mode == "hold":
                return
            del self.waiting[key]
            failure = None if self.mode == "deliver" else self.mode
            if failure is None and ticket not in self.leases:
                failure = "unknown_ticket"
            if failure is None:
                self._copy(self.leases[ticket][1], groups)
                self.delivered += 1
                self.end(ticket, "read")
            self.worker_events.append(TransferDone(key, request_id, failure, 0, 0))

    def _copy(self, source, groups):
        for spans, blocks, wanted in zip(self.spec.layout.groups, source, groups, strict=True):
            for position, target in zip(wanted.positions, wanted.targets, strict=True):
                for span in spans:
                    for layer in range(span.layer_count):
                        self._copy_page(span, layer, blocks[position], target)

    def _copy_page(self, span, layer, source, target):
        assert self.spec.layout.order == "LBHNC"
        assert source != 0 != target
        length = span.head_count * span.token_count * span.content_bytes
        base = span.offset + layer * span.layer_stride
        start, end = base + source * span.block_stride, base + target * span.block_stride
        self.memory[end : end + length] = self.memory[start : start + length]


class _Loopback:
    def __init__(self, daemon, events):
        self.daemon = daemon
        # Filled by the daemon, drained by polling.
        self.events = events

    def is_connected(self):
        return self.daemon.connected

    def close(self):
        pass

    def grant(self, request_id, groups, lease_ms, binding):
        if not self.daemon.connected:
            raise RefusedError("not connected")
        self.daemon.keys += 1
        lease_id = self.daemon.keys
        ticket = f"ticket of {request_id}"
        self.daemon.leases[ticket] = (request_id, groups, lease_id)
        return Granted(lease_id, 1, ticket, "127.0.0.1", 1, lease_ms)

    def relinquish(self, ticket):
        self.daemon.relinquished.append(ticket)
        if ticket in self.daemon.leases:
            self.daemon.end(ticket, "relinquished")

    def attach(self, spec):
        self.daemon.spec = spec
        self.daemon.memory = mmap.mmap(spec.region_fd, spec.layout.region_bytes)

    def redeem(self, request_id, ticket, groups, deadline_ms, binding):
        self.daemon.keys += 1
        key = self.daemon.keys
        self.daemon.waiting[key] = (request_id, ticket, groups)
        return key

    def _key(self):
        self.daemon.keys += 1
        return self.daemon.keys

    def lookup(self, request_id, groups):
        key = self._key()
        self.daemon.tier.lookup(key, request_id, groups)
        return key

    def forget(self, key):
        self.daemon.tier.forgotten.append(key)

    def watch(self):
        self.watching = True

    def clear(self):
        self.daemon.tier.clear()

    def load(self, request_id, claim, groups, deadline_ms):
        key = self._key()
        self.daemon.tier.load(key, request_id, claim, groups)
        return key

    def store(self, request_id, groups, tenant):
        key = self._key()
        self.daemon.tier.store(key, request_id, groups, tenant)
        return key

    def commit(self, key):
        self.daemon.tier.commit(key)

    def abort(self, key):
        if key not in self.daemon.waiting:
            return
        request_id, _, _ = self.daemon.waiting.pop(key)
        self.daemon.worker_events.append(TransferDone(key, request_id, "cancelled", 0, 0))

    def poll(self):
        self.daemon.settle()
        events = list(self.events)
        self.events.clear()
        return events
