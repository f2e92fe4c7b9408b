//! What a store was told, in memory that outlives who told it; and what must be so after every end.

use std::path::Path;
use std::sync::Arc;

use kvferry_memory::{Meter, Region};
use kvferry_tier::BlockHash;

/// What the victim was at, with one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    Gone,
    Filling,
    There,
    Going,
}

/// A word for each block.
pub(crate) struct Journal {
    words: Arc<Region>,
    blocks: u64,
}

impl Journal {
    /// At `path`, which is in memory. No other process has it meanwhile.
    pub(crate) fn open(path: &Path, blocks: u64) -> Self {
        let (words, _) = Region::keep(path, blocks * 8, &Meter::new()).expect("a journal");
        Self { words, blocks }
    }

    pub(crate) fn say(&self, block: u64, word: Word) {
        self.words.store(block, word as u64).expect("inside");
    }

    pub(crate) fn of(&self, block: u64) -> Word {
        let words = [Word::Gone, Word::Filling, Word::There, Word::Going];
        words[usize::try_from(self.words.load(block).expect("inside")).expect("small")]
    }

    /// Everything is as it was said; what was under way may have happened or not, and is settled now. Returns how many
    /// blocks there are.
    pub(crate) fn check(&self, mut is_whole: impl FnMut(u64) -> bool) -> u64 {
        let mut there = 0;
        for block in 0..self.blocks {
            let is_there = is_whole(block);
            match self.of(block) {
                Word::Gone => assert!(!is_there, "block {block} is a phantom"),
                Word::There => assert!(is_there, "block {block} is lost"),
                Word::Filling | Word::Going => self.say(block, if is_there { Word::There } else { Word::Gone }),
            }
            there += u64::from(is_there);
        }
        there
    }
}

pub(crate) fn hash(block: u64) -> BlockHash {
    let mut hash = [1; 32];
    hash[..8].copy_from_slice(&block.to_le_bytes());
    hash
}

/// The bytes of one version of a block; which one it is, the first word tells.
pub(crate) fn body(block: u64, version: u64, count: u64) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..count).map(|place| (version ^ block.wrapping_add(place)).to_le_bytes()[0]).collect();
    bytes[..8].copy_from_slice(&version.to_le_bytes());
    bytes
}

/// These are a version of the block, with every byte.
pub(crate) fn check_body(block: u64, bytes: &[u8], checksum: u32) {
    let version = u64::from_le_bytes(*bytes.first_chunk().expect("long enough"));
    assert!(bytes == body(block, version, bytes.len() as u64), "block {block} is torn");
    assert_eq!(crc32c::crc32c(bytes), checksum, "block {block} has another checksum");
}
