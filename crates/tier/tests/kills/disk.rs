//! Blocks on a disk.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kvferry_core::Fingerprint;
use kvferry_memory::{Meter, Region};
use kvferry_tier::disk::{Block, Done, Filling, Io, Limits, Mover, Settings, Shelf, Span};
use kvferry_tier::{ClassId, Held as _, Reserved as _, Store as _, Tenant};

use crate::journal::{Journal, Word, body, check_body, hash};
use crate::victim::{self, Kills};

const KILLS: Kills = Kills { victim: "disk::victim", count: 60, longest: Duration::from_millis(90) };
const LIMITS: Limits =
    Limits { bytes_max: 3 << 20, files_max: 8, extent_bytes: 700 << 10, free_bytes_min: 0, write_errors_max: 8 };
const SETTINGS: Settings = Settings { io: Io::Auto, depth_max: 4, threads: 2, bounce_bytes_max: 1 << 20 };
/// Two classes, so that files come and go.
const SIZES: [u64; 2] = [20_000, 60_000];
const SLOT_BYTES: u64 = 64 << 10;
const BLOCKS: u64 = 150;

struct World {
    shelf: Shelf,
    mover: Mover,
    classes: [ClassId; 2],
    journal: Journal,
    memory: Arc<Region>,
    /// Spans of `memory` that no operation has.
    free: Vec<u64>,
    /// Erased while they were held.
    held: Vec<(u64, Block)>,
}

impl victim::World for World {
    fn open(folder: &Path) -> Self {
        let (mut shelf, recovery) = Shelf::open(&folder.join("shelf"), LIMITS).expect("a store");
        assert_eq!((recovery.damaged_records, recovery.damaged_files.len(), recovery.twice), (0, 0, 0));
        assert_eq!((recovery.foreign_files, recovery.over_limits), (0, 0));
        let link = std::fs::read_to_string(folder.join("journal")).expect("where the journal is");
        let journal = Journal::open(Path::new(&link), BLOCKS);
        let bytes = 4 * SLOT_BYTES;
        let fd = kvferry_memory::create("kvferry-kill", bytes).expect("memory");
        let memory = Region::map(fd, bytes, &Meter::new()).expect("a region");
        let classes = [0_u8, 1]
            .map(|kind| shelf.class(Fingerprint([9; 32]), u32::from(kind), SIZES[usize::from(kind)]).expect("a class"));
        let mover = Mover::open(SETTINGS).expect("a way to the disk");
        let free = (0..4).map(|place| place * SLOT_BYTES).collect();
        Self { shelf, mover, classes, journal, memory, free, held: Vec::new() }
    }

    fn check(&mut self) -> u64 {
        let Self { shelf, mover, classes, journal, memory, .. } = self;
        let there = journal.check(|block| {
            let Some(found) = shelf.pin(class(classes, block), &hash(block)) else { return false };
            let (found, bytes) = read(mover, memory, block, found);
            shelf.unpin(&found);
            check_body(block, &bytes, found.checksum());
            true
        });
        assert_eq!(there, shelf.blocks() as u64);
        there
    }

    fn step(&mut self, random: &mut fastrand::Rng) {
        let block = random.u64(0..BLOCKS);
        let class = class(&self.classes, block);
        if let Some(place) = self.held.iter().position(|(of, _)| *of == block) {
            let (_, held) = self.held.swap_remove(place);
            assert!(self.shelf.unpin(&held) && self.shelf.remove(class, &hash(block)));
        } else if self.shelf.contains(class, &hash(block)) {
            self.journal.say(block, Word::Going);
            if random.u32(0..4) == 0 {
                self.held.push((block, self.shelf.pin(class, &hash(block)).expect("there")));
                assert!(!self.shelf.erase(class, &hash(block)));
            } else {
                assert!(self.shelf.remove(class, &hash(block)));
            }
            self.journal.say(block, Word::Gone);
        } else if self.journal.of(block) == Word::Gone
            && let Some(offset) = self.free.pop()
        {
            match self.shelf.reserve(class, hash(block), Tenant(0)) {
                Ok(filling) => self.begin(block, filling, offset, random.u64(..)),
                Err(_) => self.free.push(offset),
            }
        }
        let mut done = Vec::new();
        self.mover.turn(&mut done);
        if self.free.is_empty() && done.is_empty() {
            self.mover.wait(Duration::from_secs(1));
        }
        for done in done {
            let Done::Written { tag, filling, outcome } = done else { panic!("nothing is read") };
            assert_eq!(outcome, Ok(()));
            let (block, offset) = (tag >> 8, (tag & 0xff) * SLOT_BYTES);
            let checksum = self.memory.crc32c(0, offset, filling.bytes()).expect("inside");
            self.shelf.seal(filling, checksum, None).expect("kept");
            self.journal.say(block, Word::There);
            self.free.push(offset);
        }
    }
}

impl World {
    fn begin(&mut self, block: u64, filling: Filling, offset: u64, version: u64) {
        self.journal.say(block, Word::Filling);
        self.memory.write(offset, &body(block, version, filling.bytes())).expect("inside");
        let span = Span { region: Arc::clone(&self.memory), offset, room: SLOT_BYTES };
        self.mover.write((block << 8) | (offset / SLOT_BYTES), filling, &span).expect("as many spans as operations");
    }
}

fn class(classes: &[ClassId; 2], block: u64) -> ClassId {
    classes[usize::from(block % 5 == 4)]
}

/// A block's bytes; nothing else is under way.
fn read(mover: &mut Mover, memory: &Arc<Region>, tag: u64, found: Block) -> (Block, Vec<u8>) {
    let span = Span { region: Arc::clone(memory), offset: 0, room: SLOT_BYTES };
    mover.read(tag, found, &span).expect("nothing else is under way");
    let mut done = Vec::new();
    while done.is_empty() {
        mover.wait(Duration::from_secs(1));
        mover.turn(&mut done);
    }
    let Some(Done::Read { block: found, outcome, .. }) = done.pop() else { panic!("a read ends as one") };
    assert_eq!(outcome, Ok(()), "block {tag} is damaged");
    let mut bytes = vec![0; usize::try_from(found.bytes()).expect("small")];
    memory.read(0, &mut bytes).expect("inside");
    (found, bytes)
}

/// What all files of the store take of the disk. One that goes between the list and the look counts for nothing.
fn taken(folder: &Path) -> (u64, u32) {
    let Ok(files) = std::fs::read_dir(folder.join("shelf")) else { return (0, 0) };
    files
        .filter_map(|file| file.ok()?.metadata().ok())
        .fold((0, 0), |(bytes, count), data| (bytes + data.len().max(data.blocks() * 512), count + 1))
}

/// The process that is killed; by itself it does nothing.
#[test]
fn victim() {
    victim::live::<World>();
}

#[test]
fn a_killed_process_leaves_whole_blocks_on_the_disk() {
    // On the disk that holds this program: not every temporary folder is on one.
    let program = std::env::current_exe().expect("this program");
    let folder = victim::folder(program.parent().expect("in a folder"));
    let journal = victim::folder(Path::new("/dev/shm"));
    let link = journal.path().join("journal");
    std::fs::write(folder.path().join("journal"), link.to_str().expect("plain")).expect("write");
    let mut largest = (0, 0);
    let most = KILLS.run::<World>(folder.path(), || {
        let (bytes, files) = taken(folder.path());
        assert!(bytes <= LIMITS.bytes_max && files <= LIMITS.files_max, "{bytes} in {files} files");
        largest = (largest.0.max(bytes), largest.1.max(files));
    });
    assert!(most > 25, "the victims stored next to nothing: {most} blocks");
    println!("{} bytes in {} files at most, of {} in {}", largest.0, largest.1, LIMITS.bytes_max, LIMITS.files_max);
}
