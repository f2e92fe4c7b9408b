//! kill -9 of a process that stores on a disk, removes and recovers, at random moments.
//!
//! ```text
//! child: recover -> check -> journal "filling" -> write -> seal -> journal "there" -> ... killed
//! this test: every block "there" is there, with all its bytes; none that was removed; never more than the limits
//! ```
//!
//! `KVFERRY_KILLS=2000 cargo test -p kvferry-tier --test kill_disk` kills more often.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvferry_core::Fingerprint;
use kvferry_memory::{Meter, Region};
use kvferry_tier::disk::{Done, Filling, Io, Limits, Mover, Settings, Shelf, Span};
use kvferry_tier::{BlockHash, ClassId, Held as _, Reserved as _, Store as _, Tenant};

const KILLS: &str = match option_env!("KVFERRY_KILLS") {
    Some(count) => count,
    None => "60",
};
const LIMITS: Limits =
    Limits { bytes_max: 3 << 20, files_max: 8, extent_bytes: 700 << 10, free_bytes_min: 0, write_errors_max: 8 };
const SETTINGS: Settings = Settings { io: Io::Auto, depth_max: 4, threads: 2, bounce_bytes_max: 1 << 20 };
/// Two classes, so that files come and go.
const SIZES: [u64; 2] = [20_000, 60_000];
const SLOT_BYTES: u64 = 64 << 10;
const BLOCKS: u64 = 150;
/// Journal, a word for each block.
const GONE: u64 = 0;
const FILLING: u64 = 1;
const THERE: u64 = 2;
const GOING: u64 = 3;

struct World {
    shelf: Shelf,
    mover: Mover,
    classes: [ClassId; 2],
    journal: Arc<Region>,
    memory: Arc<Region>,
    /// Spans of `memory` that no operation has.
    free: Vec<u64>,
}

impl World {
    fn open(folder: &Path) -> Self {
        let (mut shelf, recovery) = Shelf::open(&folder.join("shelf"), LIMITS).expect("a store");
        assert_eq!((recovery.damaged_records, recovery.damaged_files.len(), recovery.twice), (0, 0, 0));
        assert_eq!((recovery.foreign_files, recovery.over_limits), (0, 0));
        let meter = Meter::new();
        let link = std::fs::read_to_string(folder.join("journal")).expect("where the journal is");
        let (journal, _) = Region::keep(Path::new(&link), BLOCKS * 8, &meter).expect("a journal");
        let bytes = 4 * SLOT_BYTES;
        let fd = kvferry_memory::create("kvferry-kill", bytes).expect("memory");
        let memory = Region::map(fd, bytes, &meter).expect("a region");
        let classes = [0_u8, 1]
            .map(|kind| shelf.class(Fingerprint([9; 32]), u32::from(kind), SIZES[usize::from(kind)]).expect("a class"));
        let mover = Mover::open(SETTINGS).expect("a way to the disk");
        Self { shelf, mover, classes, journal, memory, free: (0..4).map(|place| place * SLOT_BYTES).collect() }
    }

    fn class(&self, block: u64) -> ClassId {
        self.classes[usize::from(block % 5 == 4)]
    }

    /// Everything is as the journal says; what was under way may have happened or not, and is settled now.
    fn check(&mut self) -> u64 {
        let mut there = 0;
        for block in 0..BLOCKS {
            let is_there = self.is_whole(block);
            match self.journal.load(block).expect("inside") {
                GONE => assert!(!is_there, "block {block} is a phantom"),
                THERE => assert!(is_there, "block {block} is lost"),
                _ => self.journal.store(block, if is_there { THERE } else { GONE }).expect("inside"),
            }
            there += u64::from(is_there);
        }
        assert_eq!(there, self.shelf.blocks() as u64);
        there
    }

    fn is_whole(&mut self, block: u64) -> bool {
        let Some(found) = self.shelf.pin(self.class(block), &hash(block)) else { return false };
        let span = Span { region: Arc::clone(&self.memory), offset: 0, room: SLOT_BYTES };
        self.mover.read(block, found, &span).expect("nothing else is under way");
        let mut done = Vec::new();
        while done.is_empty() {
            self.mover.wait(Duration::from_secs(1));
            self.mover.turn(&mut done);
        }
        let Some(Done::Read { block: found, outcome, .. }) = done.pop() else { panic!("a read ends as one") };
        assert_eq!(outcome, Ok(()), "block {block} is damaged");
        let mut bytes = vec![0; usize::try_from(found.bytes()).expect("small")];
        self.memory.read(0, &mut bytes).expect("inside");
        self.shelf.unpin(&found);
        // Which of its versions it is, the first word tells.
        let version = u64::from_le_bytes(*bytes.first_chunk().expect("long enough"));
        assert_eq!(bytes, body(block, version, found.bytes()), "block {block} is another");
        true
    }

    /// Begins or ends something.
    fn step(&mut self, random: &mut fastrand::Rng) {
        let block = random.u64(0..BLOCKS);
        let class = self.class(block);
        if self.shelf.contains(class, &hash(block)) {
            self.journal.store(block, GOING).expect("inside");
            assert!(self.shelf.remove(class, &hash(block)));
            self.journal.store(block, GONE).expect("inside");
        } else if self.journal.load(block).expect("inside") == GONE
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
            self.journal.store(block, THERE).expect("inside");
            self.free.push(offset);
        }
    }

    fn begin(&mut self, block: u64, filling: Filling, offset: u64, version: u64) {
        self.journal.store(block, FILLING).expect("inside");
        self.memory.write(offset, &body(block, version, filling.bytes())).expect("inside");
        let span = Span { region: Arc::clone(&self.memory), offset, room: SLOT_BYTES };
        self.mover.write((block << 8) | (offset / SLOT_BYTES), filling, &span).expect("as many spans as operations");
    }
}

fn hash(block: u64) -> BlockHash {
    let mut hash = [1; 32];
    hash[..8].copy_from_slice(&block.to_le_bytes());
    hash
}

fn body(block: u64, version: u64, count: u64) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..count).map(|place| (version ^ block.wrapping_add(place)).to_le_bytes()[0]).collect();
    bytes[..8].copy_from_slice(&version.to_le_bytes());
    bytes
}

/// What all files of the store take of the disk.
fn taken(folder: &Path) -> (u64, u32) {
    let files = std::fs::read_dir(folder.join("shelf")).expect("a folder");
    files.fold((0, 0), |(bytes, count), file| {
        let data = file.expect("a file").metadata().expect("its data");
        (bytes + data.len().max(data.blocks() * 512), count + 1)
    })
}

/// The process that is killed, where a journal lies: the other test starts it there. By itself it does nothing.
#[test]
fn child() {
    if !Path::new("journal").exists() {
        return;
    }
    let mut world = World::open(Path::new("."));
    world.check();
    let mut random = fastrand::Rng::new();
    loop {
        world.step(&mut random);
    }
}

#[test]
fn a_killed_process_leaves_whole_blocks_on_the_disk() {
    // On the disk that holds this program: not every temporary folder is on one.
    let program = std::env::current_exe().expect("this program");
    let folder = tempfile::tempdir_in(program.parent().expect("in a folder")).expect("a folder on a disk");
    let journal = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
    let link = journal.path().join("journal");
    std::fs::write(folder.path().join("journal"), link.to_str().expect("plain")).expect("write");
    drop(World::open(folder.path()));
    let mut random = fastrand::Rng::with_seed(17);
    let (begun, mut most) = (Instant::now(), (0, 0, 0));
    let kills: u32 = KILLS.parse().expect("a number");
    for round in 0..kills {
        let mut child = Command::new(&program)
            .args(["--exact", "child", "--quiet"])
            .current_dir(folder.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("start the child");
        // Chosen to fall into start, recovery and storing alike.
        let end = Instant::now() + Duration::from_micros(random.u64(1_000..90_000));
        while Instant::now() < end {
            let (bytes, files) = taken_if_steady(folder.path());
            assert!(bytes <= LIMITS.bytes_max && files <= LIMITS.files_max, "{bytes} in {files} files");
            most = (most.0, most.1.max(bytes), most.2.max(files));
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().expect("kill -9");
        let status = child.wait().expect("its end");
        assert!(status.code().is_none(), "round {round}: the child ended by itself: {status}");
        most.0 = most.0.max(World::open(folder.path()).check());
        let (bytes, files) = taken(folder.path());
        assert!(bytes <= LIMITS.bytes_max && files <= LIMITS.files_max, "{bytes} in {files} files");
    }
    assert!(most.0 > 25, "the children stored next to nothing: {most:?}");
    println!("{kills} kills in {:.1} s; blocks, bytes and files at most: {most:?}", begun.elapsed().as_secs_f64());
}

/// As [`taken`], while files come and go: one that went between the list and the look counts for nothing.
fn taken_if_steady(folder: &Path) -> (u64, u32) {
    let Ok(files) = std::fs::read_dir(folder.join("shelf")) else { return (0, 0) };
    files
        .filter_map(|file| file.ok()?.metadata().ok())
        .fold((0, 0), |(bytes, count), data| (bytes + data.len().max(data.blocks() * 512), count + 1))
}
