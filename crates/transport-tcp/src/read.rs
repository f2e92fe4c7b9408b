//! One work that an endpoint reads, and its parts, one a stream.

use std::sync::Arc;

use kvferry_core::plan::Cursor;
use kvferry_core::{Time, WorkId};
use kvferry_memory::Region;
use kvferry_transport::Fault;

use crate::frame::{Outcome, Tag};

/// One posted read, until its last part has ended on the wire.
pub(crate) struct Read {
    pub(crate) id: WorkId,
    /// The holder's name for it.
    pub(crate) work: WorkId,
    pub(crate) tag: Tag,
    pub(crate) digest: u64,
    pub(crate) bytes: u64,
    pub(crate) deadline: Time,
    /// Present until the completion; without it bytes are thrown away.
    pub(crate) target: Option<Arc<Region>>,
    /// Nobody posted it: it was offered and refused.
    pub(crate) is_refused: bool,
    /// One for each stream.
    pub(crate) parts: Vec<Part>,
    /// Parts that are expected or open.
    pub(crate) parts_left: usize,
}

/// How far a part is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Trailer or refusal came, or this stream carries no part.
    Closed,
    /// To be offered.
    Expected,
    /// Fetched or offered, and neither trailer nor refusal came yet.
    Open,
}

/// One stream's share of a read.
pub(crate) struct Part {
    pub(crate) phase: Phase,
    pub(crate) bytes: u64,
    /// Bytes that no piece has announced yet.
    pub(crate) unannounced: u64,
    pub(crate) sequence: u32,
    /// A piece did not match its checksum.
    pub(crate) corrupt: bool,
    /// Where the unannounced bytes go; dropped with the target.
    pub(crate) cursor: Option<Cursor>,
}

impl Read {
    /// Stands for a push that nobody waits for, until its last part has ended.
    pub(crate) fn refused(work: WorkId, stream_count: usize) -> Self {
        let part = |_| Part {
            phase: Phase::Closed,
            bytes: 0,
            unannounced: u64::MAX,
            sequence: 0,
            corrupt: false,
            cursor: None,
        };
        Self {
            id: work,
            work,
            tag: Tag::PUSHED,
            digest: 0,
            bytes: 0,
            deadline: Time::NEVER,
            target: None,
            is_refused: true,
            parts: (0..stream_count).map(part).collect(),
            parts_left: 0,
        }
    }

    /// What the trailer of one part makes of the read. `Err`: the peer contradicts itself.
    pub(crate) fn judge(
        &self,
        index: usize,
        bytes: u64,
        digest: u64,
        outcome: Outcome,
    ) -> Result<Option<Fault>, Fault> {
        let part = &self.parts[index];
        Ok(match outcome {
            _ if self.is_refused => None,
            Outcome::Live if part.unannounced > 0 || bytes != part.bytes || digest != self.digest => {
                return Err(Fault::Protocol);
            }
            // Nobody asked it to stop.
            Outcome::Stopped if self.target.is_some() => return Err(Fault::Protocol),
            Outcome::Live if part.corrupt => Some(Fault::ChecksumMismatch),
            Outcome::Live => None,
            // A piece that was cut short is filled up with zeros, so these come before the checksum.
            Outcome::LeaseEnded => Some(Fault::LeaseEnded),
            Outcome::Deadline => Some(Fault::Deadline),
            Outcome::Withdrawn | Outcome::Stopped => Some(Fault::Cancelled),
            Outcome::Corrupt => return Err(Fault::Protocol),
        })
    }
}

/// What the holder of a push is told of a read that failed here.
pub(crate) const fn receipt_of(fault: Fault) -> Outcome {
    match fault {
        Fault::ChecksumMismatch => Outcome::Corrupt,
        Fault::Deadline => Outcome::Deadline,
        Fault::LeaseEnded => Outcome::LeaseEnded,
        _ => Outcome::Withdrawn,
    }
}
