"""What KVFerry promises of its tiers, and what would prove it wrong."""

from __future__ import annotations

from collections.abc import Sequence

from figures import Source
from first_token import WAYS
from our_tiers import OURS as NAME
from places import BESIDE, DISK, HOST, LOOK_UP, RESTART, SETTINGS, TTFT
from results import Page, table
from rows import Row
from targets import Claim, Target
from under_load import IDLE

OURS = Source(NAME)
MEMCPY = Source("memcpy")
# The one that takes turns with ours within seconds: a disk that others share has good seconds and bad ones.
FIO = Source("fio", (("beside", NAME),))
RECOMPUTE = Source("recompute")
AT_REST = Source(IDLE)
LOOK_UP_US = 150.0
GAP_US = 500e3
ATTACHED_US = 200e3


def _after_a_restart(what: str, how: str, source: str, bound: float) -> Target:
    ours = Source(NAME, (("how", how), ("what", source)))
    return Target(what, "restart", RESTART, ours, (), 1.0, unit="p50_us", bound=bound)


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "Blocks go into host memory and out of it, checksums on, at 0.9 of memcpy of the same scattered blocks.",
        "a median ratio below 0.9 in any of the six cells",
        tuple(Target("host put" if c.op == "write" else "host get", "host", c, OURS, (MEMCPY,), 0.9) for c in HOST),
    ),
    Claim(
        "4,096 hashes, all present, are looked up within 150 us.",
        "a median above 150 us, with blocks of 64 KiB in 8 GiB",
        (
            Target(
                "look-up of 4,096 hashes",
                "look-up",
                LOOK_UP,
                Source(NAME, (("blocks_kib", 64),)),
                (),
                1.0,
                unit="p50_us",
                bound=LOOK_UP_US,
            ),
        ),
    ),
    Claim(
        "The disk is read at 0.97 of fio and written at 0.95 of it, by as many operations at once.",
        "a median ratio below 0.97 in a read or below 0.95 in a write",
        tuple(Target("disk", "disk", c, OURS, (FIO,), 0.97 if c.op == "read" else 0.95) for c in DISK),
    ),
    Claim(
        "And the slowest hundredth of operations takes at most twice as long as fio's.",
        "a median ratio of p99 above 2",
        tuple(Target("disk, p99", "disk", c, OURS, (FIO,), 2.0, unit="p99_us") for c in DISK),
    ),
    Claim(
        "Offload that saturates both daemons does not delay transfers between them: p99 within 1.25 of idle daemons.",
        "a median ratio of p99 above 1.25 in any of the four shapes",
        tuple(
            Target("transfer beside offload, p99", "beside", c, OURS, (AT_REST,), 1.25, unit="p99_us") for c in BESIDE
        ),
    ),
    Claim(
        "A daemon that is replaced under load is silent for less than 500 ms, and has all that it had acknowledged.",
        "a median gap above 500 ms, or a block that is not there again",
        (
            _after_a_restart("gap, ended and started again", "end", "gap", GAP_US),
            _after_a_restart("gap, kill -9 and started again", "kill", "gap", GAP_US),
        ),
    ),
    Claim(
        "An engine that starts again is attached within 200 ms, and finds its blocks.",
        "a median above 200 ms",
        tuple(_after_a_restart("engine attached, and answered", how, "engine", ATTACHED_US) for how in ("end", "kill")),
    ),
    Claim(
        "In vLLM, the first token of a prompt of 1,500 tokens that host memory holds takes 0.15 of computing it.",
        "a median ratio above 0.15, or rounds in which fewer bytes were loaded than the prompt's whole blocks have",
        (Target("first token, loaded from host memory", "ttft", TTFT, Source("host"), (RECOMPUTE,), 0.15, "p50_us"),),
    ),
    Claim(
        "And of one that the disk holds, 0.25.",
        "a median ratio above 0.25",
        (Target("first token, loaded from disk", "ttft", TTFT, Source("disk"), (RECOMPUTE,), 0.25, "p50_us"),),
    ),
)

HEAD = """\
## Tiers beside their ceilings and rivals

Written by `make bench-tiers`; do not edit. Only ratios within one run mean anything: this is one machine at one time.
Rates are GB/s (10^9 bytes), times are us; all are shown as median [lowest to highest] over the rounds. In every round
each peer has one turn in each setting, and the order moves on by one from round to round. First tokens have twice as
many rounds, of one prompt each.

- *Host*: blocks go between an engine's region and the arena, 64 MiB a batch, scattered over 1 GiB at both ends, on one
  core, summed on the way; both are in memory already. memcpy moves the same blocks between the same places in the same
  process, in turns with ours; the C program (`benches/peers/programs/block_copy.c`) does it over 512 MiB of its own,
  also with stores that pass the caches, which is what ours use. Mooncake has its store's memory in its own process and
  a master beside it, and is asked by `batch_put_from` and `batch_get_into`. A rate is that of the middle batch.
- *Look-up*: one call for each hash, inside the process that holds the arena of 8 GiB. The HashSet, the dict and Redis
  hold as many keys as the arena has blocks of 64 KiB. Redis alone is asked across processes: on a Unix socket, in one
  pipeline, by redis-py (`way client`) and by the bare bytes (`way wire`).
- *Disk*: fio by io_uring and O_DIRECT, at random places of one file of 2 GiB; verdicts are against the fio that takes
  turns with ours within seconds. LMCache by its own `bench l2` with its fs_native adapter and O_DIRECT, as many keys in
  one submission as fio has operations under way; its times are those of such a submission, and so its p50 and p99 are
  not fio's.
- *Beside*: two daemons on loopback, and clients that stand in for engines; a transfer takes as long as the reader's
  daemon says, from the order to the delivery, with pauses of up to 8 ms between them. *KVFerry* is beside an engine at
  each daemon that stores into host memory, from there to the disk, and loads from both, as fast as it is let; *idle* is
  without. *Floor* is beside as many bytes a second copied by threads of the idle class outside of the daemons.
- *Restart*: the gap is from the last answer of one daemon to the first of the next, as a client under load has them.
  *Engine* is from a client's start until it has attached and its first look-up is answered.
- *vLLM*: one engine on the CPU with SmolLM2-135M, one prompt of about 1,500 tokens at a time. *Recompute* has a salt
  that nothing was stored under, and the same engine and connector. *Own prefix cache* is the engine's, and the ceiling.
  Before *host* the engine is told to forget its prefix cache; the daemon's blocks are left alone.
"""

ELSEWHERE = """\
How soon an arena is there again after a restart: `cargo bench -p kvferry-tier --bench arena`.
"""


def came_from(rows: Sequence[Row]) -> list[str]:
    """Where the blocks of the prompts came from, as engine and daemon counted them."""
    names = ("prompt_tokens", "cached_tokens", "loaded_tokens", "loaded_bytes")
    body = []
    for way, title in WAYS.items():
        counts = [row.raw for row in rows if row.peer == way and row.raw is not None]
        if counts:
            told = [sorted({int(each[name]) for each in counts}) for name in names]
            body.append([title, str(len(counts)), *(" to ".join(map(str, {t[0]: 0, t[-1]: 0})) for t in told)])
    if not body:
        return []
    head = ["asked", "times", "prompt tokens", "from the engine's cache", "loaded tokens", "loaded bytes"]
    said = "\nWhat engine (tokens) and `kvferry status --json` (bytes) counted for each of these prompts:\n"
    return [said, *table(head, body)]


PAGE = Page("bench-tiers", HEAD, ELSEWHERE, CLAIMS, SETTINGS, came_from)
