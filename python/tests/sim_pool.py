"""A model of vLLM's block pool: blocks that are freed keep their content and can be found again until given away."""

import hashlib
from collections import deque

HASH_TOKENS = 16


class Violation(BaseException):
    """What must never happen did. The connector catches exceptions of its client, and must not catch this."""


def check(holds, text):
    if not holds:
        raise Violation(text)


def hash_of(tokens, salt):
    """A hash of all tokens up to the end of a block, as vLLM's chain of hashes is."""
    return hashlib.sha256(repr((salt, tuple(tokens))).encode()).digest()


class Pool:
    def __init__(self, count, rng):
        self.rng = rng
        # Given away from the left; freed blocks come in at the right.
        self.free = deque(range(1, count + 1))
        self.users = dict.fromkeys(self.free, 0)
        # Blocks by group and hash, and the other way round.
        self.cached, self.names = {}, {}

    def take(self):
        block_id = self.free.popleft()
        self.cached.pop(self.names.pop(block_id, None), None)
        assert self.users[block_id] == 0
        self.users[block_id] = 1
        return block_id

    def share(self, block_id):
        if self.users[block_id] == 0:
            self.free.remove(block_id)
        self.users[block_id] += 1

    def put_back(self, block_id):
        self.users[block_id] -= 1
        assert self.users[block_id] >= 0
        if self.users[block_id] == 0:
            # Now and then to the front: the sooner it is given away, the harder for those who still read it.
            if self.rng.random() < 0.3:
                self.free.appendleft(block_id)
            else:
                self.free.append(block_id)

    def name(self, group_id, block_hash, block_id):
        if (group_id, block_hash) not in self.cached and block_id not in self.names:
            self.cached[group_id, block_hash] = block_id
            self.names[block_id] = (group_id, block_hash)

    def find(self, group_id, block_hash):
        return self.cached.get((group_id, block_hash))

    def reset(self):
        """Forgets all contents; only where no block is in use."""
        if any(self.users.values()):
            return False
        self.cached.clear()
        self.names.clear()
        return True
