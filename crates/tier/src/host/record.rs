//! What is written beside the blocks, so that the next daemon finds them.
//!
//! ```text
//! word (8 bytes, written at once): | checksum of the rest: 32 | generation: 24 | state: 8 |  then the rest
//! ```
//!
//! A record is written in two steps: everything but the word, then the word. Who dies between the two leaves a word that
//! says "empty" or "filling", or one whose checksum is not that of the rest: no block in any case.

use kvferry_core::Fingerprint;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A record and its word.
pub(super) const RECORD_BYTES: u64 = 128;
/// A chunk's entry and its word.
pub(super) const CHUNK_ENTRY_BYTES: u64 = 128;
pub(super) const HEADER_BYTES: usize = 64;

const MAGIC: [u8; 8] = *b"KVFARENA";
/// Of everything in this file and in `geometry.rs`.
const VERSION: u32 = 1;

/// The first bytes of an arena.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    version: U32,
    chunks: U32,
    bytes: U64,
    chunk_bytes: U64,
    reserved: [u8; 28],
    checksum: U32,
}

/// Of a block, without its word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Record {
    pub(super) hash: [u8; 32],
    /// The block before it in its chain; zeros for the first.
    pub(super) parent: [u8; 32],
    pub(super) bytes: U64,
    /// CRC-32C of the block's bytes.
    pub(super) checksum: U32,
    pub(super) reserved: U32,
    /// Whose quota it counts against.
    pub(super) tenant: U64,
    pub(super) rest: [u8; 32],
}

/// Of a chunk, without its word: whose blocks it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct ChunkEntry {
    fingerprint: [u8; 32],
    group: U32,
    reserved: U32,
    pub(super) block_bytes: U64,
    rest: [u8; 72],
}

const _: () = assert!(size_of::<Header>() == HEADER_BYTES);
const _: () = assert!(size_of::<Record>() as u64 + 8 == RECORD_BYTES);
const _: () = assert!(size_of::<ChunkEntry>() as u64 + 8 == CHUNK_ENTRY_BYTES);

/// What the word says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum State {
    Empty = 0,
    Filling = 1,
    /// The rest is valid, and so is what it describes.
    Sealed = 2,
}

/// The word of something in this state; `rest` is covered where it is sealed.
pub(super) fn word(state: State, generation: u32, rest: &[u8]) -> u64 {
    let low = (generation << 8) | state as u32;
    let checksum = if state == State::Sealed { checksum(low, rest) } else { 0 };
    u64::from(checksum) << 32 | u64::from(low)
}

/// The generation that a word tells.
#[expect(clippy::cast_possible_truncation, reason = "the low half is meant")]
pub(super) const fn generation(word: u64) -> u32 {
    (word as u32) >> 8
}

/// Whether the word says that the rest is valid: `None` if it says so wrongly.
#[expect(clippy::cast_possible_truncation, reason = "the halves are meant")]
pub(super) fn is_sealed(word: u64, rest: &[u8]) -> Option<bool> {
    let (high, low) = ((word >> 32) as u32, word as u32);
    match low & 0xff {
        state if state == State::Sealed as u32 => (checksum(low, rest) == high).then_some(true),
        state if state == State::Empty as u32 || state == State::Filling as u32 => Some(false),
        _ => None,
    }
}

fn checksum(low: u32, rest: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&low.to_le_bytes()), rest)
}

/// The header of an arena of this shape.
pub(super) fn header(bytes: u64, chunk_bytes: u64, chunks: u32) -> [u8; HEADER_BYTES] {
    let mut header = Header {
        magic: MAGIC,
        version: U32::new(VERSION),
        chunks: U32::new(chunks),
        bytes: U64::new(bytes),
        chunk_bytes: U64::new(chunk_bytes),
        reserved: [0; 28],
        checksum: U32::new(0),
    };
    let all = header.as_bytes();
    header.checksum = U32::new(crc32c::crc32c(&all[..HEADER_BYTES - 4]));
    zerocopy::transmute!(header)
}

impl ChunkEntry {
    pub(super) fn new(fingerprint: Fingerprint, group: u32, block_bytes: u64) -> Self {
        Self {
            fingerprint: fingerprint.0,
            group: U32::new(group),
            reserved: U32::new(0),
            block_bytes: U64::new(block_bytes),
            rest: [0; 72],
        }
    }

    pub(super) fn class(&self) -> (Fingerprint, u32, u64) {
        (Fingerprint(self.fingerprint), self.group.get(), self.block_bytes.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_changed_bit_is_seen() {
        let rest = [7_u8; 120];
        let sealed = word(State::Sealed, 0x00ab_cdef, &rest);
        assert_eq!((is_sealed(sealed, &rest), generation(sealed)), (Some(true), 0x00ab_cdef));
        for bit in 0..64 {
            assert_ne!(is_sealed(sealed ^ 1 << bit, &rest), Some(true), "bit {bit} of the word");
        }
        for bit in 0..rest.len() * 8 {
            let mut changed = rest;
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(is_sealed(sealed, &changed), None, "bit {bit} of the rest");
        }
        for state in [State::Empty, State::Filling] {
            assert_eq!(is_sealed(word(state, 5, &rest), &rest), Some(false));
        }
    }

    /// What is on the machine after an update must be understood, or refused: these bytes never change within a version.
    #[test]
    fn the_format_is_what_it_was() {
        let header = header(1 << 30, 8 << 20, 127);
        assert_eq!(&header[..12], b"KVFARENA\x01\0\0\0");
        // Its last bytes are the checksum of the others: summed with them, every header would give one number.
        assert_eq!(crc32c::crc32c(&header[..HEADER_BYTES - 4]), 360_971_523);
        let record = Record {
            hash: [1; 32],
            parent: [2; 32],
            bytes: U64::new(737_280),
            checksum: U32::new(0xe306_9283),
            reserved: U32::new(0),
            tenant: U64::new(0x1122_3344_5566_7788),
            rest: [0; 32],
        };
        assert_eq!(word(State::Sealed, 9, record.as_bytes()), 3_221_768_845_492_488_450);
    }
}
