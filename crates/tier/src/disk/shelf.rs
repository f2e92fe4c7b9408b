//! What of a store's blocks is where, and where the next one goes.

use std::collections::HashMap;
use std::hash::BuildHasher as _;
use std::sync::Arc;

use foldhash::fast::RandomState;
use kvferry_core::Fingerprint;
use rustix::io::Errno;

use super::directory::Directory;
use super::error::{DiskError, ReadOnly};
use super::extent::{Extent, File, Place};
use super::format::{Cut, Record, SLOT_BITS};
use super::making::Files;
use crate::spread::Tables;
use crate::store::{BlockHash, CLASSES_MAX, ClassId, NotKept, Refused, Tenant};

/// Extents of one store: what the index's numbers leave room for.
pub(super) const EXTENTS_MAX: usize = 1 << (32 - SLOT_BITS);

/// Parts of the index: one grows at a time.
const TABLES: usize = 64;

/// Blocks on a disk; see the head of [`disk`](super).
pub struct Shelf {
    pub(super) directory: Directory,
    pub(super) classes: Vec<Class>,
    /// By number; what is gone leaves its number to the next.
    pub(super) extents: Vec<Option<Extent>>,
    /// Sealed blocks, as [`Place`]s; their names are in the extents.
    pub(super) index: Tables<u32, TABLES>,
    pub(super) random: RandomState,
    /// Blocks that may not go, and how often they are held.
    pub(super) pins: HashMap<Place, u32, RandomState>,
    /// Places that stay taken until the next start, and whose records may say anything.
    pub(super) lost: Vec<Place>,
    read_only: Option<ReadOnly>,
    /// Writes that failed since the last one that did not.
    failed_writes: u32,
    pub(super) counts: Counts,
    pub(super) files: Files,
}

/// What has gone wrong since the store was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Writes of blocks and records that failed.
    pub failed_writes: u64,
    /// Places that are left alone until the next start, since nobody knows what the disk has there.
    pub lost_places: u64,
    /// Files for blocks that could not be made, though there was room by the store's own limits.
    pub failed_files: u64,
}

pub(super) struct Class {
    pub(super) key: (Fingerprint, u32, u64),
    pub(super) cut: Cut,
    /// Extents with a free slot; the last one is filled first.
    pub(super) open: Vec<u16>,
}

/// A place on the disk that waits for a block's bytes: [`Mover::write`](super::Mover::write) brings them.
#[derive(Debug)]
#[must_use]
pub struct Filling {
    pub(super) place: Place,
    pub(super) generation: u32,
    pub(super) class: ClassId,
    pub(super) hash: BlockHash,
    pub(super) tenant: Tenant,
    pub(super) at: At,
    pub(super) progress: Progress,
}

/// A block that is held: [`Mover::read`](super::Mover::read) fetches its bytes.
#[derive(Debug)]
pub struct Block {
    pub(super) place: Place,
    pub(super) checksum: u32,
    pub(super) at: At,
}

/// Where bytes are on the disk.
#[derive(Clone, Debug)]
pub(super) struct At {
    pub(super) file: Arc<File>,
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

/// What became of a place's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    Empty,
    Failed(DiskError),
    Written,
}

impl Shelf {
    pub(super) fn new(directory: Directory) -> Self {
        let read_only = directory.folder().is_read_only.then_some(ReadOnly::FileSystem);
        Self {
            directory,
            classes: Vec::new(),
            extents: Vec::new(),
            index: Tables::default(),
            random: RandomState::default(),
            pins: HashMap::default(),
            lost: Vec::new(),
            read_only,
            failed_writes: 0,
            counts: Counts::default(),
            files: Files::default(),
        }
    }

    /// Why nothing is taken in any more, if that is so. It stays so until the next start.
    #[must_use]
    pub const fn read_only(&self) -> Option<ReadOnly> {
        self.read_only
    }

    /// What has gone wrong since the store was opened.
    #[must_use]
    pub const fn counts(&self) -> Counts {
        self.counts
    }

    /// Bytes and files that count against the limits.
    #[must_use]
    pub const fn used(&self) -> (u64, u32) {
        self.directory.used()
    }

    /// Bytes of memory that the index takes, the blocks' names included.
    #[must_use]
    pub fn index_bytes(&self) -> usize {
        let slots: usize = self.extents.iter().flatten().map(Extent::memory_bytes).sum();
        self.index.allocation_size() + slots
    }

    pub(super) fn extent(&self, place: Place) -> &Extent {
        let extent = self.extents[usize::from(place.extent)].as_ref();
        extent.unwrap_or_else(|| unreachable!("an extent with a place that is taken stays"))
    }

    pub(super) fn extent_mut(&mut self, place: Place) -> &mut Extent {
        let extent = self.extents[usize::from(place.extent)].as_mut();
        extent.unwrap_or_else(|| unreachable!("an extent with a place that is taken stays"))
    }

    pub(super) fn find(&self, class: ClassId, hash: &BlockHash) -> Option<Place> {
        let sum = self.random.hash_one((class, hash));
        self.index.find(sum, |&number| self.is_named(number, class, hash)).map(|&number| Place::from_u32(number))
    }

    fn is_named(&self, number: u32, class: ClassId, hash: &BlockHash) -> bool {
        let place = Place::from_u32(number);
        let extent = self.extent(place);
        extent.class == class && extent.slot(place.slot).hash == *hash
    }

    pub(super) fn insert(&mut self, place: Place) {
        let Self { index, extents, random, .. } = self;
        let name = |&number: &u32| {
            let place = Place::from_u32(number);
            let extent = extents[usize::from(place.extent)].as_ref();
            extent.map_or(0, |extent| random.hash_one((extent.class, &extent.slot(place.slot).hash)))
        };
        index.insert(name(&place.to_u32()), place.to_u32(), name);
    }

    /// Makes room in the index at once, in place of doubling it on the way.
    pub(super) fn index_reserve(&mut self, count: usize) {
        let Self { index, extents, random, .. } = self;
        index.reserve(count, |&number| {
            let place = Place::from_u32(number);
            let extent = extents[usize::from(place.extent)].as_ref();
            extent.map_or(0, |extent| random.hash_one((extent.class, &extent.slot(place.slot).hash)))
        });
    }

    pub(super) fn take_out(&mut self, class: ClassId, hash: &BlockHash) {
        let sum = self.random.hash_one((class, hash));
        let Self { index, extents, .. } = self;
        index.remove(sum, |&number| {
            let place = Place::from_u32(number);
            let extent = extents[usize::from(place.extent)].as_ref();
            extent.is_some_and(|extent| extent.class == class && extent.slot(place.slot).hash == *hash)
        });
    }

    /// A class; `cut` says how the extents of a new one are cut.
    pub(super) fn find_or_add(
        &mut self,
        key: (Fingerprint, u32, u64),
        cut: impl FnOnce(u64) -> Option<Cut>,
    ) -> Option<ClassId> {
        let place = match self.classes.iter().position(|class| class.key == key) {
            Some(place) => place,
            None if key.2 == 0 || self.classes.len() >= CLASSES_MAX => return None,
            None => {
                let cut = cut(self.directory.limits().extent_bytes)?;
                self.classes.push(Class { key, cut, open: Vec::new() });
                self.classes.len() - 1
            }
        };
        u16::try_from(place).ok().map(ClassId)
    }

    /// A free slot of this class, in an extent that is made where none has one.
    pub(super) fn take_place(&mut self, class: ClassId) -> Result<Place, Refused> {
        if self.classes[usize::from(class.0)].open.is_empty() {
            self.add_extent(class)?;
        }
        let open = &mut self.classes[usize::from(class.0)].open;
        let number = *open.last().ok_or(Refused::Full)?;
        let extent = self.extents[usize::from(number)].as_mut().ok_or(Refused::Full)?;
        let slot = extent.take().ok_or(Refused::Full)?;
        if extent.is_full() {
            open.pop();
        }
        Ok(Place { extent: number, slot })
    }

    pub(super) fn add(&mut self, extent: Extent) -> u16 {
        let free = self.extents.iter().position(Option::is_none).unwrap_or(self.extents.len());
        debug_assert!(free < EXTENTS_MAX, "asked before");
        let number = u16::try_from(free).unwrap_or(u16::MAX);
        if !extent.is_full() {
            self.classes[usize::from(extent.class.0)].open.push(number);
        }
        if free == self.extents.len() {
            self.extents.push(None);
        }
        self.extents[free] = Some(extent);
        number
    }

    pub(super) fn forget_all(&mut self, place: u16) -> u64 {
        let Some(extent) = self.extents[usize::from(place)].as_ref() else { return 0 };
        let class = extent.class;
        let names: Vec<BlockHash> = extent.sealed().map(|slot| extent.slot(slot).hash).collect();
        names.iter().for_each(|hash| self.take_out(class, hash));
        names.len() as u64
    }

    /// The place is free again.
    pub(super) fn release(&mut self, place: Place) {
        let extent = self.extent_mut(place);
        let is_open = extent.is_full() && !extent.is_unlinked;
        extent.give(place.slot);
        let class = extent.class;
        if is_open {
            self.classes[usize::from(class.0)].open.push(place.extent);
        }
    }

    /// Counts a write that failed. A disk that takes nothing any more is read from only.
    pub(super) fn write_failed(&mut self, error: DiskError) {
        self.counts.failed_writes += 1;
        self.failed_writes += 1;
        if error == DiskError::Io(Errno::ROFS) {
            self.read_only = Some(ReadOnly::FileSystem);
        } else if self.failed_writes >= self.directory.limits().write_errors_max && self.read_only.is_none() {
            self.read_only = Some(ReadOnly::Writes { count: self.failed_writes, last: error });
        }
    }

    /// Bytes or a record could not be written.
    pub(super) fn give_up(&mut self, place: Place, error: DiskError) {
        match error {
            // Nothing came to the disk.
            DiskError::Outside => self.release(place),
            DiskError::Io(Errno::NOSPC | Errno::DQUOT) => {
                self.write_failed(error);
                self.release(place);
            }
            DiskError::Damaged | DiskError::Io(_) | DiskError::Short => {
                self.write_failed(error);
                self.lose(place);
            }
        }
    }

    /// Nobody knows what the disk has there: the place stays taken until the next start.
    pub(super) fn lose(&mut self, place: Place) {
        self.counts.lost_places += 1;
        self.lost.push(place);
    }

    /// Makes the block one that is found.
    pub(super) fn write_record(&mut self, place: Place, record: &Record) -> Result<(), NotKept> {
        if self.extent(place).is_unlinked {
            self.release(place);
            return Err(NotKept);
        }
        match self.extent_mut(place).seal(place.slot, record) {
            Ok(()) => {
                self.failed_writes = 0;
                self.insert(place);
                Ok(())
            }
            Err(errno) => {
                self.write_failed(DiskError::Io(errno));
                self.lose(place);
                Err(NotKept)
            }
        }
    }

    pub(super) fn class_bytes(&self, class: ClassId) -> u64 {
        self.classes[usize::from(class.0)].key.2
    }

    pub(super) fn at(&self, place: Place) -> At {
        let extent = self.extent(place);
        At { file: Arc::clone(&extent.file), offset: extent.cut.body(place.slot), bytes: extent.cut.block_bytes }
    }
}

#[cfg(test)]
impl Shelf {
    /// Records are written to these files from now on; without any, to a device that is full. Where they were written before.
    pub(crate) fn write_records_to(&mut self, files: Vec<std::os::fd::OwnedFd>) -> Vec<std::os::fd::OwnedFd> {
        let full = || std::fs::OpenOptions::new().read(true).write(true).open("/dev/full").expect("a device");
        let mut files = files.into_iter();
        let extents = self.extents.iter_mut().flatten();
        extents.map(|of| std::mem::replace(&mut of.records, files.next().unwrap_or_else(|| full().into()))).collect()
    }
}

#[cfg(test)]
impl Filling {
    pub(super) fn twin(&self) -> Self {
        Self { at: self.at.clone(), ..*self }
    }
}

#[cfg(test)]
impl Block {
    pub(super) fn twin(&self) -> Self {
        Self { at: self.at.clone(), ..*self }
    }
}
