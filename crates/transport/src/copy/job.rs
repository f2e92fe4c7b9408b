//! One read in progress on one node.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use kvferry_core::lease::LeaseGate;
use kvferry_core::plan::{Cursor, Side, Slice};
use kvferry_core::{Time, WorkId};
use kvferry_memory::{OutOfBounds, Region};

use crate::{Fault, ReadWork};

/// Slices of each side looked at together; 1,024 are 16 KiB, which stay in the first-level cache.
pub(super) const SLICES_MAX: usize = 1024;

/// A posted read, its two places in the plan, and what has been asked of it.
#[derive(Debug)]
pub(super) struct Job {
    id: WorkId,
    source: Arc<Region>,
    target: Arc<Region>,
    lease: LeaseGate,
    deadline: Time,
    source_cursor: Cursor,
    target_cursor: Cursor,
    is_cancelled: bool,
}

/// What a look at a job found.
pub(super) enum Progress {
    /// It has ended, one way or the other.
    Done(Result<u64, Fault>),
    /// Bytes are left to copy.
    More,
}

impl Job {
    pub(super) fn new(read: &ReadWork, source: Arc<Region>, lease: LeaseGate) -> Self {
        Self {
            id: read.id,
            source,
            target: Arc::clone(&read.target),
            lease,
            deadline: read.deadline,
            source_cursor: Cursor::new(Arc::clone(&read.plan), Side::Source),
            target_cursor: Cursor::new(Arc::clone(&read.plan), Side::Target),
            is_cancelled: false,
        }
    }

    pub(super) const fn id(&self) -> WorkId {
        self.id
    }

    pub(super) const fn deadline(&self) -> Time {
        self.deadline
    }

    /// Bytes not copied yet.
    pub(super) const fn remaining(&self) -> u64 {
        self.target_cursor.remaining()
    }

    pub(super) const fn cancel(&mut self) {
        self.is_cancelled = true;
    }

    /// Whether the job has ended by `now`, which is later than every byte it has copied.
    pub(super) fn look(&self, now: Time) -> Progress {
        // The loads of the copies must not drift behind the load of the gate, or bytes newer than the lease could pass.
        fence(Ordering::Acquire);
        if self.is_cancelled {
            Progress::Done(Err(Fault::Cancelled))
        } else if !self.lease.is_live(now) {
            Progress::Done(Err(Fault::LeaseEnded))
        } else if now >= self.deadline {
            Progress::Done(Err(Fault::Deadline))
        } else if self.remaining() == 0 {
            Progress::Done(Ok(self.target_cursor.plan().bytes()))
        } else {
            Progress::More
        }
    }

    /// Copies the next `bytes` bytes, at most [`remaining`](Self::remaining), and compares both sides' sums.
    pub(super) fn copy(
        &mut self,
        bytes: u64,
        source_slices: &mut Vec<Slice>,
        target_slices: &mut Vec<Slice>,
    ) -> Result<(), Fault> {
        let mut left = bytes;
        while left > 0 {
            source_slices.clear();
            let taken = self.source_cursor.take(left, SLICES_MAX, source_slices);
            // Both cursors walk one plan, so neither ends before the other; a plan that says otherwise is not believed.
            if taken == 0 {
                return Err(Fault::OutOfBounds);
            }
            let expected = sum(&self.source, 0, source_slices)?;
            let mut landed = 0;
            let mut unplaced = taken;
            let mut sources = Pieces::new(source_slices);
            while unplaced > 0 {
                target_slices.clear();
                let room = self.target_cursor.take(unplaced, SLICES_MAX, target_slices);
                if room == 0 {
                    return Err(Fault::OutOfBounds);
                }
                for target in target_slices.iter() {
                    self.fill(*target, &mut sources)?;
                }
                landed = sum(&self.target, landed, target_slices)?;
                unplaced -= room;
            }
            if landed != expected {
                return Err(Fault::ChecksumMismatch);
            }
            left -= taken;
        }
        Ok(())
    }

    /// Copies the next bytes of the source into one slice of the target.
    fn fill(&self, target: Slice, sources: &mut Pieces<'_>) -> Result<(), Fault> {
        let mut filled = 0;
        while filled < target.length {
            let piece = sources.next(target.length - filled).ok_or(Fault::OutOfBounds)?;
            self.target
                .copy_from(target.offset + filled, &self.source, piece.offset, piece.length)
                .map_err(out_of_bounds)?;
            filled += piece.length;
        }
        Ok(())
    }
}

/// Cuts slices at the lengths asked for.
struct Pieces<'a> {
    slices: &'a [Slice],
    /// Bytes of the first slice already handed out.
    used: u64,
}

impl<'a> Pieces<'a> {
    const fn new(slices: &'a [Slice]) -> Self {
        Self { slices, used: 0 }
    }

    /// The next bytes that lie together, at most `bytes_max` of them.
    fn next(&mut self, bytes_max: u64) -> Option<Slice> {
        let (first, rest) = self.slices.split_first()?;
        let length = (first.length - self.used).min(bytes_max);
        let piece = Slice { offset: first.offset + self.used, length };
        self.used += length;
        if self.used == first.length {
            self.slices = rest;
            self.used = 0;
        }
        Some(piece)
    }
}

fn sum(region: &Region, seed: u32, slices: &[Slice]) -> Result<u32, Fault> {
    slices.iter().try_fold(seed, |crc, slice| region.crc32c(crc, slice.offset, slice.length)).map_err(out_of_bounds)
}

const fn out_of_bounds(_: OutOfBounds) -> Fault {
    Fault::OutOfBounds
}
