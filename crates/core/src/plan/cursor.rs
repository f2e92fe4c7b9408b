//! Walks a plan's bytes in wire order, as slices of one side.

use std::fmt;
use std::sync::Arc;

use super::Plan;

/// An end of a movement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// Where bytes are read.
    Source,
    /// Where bytes are written.
    Target,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Target => "target",
        })
    }
}

/// A contiguous part of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slice {
    /// First byte, from the start of the region.
    pub offset: u64,
    /// Number of bytes, at least 1.
    pub length: u64,
}

/// A place in a plan's bytes. Two cursors of one plan, one for each side, hand out the same bytes in the same order,
/// whatever the sizes they are asked for. A clone goes on from the same place.
#[derive(Clone, Debug)]
pub struct Cursor {
    plan: Arc<Plan>,
    side: Side,
    /// The run, the piece in it, and the byte in that piece that come next.
    run: usize,
    piece: u64,
    within: u64,
    remaining: u64,
}

impl Cursor {
    /// A cursor before the first byte.
    #[must_use]
    pub fn new(plan: Arc<Plan>, side: Side) -> Self {
        let remaining = plan.bytes();
        Self { plan, side, run: 0, piece: 0, within: 0, remaining }
    }

    /// Bytes not yet taken.
    #[must_use]
    pub const fn remaining(&self) -> u64 {
        self.remaining
    }

    /// The plan that is walked.
    #[must_use]
    pub const fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// Appends the next slices to `out`, at most `slices_max` of them with at most `bytes_max` bytes together, and
    /// returns how many bytes they hold: fewer than asked for only when the plan ends or slices run out. Neighbours on
    /// this side are merged, but not with slices that were in `out` before. Allocates only where `out` must grow.
    pub fn take(&mut self, bytes_max: u64, slices_max: usize, out: &mut Vec<Slice>) -> u64 {
        let before = out.len();
        let mut taken = 0;
        while taken < bytes_max {
            let Some(run) = self.plan.runs().get(self.run) else { break };
            let (start, stride) = match self.side {
                Side::Source => (run.source, run.source_stride),
                Side::Target => (run.target, run.target_stride),
            };
            let count = u64::from(run.count);
            let offset = start + self.piece * stride + self.within;
            // On a dense side the rest of the run is one slice.
            let pieces = if stride == run.length { count - self.piece } else { 1 };
            let length = (pieces * run.length - self.within).min(bytes_max - taken);
            let full = out.len() - before == slices_max;
            match out[before..].last_mut() {
                Some(last) if last.offset + last.length == offset => last.length += length,
                _ if full => break,
                _ => out.push(Slice { offset, length }),
            }
            taken += length;
            self.within += length;
            if self.within == run.length {
                self.piece += 1;
                self.within = 0;
            } else if self.within > run.length {
                self.piece += self.within / run.length;
                self.within %= run.length;
            }
            if self.piece == count {
                self.run += 1;
                self.piece = 0;
            }
        }
        self.remaining -= taken;
        taken
    }
}
