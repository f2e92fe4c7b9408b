//! What a directory still holds when a daemon starts.
//!
//! ```text
//! list -> each extent: lock, header, records in one pass, bytes of no block -> index; over the limits: the emptiest go
//! ```

use std::path::Path;
use std::time::Duration;

use rustix::fs::Advice;
use rustix::io::Errno;

use super::directory::{Directory, Limits, Listed, read_all};
use super::error::OpenError;
use super::extent::{Extent, Place};
use super::format::{Cut, Header};
use super::shelf::{EXTENTS_MAX, Shelf};

/// How long, and how often, the disk is waited for that still writes what a killed daemon has given it.
const LOCK_WAIT: Duration = Duration::from_millis(10);
const LOCK_TRIES: u32 = 1000;

/// What became of the blocks of the daemon before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Blocks that are there again. Their bytes are looked at by who reads them.
    pub blocks: u64,
    /// Records that were no records: their places are room.
    pub damaged_records: u64,
    /// Files of blocks whose beginning is damaged, or whose end is missing: nothing in them is used, they count against the
    /// limits, and stay until somebody removes them.
    pub damaged_files: Vec<String>,
    /// Blocks that were stored twice: once is kept.
    pub twice: u64,
    /// Files that were being made when the daemon before ended. They are gone.
    pub unfinished_files: u64,
    /// Files of somebody else: left alone, and counted against the limits.
    pub foreign_files: u64,
    /// Blocks that went because the limits are lower than what was there.
    pub over_limits: u64,
}

impl Shelf {
    /// The store in the directory at `path`, which is made if it is missing; one that is not empty must hold a store.
    ///
    /// # Errors
    ///
    /// [`OpenError`]; damaged files and records are no reason for one.
    pub fn open(path: &Path, limits: Limits) -> Result<(Self, Recovery), OpenError> {
        if Cut::new(1, limits.extent_bytes.min(limits.bytes_max)).is_none() {
            return Err(OpenError::Limits { extent_bytes: limits.extent_bytes, bytes_max: limits.bytes_max });
        }
        let (directory, listing) = Directory::open(path, limits)?;
        directory.probe()?;
        let mut shelf = Self::new(directory);
        let mut recovery =
            Recovery { unfinished_files: listing.unfinished, foreign_files: listing.foreign, ..Recovery::default() };
        for listed in listing.extents {
            if !shelf.recover(listed, &mut recovery)? {
                recovery.damaged_files.push(super::directory::extent_name(listed.number));
            }
        }
        shelf.shrink(&mut recovery);
        recovery.blocks = shelf.index.len() as u64;
        Ok((shelf, recovery))
    }

    /// Takes in what an extent holds. False: nothing in it can be used.
    fn recover(&mut self, listed: Listed, recovery: &mut Recovery) -> Result<bool, OpenError> {
        let number = listed.number;
        let mut tries = 0;
        let files = loop {
            match self.directory.folder().open_extent(number) {
                Err(Errno::WOULDBLOCK) if tries < LOCK_TRIES => tries += 1,
                Err(Errno::WOULDBLOCK) => {
                    return Err(OpenError::InUse { path: self.directory.path().to_owned(), holder: None });
                }
                Err(Errno::IO) => return Ok(false),
                Err(errno) => return Err(self.directory.error("open a file of blocks", errno)),
                Ok(files) => break files,
            }
            std::thread::sleep(LOCK_WAIT);
        };
        // A hint; nothing depends on it.
        let _ = rustix::fs::fadvise(&files.1, 0, None, Advice::Sequential);
        let mut page = [0; size_of::<Header>()];
        let Ok(count) = read_all(&files.1, &mut page, 0) else { return Ok(false) };
        let Ok(header) = Header::parse(&page[..count], number, listed.file_bytes) else { return Ok(false) };
        // Blocks that would not fit in a file of today's length stay where they are.
        let cut = |extent_bytes| Cut::new(header.class().2, extent_bytes).or_else(|| Some(header.cut()));
        let class = self.find_or_add(header.class(), cut).filter(|_| self.extents.len() < EXTENTS_MAX);
        let Some(class) = class else { return Ok(false) };
        let room = header.cut().room().max(listed.room);
        self.directory.recount(listed.room, room);
        let mut extent = Extent::new(class, room, files, header);
        let Ok(damaged) = extent.recover(self.directory.folder().is_read_only) else { return Ok(false) };
        recovery.damaged_records += damaged;
        let slots: Vec<u32> = extent.sealed().collect();
        self.index_reserve(slots.len());
        let at = self.add(extent);
        for slot in slots {
            let place = Place { extent: at, slot };
            if self.find(class, &self.extent(place).slot(slot).hash).is_none() {
                self.insert(place);
            } else {
                recovery.twice += 1;
                self.clear(place);
            }
        }
        Ok(true)
    }

    /// Removes extents, the emptiest first, until what is there is within the limits.
    fn shrink(&mut self, recovery: &mut Recovery) {
        while self.directory.is_over() && !self.directory.folder().is_read_only {
            let taken = |(at, extent): (u16, &Option<Extent>)| extent.as_ref().map(|extent| (extent.taken_count, at));
            let Some((_, emptiest)) = (0..).zip(&self.extents).filter_map(taken).min() else { return };
            recovery.over_limits += self.forget_all(emptiest);
            self.remove_extent(usize::from(emptiest));
        }
    }
}
