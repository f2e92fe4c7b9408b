//! How soon a new daemon has its host tier, and how long it looks up a prompt's blocks.
//!
//! ```text
//! cargo bench -p kvferry-tier --bench arena                    8 GiB of blocks of 64 KiB and of 720 KiB; 2 GiB moved
//! cargo bench -p kvferry-tier --bench arena -- --json copy     one JSON document; of the two parts, `look-up` or `copy`
//! ```
//!
//! A hash map of the same keys is looked up beside it: the floor for any index that answers from memory. Then blocks are
//! put into an arena out of an engine's region, and got from there: 64 MiB at a time, scattered, summed on the way. The
//! ceiling beside it is memcpy of the same blocks between the same places, on one core as well; the three take turns.

use std::collections::HashSet;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use kvferry_core::Fingerprint;
use kvferry_memory::{Meter, Piece, Region, Stores};
use kvferry_tier::host::Arena;
use kvferry_tier::{BlockHash, Store as _, Tenant};
use serde_json::{Value, json};

const ARENA_BYTES: u64 = 8 << 30;
const ASKED: usize = 4096;
const ROUNDS: usize = 51;
const REGION_BYTES: u64 = 1 << 30;
const BATCH_BYTES: u64 = 64 << 20;

fn hash(random: &mut fastrand::Rng) -> BlockHash {
    let mut hash = [0; 32];
    random.fill(&mut hash);
    hash
}

/// The middle of so many runs of each work, in microseconds; the works take turns.
fn medians_us<const WORKS: usize>(works: [&mut dyn FnMut(); WORKS]) -> [f64; WORKS] {
    let mut times = [(); WORKS].map(|()| Vec::with_capacity(ROUNDS));
    let mut works = works;
    for _ in 0..ROUNDS {
        for (work, times) in works.iter_mut().zip(&mut times) {
            let begun = Instant::now();
            work();
            times.push(begun.elapsed().as_secs_f64() * 1e6);
        }
    }
    times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[ROUNDS / 2]
    })
}

struct LookUp {
    block_bytes: u64,
    blocks: u64,
    made_s: f64,
    reopened_ms: f64,
    arena_us: f64,
    set_us: f64,
}

impl LookUp {
    fn tell(&self) {
        let &Self { block_bytes, blocks, made_s, reopened_ms, arena_us, set_us } = self;
        println!(
            "{blocks:>8} blocks of {:>4} KiB: made in {made_s:.2} s, there again after {reopened_ms:.1} ms\n         \
             {ASKED} of them looked up in {arena_us:.0} us; in a HashSet of the same hashes in {set_us:.0} us",
            block_bytes >> 10
        );
    }

    fn json(&self) -> Value {
        let &Self { block_bytes, blocks, made_s, reopened_ms, arena_us, set_us } = self;
        json!({
            "block_bytes": block_bytes, "blocks": blocks, "made_s": made_s, "reopened_ms": reopened_ms,
            "asked": ASKED, "arena_us": arena_us, "hash_set_us": set_us,
        })
    }
}

fn look_up(path: &Path, block_bytes: u64) -> LookUp {
    let meter = Meter::new();
    let mut random = fastrand::Rng::with_seed(1);
    let begun = Instant::now();
    let (mut arena, _) = Arena::open(path, ARENA_BYTES, block_bytes, &meter).expect("8 GiB of memory");
    let made_s = begun.elapsed().as_secs_f64();
    let class = arena.class(Fingerprint([1; 32]), 0, block_bytes).expect("a class");
    let mut hashes = Vec::new();
    // Bytes of blocks are left as they are: recovery does not read them.
    loop {
        let hash = hash(&mut random);
        let Ok(filling) = arena.reserve(class, hash, Tenant(0)) else { break };
        arena.seal(filling, 0, None).expect("kept");
        hashes.push(hash);
    }
    drop(arena);
    let begun = Instant::now();
    let (mut arena, recovery) = Arena::open(path, ARENA_BYTES, block_bytes, &meter).expect("the same");
    let reopened_ms = begun.elapsed().as_secs_f64() * 1e3;
    assert_eq!((recovery.blocks, recovery.damaged), (hashes.len() as u64, 0));
    let class = arena.class(Fingerprint([1; 32]), 0, block_bytes).expect("a class");
    let asked: Vec<BlockHash> = (0..ASKED).map(|_| hashes[random.usize(..hashes.len())]).collect();
    let all: HashSet<BlockHash> = hashes.into_iter().collect();
    let [arena_us, set_us] =
        medians_us([&mut || assert!(asked.iter().all(|hash| black_box(arena.contains(class, hash)))), &mut || {
            assert!(asked.iter().all(|hash| black_box(all.contains(hash))));
        }]);
    std::fs::remove_file(path).expect("remove the file");
    LookUp { block_bytes, blocks: recovery.blocks, made_s, reopened_ms, arena_us, set_us }
}

/// Where a block is in the engine's region, and where in the arena.
type Pair = (u64, u64);

/// GB/s of 64 MiB in blocks.
struct Moved {
    block_bytes: u64,
    put: f64,
    get: f64,
    memcpy: f64,
}

impl Moved {
    fn tell(&self) {
        let &Self { block_bytes, put, get, memcpy } = self;
        println!(
            "blocks of {:>4} KiB: put {put:.1} GB/s, got {get:.1} GB/s, sums on; memcpy {memcpy:.1} GB/s: {:.2} and {:.2} \
             of it",
            block_bytes >> 10,
            put / memcpy,
            get / memcpy
        );
    }

    fn json(&self) -> Value {
        let &Self { block_bytes, put, get, memcpy } = self;
        json!({
            "block_bytes": block_bytes, "blocks": BATCH_BYTES / block_bytes,
            "put_gbps": put, "get_gbps": get, "memcpy_gbps": memcpy,
        })
    }
}

/// Moves blocks between a region, as an engine would share it, and the arena.
fn put_and_get(path: &Path, block_bytes: u64) -> Moved {
    let meter = Meter::new();
    let (mut arena, _) = Arena::open(path, REGION_BYTES + REGION_BYTES / 4, block_bytes, &meter).expect("memory");
    let class = arena.class(Fingerprint([1; 32]), 0, block_bytes).expect("a class");
    let fd = kvferry_memory::create("kvferry-bench", REGION_BYTES).expect("memory");
    let region = Region::map(fd, REGION_BYTES, &meter).expect("a region");
    let window: Vec<u8> = (0..1_u32 << 20).map(|place| (place * 2_654_435_761).to_be_bytes()[0]).collect();
    (0..REGION_BYTES >> 20).for_each(|place| region.write(place << 20, &window).expect("inside"));
    let mut random = fastrand::Rng::with_seed(2);
    let mut places: Vec<u64> = (0..REGION_BYTES / block_bytes).map(|block| block * block_bytes).collect();
    random.shuffle(&mut places);
    let mut slots: Vec<_> =
        places.iter().map(|_| arena.reserve(class, hash(&mut random), Tenant(0)).expect("a place")).collect();
    random.shuffle(&mut slots);
    let stored = Arc::clone(arena.region());
    // Every page of the arena is there, as after its first day.
    slots.iter().zip(&places).for_each(|(slot, &place)| {
        stored.copy_from(slot.offset, &region, place, block_bytes).expect("inside");
    });
    let pairs: Vec<Pair> = places.iter().zip(&slots).map(|(&place, slot)| (place, slot.offset)).collect();
    let batches: Vec<_> = pairs.chunks(usize::try_from(BATCH_BYTES / block_bytes).expect("small")).collect();
    let batch = |turn: usize| batches[turn % batches.len()];
    let mut turns = [0; 3];
    let [puts, gets, copies] = &mut turns;
    let us = medians_us([
        &mut || {
            for &(source, target) in batch(*puts) {
                let piece = [Piece { source, target, length: block_bytes }];
                black_box(stored.copy_summed(&region, &piece, Stores::Streamed).expect("inside"));
            }
            *puts += 1;
        },
        &mut || {
            for &(target, source) in batch(*gets) {
                let piece = [Piece { source, target, length: block_bytes }];
                black_box(region.copy_summed(&stored, &piece, Stores::Streamed).expect("inside"));
            }
            *gets += 1;
        },
        &mut || {
            for &(place, slot) in batch(*copies) {
                region.copy_from(place, &stored, slot, block_bytes).expect("inside");
            }
            *copies += 1;
        },
    ]);
    slots.into_iter().for_each(|slot| arena.abandon(slot));
    let [put, get, memcpy] = us.map(|us| BATCH_BYTES as f64 / us / 1e3);
    Moved { block_bytes, put, get, memcpy }
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let has = |word: &str| words.iter().any(|given| given == word);
    let (look_ups, copies) = (has("look-up") || !has("copy"), has("copy") || !has("look-up"));
    // Whoever may kill this program says where, and removes it.
    let place = words.iter().find_map(|word| word.strip_prefix("--in=")).unwrap_or("/dev/shm");
    let folder = tempfile::tempdir_in(place).expect("a folder in memory");
    let path = folder.path().join("arena");
    let look_ups = [64 << 10, 720 << 10].into_iter().filter(|_| look_ups).map(|bytes| look_up(&path, bytes));
    let copies = [64 << 10, 256 << 10, 1 << 20].into_iter().filter(|_| copies).map(|bytes| put_and_get(&path, bytes));
    if has("--json") {
        let look_ups: Vec<Value> = look_ups.map(|found| found.json()).collect();
        let copies: Vec<Value> = copies.map(|moved| moved.json()).collect();
        println!("{}", json!({ "look_up": look_ups, "copy": copies }));
    } else {
        look_ups.for_each(|found| found.tell());
        copies.for_each(|moved| moved.tell());
    }
}
