"""LoRA adapters: known by what is in their files, and not at all where that may not be what is loaded."""

import logging
import os
import time
from types import SimpleNamespace

import pytest
from fake_request import Clock, blocks, request
from scheduler_rig import Rig as PlainRig
from tier_rig import DAEMON_NAMES, Rig, named, output

from kvferry.vllm import adapters as module
from kvferry.vllm.adapters import Adapters, lora_facts


def adapter(folder, weights=b"weights", config='{"r": 8}'):
    folder.mkdir(exist_ok=True)
    (folder / "adapter_model.safetensors").write_bytes(weights)
    (folder / "adapter_config.json").write_text(config)
    return folder


def asked(path, name="tuned", **more):
    return SimpleNamespace(lora_request=SimpleNamespace(lora_name=name, lora_path=str(path), **more))


def at_once(work):
    work()


def engine(facts="", clock=time.monotonic, began_ns=None, start=at_once):
    """What an engine that starts now knows."""
    return Adapters(facts, 0.2, clock, start, began_ns)


def of_next_engine(path, facts="", **more):
    """What an engine that starts when the adapter is there knows of it."""
    return engine(facts).of(asked(path, **more))


@pytest.fixture
def told():
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("vllm.kvferry")
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


def test_no_adapter_is_known():
    assert engine().of(SimpleNamespace(lora_request=None)) == b""
    assert engine().of(SimpleNamespace()) == b""
    assert not engine().are_awaited(SimpleNamespace())


def test_an_adapter_is_its_content_not_its_path(tmp_path):
    one = of_next_engine(adapter(tmp_path / "one"))
    assert one is not None and len(one) == 32
    elsewhere = adapter(tmp_path / "two")
    (elsewhere / "README.md").write_text("what does not count")
    (elsewhere / "optimizer.pt").write_bytes(b"nor this")
    assert of_next_engine(elsewhere) == one
    others = [
        of_next_engine(adapter(tmp_path / "tuned", weights=b"Weights")),
        of_next_engine(adapter(tmp_path / "config", config='{"r": 8, "lora_alpha": 16}')),
        of_next_engine(elsewhere, "float16"),
        of_next_engine(elsewhere, is_3d_lora_weight=True),
    ]
    assert None not in others
    assert len({one, *others}) == 5


def test_every_byte_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_PIECE_BYTES", 7)
    weights = bytes(100)
    seen = {of_next_engine(adapter(tmp_path / "a", weights))}
    for place in range(100):
        changed = weights[:place] + b"\1" + weights[place + 1 :]
        seen.add(of_next_engine(adapter(tmp_path / "a", changed)))
    assert len(seen) == 101 and None not in seen


def change(folder):
    (folder / "adapter_model.safetensors").write_bytes(b"another")


def keep_times(folder):
    """As rsync does: the time of modification is the old one's."""
    file = folder / "adapter_model.safetensors"
    was = file.stat()
    file.write_bytes(b"another")
    os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))


def replace(folder):
    other = adapter(folder.parent / "other", b"another")
    folder.rename(folder.parent / "old")
    other.rename(folder)


def remove(folder):
    (folder / "adapter_config.json").unlink()


@pytest.mark.parametrize("how", [change, keep_times, replace, remove])
def test_what_changed_under_a_running_engine_is_not_known_any_more(tmp_path, told, how):
    clock, folder = Clock(), adapter(tmp_path / "a")
    running = engine(clock=clock)
    was = running.of(asked(folder))
    clock.now += module.RECHECK_SECONDS
    assert running.of(asked(folder)) == was is not None
    # The clock of files ticks some hundred times a second.
    wait_for_the_clock_of_files(tmp_path)
    how(folder)
    clock.now += module.RECHECK_SECONDS
    assert running.of(asked(folder)) is None
    clock.now += 1000
    assert running.of(asked(folder)) is None
    assert not running.are_awaited(asked(folder))
    (line,) = told
    assert "'tuned'" in line and "computed" in line
    if how is not remove:
        wait_for_the_clock_of_files(tmp_path)
    assert of_next_engine(folder) not in (None, was), "the next engine"


def wait_for_the_clock_of_files(folder):
    """Until a file made now is newer than all that was made before."""
    probe = folder / "probe"
    probe.write_bytes(b"")
    before, ends_at = probe.stat().st_ctime_ns, time.monotonic() + 5
    while probe.stat().st_ctime_ns == before:
        assert time.monotonic() < ends_at
        probe.write_bytes(b"")


def test_what_changed_before_it_was_first_asked_for_may_not_be_what_is_loaded(tmp_path, told):
    folder = adapter(tmp_path / "a")
    running = engine()
    wait_for_the_clock_of_files(tmp_path)
    change(folder)
    assert running.of(asked(folder)) is None
    assert "since this engine started" in told[0]


def test_a_link_that_was_switched_is_a_change(tmp_path):
    first, second = adapter(tmp_path / "v1"), adapter(tmp_path / "v2", b"second")
    (tmp_path / "current").symlink_to("now")
    (tmp_path / "now").symlink_to(first)
    link = tmp_path / "now"
    clock = Clock()
    running, idle = engine(clock=clock), engine()
    was = running.of(asked(tmp_path / "current"))
    assert was == of_next_engine(first)
    wait_for_the_clock_of_files(tmp_path)
    link.unlink()
    link.symlink_to(second)
    clock.now += module.RECHECK_SECONDS
    assert running.of(asked(tmp_path / "current")) is None
    assert idle.of(asked(tmp_path / "current")) is None, "first asked for behind the change"
    assert of_next_engine(tmp_path / "current") == of_next_engine(second) != was


def test_a_folder_above_that_was_moved_is_a_change(tmp_path):
    for name, weights in (("above", b"first"), ("other", b"second")):
        (tmp_path / name).mkdir()
        adapter(tmp_path / name / "a", weights)
    clock, place = Clock(), tmp_path / "above" / "a"
    running = engine(clock=clock)
    assert running.of(asked(place)) is not None
    (tmp_path / "above").rename(tmp_path / "old")
    (tmp_path / "other").rename(tmp_path / "above")
    clock.now += module.RECHECK_SECONDS
    assert running.of(asked(place)) is None


def test_what_is_no_local_adapter_is_not_known_and_told_once(tmp_path, told, monkeypatch):
    empty = tmp_path / "empty"
    empty.mkdir()
    fifo = tmp_path / "fifo"
    fifo.mkdir()
    os.mkfifo(fifo / "adapter_model.bin")
    circle = tmp_path / "circle"
    circle.symlink_to(circle)
    running = engine()
    for count, path in enumerate(("org/adapter", tmp_path / "missing", empty, fifo, circle), 1):
        for _ in range(3):
            assert running.of(asked(path)) is None
            assert not running.are_awaited(asked(path))
        assert len(told) == count
    monkeypatch.setattr(module, "BYTES_MAX", 3)
    assert running.of(asked(adapter(tmp_path / "large"))) is None


def test_a_file_that_cannot_be_read_is_not_known(tmp_path, told, monkeypatch):
    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(module, "_digest", fail)
    assert of_next_engine(adapter(tmp_path / "a")) is None
    assert "Input/output error" in told[0]


def test_a_change_while_it_is_read_is_seen(tmp_path, monkeypatch):
    folder = adapter(tmp_path / "a")
    read = module._digest

    def slow(*given):
        found = read(*given)
        wait_for_the_clock_of_files(tmp_path)
        change(folder)
        return found

    monkeypatch.setattr(module, "_digest", slow)
    # What is newer than the engine is refused anyway.
    late = time.time_ns() + 10**12
    assert engine(began_ns=late).of(asked(folder)) is None


def test_requests_wait_for_the_reading_and_no_longer_than_they_may(tmp_path):
    clock, works, of = Clock(), [], asked(adapter(tmp_path / "a"))
    running = engine(clock=clock, start=works.append)
    assert running.of(of) is None and running.are_awaited(of)
    clock.now += 0.19
    assert running.are_awaited(of)
    clock.now += 0.01
    assert not running.are_awaited(of)
    (work,) = works
    work()
    assert running.of(of) is not None and not running.are_awaited(of)


def test_what_was_not_looked_at_for_long_is_looked_at_first(tmp_path):
    clock, works, of = Clock(), [], asked(adapter(tmp_path / "a"))
    running = engine(clock=clock, start=works.append)
    running.of(of)
    works.pop()()
    known = running.of(of)
    clock.now += module.FRESH_SECONDS
    assert running.of(of) is None and running.are_awaited(of)
    works.pop()()
    assert running.of(of) == known


def test_a_few_are_read_at_once_and_as_many_kept_as_may_be(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ADAPTERS_MAX", 4)
    works, folder = [], adapter(tmp_path / "a")
    running = engine(start=works.append)
    for number in range(7):
        running.of(asked(folder, f"n{number}"))
    assert len(works) == module.READERS_MAX
    assert len(running._adapters) == 4


def test_reading_on_threads(tmp_path):
    of = asked(adapter(tmp_path / "a"))
    running = Adapters()
    ends_at = time.monotonic() + 20
    while running.of(of) is None:
        assert time.monotonic() < ends_at
        time.sleep(0.001)
    assert running.of(of) == engine().of(of)


def test_settings_of_the_engine_that_decide():
    def config(**more):
        return SimpleNamespace(lora_config=SimpleNamespace(**{"lora_dtype": "bfloat16", "max_loras": 1, **more}))

    assert lora_facts(SimpleNamespace(lora_config=None)) == lora_facts(SimpleNamespace())
    assert lora_facts(config()) == lora_facts(config(max_loras=4))
    assert lora_facts(config(target_modules=["b", "a"])) == lora_facts(config(target_modules=["a", "b"]))
    others = [config(lora_dtype="float16"), config(target_modules=["a"]), config(enable_moe_shared_loras=True)]
    assert len({lora_facts(of) for of in (config(), *others)}) == 4


# -- the scheduler's half --------------------------------------------------------------------------------------------


def stored(rig, of):
    """The names under which a request's blocks are stored when it is computed."""
    assert rig.matched(of, 0) == (0, False)
    rig.side.update_state_after_alloc(of, blocks([]), 0)
    meta = rig.step(output({"r": 0}, {"r": 100}, {"r": [list(range(1, 8))]}, new=["r"]))
    return [name for order in meta.stores for group in order.groups for name in group.hashes]


def looked_up(rig, of):
    rig.ask(of)
    return [name for _, groups in rig.client.lookups.values() for names in groups for name in names]


def test_an_adapter_trained_anew_in_its_place_finds_nothing_of_the_old_one(tmp_path):
    folder = adapter(tmp_path / "a")
    of = named(**vars(asked(folder)))
    old = stored(Rig(adapters=engine()), of)
    assert len(old) == 6 and not set(old) & set(DAEMON_NAMES)
    assert looked_up(Rig(adapters=engine()), of) == old, "the same adapter after a restart"
    change(folder)
    wait_for_the_clock_of_files(tmp_path)
    new = looked_up(Rig(adapters=engine()), of)
    assert len(new) == 6 and not set(new) & set(old)
    assert looked_up(Rig(adapters=engine()), named()) == DAEMON_NAMES[:6], "requests without an adapter as ever"


def test_a_load_is_by_the_names_that_were_looked_up(tmp_path):
    of = named(**vars(asked(adapter(tmp_path / "a"))))
    rig = Rig(adapters=engine())
    assert rig.matched(of, 4) == (64, True)
    rig.side.update_state_after_alloc(of, blocks([11, 12, 13, 14]), 64)
    ((_, (names,)),) = rig.client.lookups.values()
    assert list(rig.step().loads[0].tier.groups[0].hashes) == list(names[:4])


def test_nothing_is_looked_up_or_stored_for_an_adapter_that_nobody_knows():
    rig, of = Rig(adapters=engine()), named(**vars(asked("org/adapter")))
    assert rig.ask(of) == (0, False)
    rig.side.update_state_after_alloc(of, blocks([]), 0)
    meta = rig.step(output({"r": 0}, {"r": 100}, {"r": [list(range(1, 8))]}, new=["r"]))
    assert (meta.stores, rig.client.lookups) == ([], {})
    assert looked_up(rig, named(request_id="other")) == DAEMON_NAMES[:6], "nobody else has to do without"


def test_a_load_that_was_found_is_not_made_when_the_adapter_changed(tmp_path):
    clock, folder = Clock(), adapter(tmp_path / "a")
    rig, of = Rig(adapters=engine(clock=clock)), named(**vars(asked(folder)))
    assert rig.matched(of, 4) == (64, True)
    wait_for_the_clock_of_files(tmp_path)
    change(folder)
    clock.now += module.RECHECK_SECONDS
    rig.side.update_state_after_alloc(of, blocks([11, 12, 13, 14]), 64)
    meta = rig.step()
    assert (meta.loads, meta.lost) == ([], ["r"])


def test_a_prompt_waits_while_its_adapter_is_read_and_is_stored_then(tmp_path):
    clock, works = Clock(), []
    of = named(**vars(asked(adapter(tmp_path / "a"))))
    rig = Rig(adapters=engine(clock=clock, start=works.append))
    assert rig.ask(of) == (None, False) and rig.client.lookups == {}
    clock.now += 0.2
    assert rig.ask(of) == (0, False)
    rig.side.update_state_after_alloc(of, blocks([]), 0)
    works.pop()()
    meta = rig.step(output({"r": 0}, {"r": 100}, {"r": [list(range(1, 8))]}, new=["r"]))
    assert len(meta.stores[0].groups[0].hashes) == 6


def prefilled(path):
    """What P sends along, of a prompt with an adapter."""
    rig = PlainRig(adapters=engine())
    return rig, *rig.prefill(**vars(asked(path)))


def decoded(params, path):
    rig = PlainRig(adapters=engine())
    of = request("d", 100, dict(params))
    vars(of).update(vars(asked(path)))
    return rig, rig.side.get_num_new_matched_tokens(of, 0)


def test_a_ticket_of_another_adapter_of_the_same_name_moves_nothing(tmp_path):
    old, new = adapter(tmp_path / "old"), adapter(tmp_path / "new", b"trained anew")
    same = adapter(tmp_path / "same")
    _, kept, params = prefilled(old)
    assert kept
    assert decoded(params, same)[1] == (99, True)
    assert decoded(params, new)[1] == (0, False)


def test_an_adapter_that_nobody_knows_is_neither_leased_nor_redeemed(tmp_path, told):
    rig, kept, params = prefilled("org/adapter")
    assert (kept, params, rig.client.granted) == (False, None, [])
    _, kept, params = prefilled(adapter(tmp_path / "a"))
    rig, matched = decoded(params, "org/adapter")
    assert kept and matched == (0, False)
    assert ["org/adapter: it is no folder" in line for line in told] == [True, True], "once by each engine"
