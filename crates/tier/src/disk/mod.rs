//! Blocks on a disk that outlive the daemon.
//!
//! ```text
//! Shelf: reserve -> Filling -> Mover: write -> Filling -> Shelf: seal (record) -> pin -> Block -> Mover: read -> unpin
//!          extents: files of one class, made whole, cut into slots; records together at the head of each
//! open: records are read in one pass; a block without a record is room; bytes are looked at by who reads them
//! ```
//!
//! [`Shelf`] decides and writes records; it is a [`Store`](crate::Store). [`Mover`] carries bytes between the disk and
//! regions, past the page cache and without a copy where both are aligned. A filling and a block belong to the mover while
//! it works on them, so that no place is given away while the disk still reads or writes it.
//!
//! Survives: the daemon's end at any moment, kill -9 included: what was sealed is there, and nothing else. After a loss of
//! power a block is there as it was stored, or it is not there: bytes are held against their checksum whenever they are
//! read. What one disk has, no other disk can bring back: a store is a cache.
//!
//! Limits: [`Limits`], [`CLASSES_MAX`](crate::CLASSES_MAX), 4096 extents of 2^20 blocks. Failure: a full disk and a full
//! store are one answer; a disk that fails again and again is read from only ([`ReadOnly`]); what is damaged is a miss, and
//! counted.

mod directory;
mod erasing;
mod error;
mod extent;
mod folder;
mod format;
#[expect(unsafe_code, reason = "the kernel reads and writes memory of regions by address")]
mod io;
mod making;
mod mover;
mod recovery;
mod shelf;
mod store;
#[cfg(test)]
mod tests;

pub use directory::Limits;
pub use error::{DiskError, OpenError, ReadOnly};
pub use io::{Choice, Io};
pub use making::{Made, Making};
pub use mover::{Counts as Moved, Done, Mover, Settings, Span};
pub use recovery::Recovery;
pub use shelf::{Block, Counts, Filling, Shelf};
