"""Two engines, their daemons, a wire and a router that make mistakes; everything at random from one seed.

The daemons keep the promises that the connector builds on and no others: a transfer may write until it is answered,
and for up to a second after its connection was lost; a lease may be read until it ended, or its deadline passed. What
is checked on the way: nobody writes to a block that vLLM has given to another request, nobody reads a leased block
that vLLM has taken back.
"""

import json
from types import SimpleNamespace

from fake_request import NEW_PREFILL, Clock
from sim_pool import check
from sim_tier import Tier, TierCalls

from kvferry.client import (
    DAEMON_GONE,
    Connected,
    Disconnected,
    Granted,
    LeaseEnded,
    RefusedError,
    TransferDone,
    UnavailableError,
)

LETTING_GO_SECONDS = 1.0


class Node:
    """A daemon and its connections."""

    def __init__(self, world):
        self.world, self.up, self.epoch, self.clients = world, True, 1, []
        self.tier = Tier(self, world)

    def scheduler_client(self, engine):
        return self._client(engine, None)

    def worker_client(self, engine, rank):
        return self._client(engine, rank)

    def _client(self, engine, rank):
        client = Client(self, engine, rank)
        self.clients.append(client)
        return client

    def lose(self, killed):
        """The connections break; the process dies with them, or lets go within a second."""
        if not self.up:
            return
        self.up = False
        world = self.world
        until = world.clock.now if killed else world.clock.now + world.rng.random() * LETTING_GO_SECONDS
        for transfer in world.transfers:
            if transfer.client.node is self and not transfer.answered:
                transfer.answer(DAEMON_GONE)
                transfer.until = until
        self.tier.lose(killed)
        for lease in world.leases.values():
            if lease.client.node is self:
                lease.until = min(lease.until, until)
                lease.told = True
        for client in self.clients:
            client.events.append(Disconnected())

    def restart(self):
        if not self.up:
            self.up = True
            self.epoch += 1
            for client in self.clients:
                client.events.append(Connected(self.epoch))
                client.tell_cleared()


class Client(TierCalls):
    """One process's connection, both roles."""

    def __init__(self, node, engine, rank):
        self.node, self.engine, self.rank, self.world, self.events = node, engine, rank, node.world, []
        # The last order to clear, while nothing shows that it was carried out.
        self.cleared = None

    def is_connected(self):
        return self.node.up

    def close(self):
        pass

    def poll(self):
        # Events may take their time, but keep their order.
        count = self.world.rng.randint(0, len(self.events))
        events, self.events = self.events[:count], self.events[count:]
        return events

    def grant(self, request_id, groups, lease_ms, binding):
        world = self.world
        if not self.node.up:
            raise UnavailableError("no daemon")
        if world.rng.random() < world.faults * 0.1:
            raise world.rng.choice([RefusedError("full"), UnavailableError("slow")])
        lease = SimpleNamespace(
            client=self,
            request_id=request_id,
            groups=[list(group) for group in groups],
            number=world.number(),
            epoch=self.node.epoch,
            until=world.clock.now + lease_ms / 1000,
            told=False,
            reader=None,
            ranks=set(),
        )
        ticket = f"ticket {lease.number}"
        world.leases[ticket] = lease
        return Granted(lease.number, lease.epoch, ticket, "host", 1, lease_ms)

    def relinquish(self, ticket):
        lease = self.world.leases.get(ticket)
        if self.node.up and lease is not None and lease.client.node.up:
            self.world.end(lease, "relinquished")

    def redeem(self, request_id, ticket, groups, deadline_ms, binding):
        key = self.world.number()
        transfer = Transfer(self, key, request_id, ticket, groups)
        self.world.transfers.append(transfer)
        if not self.node.up:
            transfer.answer(DAEMON_GONE)
            transfer.until = self.world.clock.now
        return key

    def abort(self, key):
        for transfer in self.world.transfers:
            if transfer.key == key and self.node.up:
                transfer.cancelled = True
        self.abort_tier(key)


class Transfer:
    def __init__(self, client, key, request_id, ticket, groups):
        self.client, self.key, self.request_id, self.ticket = client, key, request_id, ticket
        self.pairs = [
            (index, position, target)
            for index, wanted in enumerate(groups)
            for position, target in zip(wanted.positions, wanted.targets, strict=True)
        ]
        self.answered = self.cancelled = False
        # When the last write may land, for one that was answered by a lost connection.
        self.until = None

    def answer(self, failure):
        assert not self.answered
        self.answered = True
        self.client.events.append(TransferDone(self.key, self.request_id, failure, 0, 0))

    def turn(self, world):
        """Moves some blocks, and answers when all are there or cannot come."""
        lease = world.leases.get(self.ticket)
        failure = None
        if lease is None or not world.is_live(lease) or lease.reader not in (None, self.request_id):
            failure = "no_lease"
        elif self.cancelled and world.rng.random() < 0.3:
            failure = "cancelled"
        elif world.rng.random() < world.faults * 0.05:
            failure = "checksum_mismatch"
        if failure is None:
            lease.reader = self.request_id
            for _ in range(world.rng.randint(0, 4)):
                if self.pairs:
                    self._move(lease, *self.pairs.pop())
            if self.pairs:
                return
        if self.answered:
            self.pairs = []
            return
        if failure is None:
            lease.ranks.add(self.client.rank)
            if len(lease.ranks) == self.client.engine.ranks:
                world.end(lease, "read")
        self.answer(failure)

    def _move(self, lease, index, position, target):
        source = lease.groups[index][position]
        check(source != 0, "a null block was asked for")
        holder, reader, rank = lease.client.engine, self.client.engine, self.client.rank
        check(holder.owns(lease.request_id, source), "a leased block was taken back")
        check(reader.owns(self.request_id, target), "a block was written that is another request's")
        # Whatever weights it came from: a ticket says nothing of them.
        reader.memory[rank][target] = (*holder.memory[rank][source][:3], None)


class World:
    def __init__(self, rng, faults=1.0):
        self.rng, self.faults, self.clock = rng, faults, Clock()
        self.leases, self.transfers, self.numbers = {}, [], 0
        self.nodes = [Node(self), Node(self)]

    def number(self):
        self.numbers += 1
        return self.numbers

    def is_live(self, lease):
        return self.clock.now < lease.until

    def end(self, lease, reason):
        if self.is_live(lease) and lease.epoch == lease.client.node.epoch:
            lease.until = self.clock.now
            self.tell(lease, reason)

    def tell(self, lease, reason):
        lease.told = True
        event = LeaseEnded(lease.number, lease.request_id, lease.epoch, reason)
        lease.client.events.append(event)
        if self.rng.random() < self.faults * 0.1:
            lease.client.events.append(event)

    def nudge(self):
        """Daemons work also while engines do."""
        for _ in range(self.rng.randint(0, 2)):
            self.work()

    def sleep(self, seconds):
        """An engine does nothing for so long."""
        self.clock.now += seconds
        self.nudge()

    def turn(self, seconds):
        self.clock.now += seconds
        for lease in self.leases.values():
            if not lease.told and not self.is_live(lease):
                self.tell(lease, "expired")
        self.work()
        self.leases = {ticket: lease for ticket, lease in self.leases.items() if not lease.told or self.is_live(lease)}

    def work(self):
        for node in self.nodes:
            if node.up or node.tier.loads:
                node.tier.turn()
        for transfer in self.transfers:
            if not transfer.answered or (transfer.until is not None and self.clock.now < transfer.until):
                transfer.turn(self)
        self.transfers = [t for t in self.transfers if not t.answered or (t.until or 0) > self.clock.now]


class Router:
    """Sends prompts through prefill and decode, and now and then gets it wrong."""

    def __init__(self, world, prefiller, decoder):
        self.world, self.prefiller, self.decoder, self.rng = world, prefiller, decoder, world.rng
        self.prompts, self.asked = {}, set()

    def new_prompt(self):
        length = self.rng.randint(1, 150)
        # Few families, so that mixed up prompts share beginnings.
        family = self.rng.randint(0, 2)
        return [family * 1000 + index for index in range(length - 1)] + [self.rng.randint(0, 9)]

    @staticmethod
    def salt(prompt):
        return "salt" if prompt[0] == 2000 else None

    def turn(self):
        if self.rng.random() < 0.25:
            name = f"p{self.world.number()}"
            self.prompts[name] = self.new_prompt()
            self.prefiller.add(
                name,
                self.prompts[name],
                dict(NEW_PREFILL),
                self.rng.choice([1, 1, 1, 3, 40]),
                self.salt(self.prompts[name]),
            )
        for engine in (self.prefiller, self.decoder):
            if engine.requests and self.rng.random() < self.world.faults * 0.05:
                engine.abort(self.rng.choice(sorted(engine.requests)))
            if self.rng.random() < self.world.faults * 0.03:
                engine.change_weights()
        for name in list(self.prompts):
            if name in self.prefiller.results:
                self.decode(name, self.prompts.pop(name), self.prefiller.results[name][1])

    def decode(self, name, prompt, params):
        if self.rng.random() < self.world.faults * 0.1:
            return  # The client went away.
        params = json.loads(json.dumps(params))
        if params is not None and self.rng.random() < self.world.faults * 0.15:
            params = self.tamper(params)
        if self.rng.random() < self.world.faults * 0.05:
            prompt = self.new_prompt()
        for copy in range(2 if self.rng.random() < self.world.faults * 0.1 else 1):
            asked = f"d{name}-{copy}"
            self.asked.add(asked)
            self.decoder.add(
                asked, prompt, json.loads(json.dumps(params)), self.rng.choice([1, 2, 4, 4, 20]), self.salt(prompt)
            )

    def tamper(self, params):
        ours = params["kvferry"]
        return {
            **params,
            **self.rng.choice(
                [
                    {"kvferry": None},
                    {"kvferry": {**ours, "ticket": "forged"}},
                    {"kvferry": {**ours, "version": 9}},
                    {"kvferry": {**ours, "digest": "x"}},
                    {"remote_block_ids": [[] for _ in params["remote_block_ids"]]},
                    {"remote_block_ids": [[0 for _ in ids] for ids in params["remote_block_ids"]]},
                    {"remote_block_ids": 7},
                    {"remote_num_tokens": params["remote_num_tokens"] - 1},
                    {"remote_num_tokens": -5},
                    {"do_remote_prefill": None},
                ]
            ),
        }
