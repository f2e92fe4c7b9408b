//! Blocks in host memory that outlive the daemon.
//!
//! ```text
//! reserve(class, hash) -> Filling: bytes are moved into its place -> seal(checksum) -> find(class, hash) -> Block
//!                                                                \-> abandon
//! open: what was sealed is there again; what was filling is room
//! ```
//!
//! An arena is one file in memory ([`Region::keep`]), cut into chunks; a chunk holds blocks of one class, and goes back to
//! all classes once it is empty. Nothing in here moves a block's bytes: whoever holds a [`Filling`] or a pinned [`Block`]
//! does, over [`Arena::region`], and is the only one who may.
//!
//! Survives: the daemon's end at any moment, kill -9 included; every sealed block is there again, and no other. Not the
//! machine's. A record whose checksum is wrong is no block; a block whose bytes are is found by who reads it, against
//! [`Block::checksum`]. Limits: [`CLASSES_MAX`](crate::CLASSES_MAX), the arena's bytes. Failure: full is an answer, never a wait.

mod classes;
mod geometry;
mod packing;
mod record;
mod recovery;

use std::collections::HashMap;
use std::sync::Arc;

use kvferry_core::Fingerprint;
use kvferry_memory::Region;
use zerocopy::IntoBytes as _;
use zerocopy::little_endian::{U32, U64};

use self::classes::{Classes, Place, Used, clear};
use self::geometry::Geometry;
pub use self::packing::Slot;
use self::record::{Record, State};
pub use self::recovery::{OpenError, Recovered, Recovery};
use crate::spread::Spread;
use crate::store::{BlockHash, ClassId, Found, Held, NotKept, Refused, Reserved, Store, Tenant, parents_first};

/// See the head of this file.
pub struct Arena {
    region: Arc<Region>,
    geometry: Geometry,
    classes: Classes,
    /// Sealed blocks, and where.
    index: Spread<(ClassId, BlockHash), Place>,
    /// Blocks that may not go, and how often they are held.
    pins: HashMap<Place, u32>,
    /// What the records said of those that the next daemon is not to find.
    erased: HashMap<Place, Record>,
    #[cfg(test)]
    pub(crate) records_read: std::cell::Cell<u64>,
}

/// A place that waits for a block's bytes. Whoever drops it leaves the place unused until the next start: seal it, or
/// abandon it.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Filling {
    place: Place,
    class: ClassId,
    hash: BlockHash,
    tenant: Tenant,
    /// Where the bytes go in [`Arena::region`].
    pub offset: u64,
    /// How many they are.
    pub bytes: u64,
}

/// A sealed block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    place: Place,
    /// Where its bytes are in [`Arena::region`].
    pub offset: u64,
    /// How many they are.
    pub bytes: u64,
    /// CRC-32C of the bytes, as they must be.
    pub checksum: u32,
    /// The block before it in its chain.
    pub parent: Option<BlockHash>,
}

impl Arena {
    /// The memory that blocks lie in, for transports.
    #[must_use]
    pub const fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// What was being filled is not any more, and its place is free.
    fn release_filling(&mut self, place: Place) {
        self.classes.idles(place.chunk);
        self.release(place);
    }

    fn release(&mut self, place: Place) {
        self.erased.remove(&place);
        self.mark(place, State::Empty, 0);
        self.classes.give_place(&self.region, self.geometry, place);
    }

    /// Writes the word of a place, whose record counts for nothing from then on.
    fn mark(&self, place: Place, state: State, later: u32) {
        let at = self.geometry.record(place.chunk, place.slot);
        let generation = record::generation(self.region.load(at / 8).unwrap_or(0)).wrapping_add(later);
        let marked = self.region.store(at / 8, record::word(state, generation & 0x00ff_ffff, &[]));
        debug_assert!(marked.is_ok(), "places are inside the region");
    }

    /// The blocks of a chunk that nobody holds.
    fn idle_names(&self, used: Used) -> Vec<(ClassId, BlockHash)> {
        let Used { chunk, class, taken, busy } = used;
        if taken == busy {
            return Vec::new();
        }
        let records = (0..self.classes.class_cut(class).slots).filter_map(|slot| self.read(Place { chunk, slot }));
        let names: Vec<_> =
            records.map(|record| (class, record.hash)).filter(|(_, hash)| self.may_go(class, hash)).collect();
        if names.len() == (taken - busy) as usize {
            return names;
        }
        // A record is not what was written, and names no block: the index does. It is long.
        let is_idle = |place: &Place| place.chunk == chunk && !self.pins.contains_key(place);
        self.index.iter().filter(|(_, place)| is_idle(place)).map(|&(name, _)| name).collect()
    }

    /// The record of a sealed block, if it still is what was written.
    fn read(&self, place: Place) -> Option<Record> {
        #[cfg(test)]
        self.records_read.update(|count| count + 1);
        let erased = self.erased.get(&place).copied();
        erased.or_else(|| recovery::read_record(&self.region, self.geometry, place.chunk, place.slot).ok().flatten())
    }

    /// Where a block's record is.
    #[cfg(test)]
    pub(crate) fn record_at(&self, block: &Block) -> u64 {
        self.geometry.record(block.place.chunk, block.place.slot)
    }

    /// Whether what chunks and classes count is so, with nothing being filled.
    #[cfg(test)]
    fn chunks_are_counted(&self) -> bool {
        let held = |chunk| self.pins.keys().filter(|place| place.chunk == chunk).count();
        let sealed = |chunk| self.index.iter().filter(|(_, place)| place.chunk == chunk).count();
        (0..self.geometry.chunks).all(|chunk| self.classes.counts(chunk) == (sealed(chunk), held(chunk)))
            && self.classes.chunks_are_counted()
    }

    fn offset(&self, place: Place) -> u64 {
        self.geometry.body(place.chunk, self.classes.cut(place.chunk), place.slot)
    }
}

impl Store for Arena {
    type Filling = Filling;
    type Block = Block;

    fn class(&mut self, fingerprint: Fingerprint, group: u32, block_bytes: u64) -> Result<ClassId, Refused> {
        self.classes.find_or_add(self.geometry, fingerprint, group, block_bytes).ok_or(Refused::Class)
    }

    fn fingerprint(&self, class: ClassId) -> Fingerprint {
        self.classes.fingerprint(class)
    }

    fn block_bytes(&self, class: ClassId) -> u64 {
        self.classes.block_bytes(class)
    }

    fn blocks(&self) -> usize {
        self.index.len()
    }

    fn reserve(&mut self, class: ClassId, hash: BlockHash, tenant: Tenant) -> Result<Filling, Refused> {
        if self.index.contains_key(&(class, hash)) {
            return Err(Refused::There);
        }
        let place = self.classes.take_place(&self.region, self.geometry, class).ok_or(Refused::Full)?;
        self.classes.busy(place.chunk);
        self.mark(place, State::Filling, 1);
        Ok(Filling { place, class, hash, tenant, offset: self.offset(place), bytes: self.classes.block_bytes(class) })
    }

    fn seal(&mut self, filling: Filling, checksum: u32, parent: Option<BlockHash>) -> Result<(), NotKept> {
        let Filling { place, class, hash, bytes, tenant, .. } = filling;
        if self.index.contains_key(&(class, hash)) {
            self.release_filling(place);
            return Ok(());
        }
        let record = Record {
            hash,
            parent: parent.unwrap_or_default(),
            bytes: U64::new(bytes),
            checksum: U32::new(checksum),
            reserved: U32::new(0),
            tenant: U64::new(tenant.0),
            rest: [0; 32],
        };
        let at = self.geometry.record(place.chunk, place.slot);
        let generation = record::generation(self.region.load(at / 8).unwrap_or(0));
        let written = self
            .region
            .write(at + 8, record.as_bytes())
            .and_then(|()| self.region.store(at / 8, record::word(State::Sealed, generation, record.as_bytes())));
        debug_assert!(written.is_ok(), "places are inside the region");
        self.classes.idles(place.chunk);
        self.index.insert((class, hash), place);
        Ok(())
    }

    fn abandon(&mut self, filling: Filling) {
        self.release_filling(filling.place);
    }

    fn contains(&self, class: ClassId, hash: &BlockHash) -> bool {
        self.index.contains_key(&(class, *hash))
    }

    fn may_go(&self, class: ClassId, hash: &BlockHash) -> bool {
        self.index.get(&(class, *hash)).is_some_and(|place| !self.pins.contains_key(place))
    }

    fn pin(&mut self, class: ClassId, hash: &BlockHash) -> Option<Block> {
        let place = *self.index.get(&(class, *hash))?;
        let record = self.read(place)?;
        let pins = self.pins.entry(place).or_default();
        *pins += 1;
        if *pins == 1 {
            self.classes.busy(place.chunk);
        }
        Some(Block {
            place,
            offset: self.offset(place),
            bytes: record.bytes.get(),
            checksum: record.checksum.get(),
            parent: (record.parent != BlockHash::default()).then_some(record.parent),
        })
    }

    fn unpin(&mut self, block: &Block) -> bool {
        if let Some(count) = self.pins.get_mut(&block.place) {
            *count -= 1;
            if *count == 0 {
                self.pins.remove(&block.place);
                self.classes.idles(block.place.chunk);
            }
        }
        !self.pins.contains_key(&block.place)
    }

    fn remove(&mut self, class: ClassId, hash: &BlockHash) -> bool {
        let Some(&place) = self.index.get(&(class, *hash)) else { return false };
        if self.pins.contains_key(&place) {
            return false;
        }
        self.index.remove(&(class, *hash));
        self.release(place);
        true
    }

    fn erase(&mut self, class: ClassId, hash: &BlockHash) -> bool {
        let gone = self.remove(class, hash);
        let held = self.index.get(&(class, *hash)).copied();
        // Who holds it may ask for it again.
        if let Some((place, record)) = held.and_then(|place| Some((place, self.read(place)?))) {
            self.erased.insert(place, record);
            self.mark(place, State::Empty, 0);
        }
        gone
    }

    fn disown(&mut self, fingerprint: Fingerprint) {
        let chunks = self.classes.in_use().filter(|used| self.classes.fingerprint(used.class) == fingerprint);
        chunks.for_each(|used| clear(&self.region, self.geometry, used.chunk));
    }

    fn part_for(&mut self, class: ClassId) -> Vec<(ClassId, BlockHash)> {
        let idle = self.classes.idle(class);
        let used = idle.or_else(|| if self.classes.has_chunks(class) { None } else { self.classes.close(class) });
        used.map(|used| self.idle_names(used)).unwrap_or_default()
    }

    fn is_leaving(&self, class: ClassId, hash: &BlockHash) -> bool {
        self.classes.has_closed()
            && self.index.get(&(class, *hash)).is_some_and(|place| self.classes.is_closed(place.chunk))
    }

    fn parents_first(&self) -> Vec<Found> {
        let found = |&((class, hash), place): &((ClassId, BlockHash), Place)| {
            let record = self.read(place)?;
            let parent = (record.parent != BlockHash::default()).then_some(record.parent);
            Some(Found { class, hash, parent, tenant: Tenant(record.tenant.get()) })
        };
        parents_first(&self.index.iter().filter_map(found).collect::<Vec<_>>())
    }
}

impl Reserved for Filling {
    fn class(&self) -> ClassId {
        self.class
    }

    fn hash(&self) -> BlockHash {
        self.hash
    }

    fn tenant(&self) -> Tenant {
        self.tenant
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Held for Block {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn checksum(&self) -> u32 {
        self.checksum
    }
}

#[cfg(test)]
mod tests;
