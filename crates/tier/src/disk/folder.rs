//! The files of a store, made and removed.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FallocateFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use zerocopy::IntoBytes as _;

use super::directory::{NEW, extent_name, taken, write_all};
use super::extent::File;
use super::format::{Cut, Header};

/// A file of blocks, open past the page cache and through it.
pub(super) type Opened = Result<(File, OwnedFd), Errno>;

/// A store's directory, open and locked: until the store is closed and nobody makes or removes a file in it, or until the
/// process ends in whatever way.
#[derive(Debug)]
pub(super) struct Folder {
    fd: OwnedFd,
    _lock: OwnedFd,
    pub(super) is_read_only: bool,
}

impl Folder {
    pub(super) const fn new(fd: OwnedFd, lock: OwnedFd, is_read_only: bool) -> Self {
        Self { fd, _lock: lock, is_read_only }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(super) fn open_at(&self, name: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        rustix::fs::openat(&self.fd, name, flags, Mode::RUSR | Mode::WUSR)
    }

    /// Opens an extent's file for blocks, past the page cache, and for records, through it; and locks it.
    pub(super) fn open_extent(&self, number: u32) -> Opened {
        let flags = if self.is_read_only { OFlags::RDONLY } else { OFlags::RDWR };
        let name = extent_name(number);
        let (direct, records) = (self.open_at(&name, flags | OFlags::DIRECT)?, self.open_at(&name, flags)?);
        rustix::fs::flock(&direct, FlockOperation::NonBlockingLockExclusive)?;
        Ok((File::new(direct)?, records))
    }

    /// Makes an extent's file with all its room, and opens it. Nothing of it is left after an error.
    pub(super) fn make_extent(&self, number: u32, header: &Header, cut: Cut) -> Opened {
        let name = format!("{}{NEW}", extent_name(number));
        let made = self.fill_extent(&name, header, cut);
        if made.is_err() {
            // It takes room that nobody uses; if it cannot go now, the next start removes it.
            let _ = rustix::fs::unlinkat(&self.fd, &name, AtFlags::empty());
        }
        made?;
        let opened = self.open_extent(number);
        if opened.is_err() {
            self.remove_extent(number)?;
        }
        opened
    }

    fn fill_extent(&self, name: &str, header: &Header, cut: Cut) -> Result<(), Errno> {
        let file = self.open_at(name, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)?;
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, cut.file_bytes())?;
        let stat = rustix::fs::fstat(&file)?;
        if taken(&stat) > cut.room() {
            return Err(Errno::NOSPC);
        }
        write_all(&file, header.as_bytes(), 0)?;
        // A file with this name has this header, also after a power loss.
        rustix::fs::fdatasync(&file)?;
        let made = name.strip_suffix(NEW).unwrap_or(name);
        rustix::fs::renameat(&self.fd, name, &self.fd, made)
    }

    /// The file goes; one that has gone before is as good.
    pub(super) fn remove_extent(&self, number: u32) -> Result<(), Errno> {
        match rustix::fs::unlinkat(&self.fd, extent_name(number), AtFlags::empty()) {
            Err(Errno::NOENT) => Ok(()),
            done => done,
        }
    }
}
