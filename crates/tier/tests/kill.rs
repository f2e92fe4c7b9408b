//! kill -9 of a process that stores, removes and recovers, at random moments.
//!
//! ```text
//! child: recover -> check -> journal "filling" -> store -> journal "there" -> ... killed
//! this test: every block "there" is there, with all its bytes; none that was not stored or was removed
//! ```

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvferry_core::Fingerprint;
use kvferry_memory::{Meter, Region};
use kvferry_tier::host::Arena;
use kvferry_tier::{BlockHash, ClassId, Store as _, Tenant};

const ROUNDS: u32 = 300;
const BYTES: u64 = 4 << 20;
const BLOCK_BYTES: u64 = 20_000;
const BLOCKS: u64 = 500;
/// Journal, a word for each block.
const GONE: u64 = 0;
const FILLING: u64 = 1;
const THERE: u64 = 2;
const GOING: u64 = 3;

struct World {
    arena: Arena,
    class: ClassId,
    journal: Arc<Region>,
    damaged: u64,
}

impl World {
    fn open(folder: &Path) -> Self {
        let meter = Meter::new();
        let (mut arena, recovery) = Arena::open(&folder.join("arena"), BYTES, BLOCK_BYTES, &meter).expect("an arena");
        let (journal, _) = Region::keep(&folder.join("journal"), BLOCKS * 8, &meter).expect("a journal");
        let class = arena.class(Fingerprint([9; 32]), 0, BLOCK_BYTES).expect("a class");
        Self { arena, class, journal, damaged: recovery.damaged }
    }

    /// Everything is as the journal says; what was under way may have happened or not, and is settled now.
    fn check(&mut self) -> u64 {
        assert_eq!(self.damaged, 0);
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
        assert_eq!(there, self.arena.blocks() as u64);
        there
    }

    fn is_whole(&mut self, block: u64) -> bool {
        let Some(found) = self.arena.pin(self.class, &hash(block)) else { return false };
        let mut bytes = vec![0; usize::try_from(found.bytes).expect("small")];
        self.arena.region().read(found.offset, &mut bytes).expect("inside");
        self.arena.unpin(&found);
        // Which of its versions it is, the first word tells.
        let version = u64::from_le_bytes(*bytes.first_chunk().expect("long enough"));
        assert_eq!(bytes, body(block, version), "block {block} is torn");
        assert_eq!(crc32c::crc32c(&bytes), found.checksum, "block {block} has another checksum");
        true
    }

    fn step(&mut self, random: &mut fastrand::Rng) {
        let block = random.u64(0..BLOCKS);
        if self.arena.contains(self.class, &hash(block)) {
            self.journal.store(block, GOING).expect("inside");
            assert!(self.arena.remove(self.class, &hash(block)));
            self.journal.store(block, GONE).expect("inside");
        } else if let Ok(filling) = self.arena.reserve(self.class, hash(block), Tenant(0)) {
            self.journal.store(block, FILLING).expect("inside");
            let bytes = body(block, random.u64(..));
            for (place, part) in bytes.chunks(1000).enumerate() {
                self.arena.region().write(filling.offset + 1000 * place as u64, part).expect("inside");
            }
            self.arena.seal(filling, crc32c::crc32c(&bytes), None).expect("kept");
            self.journal.store(block, THERE).expect("inside");
        }
    }
}

fn hash(block: u64) -> BlockHash {
    let mut hash = [1; 32];
    hash[..8].copy_from_slice(&block.to_le_bytes());
    hash
}

fn body(block: u64, version: u64) -> Vec<u8> {
    let mut bytes: Vec<u8> =
        (0..BLOCK_BYTES).map(|place| (version ^ block.wrapping_add(place)).to_le_bytes()[0]).collect();
    bytes[..8].copy_from_slice(&version.to_le_bytes());
    bytes
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
fn a_killed_process_leaves_whole_blocks_alone() {
    let folder = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
    drop(World::open(folder.path()));
    let mut random = fastrand::Rng::with_seed(17);
    let (begun, mut most) = (Instant::now(), 0);
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "child", "--quiet"])
            .current_dir(folder.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("start the child");
        // Chosen to fall into start, recovery and storing alike.
        std::thread::sleep(Duration::from_micros(random.u64(1_000..25_000)));
        child.kill().expect("kill -9");
        let status = child.wait().expect("its end");
        assert!(status.code().is_none(), "round {round}: the child ended by itself: {status}");
        most = most.max(World::open(folder.path()).check());
    }
    assert!(most > 50, "the children stored next to nothing: {most} blocks");
    println!("{ROUNDS} kills in {:.1} s, {most} blocks at most", begun.elapsed().as_secs_f64());
}
