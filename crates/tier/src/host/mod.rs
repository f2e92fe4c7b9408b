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
//! [`Block::checksum`]. Limits: [`CLASSES_MAX`], the arena's bytes. Failure: full is an answer, never a wait.

mod cache;
mod classes;
mod geometry;
mod packing;
mod record;
mod recovery;
mod tenants;

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;
use kvferry_core::Fingerprint;
use kvferry_memory::Region;
use thiserror::Error;
use zerocopy::IntoBytes as _;
use zerocopy::little_endian::{U32, U64};

pub use self::cache::{Cache, CacheLimits, NotAdmitted};
pub use self::classes::{CLASSES_MAX, ClassId};
use self::classes::{Classes, Place};
use self::geometry::Geometry;
pub use self::packing::Slot;
use self::record::{Record, State};
pub use self::recovery::{OpenError, Recovered, Recovery};

/// The name of a block's content, the same on every node.
pub type BlockHash = [u8; 32];

/// Whose quota blocks count against: a number made of the cache salt, or of a configured namespace. Blocks of two salts
/// have two hashes, so a tenant never finds another's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tenant(pub u64);

/// See the head of this file.
pub struct Arena {
    region: Arc<Region>,
    geometry: Geometry,
    classes: Classes,
    /// Sealed blocks, and where.
    index: HashMap<(ClassId, BlockHash), Place, RandomState>,
    /// Blocks that may not go, and how often they are held.
    pins: HashMap<Place, u32>,
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

/// A block that the daemon before has left.
#[derive(Clone, Copy, Debug)]
struct Found {
    class: ClassId,
    hash: BlockHash,
    parent: Option<BlockHash>,
    tenant: Tenant,
}

/// Why there is no place for a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refused {
    /// It is stored already.
    #[error("the block is there")]
    There,
    /// No place of this class is free, and no chunk: blocks must go first.
    #[error("the arena is full")]
    Full,
    /// Too many classes, or blocks larger than the arena was made for.
    #[error("the arena has no room for another class, or for blocks of this size")]
    Class,
}

impl Arena {
    /// The memory that blocks lie in, for transports.
    #[must_use]
    pub const fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// Sealed blocks.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.index.len()
    }

    /// Blocks of one engine's shape: those of another never stand for them.
    ///
    /// # Errors
    ///
    /// [`Refused::Class`].
    pub fn class(&mut self, fingerprint: Fingerprint, group: u32, block_bytes: u64) -> Result<ClassId, Refused> {
        self.classes.find_or_add(self.geometry, fingerprint, group, block_bytes).ok_or(Refused::Class)
    }

    /// Bytes of each block of a class.
    #[must_use]
    pub fn block_bytes(&self, class: ClassId) -> u64 {
        self.classes.block_bytes(class)
    }

    /// A place for a block, which nobody finds before it is sealed.
    ///
    /// # Errors
    ///
    /// [`Refused`], and nothing has changed.
    pub fn reserve(&mut self, class: ClassId, hash: BlockHash, tenant: Tenant) -> Result<Filling, Refused> {
        if self.index.contains_key(&(class, hash)) {
            return Err(Refused::There);
        }
        let place = self.classes.take_place(&self.region, self.geometry, class).ok_or(Refused::Full)?;
        self.mark(place, State::Filling, 1);
        Ok(Filling { place, class, hash, tenant, offset: self.offset(place), bytes: self.classes.block_bytes(class) })
    }

    /// All bytes of the block are in its place, and this is their CRC-32C: it is found from now on, also by the next
    /// daemon. Where it was stored a second time meanwhile, the first one stays.
    #[expect(clippy::needless_pass_by_value, reason = "a place is sealed once")]
    pub fn seal(&mut self, filling: Filling, checksum: u32, parent: Option<BlockHash>) {
        let Filling { place, class, hash, bytes, tenant, .. } = filling;
        if self.index.contains_key(&(class, hash)) {
            self.release(place);
            return;
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
        self.index.insert((class, hash), place);
    }

    /// The block does not come after all. Nothing may write to its place any more.
    #[expect(clippy::needless_pass_by_value, reason = "the place is given back")]
    pub fn abandon(&mut self, filling: Filling) {
        self.release(filling.place);
    }

    /// Whether the block is stored.
    #[must_use]
    pub fn contains(&self, class: ClassId, hash: &BlockHash) -> bool {
        self.index.contains_key(&(class, *hash))
    }

    /// Whether the block is stored, and held by nobody.
    #[must_use]
    pub fn may_go(&self, class: ClassId, hash: &BlockHash) -> bool {
        self.index.get(&(class, *hash)).is_some_and(|place| !self.pins.contains_key(place))
    }

    /// A stored block, held until [`unpin`](Self::unpin): its bytes stay as they are.
    pub fn pin(&mut self, class: ClassId, hash: &BlockHash) -> Option<Block> {
        let place = *self.index.get(&(class, *hash))?;
        let record = self.read(place)?;
        *self.pins.entry(place).or_default() += 1;
        Some(Block {
            place,
            offset: self.offset(place),
            bytes: record.bytes.get(),
            checksum: record.checksum.get(),
            parent: (record.parent != BlockHash::default()).then_some(record.parent),
        })
    }

    /// The block is held once less. True: nobody else holds it.
    pub fn unpin(&mut self, block: &Block) -> bool {
        if let Some(count) = self.pins.get_mut(&block.place) {
            *count -= 1;
            if *count == 0 {
                self.pins.remove(&block.place);
            }
        }
        !self.pins.contains_key(&block.place)
    }

    /// The block goes, and leaves its place to others. False: it is not stored, or held.
    pub fn remove(&mut self, class: ClassId, hash: &BlockHash) -> bool {
        let Some(&place) = self.index.get(&(class, *hash)) else { return false };
        if self.pins.contains_key(&place) {
            return false;
        }
        self.index.remove(&(class, *hash));
        self.release(place);
        true
    }

    /// Whether a place of this class is taken.
    fn has_blocks(&self, class: ClassId) -> bool {
        self.classes.in_use().any(|(_, of, _)| of == class)
    }

    /// The blocks of the chunk with the fewest of them, of those of other classes that could be emptied.
    fn emptiest_chunk(&self, but: ClassId) -> Vec<(ClassId, BlockHash)> {
        let mut chunks: Vec<_> = self.classes.in_use().filter(|&(_, class, _)| class != but).collect();
        chunks.sort_by_key(|&(_, _, taken)| taken);
        let names = |(chunk, class, taken): (u32, ClassId, usize)| {
            let slots = 0..self.classes.class_cut(class).slots;
            let records = slots.filter_map(|slot| self.read(Place { chunk, slot }));
            let names: Vec<_> =
                records.map(|record| (class, record.hash)).filter(|(class, hash)| self.may_go(*class, hash)).collect();
            (names.len() == taken).then_some(names)
        };
        chunks.into_iter().find_map(names).unwrap_or_default()
    }

    /// All sealed blocks, each behind its parent if that is there.
    fn parents_first(&self) -> Vec<Found> {
        let mut behind: HashMap<(ClassId, BlockHash), Vec<Found>, RandomState> = HashMap::default();
        let mut ready = Vec::new();
        for (&(class, hash), &place) in &self.index {
            let Some(record) = self.read(place) else { continue };
            let found = Found { class, hash, parent: None, tenant: Tenant(record.tenant.get()) };
            let parent = record.parent;
            if parent != hash && self.index.contains_key(&(class, parent)) {
                behind.entry((class, parent)).or_default().push(Found { parent: Some(parent), ..found });
            } else {
                ready.push(found);
            }
        }
        let mut next = 0;
        while let Some(&Found { class, hash, .. }) = ready.get(next) {
            next += 1;
            ready.extend(behind.remove(&(class, hash)).unwrap_or_default());
        }
        // Who stands behind itself, by way of others, stands behind nobody.
        ready.extend(behind.into_values().flatten().map(|found| Found { parent: None, ..found }));
        ready
    }

    fn release(&mut self, place: Place) {
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

    /// The record of a sealed block, if it still is what was written.
    fn read(&self, place: Place) -> Option<Record> {
        recovery::read_record(&self.region, self.geometry, place.chunk, place.slot).ok().flatten()
    }

    /// Where a block's record is.
    #[cfg(test)]
    fn record_at(&self, block: &Block) -> u64 {
        self.geometry.record(block.place.chunk, block.place.slot)
    }

    fn offset(&self, place: Place) -> u64 {
        self.geometry.body(place.chunk, self.classes.cut(place.chunk), place.slot)
    }
}

#[cfg(test)]
mod tests;
