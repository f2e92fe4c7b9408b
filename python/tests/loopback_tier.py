"""The tier of the daemon in loopback_daemon.py: keeps copies of blocks by name, real bytes, in this process."""

from kvferry.client import NO_TIER, Copied, Found, Loaded, TierChanged


class LoopbackTier:
    def __init__(self, daemon):
        self.daemon = daemon
        # Without it the daemon has no tiers.
        self.is_there = False
        # By group and hash: the pages of a block.
        self.kept, self.copied = {}, {}
        # Answers of lookups that wait; what becomes of loads: None, or the word of a failure.
        self.is_slow, self.failure = False, None
        self.late, self.lookups, self.loaded, self.forgotten = [], [], [], []
        # Of each store.
        self.tenants = []

    def pages(self, group, block_id):
        for span in self.daemon.spec.layout.groups[group]:
            length = span.head_count * span.token_count * span.content_bytes
            for layer in range(span.layer_count):
                start = span.offset + layer * span.layer_stride + block_id * span.block_stride
                yield slice(start, start + length)

    def lookup(self, key, request_id, groups):
        held = tuple(
            next((n for n, name in enumerate(hashes) if (index, name) not in self.kept), len(hashes))
            for index, hashes in enumerate(groups)
        )
        self.lookups.append((request_id, held))
        failure = None if self.is_there else NO_TIER
        answer = Found(key, request_id, held, (0,) * len(held), failure)
        (self.late if self.is_slow else self.daemon.scheduler_events).append(answer)

    def load(self, key, request_id, claim, groups):
        for index, group in enumerate(groups):
            for name, block_id in zip(group.hashes, group.blocks, strict=True):
                copy = self.kept[index, name]
                for page, content in zip(self.pages(index, block_id), copy, strict=True):
                    # A failure leaves something behind, as a broken write would.
                    self.daemon.memory[page] = content if self.failure is None else bytes(len(content))
        self.loaded.append((request_id, sum(len(group.blocks) for group in groups)))
        self.daemon.worker_events.append(Loaded(key, request_id, self.failure, 0, 0, 0))

    def store(self, key, request_id, groups, tenant):
        self.tenants.append(tenant)
        self.copied[key] = {
            (index, name): [self.daemon.memory[page] for page in self.pages(index, block_id)]
            for index, group in enumerate(groups)
            for name, block_id in zip(group.hashes, group.blocks, strict=True)
        }
        self.daemon.worker_events.append(Copied(key, request_id, None))

    def commit(self, key):
        copied = self.copied.pop(key, {})
        self.kept.update(copied)
        self.daemon.scheduler_events.append(TierChanged("host", tuple(copied), ()))

    def clear(self):
        removed = tuple(self.kept)
        self.kept.clear()
        self.copied.clear()
        self.daemon.scheduler_events.append(TierChanged("host", (), removed))
