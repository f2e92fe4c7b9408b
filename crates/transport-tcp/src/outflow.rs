//! The holder's half of one stream: whose turn it is, and the piece that is on its way out.
//!
//! ```text
//! ready (round robin, a piece each) -> load: slices, checksum -> send: header + slices, in as many calls as it takes
//! ```
//!
//! Limits: a queue holds each work of the endpoint once at most; a piece is one call's worth of slices.

use std::collections::VecDeque;

use kvferry_core::Time;
use kvferry_core::plan::{Cursor, Slice};
use kvferry_memory::Region;
use kvferry_transport::Fault;

use crate::frame::HEADER_BYTES;
use crate::serve::Part;
use crate::stream::Stream;
use crate::wire::{Body, SLICES_MAX, Wire};

/// What one stream has to send.
pub(crate) struct Outflow {
    /// Slots of the works with bytes to send here.
    pub(crate) ready: VecDeque<usize>,
    /// Slots whose last byte here has left, and the turn in which it did.
    pub(crate) closing: VecDeque<(usize, u64)>,
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
}

impl Outflow {
    /// Nothing to send.
    pub(crate) fn new() -> Self {
        Self {
            ready: VecDeque::new(),
            closing: VecDeque::new(),
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
            self.closing.push_back((slot, turn));
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
        let add = |sum, slice: &Slice| source.crc32c(sum, slice.offset, slice.length);
        self.slices.iter().try_fold(0, add).map_err(|_| Fault::OutOfBounds)
    }

    /// One system call: control frames, and as much of the piece as goes. Returns the work whose piece has left.
    pub(crate) fn send(
        &mut self,
        stream: &mut Stream,
        source: Option<&Region>,
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
        // A frame that has begun is finished first.
        let control_first = piece.header_sent == 0;
        let control = stream.control();
        let moved = if control_first {
            wire.send(stream.socket(), [control, header], &body, &[])?
        } else {
            wire.send(stream.socket(), [header, &[]], &body, control)?
        };
        let mut rest = moved.bytes;
        let mut take = |length: u64| {
            let taken = rest.min(length);
            rest -= taken;
            taken
        };
        let mut control_sent = if control_first { take(control.len() as u64) } else { 0 };
        piece.header_sent += usize::try_from(take(header.len() as u64)).unwrap_or(0);
        let payload_sent = take(piece.left);
        piece.left -= payload_sent;
        if !control_first {
            control_sent = take(control.len() as u64);
        }
        stream.control_sent(usize::try_from(control_sent).unwrap_or(0));
        stream.sent(moved, now);
        if source.is_some() {
            self.advance(payload_sent);
        }
        let sent = self.piece.take_if(|piece| piece.left == 0 && piece.header_sent == HEADER_BYTES);
        Ok(sent.and_then(|piece| piece.slot))
    }

    /// The work has ended: none of its bytes leave any more.
    pub(crate) fn forget(&mut self, slot: usize) {
        self.ready.retain(|&other| other != slot);
        self.closing.retain(|&(other, _)| other != slot);
        self.piece.take_if(|piece| piece.slot == Some(slot) && piece.header_sent == 0);
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
