//! Blocks in host memory.

use std::path::Path;
use std::time::Duration;

use kvferry_core::Fingerprint;
use kvferry_memory::Meter;
use kvferry_tier::host::{Arena, Block};
use kvferry_tier::{ClassId, Store as _, Tenant};

use crate::journal::{Journal, Word, body, check_body, hash};
use crate::victim::{self, Kills};

const KILLS: Kills = Kills { victim: "host::victim", count: 300, longest: Duration::from_millis(25) };
const BYTES: u64 = 4 << 20;
const BLOCK_BYTES: u64 = 20_000;
const BLOCKS: u64 = 500;

struct World {
    arena: Arena,
    class: ClassId,
    journal: Journal,
    /// Erased while they were held.
    held: Vec<(u64, Block)>,
}

impl victim::World for World {
    fn open(folder: &Path) -> Self {
        let meter = Meter::new();
        let (mut arena, recovery) = Arena::open(&folder.join("arena"), BYTES, BLOCK_BYTES, &meter).expect("an arena");
        assert_eq!(recovery.damaged, 0);
        let journal = Journal::open(&folder.join("journal"), BLOCKS);
        let class = arena.class(Fingerprint([9; 32]), 0, BLOCK_BYTES).expect("a class");
        Self { arena, class, journal, held: Vec::new() }
    }

    fn check(&mut self) -> u64 {
        let Self { arena, class, journal, .. } = self;
        let there = journal.check(|block| {
            let Some(found) = arena.pin(*class, &hash(block)) else { return false };
            let mut bytes = vec![0; usize::try_from(found.bytes).expect("small")];
            arena.region().read(found.offset, &mut bytes).expect("inside");
            arena.unpin(&found);
            check_body(block, &bytes, found.checksum);
            true
        });
        assert_eq!(there, arena.blocks() as u64);
        there
    }

    fn step(&mut self, random: &mut fastrand::Rng) {
        let block = random.u64(0..BLOCKS);
        if let Some(place) = self.held.iter().position(|(of, _)| *of == block) {
            let (_, held) = self.held.swap_remove(place);
            assert!(self.arena.unpin(&held) && self.arena.remove(self.class, &hash(block)));
        } else if self.arena.contains(self.class, &hash(block)) {
            self.journal.say(block, Word::Going);
            if random.u32(0..4) == 0 {
                self.held.push((block, self.arena.pin(self.class, &hash(block)).expect("there")));
                assert!(!self.arena.erase(self.class, &hash(block)));
            } else {
                assert!(self.arena.remove(self.class, &hash(block)));
            }
            self.journal.say(block, Word::Gone);
        } else if let Ok(filling) = self.arena.reserve(self.class, hash(block), Tenant(0)) {
            self.journal.say(block, Word::Filling);
            let bytes = body(block, random.u64(..), BLOCK_BYTES);
            for (place, part) in bytes.chunks(1000).enumerate() {
                self.arena.region().write(filling.offset + 1000 * place as u64, part).expect("inside");
            }
            self.arena.seal(filling, crc32c::crc32c(&bytes), None).expect("kept");
            self.journal.say(block, Word::There);
        }
    }
}

/// The process that is killed; by itself it does nothing.
#[test]
fn victim() {
    victim::live::<World>();
}

#[test]
fn a_killed_process_leaves_whole_blocks_alone() {
    let folder = victim::folder(Path::new("/dev/shm"));
    let most = KILLS.run::<World>(folder.path(), || {});
    assert!(most > 50, "the victims stored next to nothing: {most} blocks");
}
