"""Where blocks are looked for, and the shapes they are moved in."""

from __future__ import annotations

from cells import Cell, Setting, both

# 64 MiB in each, as `cargo bench --bench arena` moves them; a read is a get, a write is a put.
HOST = (*both(1024, 64 << 10), *both(256, 256 << 10), *both(64, 1 << 20))
# Hashes of 32 bytes, all of them there.
LOOK_UP = Cell("read", 4096, 32)
# As many blocks in flight as a disk needs to be busy.
DISK = (*both(8, 1 << 20), *both(8, 2 << 20))
# Transfers between two daemons: 8 KiB, and blocks of SmolLM2-135M for 32, 1,504 and 8,192 tokens.
BESIDE = (
    Cell("read", 1, 8 << 10),
    Cell("read", 1, 720 << 10),
    Cell("read", 47, 720 << 10),
    Cell("read", 256, 720 << 10),
)
# What host memory of 4 GiB holds when its daemon goes.
RESTART = Cell("any", 273 * 16, 720 << 10)
# The whole blocks of a prompt of 1,505 tokens, each of 32 tokens over all layers of the model.
BLOCK_TOKENS = 32
TTFT = Cell("read", 1505 // BLOCK_TOKENS, 30 * 3 * BLOCK_TOKENS * 128 * 2)

SETTINGS: tuple[Setting, ...] = (
    Setting("host", "host memory: a read is a get, a write is a put", HOST),
    Setting("look-up", "4,096 look-ups, all present", (LOOK_UP,), timed=True),
    Setting("disk", "disk, O_DIRECT", DISK, timed=True),
    Setting("beside", "transfers between two daemons, and saturating offload in both", BESIDE, timed=True),
    Setting("restart", "a daemon replaced under load", (RESTART,), timed=True),
    Setting("ttft", "time to the first token in vLLM", (TTFT,), timed=True),
)
