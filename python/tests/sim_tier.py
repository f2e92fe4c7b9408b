"""The tiers of a daemon in sim_world.py: they keep the promises that the connector builds on and no others.

A store is copied half a block at a time, whenever; what it read is found once every rank has committed. A claim keeps
blocks unless it is broken, as by the daemon's time limit. Answers come late, and in the order of the requests. A daemon
that has just started answers no lookup before all ranks are there, and clears nothing before; it clears bit by bit, and
what it has not come to is there again after the next start. Clients tell it again until a lookup has been answered.

What is checked on the way: what a rank vouches for is what the hash says, whole; nobody writes to a block that vLLM has
given to another request; nothing from before a clearing is found by a lookup behind it.
"""

from sim_pool import check, hash_of

from kvferry.client import DAEMON_GONE, NO_TIER, Copied, Found, Loaded, TierChanged

TORN = "torn"


class Tier:
    """What one daemon keeps, for the one engine that it has."""

    def __init__(self, node, world):
        self.node, self.world = node, world
        self.exists = world.rng.random() < 0.85
        # All ranks of the engine have attached.
        self.is_attached = True
        # It was told to clear, and has not begun; it has, and entries are left.
        self.owes_clear = self.is_clearing = False
        # By group and hash: each rank's content.
        self.entries = {}
        # By key: the entries that a load may read.
        self.claims = {}
        self.lookups, self.stores, self.loads = [], [], []
        # Those that were copied and not committed, by client and key.
        self.copied = {}
        self.found = self.committed = self.doomed = 0

    def turn(self):
        rng = self.world.rng
        if self.node.up and not self.is_attached and rng.random() < 0.2:
            self.is_attached = True
            self.begin_clear()
        if self.is_clearing:
            self.clear_some()
        while self.lookups and rng.random() < 0.8:
            self.lookups.pop(0).answer(self)
        for store in list(self.stores):
            store.turn(self)
        for load in list(self.loads):
            load.turn(self)
        if self.entries and not self.is_clearing and rng.random() < 0.1:
            self.evict(rng.choice(sorted(self.entries)))
        if self.claims and rng.random() < self.world.faults * 0.02:
            del self.claims[rng.choice(sorted(self.claims))]

    def evict(self, name):
        if not any(name in claim for claim in self.claims.values()):
            del self.entries[name]
            self.tell((), (name,))

    def tell(self, stored, removed):
        for client in self.node.clients:
            if client.rank is None and self.node.up:
                client.events.append(TierChanged(self.world.rng.choice(["host", "disk"]), stored, removed))

    def clear(self):
        # Behind what was asked before.
        while self.lookups:
            self.lookups.pop(0).answer(self)
        self.owes_clear = True
        self.begin_clear()

    def begin_clear(self):
        if not self.owes_clear or not self.is_attached:
            return
        self.owes_clear, self.is_clearing = False, True
        self.claims.clear()
        self.copied.clear()
        for store in self.stores:
            store.dropped = True

    def clear_some(self):
        for _ in range(self.world.rng.randint(0, 3)):
            if self.entries:
                del self.entries[self.world.rng.choice(sorted(self.entries))]
        self.is_clearing = bool(self.entries)

    def commit(self, client, store):
        for group_index, block_hash, content in store.read:
            check(content is not TORN, "a torn block was vouched for")
            tokens, group_id, position, _ = content
            group = client.engine.groups[group_index]
            check(group_id == group.group_id, "a block of another group was vouched for")
            check(len(tokens) == (position + 1) * group.block_size, "half a block was vouched for")
            check(hash_of(tokens, store.salt) == block_hash, "a block was vouched for that was overwritten")
            entry = self.entries.setdefault((group_index, block_hash), {})
            entry[client.rank] = content
            if len(entry) == client.engine.ranks:
                self.tell(((group_index, block_hash),), ())
        self.committed += 1

    def is_whole(self, engine, name):
        return len(self.entries.get(name, ())) == engine.ranks

    def lose(self, killed):
        """The engine's connections break. What was asked is answered by its client; what is kept may stay."""
        until = self.world.clock.now if killed else self.world.clock.now + self.world.rng.random()
        for asked in self.lookups + self.stores:
            asked.fail(DAEMON_GONE)
        for load in self.loads:
            load.fail(DAEMON_GONE)
            load.until = until
        self.lookups, self.stores, self.copied = [], [], {}
        self.claims.clear()
        self.is_attached = self.owes_clear = self.is_clearing = False
        if self.world.rng.random() < 0.5:
            self.entries.clear()


class Lookup:
    def __init__(self, client, key, request_id, groups):
        self.client, self.key, self.request_id, self.groups = client, key, request_id, groups
        self.weights = client.engine.weights

    def fail(self, failure):
        self.client.events.append(Found(self.key, self.request_id, (), (), failure))

    def answer(self, tier):
        rng = tier.world.rng
        if not tier.exists:
            self.fail(NO_TIER)
            return
        if rng.random() < tier.world.faults * 0.03:
            self.fail("busy")
            return
        if not tier.is_attached or tier.is_clearing:
            self.fail("cleared" if tier.is_attached else "engine")
            return
        held, claim = [], set()
        for index, hashes in enumerate(self.groups):
            names = [(index, block_hash) for block_hash in hashes]
            count = next((n for n, name in enumerate(names) if not tier.is_whole(self.client.engine, name)), len(names))
            held.append(count)
            claim.update(names[:count])
        for name in claim:
            for *_, weights in tier.entries[name].values():
                check(weights is None or weights >= self.weights, "found what was cleared")
        on_disk = tuple(rng.randint(0, count) for count in held)
        tier.claims[self.key] = claim
        tier.found += bool(claim)
        if self.client.cleared is not None and self.client.cleared < self.key:
            self.client.cleared = None
        self.client.events.append(Found(self.key, self.request_id, tuple(held), on_disk, None))


class Store:
    def __init__(self, client, key, request_id, groups, tenant):
        self.client, self.key, self.request_id = client, key, request_id
        self.salt = "salt" if tenant else None
        self.left = [
            (index, block_hash, block_id)
            for index, group in enumerate(groups)
            for block_hash, block_id in zip(group.hashes, group.blocks, strict=True)
        ]
        check(all(block_id for _, _, block_id in self.left), "a null block was stored")
        self.read, self.half = [], None
        self.cancelled = self.dropped = False

    def fail(self, failure):
        self.client.events.append(Copied(self.key, self.request_id, failure))

    def turn(self, tier):
        rng = tier.world.rng
        if self.cancelled and rng.random() < 0.5:
            tier.stores.remove(self)
            self.fail("cancelled")
            return
        memory = self.client.engine.memory[self.client.rank]
        for _ in range(rng.randint(0, 4)):
            if not self.left:
                break
            index, block_hash, block_id = self.left[0]
            if self.half is None:
                self.half = memory[block_id]
                continue
            self.read.append((index, block_hash, self.half if memory[block_id] == self.half else TORN))
            self.half = None
            self.left.pop(0)
        if self.left:
            return
        tier.stores.remove(self)
        if rng.random() < tier.world.faults * 0.05:
            self.fail("full")
            return
        tier.copied[self.client, self.key] = self
        self.fail(None)


class Load:
    def __init__(self, client, key, request_id, claim, groups, tier):
        self.client, self.key, self.request_id, self.claim, self.tier = client, key, request_id, claim, tier
        self.pairs = [
            ((index, block_hash), target)
            for index, group in enumerate(groups)
            for block_hash, target in zip(group.hashes, group.blocks, strict=True)
        ]
        self.answered = self.cancelled = False
        self.until = None

    def fail(self, failure):
        if not self.answered:
            self.answered = True
            self.client.events.append(Loaded(self.key, self.request_id, failure, 0, 0, 0))

    def turn(self, tier):
        world, rank = tier.world, self.client.rank
        failure = None
        if self.claim not in tier.claims:
            failure = "claim_gone"
        elif self.cancelled and world.rng.random() < 0.3:
            failure = "cancelled"
        elif world.rng.random() < world.faults * 0.03:
            failure = "checksum_mismatch"
        if failure is None or self.answered:
            for _ in range(world.rng.randint(0, 4)):
                if self.pairs:
                    name, target = self.pairs.pop()
                    check(self.client.engine.owns(self.request_id, target), "wrote to another request's block")
                    if name in tier.entries and rank in tier.entries[name]:
                        self.client.engine.memory[rank][target] = tier.entries[name][rank]
            if self.pairs and not self.answered:
                return
        if not self.answered:
            self.fail(failure)
        if self.until is None or world.clock.now >= self.until:
            tier.loads.remove(self)


class TierCalls:
    """The part of a client of sim_world.py that concerns tiers."""

    def lookup(self, request_id, groups):
        lookup = Lookup(self, self.world.number(), request_id, groups)
        if not self.node.up:
            lookup.fail(DAEMON_GONE)
        elif self.world.rng.random() >= self.world.faults * 0.01:
            # Else it hangs.
            self.node.tier.lookups.append(lookup)
        return lookup.key

    def forget(self, key):
        if self.node.up:
            self.node.tier.claims.pop(key, None)

    def clear(self):
        # As the native client has it: lookups with a higher key are behind the order.
        self.cleared = self.world.number()
        self.tell_cleared()

    def tell_cleared(self):
        if self.node.up and self.cleared is not None:
            self.node.tier.clear()

    def load(self, request_id, claim, groups, deadline_ms):
        load = Load(self, self.world.number(), request_id, claim, groups, self.node.tier)
        self.node.tier.loads.append(load)
        if not self.node.up:
            load.fail(DAEMON_GONE)
            load.until = self.world.clock.now
        return load.key

    def store(self, request_id, groups, tenant):
        store = Store(self, self.world.number(), request_id, groups, tenant)
        if not self.node.up:
            store.fail(DAEMON_GONE)
        elif self.node.tier.is_clearing:
            store.fail("cleared")
        elif self.world.rng.random() >= self.world.faults * 0.01:
            self.node.tier.stores.append(store)
        return store.key

    def commit(self, key):
        store = self.node.tier.copied.pop((self, key), None)
        if store is not None and self.node.up and not store.dropped:
            self.node.tier.commit(self, store)

    def abort_tier(self, key):
        tier = self.node.tier
        for asked in tier.stores + tier.loads:
            if asked.key == key and self.node.up:
                asked.cancelled = True
                tier.doomed += asked in tier.stores
