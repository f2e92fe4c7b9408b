//! Records are taken back, so that the next daemon does not find what this one has let go of.
//!
//! ```text
//! remove -> the record is emptied -> room    \-> it cannot be: the place is lost, and the next daemon may find the block
//! erase  -> the record is emptied -> room    \-> it cannot be: the file goes, which this daemon goes on reading
//! disown -> all files of a fingerprint go
//! ```
//!
//! A block that only had to make room may come back: it is what it was. One that somebody wants gone must not, and the
//! neighbours in its file that go with it are no more than what can be computed anew. Limit: nothing can be taken back on a
//! file system that can only be read, where the next daemon finds all that was there.

use kvferry_core::Fingerprint;

use super::error::{DiskError, ReadOnly};
use super::extent::Place;
use super::shelf::Shelf;
use crate::store::{BlockHash, ClassId, Store as _};

impl Shelf {
    /// The record of a place says nothing any more, or the place is not used again before the next start.
    pub(super) fn clear(&mut self, place: Place) {
        let is_empty = self.empty(place);
        self.let_go(place, is_empty);
    }

    /// See [`Store::erase`](crate::Store::erase).
    pub(super) fn erase_block(&mut self, class: ClassId, hash: &BlockHash) -> bool {
        let Some(place) = self.find(class, hash) else { return false };
        let is_empty = self.withdraw(place);
        let may_go = self.may_go(class, hash);
        if may_go {
            self.take_out(class, hash);
            self.let_go(place, is_empty);
        }
        may_go
    }

    /// As [`erase`](crate::Store::erase), of whatever the records of lost places may say for such fingerprints. They stay
    /// lost.
    pub fn erase_lost(&mut self, is_of: impl Fn(Fingerprint) -> bool) {
        for place in std::mem::take(&mut self.lost) {
            let class = self.extent(place).class;
            if !is_of(self.fingerprint(class)) || !self.withdraw(place) {
                self.lost.push(place);
            } else if self.extent(place).is_unlinked {
                self.release(place);
            }
        }
    }

    /// The files of this fingerprint go. Where one cannot, there are its records yet.
    pub(super) fn unlink_all(&mut self, fingerprint: Fingerprint) {
        for at in 0..u16::try_from(self.extents.len()).unwrap_or(u16::MAX) {
            let class = self.extents[usize::from(at)].as_ref().filter(|extent| !extent.is_unlinked).map(|of| of.class);
            if class.is_some_and(|class| self.fingerprint(class) == fingerprint) {
                self.unlink(at);
            }
        }
    }

    /// Nobody finds the block of this place any more, here.
    fn let_go(&mut self, place: Place, is_empty: bool) {
        self.extent_mut(place).forget(place.slot);
        if is_empty {
            self.release(place);
        } else {
            self.lose(place);
        }
    }

    /// Whether the record of a place says nothing any more. Also tried where nothing is taken in: a disk that fails may do so
    /// at some places, and one that is full takes what lies within a file.
    fn empty(&mut self, place: Place) -> bool {
        if self.read_only() == Some(ReadOnly::FileSystem) {
            return false;
        }
        let emptied = self.extent(place).unseal(place.slot);
        emptied.map_err(|errno| self.write_failed(DiskError::Io(errno))).is_ok()
    }

    /// Whether the next daemon does not find the block of a place.
    fn withdraw(&mut self, place: Place) -> bool {
        self.empty(place) || self.unlink(place.extent)
    }

    /// Whether the directory has the file no more. What this daemon has of it stays; nothing is added to it.
    fn unlink(&mut self, at: u16) -> bool {
        if self.read_only() == Some(ReadOnly::FileSystem) {
            return false;
        }
        let Some(extent) = self.extents[usize::from(at)].as_mut() else { return true };
        match self.directory.folder().remove_extent(extent.number) {
            Ok(()) => {
                extent.is_unlinked = true;
                self.classes[usize::from(extent.class.0)].open.retain(|&other| other != at);
                true
            }
            Err(errno) => {
                self.write_failed(DiskError::Io(errno));
                false
            }
        }
    }
}
