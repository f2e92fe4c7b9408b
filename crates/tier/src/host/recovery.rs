//! What an arena still holds when a daemon starts.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use kvferry_memory::{KeepError, Kept, Meter, OutOfBounds, Region};
use thiserror::Error;
use zerocopy::FromBytes as _;

use super::Arena;
use super::classes::{Classes, Place, clear};
use super::geometry::Geometry;
use super::record::{self, ChunkEntry, HEADER_BYTES, Record, State};
use crate::spread::Spread;

/// Why there is no arena.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum OpenError {
    /// The file could not be had.
    #[error(transparent)]
    Keep(#[from] KeepError),
    /// Not one chunk of such blocks fits.
    #[error("an arena of {bytes} bytes is too small for blocks of {block_bytes_max}: give it more, or no host tier")]
    TooSmall {
        /// Of the arena.
        bytes: u64,
        /// The largest block it must hold.
        block_bytes_max: u64,
    },
}

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovered {
    /// There was no arena.
    New,
    /// One of this shape.
    Found,
    /// Something else, of another version, shape or content: it is gone.
    Replaced,
}

/// What became of the blocks of the daemon before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// What was found.
    pub recovered: Recovered,
    /// Sealed blocks that are there again.
    pub blocks: u64,
    /// Blocks that were being filled when the daemon before ended.
    pub unfinished: u64,
    /// Records and chunks whose checksum was wrong.
    pub damaged: u64,
}

impl Arena {
    /// The arena in the file at `path`, of so many bytes, for blocks of at most `block_bytes_max`; see [`Region::keep`].
    ///
    /// # Errors
    ///
    /// [`OpenError`]; content is no reason for one.
    pub fn open(path: &Path, bytes: u64, block_bytes_max: u64, meter: &Meter) -> Result<(Self, Recovery), OpenError> {
        let too_small = OpenError::TooSmall { bytes, block_bytes_max };
        let geometry = Geometry::new(bytes, block_bytes_max).ok_or(too_small)?;
        let (region, kept) = Region::keep(path, bytes, meter)?;
        let mut arena = Self {
            geometry,
            classes: Classes::new(geometry.chunks),
            index: Spread::default(),
            pins: HashMap::new(),
            #[cfg(test)]
            records_read: std::cell::Cell::default(),
            erased: HashMap::new(),
            region,
        };
        let recovered = match arena.check_header(kept) {
            Ok(recovered) => recovered,
            // The region is as long as the geometry says.
            Err(_) => return Err(OpenError::TooSmall { bytes, block_bytes_max }),
        };
        let mut recovery = Recovery { recovered, blocks: 0, unfinished: 0, damaged: 0 };
        if recovered == Recovered::Found {
            for chunk in 0..geometry.chunks {
                arena.recover_chunk(chunk, &mut recovery);
            }
            recovery.blocks = arena.index.len() as u64;
        }
        Ok((arena, recovery))
    }

    fn check_header(&self, kept: Kept) -> Result<Recovered, OutOfBounds> {
        let must = record::header(self.region.len(), self.geometry.chunk_bytes, self.geometry.chunks);
        let mut header = [0; HEADER_BYTES];
        self.region.read(0, &mut header)?;
        if kept == Kept::Found && header == must {
            return Ok(Recovered::Found);
        }
        // No old entry may be believed once the header is good: the header comes last.
        self.region.write(0, &[0; HEADER_BYTES])?;
        (0..self.geometry.chunks).for_each(|chunk| clear(&self.region, self.geometry, chunk));
        self.region.write(8, &must[8..])?;
        let magic = must.first_chunk::<8>().copied().unwrap_or_default();
        self.region.store(0, u64::from_le_bytes(magic))?;
        let was_empty = kept == Kept::New || header == [0; HEADER_BYTES];
        Ok(if was_empty { Recovered::New } else { Recovered::Replaced })
    }

    fn recover_chunk(&mut self, chunk: u32, recovery: &mut Recovery) {
        let entry = match read_entry(&self.region, self.geometry, chunk) {
            Ok(Some(entry)) => entry,
            Ok(None) => return,
            Err(Damaged) => {
                recovery.damaged += 1;
                clear(&self.region, self.geometry, chunk);
                return;
            }
        };
        let (fingerprint, group, block_bytes) = entry.class();
        let Some(class) = self.classes.find_or_add(self.geometry, fingerprint, group, block_bytes) else {
            recovery.damaged += 1;
            clear(&self.region, self.geometry, chunk);
            return;
        };
        let mut free = Vec::new();
        let slots = self.classes.class_cut(class).slots;
        for slot in (0..slots).rev() {
            let place = Place { chunk, slot };
            let word = self.region.load(self.geometry.record(chunk, slot) / 8).unwrap_or(0);
            let record = read_record(&self.region, self.geometry, chunk, slot);
            match record {
                Ok(Some(record)) if record.bytes.get() == block_bytes => {
                    // The same block twice: the second is room.
                    if self.index.insert((class, record.hash), place) {
                        continue;
                    }
                }
                Ok(None) => recovery.unfinished += u64::from(word & 0xff == State::Filling as u64),
                Ok(Some(_)) | Err(Damaged) => recovery.damaged += 1,
            }
            self.mark(place, State::Empty, 0);
            free.push(slot);
        }
        self.classes.restore(chunk, class, free);
    }
}

/// Something whose checksum is not that of its content.
#[derive(Debug)]
pub(super) struct Damaged;

/// A chunk's entry, if it is of a class.
fn read_entry(region: &Arc<Region>, geometry: Geometry, chunk: u32) -> Result<Option<ChunkEntry>, Damaged> {
    const REST: usize = size_of::<ChunkEntry>();
    let at = geometry.entry(chunk);
    let rest = sealed::<REST>(region, at)?;
    Ok(rest.and_then(|rest| ChunkEntry::read_from_bytes(&rest).ok()))
}

/// A slot's record, if it is sealed.
pub(super) fn read_record(
    region: &Arc<Region>,
    geometry: Geometry,
    chunk: u32,
    slot: u32,
) -> Result<Option<Record>, Damaged> {
    const REST: usize = size_of::<Record>();
    let rest = sealed::<REST>(region, geometry.record(chunk, slot))?;
    Ok(rest.and_then(|rest| Record::read_from_bytes(&rest).ok()))
}

fn sealed<const REST: usize>(region: &Arc<Region>, at: u64) -> Result<Option<[u8; REST]>, Damaged> {
    let word = region.load(at / 8).map_err(|_| Damaged)?;
    let mut rest = [0; REST];
    region.read(at + 8, &mut rest).map_err(|_| Damaged)?;
    match record::is_sealed(word, &rest) {
        Some(true) => Ok(Some(rest)),
        Some(false) => Ok(None),
        None => Err(Damaged),
    }
}
