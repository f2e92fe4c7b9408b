"""Where blocks are looked for, and the shapes they are moved in."""

from __future__ import annotations

from cells import Cell, Setting, both

# 64 MiB in each, as `cargo bench --bench arena` moves them; a read is a get, a write is a put.
HOST = (*both(1024, 64 << 10), *both(256, 256 << 10), *both(64, 1 << 20))
# Hashes of 32 bytes, all of them there.
LOOK_UP = Cell("read", 4096, 32)
# As many blocks in flight as a disk needs to be busy.
DISK = (*both(8, 1 << 20), *both(8, 2 << 20))
# The whole blocks of a prompt of 1,505 tokens, each of 32 tokens over all layers of the model.
BLOCK_TOKENS = 32
TTFT = Cell("read", 1505 // BLOCK_TOKENS, 30 * 3 * BLOCK_TOKENS * 128 * 2)

SETTINGS: tuple[Setting, ...] = (
    Setting("host", "host memory: a read is a get, a write is a put", HOST),
    Setting("look-up", "4,096 look-ups, all present", (LOOK_UP,), timed=True),
    Setting("disk", "disk, O_DIRECT", DISK, timed=True),
    Setting("ttft", "time to the first token in vLLM", (TTFT,), timed=True),
)
