//! One work that an endpoint serves, and its parts, one a stream.

use std::sync::Arc;

use kvferry_core::lease::LeaseGate;
use kvferry_core::plan::Cursor;
use kvferry_core::{Time, WorkId};
use kvferry_memory::Region;

use crate::frame::{Frame, HEADER_BYTES, Outcome, Tag};

/// One posted work, until its completion.
pub(crate) struct Serve {
    pub(crate) id: WorkId,
    pub(crate) source: Arc<Region>,
    pub(crate) lease: LeaseGate,
    pub(crate) deadline: Time,
    pub(crate) digest: u64,
    pub(crate) bytes: u64,
    /// One for each stream.
    pub(crate) parts: Vec<Option<Part>>,
    /// Parts without a good end: a trailer, or the receipt of one that is pushed.
    pub(crate) parts_open: usize,
    /// Sent unasked; completes with the reader's receipts.
    pub(crate) is_pushed: bool,
}

/// One stream's share of a work.
pub(crate) struct Part {
    pub(crate) cursor: Cursor,
    /// The reader's name for it, once it was fetched.
    pub(crate) tag: Option<Tag>,
    pub(crate) sequence: u32,
    pub(crate) sent: u64,
    /// The trailer was queued.
    pub(crate) ended: bool,
    /// The reader of a push has said that all of it landed.
    pub(crate) received: bool,
}

impl Serve {
    /// The end of one part that was fetched.
    pub(crate) fn trailer(&mut self, index: usize, outcome: Outcome) -> [u8; HEADER_BYTES] {
        let (mut tag, mut bytes) = (Tag(0), 0);
        if let Some(part) = &mut self.parts[index] {
            part.ended = true;
            tag = part.tag.unwrap_or(tag);
            bytes = part.sent;
        }
        Frame::Trailer { work: self.id, tag, bytes, digest: self.digest, outcome }.encode()
    }
}
