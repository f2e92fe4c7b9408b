"""The second plug's parts over the scripted client: chains, questions and claims, loads and stores."""

import pytest

np = pytest.importorskip("numpy")

from fake_client import FakeClient  # noqa: E402

from kvferry.client import DAEMON_GONE, Connected, Disconnected, Found, TierBlocks, TierStore  # noqa: E402
from kvferry.vllm.complaints import Complaints  # noqa: E402
from kvferry.vllm.tier.chains import Chains, group_of  # noqa: E402
from kvferry.vllm.tier.jobs import Job, Jobs  # noqa: E402
from kvferry.vllm.tier.loading import LoadPart, Loads  # noqa: E402
from kvferry.vllm.tier.questions import ANSWER_SECONDS, PAUSE_SECONDS, QUESTIONS_MAX, Answer, Questions  # noqa: E402
from kvferry.vllm.tier.staging import GONE_SECONDS, Staging  # noqa: E402
from kvferry.vllm.tier.storing import StorePiece, Stores  # noqa: E402

ROW = 4096


class Context:
    def __init__(self, ends):
        self._offload_key_positions = ends

    def get_offload_key_position(self, key):
        return self._offload_key_positions.get(key)


def key(number, group=0):
    return bytes([number]) * 32 + group.to_bytes(4, "big")


class Rig:
    def __init__(self, slots=4, rows=16):
        self.now = 1000.0
        self.client = FakeClient()
        self.client.tiers = True
        self.memory = np.zeros((rows, ROW), dtype=np.int8)
        self.staging = Staging(memoryview(self.memory), slots, self.clock)
        complaints = Complaints(self.clock)
        self.jobs = Jobs()
        self.questions = Questions(self.client, 1, 200, complaints, self.clock)
        moving = (self.client, 1, self.staging, self.questions, self.jobs, complaints)
        self.loads, self.stores = Loads(*moving), Stores(*moving)

    def clock(self):
        return self.now

    def ask(self, *numbers, request="r"):
        chain = [(key(number), key(number)[:32]) for number in numbers]
        return self.questions.answer(request, chain[0][0], 0, lambda: chain)

    def found(self, held, failure=None, number=-1):
        self.client.found(list(self.client.lookups)[number], [held], [0], failure)
        self.hear()

    def hear(self):
        for event in self.client.poll():
            self.questions.heard(event)

    def job(self, keys, is_load):
        job = Job(len(self.jobs.open) + 1, "r", is_load, self.now, self.now + 10, len(keys))
        self.jobs.begin(job)
        return job

    def load(self, *numbers):
        keys = [key(number) for number in numbers]
        job = self.job(keys, is_load=True)
        for question, of in self.questions.take("r", keys):
            names, rows = [name[:32] for name in of], [name[0] for name in of]
            self.loads.add([LoadPart(job, 0, of, names, rows, question)])
        self.loads.start(self.now)
        return job

    def store(self, parent, *numbers):
        keys = [key(number) for number in numbers]
        job = self.job(keys, is_load=False)
        before = key(parent)[:32] if parent is not None else None
        self.stores.add([StorePiece(job, 0, before, keys, [name[:32] for name in keys], list(numbers))])
        self.stores.start(self.now)
        self.step()
        return job

    def loaded(self, number=-1, failure=None):
        self.client.loaded(list(self.client.loads)[number], failure)
        for event in self.client.poll():
            self.loads.answered(event)
        self.step()

    def copied(self, number=-1, failure=None):
        self.client.copied(list(self.client.stores)[number], failure)
        for event in self.client.poll():
            self.stores.answered(event, self.now)
        self.step()

    def step(self):
        self.staging.wait_idle()
        self.loads.step(self.now)
        self.stores.step(self.now)
        self.loads.start(self.now)
        self.stores.start(self.now)
        self.staging.wait_idle()
        self.stores.step(self.now)

    def finished(self):
        return [(len(job.moved), len(job.failed)) for job in self.jobs.take_finished()]

    def free(self):
        slots = self.staging.take(100)
        self.staging.give_back(slots)
        return len(slots)

    def stored(self):
        """Parent, names, slots of each store."""
        stores = [groups[0] for _, groups, _ in self.client.stores.values()]
        return [(piece.parent[:1], [name[0] for name in piece.hashes], piece.blocks) for piece in stores]


@pytest.fixture
def rig():
    rig = Rig()
    yield rig
    rig.staging.close()


# -- chains -----------------------------------------------------------------------------------------------------------


def test_chains_follow_positions_not_the_order_of_keys():
    chains = Chains({0: 16, 1: 32})
    context = Context({key(3): 48, key(1): 16, key(2): 32, key(1, 1): 32, key(2, 1): 64, key(9): 40})
    assert chains.from_key(context, key(2)) == [key(2), key(3)]
    assert chains.from_key(context, key(1, 1)) == [key(1, 1), key(2, 1)]
    assert chains.from_key(context, key(9)) == [key(9)], "a partial tail ends its chain"
    pieces = chains.pieces(context, {key(3), key(9), key(1), key(2, 1)})
    assert sorted(pieces, key=lambda piece: piece[1]) == [
        (None, [key(1)]),
        (key(1, 1), [key(2, 1)]),
        (key(2), [key(3)]),
        (key(2), [key(9)]),
    ]
    assert chains.pieces(context, [key(2), key(1)]) == [(None, [key(1), key(2)])]
    assert group_of(key(2, 1)) == 1


def test_without_positions_every_chunk_is_a_chain_of_its_own():
    chains = Chains({0: 16})
    assert chains.from_key(Context({}), key(1)) == [key(1)]
    assert chains.pieces(Context({}), [key(1), key(2)]) == [(None, [key(1)]), (None, [key(2)])]


# -- questions --------------------------------------------------------------------------------------------------------


def test_one_question_covers_a_prompt(rig):
    assert rig.ask(1, 2, 3, 4) is Answer.UNKNOWN
    assert rig.ask(2, 3, 4) is Answer.UNKNOWN
    assert len(rig.client.lookups) == 1
    rig.found(2)
    assert [rig.ask(number, 9) for number in (1, 2, 3)] == [Answer.HELD, Answer.HELD, Answer.NOT_HELD]
    assert len(rig.client.lookups) == 1
    assert rig.ask(4) is Answer.UNKNOWN, "the answer does not tell of it"
    assert len(rig.client.lookups) == 2


def test_an_answer_that_comes_too_late_is_nothing_and_its_claim_is_given_back(rig):
    rig.ask(1)
    rig.now += 0.3
    assert rig.ask(1) is Answer.NOT_HELD
    (asked,) = rig.client.lookups
    assert rig.client.forgotten == [asked]
    rig.found(1)
    assert rig.client.forgotten == [asked, asked], "there was nothing to forget before the answer"
    assert rig.ask(1) is Answer.NOT_HELD


def test_an_old_answer_is_asked_for_again(rig):
    rig.ask(1)
    rig.found(1)
    rig.now += ANSWER_SECONDS
    assert rig.ask(1) is Answer.UNKNOWN
    assert len(rig.client.lookups) == 2
    assert rig.client.forgotten == [next(iter(rig.client.lookups))]


def test_a_request_that_ends_gives_its_claims_back(rig):
    rig.ask(1)
    rig.found(1)
    rig.ask(2)
    rig.questions.ended("r")
    first, second = rig.client.lookups
    assert sorted(rig.client.forgotten) == [first, second]
    rig.found(1)
    assert rig.client.forgotten[-1] == second


def test_a_claim_lasts_until_its_last_load(rig):
    rig.ask(1, 2, 3)
    rig.found(3)
    rig.load(1, 2)
    rig.loaded()
    assert rig.client.forgotten == [], "there is a third chunk"
    rig.load(3)
    rig.questions.ended("r")
    assert rig.client.forgotten == []
    rig.loaded()
    rig.step()
    assert rig.finished() == [(2, 0), (1, 0)]
    assert rig.client.forgotten == list(rig.client.lookups)


def test_what_failed_to_load_is_not_tried_again_by_the_same_request(rig):
    rig.ask(1)
    rig.found(1)
    rig.load(1)
    rig.loaded(failure="checksum")
    assert rig.finished() == [(0, 1)]
    assert rig.ask(1) is Answer.NOT_HELD
    assert rig.ask(1, request="other") is Answer.UNKNOWN


def test_no_daemon_no_tier_and_a_client_that_breaks(rig):
    rig.client.connected = False
    assert rig.ask(1) is Answer.NOT_HELD
    rig.client.connected = True
    rig.client.errors["lookup"] = RuntimeError("broken")
    assert rig.ask(1) is Answer.NOT_HELD
    del rig.client.errors["lookup"]
    assert rig.ask(1) is Answer.NOT_HELD, "it is left alone for a while"
    rig.now += 10
    assert rig.ask(1) is Answer.UNKNOWN
    rig.found(0, failure="no_tier")
    assert rig.ask(2) is Answer.NOT_HELD
    rig.questions.heard(Connected(8))
    assert rig.ask(2) is Answer.UNKNOWN


def test_too_many_questions_wait_for_those_before(rig):
    for number in range(QUESTIONS_MAX):
        rig.ask(1, request=f"r{number}")
    assert rig.ask(1) is Answer.UNKNOWN
    assert len(rig.client.lookups) == QUESTIONS_MAX
    rig.now += 1
    assert rig.ask(1) is Answer.UNKNOWN
    assert rig.ask(1) is Answer.UNKNOWN
    assert len(rig.client.lookups) == QUESTIONS_MAX + 1


@pytest.mark.parametrize("failure", ["cleared", "engine", DAEMON_GONE])
def test_an_order_to_clear_is_not_repeated_whatever_is_answered(rig, failure):
    """The client sees to it that every daemon hears of it; another order would take what was stored since."""
    rig.ask(1)
    rig.found(1)
    rig.questions.clear()
    for request in "abc":
        assert rig.ask(1, request=request) is Answer.UNKNOWN, "asked again, after it was cleared"
        rig.found(0, failure)
        assert rig.ask(1, request=request) is Answer.NOT_HELD
        rig.questions.heard(Disconnected())
        rig.questions.heard(Connected(8))
    assert rig.ask(1, request="d") is Answer.UNKNOWN
    rig.found(1)
    assert rig.ask(1, request="d") is Answer.HELD
    assert rig.client.cleared == 1


def test_an_order_that_the_client_did_not_take_is_given_again_before_anything_is_asked(rig):
    rig.client.errors["clear"] = RuntimeError("closed")
    rig.questions.clear()
    assert rig.ask(1) is Answer.NOT_HELD
    assert not rig.client.lookups
    del rig.client.errors["clear"]
    rig.now += PAUSE_SECONDS
    assert rig.ask(1, request="s") is Answer.UNKNOWN
    assert (rig.client.cleared, len(rig.client.lookups)) == (1, 1)


def test_an_answer_nobody_asked_for(rig):
    rig.questions.heard(Found(7, "r", (1,), (0,), None))
    assert rig.client.forgotten == [7]


# -- loads ------------------------------------------------------------------------------------------------------------


def test_a_load_longer_than_the_staging_area(rig):
    job = rig.load(*range(6))
    assert [groups for _, _, groups, _ in rig.client.loads.values()] == [
        [TierBlocks(tuple(key(number)[:32] for number in range(4)), (0, 1, 2, 3))]
    ]
    rig.staging._slots[:] = np.arange(1, 5, dtype=np.uint8)[:, None]
    rig.loaded()
    rig.step()
    rig.loaded()
    rig.step()
    assert (job.moved, rig.finished()) == ([key(number) for number in range(6)], [(6, 0)])
    assert [int(rig.memory[row][0]) for row in range(4)] == [1, 2, 3, 4]


def test_one_part_of_a_load_may_fail(rig):
    rig.load(*range(6))
    rig.loaded(failure="evicted")
    rig.loaded()
    rig.step()
    assert rig.finished() == [(2, 4)]
    assert rig.free() == 4


def test_a_load_that_takes_too_long_leaves_vllms_memory_alone(rig):
    rig.load(1, 2)
    rig.now += 11
    rig.step()
    assert rig.finished() == [(0, 2)]
    assert rig.client.aborted == list(rig.client.loads)
    assert rig.free() == 2, "the daemon may still write there"
    rig.loaded()
    assert rig.free() == 4
    assert not rig.memory.any()


def test_slots_rest_while_a_lost_daemon_may_write_to_them(rig):
    rig.load(1, 2)
    rig.loaded(failure=DAEMON_GONE)
    assert rig.finished() == [(0, 2)]
    assert rig.free() == 2
    rig.now += GONE_SECONDS
    assert rig.free() == 4


def test_a_load_without_a_daemon(rig):
    rig.client.connected = False
    rig.load(1)
    assert rig.finished() == [(0, 1)]
    rig.client.connected = True
    rig.client.errors["load"] = RuntimeError("broken")
    rig.load(1)
    assert rig.finished() == [(0, 1)]
    assert rig.free() == 4


# -- stores -----------------------------------------------------------------------------------------------------------


def test_a_store_is_vouched_for_when_it_was_copied(rig):
    rig.memory[3] = 7
    rig.store(None, 3)
    assert rig.stored() == [(b"", [3], (0,))]
    assert (rig.staging._slots[0] == 7).all()
    assert (rig.client.committed, rig.finished()) == ([], [])
    rig.copied()
    assert (rig.client.committed, rig.finished()) == (list(rig.client.stores), [(1, 0)])
    assert rig.free() == 4


def test_half_of_the_slots_are_left_to_loads(rig):
    rig.store(None, *range(1, 6))
    assert rig.stored() == [(b"", [1, 2], (0, 1))]
    rig.load(6, 7)
    assert len(rig.client.loads) == 1
    rig.loaded()
    rig.copied()
    assert rig.stored()[1][:2] == (b"\x02", [3, 4]), "behind the one before, without asking"
    rig.copied()
    rig.copied()
    assert rig.finished()[-1] == (5, 0)


@pytest.mark.parametrize(("held", "parent"), [(1, b"\x01"), (0, b"")])
def test_a_parent_that_is_not_known_is_asked_for(rig, held, parent):
    rig.store(1, 2)
    ((_, groups),) = rig.client.lookups.values()
    assert (groups, rig.stored()) == ([[key(1)[:32]]], [])
    rig.found(held)
    rig.step()
    assert rig.stored() == [(parent, [2], (0,))]
    assert len(rig.client.forgotten) == 1 - held, "the claim lasts until the block is copied"
    rig.copied()
    assert len(rig.client.forgotten) == 1


def test_a_parent_under_way_is_waited_for(rig):
    rig.store(None, 1)
    rig.store(1, 2)
    assert len(rig.stored()) == 1
    rig.copied()
    assert rig.stored()[1][:2] == (b"\x01", [2])
    rig.copied()
    assert rig.finished() == [(1, 0), (1, 0)]
    assert rig.client.lookups == {}


def test_nobody_answers_about_the_parent(rig):
    rig.store(1, 2)
    rig.now += 1
    rig.step()
    assert rig.stored() == [(b"", [2], (0,))]


def test_a_store_that_takes_too_long_is_never_vouched_for(rig):
    rig.store(None, 1)
    rig.now += 11
    rig.step()
    assert rig.finished() == [(0, 1)]
    assert rig.client.aborted == list(rig.client.stores)
    rig.copied()
    assert (rig.client.committed, rig.free()) == ([], 4)


@pytest.mark.parametrize("failure", ["limit", "no_tier", DAEMON_GONE])
def test_a_store_that_fails(rig, failure):
    rig.store(None, 1)
    rig.copied(failure=failure)
    assert (rig.client.committed, rig.finished(), rig.free()) == ([], [(0, 1)], 4)


def test_everything_is_given_up_at_once(rig):
    rig.store(None, 1)
    rig.store(5, 6)
    rig.load(7, 8, 9, 10)
    rig.staging.wait_idle()
    rig.loads.give_up_all()
    rig.stores.give_up_all()
    assert sorted(rig.finished()) == [(0, 1), (0, 1), (0, 4)]
    assert rig.jobs.open == {}
    rig.copied()
    rig.loaded()
    assert rig.client.committed == []
    assert rig.free() == 4
    assert TierStore() == TierStore(b"", (), ())
