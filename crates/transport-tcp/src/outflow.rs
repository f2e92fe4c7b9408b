//! The holder's half of one stream: whose turn it is, and the piece that is on its way out.
//!
//! ```text
//! ready (round robin, a piece each) -> load: slices, checksum -> send: header + slices, in as many calls as it takes
//!      \-> what is small: copied, checksum -> a turn later, under a live lease: header + bytes + trailer in one call
//! ```
//!
//! Small parts are copied because a system call costs more than the copy, and because bytes that are copied have left
//! the region: their trailer may travel with them instead of behind them.
//!
//! Limits: a queue holds each work of the endpoint once at most; a piece is one call's worth of slices; copies
//! [`COPIED_BYTES_MAX`] together.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use kvferry_core::Time;
use kvferry_core::plan::{Cursor, Slice};
use kvferry_memory::Region;
use kvferry_transport::Fault;

use crate::frame::HEADER_BYTES;
use crate::serve::Part;
use crate::stream::Stream;
use crate::wire::{Body, SLICES_MAX, Wire};

/// A part with at most this many bytes left is copied. Chosen: copying 16 KiB takes about a microsecond, a send on
/// loopback more than two.
pub(crate) const COPY_BYTES_MAX: u64 = 16 << 10;
/// Copied bytes that wait on one stream.
const COPIED_BYTES_MAX: usize = 64 << 10;

/// A part of which every byte has left the region.
pub(crate) struct Closing {
    pub(crate) slot: usize,
    /// The turn in which the last byte left.
    pub(crate) turn: u64,
    /// The last piece with its header, if it was copied: what to take of the copies.
    pub(crate) copied: Option<Range<usize>>,
}

/// What one stream has to send.
pub(crate) struct Outflow {
    /// Slots of the works with bytes to send here.
    pub(crate) ready: VecDeque<usize>,
    pub(crate) closing: VecDeque<Closing>,
    /// What [`Closing::copied`] points into.
    copies: Vec<u8>,
    pub(crate) piece: Option<Outgoing>,
    /// Where the rest of the piece lies: `slices[front..]`.
    slices: Vec<Slice>,
    front: usize,
}

/// A piece on its way out.
pub(crate) struct Outgoing {
    /// The work; none if it has ended, then zeros stand in for the bytes.
    pub(crate) slot: Option<usize>,
    pub(crate) header: [u8; HEADER_BYTES],
    pub(crate) header_sent: usize,
    /// Payload that has not left.
    pub(crate) left: u64,
    /// Some of it may have left: a send is on its way.
    pub(crate) is_posted: bool,
}

impl Outflow {
    /// Nothing to send.
    pub(crate) fn new() -> Self {
        Self {
            ready: VecDeque::new(),
            closing: VecDeque::new(),
            copies: Vec::new(),
            piece: None,
            slices: Vec::with_capacity(SLICES_MAX),
            front: 0,
        }
    }

    /// Whether there are bytes to send, now or in the next turn.
    pub(crate) fn has_output(&self) -> bool {
        self.piece.is_some() || !self.ready.is_empty() || !self.closing.is_empty()
    }

    /// A part has bytes left to send, or only its trailer.
    pub(crate) fn enqueue(&mut self, slot: usize, part: &Part, turn: u64) {
        if part.cursor.remaining() == 0 {
            self.closing.push_back(Closing { slot, turn, copied: None });
        } else {
            self.ready.push_back(slot);
        }
    }

    /// Takes the slices of one piece: its length.
    pub(crate) fn load(&mut self, cursor: &mut Cursor, bytes_max: u64) -> Result<u32, Fault> {
        self.slices.clear();
        self.front = 0;
        let bytes = cursor.take(bytes_max, SLICES_MAX, &mut self.slices);
        u32::try_from(bytes).map_err(|_| Fault::OutOfBounds)
    }

    /// The checksum of the piece just loaded; leaves its bytes in the cache, where the send finds them.
    pub(crate) fn sum(&self, source: &Region) -> Result<u32, Fault> {
        source.crc32c_of(0, &self.slices).map_err(|_| Fault::OutOfBounds)
    }

    /// Whether the copies have room for one more part.
    pub(crate) fn can_copy(&mut self) -> bool {
        if self.closing.iter().all(|closing| closing.copied.is_none()) {
            self.copies.clear();
        }
        self.copies.len() < COPIED_BYTES_MAX
    }

    /// Whether copies wait for their next turn.
    pub(crate) fn has_copies(&self) -> bool {
        self.closing.back().is_some_and(|closing| closing.copied.is_some())
    }

    /// Copies the rest of a part behind room for its header: where, and its checksum if one is asked for.
    pub(crate) fn copy(
        &mut self,
        cursor: &mut Cursor,
        source: &Region,
        is_summed: bool,
    ) -> Result<(Range<usize>, Option<u32>), Fault> {
        let start = self.copies.len();
        let mut end = start + HEADER_BYTES;
        while cursor.remaining() > 0 {
            self.slices.clear();
            cursor.take(COPY_BYTES_MAX, SLICES_MAX, &mut self.slices);
            for slice in &self.slices {
                let begin = end;
                end += usize::try_from(slice.length).map_err(|_| Fault::OutOfBounds)?;
                self.copies.resize(end, 0);
                source.read(slice.offset, &mut self.copies[begin..end]).map_err(|_| Fault::OutOfBounds)?;
            }
        }
        let checksum = is_summed.then(|| crc32c::crc32c(&self.copies[start + HEADER_BYTES..end]));
        Ok((start..end, checksum))
    }

    /// Puts the header before a copy.
    pub(crate) fn head(&mut self, copy: &Range<usize>, header: &[u8; HEADER_BYTES]) {
        self.copies[copy.start..][..HEADER_BYTES].copy_from_slice(header);
    }

    /// A copy, header first.
    pub(crate) fn copied(&self, copy: Range<usize>) -> &[u8] {
        &self.copies[copy]
    }

    /// One system call: control frames, and as much of the piece as goes. Returns the work whose piece has left.
    pub(crate) fn send(
        &mut self,
        stream: &mut Stream,
        source: Option<&Arc<Region>>,
        wire: &mut Wire,
        now: Time,
    ) -> Result<Option<usize>, Fault> {
        let Some(piece) = &mut self.piece else {
            stream.flush(wire, now)?;
            return Ok(None);
        };
        let header = &piece.header[piece.header_sent..];
        let body = match source {
            Some(source) => Body::Region(source, &self.slices[self.front..]),
            None => Body::Void(piece.left),
        };
        let (header_sent, payload_sent) = stream.send(wire, header, &body, piece.left, now)?;
        piece.header_sent += header_sent;
        piece.left -= payload_sent;
        piece.is_posted = stream.is_sending();
        if source.is_some() {
            self.advance(payload_sent);
        }
        let sent = self.piece.take_if(|piece| piece.left == 0 && piece.header_sent == HEADER_BYTES);
        Ok(sent.and_then(|piece| piece.slot))
    }

    /// The work has ended: none of its bytes leave any more.
    pub(crate) fn forget(&mut self, slot: usize) {
        self.ready.retain(|&other| other != slot);
        self.closing.retain(|closing| closing.slot != slot);
        self.piece.take_if(|piece| piece.slot == Some(slot) && piece.header_sent == 0 && !piece.is_posted);
        if let Some(piece) = self.piece.as_mut().filter(|piece| piece.slot == Some(slot)) {
            piece.slot = None;
        }
    }

    fn advance(&mut self, bytes: u64) {
        let mut rest = bytes;
        while rest > 0 {
            let slice = &mut self.slices[self.front];
            let length = slice.length.min(rest);
            slice.offset += length;
            slice.length -= length;
            rest -= length;
            if slice.length == 0 {
                self.front += 1;
            }
        }
    }
}
