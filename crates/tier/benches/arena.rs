//! How soon a new daemon has its host tier, and how long it looks up a prompt's blocks.
//!
//! ```text
//! cargo bench -p kvferry-tier --bench arena          8 GiB of blocks of 64 KiB and of 720 KiB; needs that much memory
//! ```
//!
//! A hash map of the same keys is looked up beside it: the floor for any index that answers from memory. Then blocks are
//! put into an arena out of an engine's region, and got from there: 64 MiB at a time, scattered, summed on the way. The
//! ceiling beside it is memcpy of the same blocks between the same places, on one core as well.

use std::collections::HashSet;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use kvferry_core::Fingerprint;
use kvferry_memory::{Meter, Piece, Region, Stores};
use kvferry_tier::host::Arena;
use kvferry_tier::{BlockHash, Store as _, Tenant};

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

/// The middle of so many runs, in microseconds.
fn median_us(mut run: impl FnMut()) -> f64 {
    let mut times: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let begun = Instant::now();
            run();
            begun.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[ROUNDS / 2]
}

fn measure(path: &Path, block_bytes: u64) {
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
    println!(
        "{:>8} blocks of {:>4} KiB: made in {made_s:.2} s, there again after {reopened_ms:.1} ms",
        recovery.blocks,
        block_bytes >> 10
    );
    let class = arena.class(Fingerprint([1; 32]), 0, block_bytes).expect("a class");
    let asked: Vec<BlockHash> = (0..ASKED).map(|_| hashes[random.usize(..hashes.len())]).collect();
    let all: HashSet<BlockHash> = hashes.into_iter().collect();
    let arena_us = median_us(|| assert!(asked.iter().all(|hash| black_box(arena.contains(class, hash)))));
    let set_us = median_us(|| assert!(asked.iter().all(|hash| black_box(all.contains(hash)))));
    println!(
        "         {ASKED} of them looked up in {arena_us:.0} us; in a HashSet of the same hashes in {set_us:.0} us"
    );
    std::fs::remove_file(path).expect("remove the file");
}

/// Where a block is in the engine's region, and where in the arena.
type Pair = (u64, u64);

/// Moves blocks between a region, as an engine would share it, and the arena.
fn put_and_get(path: &Path, block_bytes: u64) {
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
    let rate = |run: &mut dyn FnMut(&[Pair])| {
        let mut next = 0;
        let us = median_us(|| {
            run(batches[next % batches.len()]);
            next += 1;
        });
        BATCH_BYTES as f64 / us / 1e3
    };
    let put = rate(&mut |batch| {
        for &(source, target) in batch {
            let piece = [Piece { source, target, length: block_bytes }];
            black_box(stored.copy_summed(&region, &piece, Stores::Streamed).expect("inside"));
        }
    });
    let get = rate(&mut |batch| {
        for &(target, source) in batch {
            let piece = [Piece { source, target, length: block_bytes }];
            black_box(region.copy_summed(&stored, &piece, Stores::Streamed).expect("inside"));
        }
    });
    let memcpy = rate(&mut |batch| {
        for &(place, slot) in batch {
            region.copy_from(place, &stored, slot, block_bytes).expect("inside");
        }
    });
    println!(
        "blocks of {:>4} KiB: put {put:.1} GB/s, got {get:.1} GB/s, sums on; memcpy {memcpy:.1} GB/s: {:.2} and {:.2} of it",
        block_bytes >> 10,
        put / memcpy,
        get / memcpy
    );
    slots.into_iter().for_each(|slot| arena.abandon(slot));
}

fn main() {
    let folder = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
    for block_bytes in [64 << 10, 720 << 10] {
        measure(&folder.path().join(format!("arena-{block_bytes}")), block_bytes);
    }
    for block_bytes in [64 << 10, 256 << 10, 1 << 20] {
        put_and_get(&folder.path().join("arena"), block_bytes);
    }
}
