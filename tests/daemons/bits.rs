//! Bits that change in host memory and in files on the disk while nobody looks: each is found by who reads it, counted,
//! told of once, and a miss from then on.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use kvferry_client::BlockHash;

use crate::support::engine::EngineOptions;
use crate::support::{Dice, Shape, StandInEngine};
use crate::tiers::Node;

const BLOCKS: u32 = 120;
const FLIPS: usize = 40;
/// Of a record, in host memory and on the disk: each begins on a multiple of it.
const RECORD_BYTES: u64 = 128;
/// What the daemon says of blocks that it has found so.
const TOLD: &str = "not what was stored";

fn hash(number: u32) -> BlockHash {
    let mut hash = [0xb7; 32];
    hash[..4].copy_from_slice(&number.to_le_bytes());
    hash
}

/// Words that no other block has.
fn content(number: u32) -> Vec<u8> {
    let first = u64::from(number + 1) << 40;
    (0..Shape::MEDIUM.block_bytes() / 8).flat_map(|word| (first + word).to_le_bytes()).collect()
}

fn attach(node: &Node, name: &str) -> StandInEngine {
    StandInEngine::attach_with(&node.daemon, name, EngineOptions { shape: Shape::MEDIUM, ..Default::default() })
}

/// Each a chain of its own, so that nothing stands behind one that is damaged.
fn store_all(engine: &mut StandInEngine) {
    for number in 0..BLOCKS {
        engine.write_block(1, &content(number));
        let (key, failure) = engine.store(None, &[hash(number)], &[1]);
        assert_eq!((failure, engine.commit(key)), (None, 1));
    }
}

/// Reads a block: whether it is there. It must be right, or fail for what is wrong with it.
fn read(engine: &mut StandInEngine, number: u32) -> bool {
    let (claim, held) = engine.lookup(&[hash(number)]);
    if held == 0 {
        return false;
    }
    engine.scribble(&[2]);
    let failure = engine.load(claim, &[hash(number)], &[2]);
    match failure.as_deref() {
        None => assert!(engine.block(2) == content(number), "block {number} is another"),
        // The second, where the disk has brought it before it was loaded.
        Some(word) => assert!(["checksum", "evicted"].contains(&word), "block {number}: {word}"),
    }
    failure.is_none()
}

/// Files, and where in them something begins, by number of block.
type Places = BTreeMap<u32, (PathBuf, u64)>;

/// Where each block's bytes begin; they begin on pages.
fn bodies(files: &[PathBuf]) -> Places {
    let beginnings: BTreeMap<Vec<u8>, u32> =
        (0..BLOCKS).map(|number| (content(number)[..64].to_vec(), number)).collect();
    let mut found = Places::new();
    for file in files {
        let bytes = std::fs::read(file).expect("readable");
        for (page, bytes) in (0..).zip(bytes.chunks(4096)) {
            if let Some(number) = bytes.get(..64).and_then(|bytes| beginnings.get(bytes)) {
                assert!(found.insert(*number, (file.clone(), page * 4096)).is_none(), "block {number} is there twice");
            }
        }
    }
    found
}

/// Where each block's name stands in its record. None has a parent, so it stands nowhere else.
fn records(files: &[PathBuf]) -> Places {
    let mut found = Places::new();
    for file in files {
        let bytes = std::fs::read(file).expect("readable");
        for (at, window) in bytes.windows(32).enumerate().filter(|(_, window)| window[4..] == hash(0)[4..]) {
            let number = u32::from_le_bytes(*window.first_chunk().expect("long enough"));
            assert!(found.insert(number, (file.clone(), at as u64)).is_none(), "block {number} is there twice");
        }
    }
    found
}

/// Flips one bit, in what others have of the file too.
fn flip(file: &Path, at: u64, bit: u32) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(file).expect("ours");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("inside");
    file.write_all_at(&[byte[0] ^ 1 << bit], at).expect("inside");
    // Past the page cache, the disk is what is read.
    file.sync_all().expect("synced");
}

/// Flips bits of random bodies; which blocks they were. Each block once, so that no bit is flipped back.
fn flip_bodies(dice: &mut Dice, files: &[PathBuf]) -> BTreeSet<u32> {
    let places = bodies(files);
    assert_eq!(places.len(), BLOCKS as usize);
    let numbers = dice.blocks(FLIPS, 0..BLOCKS);
    for number in &numbers {
        let (file, begins) = &places[number];
        let byte = dice.below(u32::try_from(Shape::MEDIUM.block_bytes()).expect("small"));
        flip(file, begins + u64::from(byte), dice.below(8));
    }
    numbers.into_iter().collect()
}

/// Flips bits of records of blocks that are not `but`.
fn flip_records(dice: &mut Dice, files: &[PathBuf], but: &BTreeSet<u32>) -> BTreeSet<u32> {
    let places: Vec<_> = records(files).into_iter().filter(|(number, _)| !but.contains(number)).collect();
    let chosen = dice.blocks(FLIPS / 2, 0..u32::try_from(places.len()).expect("few"));
    let flipped = chosen.iter().map(|&at| {
        let (number, (file, named)) = &places[at as usize];
        let begins = named / RECORD_BYTES * RECORD_BYTES;
        flip(file, begins + u64::from(dice.below(u32::try_from(RECORD_BYTES).expect("small"))), dice.below(8));
        *number
    });
    flipped.collect()
}

/// The metric of damaged blocks that left this tier.
fn left(tier: &str) -> String {
    format!("kvferry_tier_left_blocks_total{{tier=\"{tier}\",reason=\"damaged\"}}")
}

#[test]
fn every_bit_that_changes_in_host_memory_is_found_counted_and_told_of_once() {
    let mut dice = Dice::throw("bits in host memory");
    let node = Node::start();
    let mut engine = attach(&node, "E0");
    store_all(&mut engine);
    let arena = [node.arena()];
    let damaged = flip_bodies(&mut dice, &arena);
    for number in 0..BLOCKS {
        assert_eq!(read(&mut engine, number), !damaged.contains(&number), "block {number}");
    }
    let told = |found: usize| {
        node.daemon.wait_for("as many damaged blocks", |status| status["tiers"]["left_total"]["damaged"] == found);
        node.daemon.wait_log_count(TOLD, found);
        assert_eq!(node.daemon.metric(&left("host")), found as u64);
    };
    told(FLIPS);
    // Whoever comes now finds none of them, and learns nothing new; and they may be stored again.
    for &number in &damaged {
        assert!(!read(&mut engine, number), "block {number} is found again");
    }
    let lost = flip_records(&mut dice, &arena, &damaged);
    for number in (0..BLOCKS).filter(|number| !damaged.contains(number)) {
        assert_eq!(read(&mut engine, number), !lost.contains(&number), "block {number}");
    }
    told(FLIPS + lost.len());
    for &number in damaged.union(&lost) {
        engine.write_block(1, &content(number));
        let (key, failure) = engine.store(None, &[hash(number)], &[1]);
        assert_eq!((failure, engine.commit(key), read(&mut engine, number)), (None, 1, true));
    }
    told(FLIPS + lost.len());
}

#[test]
fn every_bit_that_changes_on_the_disk_is_found_counted_and_told_of_once() {
    let mut dice = Dice::throw("bits on the disk");
    let mut node = Node::start_with(true);
    let mut first = attach(&node, "E0");
    store_all(&mut first);
    // Who is found in host memory goes to the disk.
    for number in 0..BLOCKS {
        assert!(read(&mut first, number));
    }
    node.wait_on_disk(u64::from(BLOCKS));
    node.daemon.kill();
    std::fs::remove_file(node.arena()).expect("it was there");
    let entries = std::fs::read_dir(node.store()).expect("a store").map(|entry| entry.expect("an entry").path());
    let files: Vec<PathBuf> = entries
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("extent-")))
        .collect();
    let damaged = flip_bodies(&mut dice, &files);
    let lost = flip_records(&mut dice, &files, &damaged);
    node.daemon.restart();
    // Records are read at the start, and bytes by who wants them.
    let line = node.daemon.wait_log("records on the disk are damaged");
    assert!(line.contains(&format!("records={} ", lost.len())), "{line}");
    let mut second = attach(&node, "E1");
    for number in 0..BLOCKS {
        let is_there = !damaged.contains(&number) && !lost.contains(&number);
        assert_eq!(read(&mut second, number), is_there, "block {number}");
    }
    node.daemon.wait_for("as many damaged blocks", |status| status["tiers"]["disk"]["left_total"]["damaged"] == FLIPS);
    node.daemon.wait_log_count(TOLD, FLIPS);
    assert_eq!(node.daemon.metric(&left("disk")), FLIPS as u64);
    for &number in damaged.union(&lost) {
        assert!(!read(&mut second, number), "block {number} is found again");
    }
    node.daemon.wait_log_count(TOLD, FLIPS);
    assert_eq!(node.daemon.log_count("records on the disk are damaged"), 1);
}
