//! Reads and writes of whole blocks: posted, and completed once each.
//!
//! ```text
//! Job (file, region, length) -> Ring: io_uring -> Landed
//!                            -> Threads: pread and pwrite, where io_uring is forbidden -> Landed
//! ```
//!
//! Memory: a job holds its region and its file until it has landed; a backend that is dropped waits for all of its jobs.
//! Limits: as many jobs at once as the backend was made for. Failure: of a job, what the system call says.

mod choice;
mod ring;
mod threads;

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use kvferry_memory::Region;
use rustix::io::Errno;

pub use choice::{Choice, Io};
pub(super) use choice::{choose, wait};
pub(super) use threads::Threads;

use super::extent::File;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// From the disk into the region.
    In,
    /// From the region to the disk.
    Out,
}

/// One read or write.
#[derive(Debug)]
pub(super) struct Job {
    /// The poster's.
    pub(super) id: u64,
    pub(super) way: Way,
    pub(super) file: Arc<File>,
    /// In the file.
    pub(super) at: u64,
    pub(super) region: Arc<Region>,
    /// In the region.
    pub(super) offset: u64,
    pub(super) length: u32,
}

/// What a job came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Landed {
    pub(super) id: u64,
    /// Bytes that were moved.
    pub(super) result: Result<u32, Errno>,
}

/// What does jobs. Its wait descriptor is readable once something has landed that [`reap`](Self::reap) has not told.
pub(super) trait Backend: Send {
    /// Takes a job, which lands once. Handed back: there are as many as there may be.
    fn post(&mut self, job: Job) -> Result<(), Job>;

    /// Hands over what was posted, as far as the system takes it now.
    fn submit(&mut self);

    /// Whether something was posted that the system has not taken: nothing will say when it would.
    fn has_unsubmitted(&self) -> bool {
        false
    }

    /// Tells what has landed. Waits for nothing.
    fn reap(&mut self, landed: &mut Vec<Landed>);

    fn wait_fd(&self) -> BorrowedFd<'_>;
}

/// Empties an eventfd.
fn drain(eventfd: BorrowedFd<'_>) {
    // Not readable: there was nothing to empty.
    let _ = rustix::io::read(eventfd, &mut [0; 8]);
}
