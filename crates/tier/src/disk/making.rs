//! Files of blocks are made and removed where nobody waits: the disk's own caches are emptied on the way.
//!
//! ```text
//! no place in a file -> Making: empty files go, one is made -> [any thread] -> Made -> its places are free
//! ```
//!
//! A store makes its files on the spot until [`Shelf::hand_out_making`] is called; from then on a block for which there is no
//! file [has to wait](Refused::NotYet) for whoever carries out what [`Shelf::poll_making`] gives. One at a time. Limits: a file
//! counts from before it is made until after it is removed. Failure: the next block is told, and then it is tried again.

use std::fmt;
use std::sync::Arc;

use rustix::io::Errno;

use super::error::DiskError;
use super::extent::Extent;
use super::folder::{Folder, Opened};
use super::format::{Cut, Header};
use super::shelf::{EXTENTS_MAX, Shelf};
use crate::store::{ClassId, Refused};

/// Which files are made, and what came of the last one.
#[derive(Default)]
pub(super) struct Files {
    /// Somebody else makes them.
    are_handed_out: bool,
    /// To be made.
    next: Option<Making>,
    /// It is being made.
    is_out: bool,
    /// The disk had less room than it said.
    is_short: bool,
    /// What the next block that needs a file is told.
    refused: Option<Refused>,
}

/// Empty files are to go, and one is to be made: work for a thread that nobody waits for.
pub struct Making {
    folder: Arc<Folder>,
    going: Vec<Extent>,
    new: Option<New>,
}

/// What came of a [`Making`].
pub struct Made {
    /// What each file took, and whether it is gone.
    gone: Vec<(u64, Result<(), Errno>)>,
    new: Option<(New, Opened)>,
}

struct New {
    class: ClassId,
    header: Header,
    cut: Cut,
}

impl Making {
    /// Does it, on the caller's thread.
    #[must_use]
    pub fn run(self) -> Made {
        let mut is_gone = true;
        let mut gone = Vec::new();
        for extent in self.going {
            let (number, room) = (extent.number, extent.room);
            let removed = self.folder.remove_extent(number);
            // The file system takes its room back when the file is closed.
            drop(extent);
            is_gone &= removed.is_ok();
            gone.push((room, removed));
        }
        let make = |new: New| {
            // Without the room that was counted on there is none.
            let made = if is_gone {
                self.folder.make_extent(new.header.number(), &new.header, new.cut)
            } else {
                Err(Errno::NOSPC)
            };
            (new, made)
        };
        Made { gone, new: self.new.map(make) }
    }
}

impl Shelf {
    /// From now on somebody else makes files, by way of [`poll_making`](Self::poll_making).
    pub fn hand_out_making(&mut self) {
        self.files.are_handed_out = true;
    }

    /// What is to be made; every one is to be answered by [`handle_made`](Self::handle_made).
    pub fn poll_making(&mut self) -> Option<Making> {
        let making = self.files.next.take();
        self.files.is_out |= making.is_some();
        making
    }

    /// It was made, or not.
    pub fn handle_made(&mut self, made: Made) {
        self.files.is_out = false;
        for (room, gone) in made.gone {
            if gone.is_err() {
                // It still takes its room, and cannot be used: its records may come back.
                self.directory.count(room);
                self.counts.failed_files += 1;
            }
        }
        let Some((New { class, header, cut }, made)) = made.new else { return };
        match made {
            Ok(files) => {
                self.add(Extent::new(class, cut.room(), files, header));
                return;
            }
            Err(Errno::NOSPC | Errno::DQUOT) => self.files.is_short = true,
            Err(errno) => self.files.refused = Some(self.file_failed(errno)),
        }
        self.directory.uncount(cut.room());
    }

    /// A file with free places for blocks of this class.
    pub(super) fn add_extent(&mut self, class: ClassId) -> Result<(), Refused> {
        while self.classes[usize::from(class.0)].open.is_empty() {
            if self.files.is_out || self.files.next.is_some() {
                return Err(Refused::NotYet);
            }
            if let Some(refused) = self.files.refused.take() {
                return Err(refused);
            }
            let making = self.plan(class)?;
            if self.files.are_handed_out {
                self.files.next = Some(making);
            } else {
                self.handle_made(making.run());
            }
        }
        Ok(())
    }

    /// What has to be done for one more file.
    fn plan(&mut self, class: ClassId) -> Result<Making, Refused> {
        let super::shelf::Class { key: (fingerprint, group, _), cut, .. } = self.classes[usize::from(class.0)];
        let (mut going, mut freed) = (Vec::new(), 0);
        let mut is_short = std::mem::take(&mut self.files.is_short);
        let folder = Arc::clone(self.directory.folder());
        loop {
            let is_crowded = self.extents.iter().flatten().count() >= EXTENTS_MAX;
            let refused = match self.directory.has_room(cut.room(), freed) {
                Ok(true) if !is_crowded && !is_short => break,
                Ok(_) => Refused::Full,
                Err(errno) => self.file_failed(errno),
            };
            is_short = false;
            // An extent without a block is everybody's room.
            let is_empty = |extent: &Option<Extent>| extent.as_ref().is_some_and(|extent| extent.taken_count == 0);
            let empty = self.extents.iter().position(is_empty).filter(|_| refused == Refused::Full);
            match empty.and_then(|place| self.take_extent(place)) {
                Some(extent) => {
                    freed += extent.room;
                    going.push(extent);
                }
                None if going.is_empty() => return Err(refused),
                None => return Ok(Making { folder, going, new: None }),
            }
        }
        let Some(number) = self.directory.draw_number() else {
            return if going.is_empty() { Err(Refused::Full) } else { Ok(Making { folder, going, new: None }) };
        };
        self.directory.count(cut.room());
        let header = Header::new(number, (fingerprint, group), cut);
        Ok(Making { folder, going, new: Some(New { class, header, cut }) })
    }

    /// What is to be said of a file that could not be made, for another reason than room.
    fn file_failed(&mut self, errno: Errno) -> Refused {
        self.counts.failed_files += 1;
        // Not the disk's fault, and over as soon as somebody closes a file.
        if !matches!(errno, Errno::MFILE | Errno::NFILE) {
            self.write_failed(DiskError::Io(errno));
        }
        if self.read_only().is_some() { Refused::ReadOnly } else { Refused::Full }
    }

    /// An extent that is to go; its blocks are no longer in the index.
    fn take_extent(&mut self, place: usize) -> Option<Extent> {
        let extent = self.extents[place].take()?;
        let open = &mut self.classes[usize::from(extent.class.0)].open;
        open.retain(|&other| usize::from(other) != place);
        self.lost.retain(|lost| usize::from(lost.extent) != place);
        self.directory.uncount(extent.room);
        Some(extent)
    }

    /// Removes a file at once; its blocks are no longer in the index.
    pub(super) fn remove_extent(&mut self, place: usize) {
        if let Some(extent) = self.take_extent(place) {
            let folder = Arc::clone(self.directory.folder());
            self.handle_made(Making { folder, going: vec![extent], new: None }.run());
        }
    }
}

impl fmt::Debug for Making {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (going, new) = (self.going.len(), self.new.is_some());
        f.debug_struct("Making").field("going", &going).field("new", &new).finish_non_exhaustive()
    }
}

impl fmt::Debug for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let new = self.new.as_ref().map(|(_, made)| made.as_ref().err());
        f.debug_struct("Made").field("gone", &self.gone).field("new", &new).finish()
    }
}
