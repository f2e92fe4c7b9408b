//! One read in progress on one node.

use std::sync::Arc;

use kvferry_core::lease::LeaseGate;
use kvferry_core::plan::{Cursor, Side, Slice};
use kvferry_core::{Time, WorkId};
use kvferry_memory::{Piece, Region, Stores};

use super::chunk::{Chunk, Owner};
use crate::{Fault, ReadWork};

/// Slices of each side cut at once; 1,024 are 16 KiB, which stay in the first-level cache.
pub(super) const SLICES_MAX: usize = 1024;

/// A posted read, its two places in the plan, and what has been asked of it.
#[derive(Debug)]
pub(super) struct Job {
    owner: Owner,
    lease: LeaseGate,
    deadline: Time,
    source_cursor: Cursor,
    target_cursor: Cursor,
    /// Whether other threads may copy parts of it.
    is_split: bool,
    is_cancelled: bool,
    /// Chunks cut and not returned yet: while there are any, memory of this job may be touched.
    chunks_out: usize,
    /// Why it will not succeed; nothing more is cut then.
    fault: Option<Fault>,
}

impl Job {
    pub(super) fn new(read: &ReadWork, source: Arc<Region>, lease: LeaseGate, stores: Stores, is_split: bool) -> Self {
        Self {
            owner: Owner { id: read.id, source, target: Arc::clone(&read.target), stores },
            lease,
            deadline: read.deadline,
            source_cursor: Cursor::new(Arc::clone(&read.plan), Side::Source),
            target_cursor: Cursor::new(Arc::clone(&read.plan), Side::Target),
            is_split,
            is_cancelled: false,
            chunks_out: 0,
            fault: None,
        }
    }

    pub(super) const fn id(&self) -> WorkId {
        self.owner.id
    }

    /// When it is due to fail, unless it has failed already.
    pub(super) fn deadline(&self) -> Option<Time> {
        self.fault.is_none().then_some(self.deadline)
    }

    pub(super) const fn is_split(&self) -> bool {
        self.is_split
    }

    /// Bytes to cut yet.
    pub(super) const fn remaining(&self) -> u64 {
        if self.fault.is_some() { 0 } else { self.target_cursor.remaining() }
    }

    /// Whether no thread touches memory of this job.
    pub(super) const fn is_quiet(&self) -> bool {
        self.chunks_out == 0
    }

    pub(super) const fn cancel(&mut self) {
        self.is_cancelled = true;
    }

    /// Asks everything that may end the job early. `now` is later than every byte of chunks that are back.
    pub(super) fn judge(&mut self, now: Time) {
        let fault = if self.is_cancelled {
            Fault::Cancelled
        } else if !self.lease.is_live(now) {
            Fault::LeaseEnded
        } else if now >= self.deadline {
            Fault::Deadline
        } else {
            return;
        };
        self.fail(fault);
    }

    /// The first fault counts.
    pub(super) fn fail(&mut self, fault: Fault) {
        self.fault.get_or_insert(fault);
    }

    pub(super) const fn has_failed(&self) -> bool {
        self.fault.is_some()
    }

    /// How it ended, once it has: judged in this turn, and quiet since the one before.
    pub(super) fn result(&self) -> Option<Result<u64, Fault>> {
        if !self.is_quiet() || self.remaining() > 0 {
            return None;
        }
        Some(self.fault.map_or_else(|| Ok(self.target_cursor.plan().bytes()), Err))
    }

    /// A chunk of this job is back.
    pub(super) fn take_back(&mut self, result: Result<(), Fault>) {
        self.chunks_out -= 1;
        if let Err(fault) = result {
            self.fail(fault);
        }
    }

    /// Cuts the next bytes, at most `bytes_max`, into a free chunk; says how many they are. None: the job has failed.
    pub(super) fn cut(&mut self, bytes_max: u64, slices: &mut [Vec<Slice>; 2], into: &mut Chunk) -> u64 {
        let [sources, targets] = slices;
        sources.clear();
        targets.clear();
        // The side with more slices decides how far a chunk reaches; looked up first, so that both take the same.
        let reach = self.target_cursor.clone().take(bytes_max, SLICES_MAX, targets);
        let bytes = self.source_cursor.take(reach, SLICES_MAX, sources);
        targets.clear();
        let placed = self.target_cursor.take(bytes, SLICES_MAX, targets);
        // Both cursors walk one plan, so neither ends before the other; a plan that says otherwise is not believed.
        if bytes == 0 || placed != bytes {
            self.fail(Fault::OutOfBounds);
            return 0;
        }
        into.clear();
        pair(sources, targets, &mut into.pieces);
        into.bytes = bytes;
        into.of = Some(self.owner.clone());
        self.chunks_out += 1;
        bytes
    }
}

/// Slices of both sides, with as many bytes each, as pieces that lie together on both.
fn pair(sources: &[Slice], targets: &[Slice], pieces: &mut Vec<Piece>) {
    let mut sources = sources.iter().copied();
    let mut source = Slice { offset: 0, length: 0 };
    for target in targets {
        let mut filled = 0;
        while filled < target.length {
            if source.length == 0 {
                let Some(next) = sources.next() else { return };
                source = next;
            }
            let length = source.length.min(target.length - filled);
            pieces.push(Piece { source: source.offset, target: target.offset + filled, length });
            filled += length;
            source = Slice { offset: source.offset + length, length: source.length - length };
        }
    }
}
