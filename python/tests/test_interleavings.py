"""Everything at once, at random: what vLLM asserts holds, no block is touched too late, and all of them come back."""

import random

import pytest
from fake_request import Status
from sim_engine import Engine
from sim_world import Router, World

from kvferry.vllm.groups import GroupShape

ONE = (GroupShape(0, 16),)
HYBRID = (GroupShape(0, 16), GroupShape(1, 16, window=48), GroupShape(2, 32, chunk=64))


def play(seed, faults=1.0, steps=400):
    rng = random.Random(seed)
    world = World(rng, faults)
    groups = rng.choice([ONE, HYBRID])
    options = {"ranks": rng.choice([1, 1, 2, 3]), "depth": rng.choice([1, 1, 2, 3])}
    policy = rng.choice(["recompute", "recompute", "fail"])
    engines = [
        Engine(name, node, groups, world.clock, rng, pool=rng.choice([40, 80, 200]), policy=policy, **options)
        for name, node in zip(("P", "D"), world.nodes, strict=True)
    ]
    router = Router(world, *engines)
    for _ in range(steps):
        router.turn()
        turn(world, engines, rng.choice([0.001, 0.01, 0.05, 0.3]))
        for node in world.nodes:
            if rng.random() < faults * 0.01:
                node.lose(killed=rng.random() < 0.5)
            elif rng.random() < 0.05:
                node.restart()
    settle(world, engines)
    return world, engines, router, policy


def turn(world, engines, seconds):
    for engine in world.rng.sample(engines, len(engines)):
        engine.step()
    world.turn(seconds)


def settle(world, engines):
    """No more trouble: everything has to end, with no daemon at all if need be."""
    faults, world.faults = world.faults, 0.0
    for step in range(5000):
        if not any(engine.has_requests() for engine in engines):
            break
        turn(world, engines, 0.25)
        if step == 1000 and faults:
            for node in world.nodes:
                node.restart()
    for engine in engines:
        assert not engine.has_requests(), f"{engine.name} never let go of {sorted(engine.requests)}"
        assert not any(engine.pool.users.values()), "a block was lost"
        side = engine.side
        assert not (side._held or side._loading or side._candidates)
        assert not (side.tiers._lookups._lookups or side.tiers._lookups._tried or side.tiers._orders._progress)
        assert all(not (worker._loads or worker._gone or worker._stores._leaving) for worker in engine.workers)
        assert not (engine.counts["sending"] or engine.counts["recving"] or engine.failed_pending)


@pytest.mark.parametrize("seed", range(150))
def test_nothing_goes_wrong_whatever_happens(seed):
    _, (_, decoder), router, policy = play(seed)
    assert router.asked <= set(decoder.results)
    if policy == "recompute":
        assert not [name for name, (status, _) in decoder.results.items() if status == Status.FINISHED_ERROR]


@pytest.mark.parametrize("seed", range(30))
def test_without_trouble_prefills_are_used(seed):
    _, (prefiller, decoder), router, _ = play(1000 + seed, faults=0.0, steps=200)
    offered = [params for _, params in prefiller.results.values() if params]
    assert len(offered) > 10
    assert decoder.received > len(offered) // 6
    finished = {status for status, _ in decoder.results.values()}
    assert finished <= {Status.FINISHED_LENGTH_CAPPED, Status.FINISHED_STOPPED}
    assert len(router.asked) == len(decoder.results)


@pytest.mark.parametrize("seed", range(40))
def test_new_weights_find_nothing_old(seed):
    """Steps are under way when the cache is cleared: what they store is of the old weights."""
    rng = random.Random(seed)
    world = World(rng, faults=0.2)
    node = world.nodes[0]
    node.tier.exists = True
    engine = Engine("E", node, ONE, world.clock, rng, ranks=rng.choice([1, 2]), depth=3, pool=60)
    engine.lag = 0.9
    for step in range(400):
        if len(engine.requests) < 3:
            family = rng.randint(0, 1) * 1000
            engine.add(f"r{step}", [family + index for index in range(rng.randint(33, 150))], None, rng.randint(1, 5))
        if rng.random() < 0.1:
            engine.change_weights()
        turn(world, [engine], rng.choice([0.001, 0.01]))
        if rng.random() < 0.01:
            node.lose(killed=rng.random() < 0.5)
        elif rng.random() < 0.2:
            node.restart()
    settle(world, [engine])
    assert engine.weights > 0
    assert node.tier.committed > 20
