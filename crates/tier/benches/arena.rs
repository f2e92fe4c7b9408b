//! How soon a new daemon has its host tier, and how long it looks up a prompt's blocks.
//!
//! ```text
//! cargo bench -p kvferry-tier --bench arena          8 GiB of blocks of 64 KiB and of 720 KiB; needs that much memory
//! ```
//!
//! A hash map of the same keys is looked up beside it: the floor for any index that answers from memory.

use std::collections::HashSet;
use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use kvferry_core::Fingerprint;
use kvferry_memory::Meter;
use kvferry_tier::host::{Arena, BlockHash};

const ARENA_BYTES: u64 = 8 << 30;
const ASKED: usize = 4096;
const ROUNDS: usize = 51;

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
        let Ok(filling) = arena.reserve(class, hash) else { break };
        arena.seal(filling, 0, None);
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

fn main() {
    let folder = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
    for block_bytes in [64 << 10, 720 << 10] {
        measure(&folder.path().join(format!("arena-{block_bytes}")), block_bytes);
    }
}
