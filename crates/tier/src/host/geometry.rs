//! Where what lies in the arena.
//!
//! ```text
//! [header][one entry a chunk] | chunk 0: [a record a slot][slot][slot]... | chunk 1 ... |
//! ```
//!
//! A chunk holds blocks of one class, which have one size, so that a block fits wherever one of its class has gone and
//! nothing is ever moved. Records, slots and chunks begin on pages.

use super::record::{CHUNK_ENTRY_BYTES, RECORD_BYTES};

pub(super) const PAGE: u64 = 4096;
/// Chunks that an arena is cut into, where they come out large enough: a class takes a 128th at a time.
const CHUNKS_WISHED: u64 = 128;
const CHUNK_BYTES_MIN: u64 = 1 << 20;
/// A chunk holds so many of the largest blocks at least.
const BLOCKS_PER_CHUNK_MIN: u64 = 4;

/// An arena, cut into chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    pub(super) chunk_bytes: u64,
    pub(super) chunks: u32,
    first_chunk: u64,
}

/// A chunk, cut into slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) slot_bytes: u64,
    pub(super) slots: u32,
    first_slot: u64,
}

impl Geometry {
    /// Of an arena of so many bytes that holds blocks of at most `block_bytes_max`. `None`: not one chunk fits.
    pub(super) fn new(bytes: u64, block_bytes_max: u64) -> Option<Self> {
        let wished = bytes / CHUNKS_WISHED;
        let needed = block_bytes_max.checked_mul(BLOCKS_PER_CHUNK_MIN)?.checked_add(PAGE)?;
        let chunk_bytes = wished.max(CHUNK_BYTES_MIN).max(needed).checked_next_multiple_of(PAGE)?;
        // Entries of as many chunks as could be, and the header.
        let entries = (bytes / chunk_bytes).checked_mul(CHUNK_ENTRY_BYTES)?;
        let first_chunk = PAGE + entries.next_multiple_of(PAGE);
        let chunks = u32::try_from(bytes.checked_sub(first_chunk)? / chunk_bytes).ok().filter(|&count| count > 0)?;
        Some(Self { chunk_bytes, chunks, first_chunk })
    }

    /// Where a chunk's entry is.
    pub(super) const fn entry(self, chunk: u32) -> u64 {
        PAGE + chunk as u64 * CHUNK_ENTRY_BYTES
    }

    const fn chunk(self, chunk: u32) -> u64 {
        self.first_chunk + chunk as u64 * self.chunk_bytes
    }

    /// How a chunk is cut for blocks of so many bytes. `None`: it cannot hold a single one.
    pub(super) fn cut(self, block_bytes: u64) -> Option<Cut> {
        let slot_bytes = block_bytes.max(1).checked_next_multiple_of(PAGE)?;
        let mut slots = self.chunk_bytes / (slot_bytes + RECORD_BYTES);
        while slots > 0 && (slots * RECORD_BYTES).next_multiple_of(PAGE) + slots * slot_bytes > self.chunk_bytes {
            slots -= 1;
        }
        let first_slot = (slots * RECORD_BYTES).next_multiple_of(PAGE);
        let slots = u32::try_from(slots).ok().filter(|&count| count > 0)?;
        Some(Cut { slot_bytes, slots, first_slot })
    }

    /// Where a slot's record is.
    pub(super) const fn record(self, chunk: u32, slot: u32) -> u64 {
        self.chunk(chunk) + slot as u64 * RECORD_BYTES
    }

    /// Where a slot's bytes are.
    pub(super) const fn body(self, chunk: u32, cut: Cut, slot: u32) -> u64 {
        self.chunk(chunk) + cut.first_slot + slot as u64 * cut.slot_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_overlaps_and_nothing_sticks_out() {
        for bytes in [1_u64 << 21, 12_345_678, 1 << 30, 8 << 30, 1 << 43] {
            for block_bytes in [1, 4096, 5000, 65_536, 737_280, 3 << 20] {
                let Some(geometry) = Geometry::new(bytes, block_bytes) else {
                    assert!(bytes < 6 * block_bytes + (2 << 20), "{bytes} {block_bytes}");
                    continue;
                };
                let cut = geometry.cut(block_bytes).expect("the largest block fits");
                assert!(cut.slots >= 4 && cut.slot_bytes >= block_bytes);
                let (last_chunk, last_slot) = (geometry.chunks - 1, cut.slots - 1);
                assert!(geometry.entry(last_chunk) + CHUNK_ENTRY_BYTES <= geometry.record(0, 0));
                assert!(geometry.record(0, last_slot) + RECORD_BYTES <= geometry.body(0, cut, 0));
                assert!(geometry.body(0, cut, last_slot) + cut.slot_bytes <= geometry.record(1, 0));
                assert!(geometry.body(last_chunk, cut, last_slot) + cut.slot_bytes <= bytes);
                assert_eq!(geometry.body(0, cut, 1) % PAGE, 0);
                // What records and rounding take.
                let used = u64::from(cut.slots) * block_bytes * u64::from(geometry.chunks);
                assert!(
                    geometry.chunks < 8 || block_bytes < 65_536 || used * 10 > bytes * 7,
                    "{bytes} {block_bytes}: {used}"
                );
            }
        }
        assert_eq!(Geometry::new(PAGE, 1), None);
        assert_eq!(Geometry::new(1 << 30, u64::MAX / 2), None);
    }
}
