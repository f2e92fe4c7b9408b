//! The reader's half of one stream: the piece that is on its way in.
//!
//! ```text
//! begin -> refill (slices from the plan) -> bytes land, summed while they are in the cache -> ... -> end_piece
//!     \-> drop_bytes, where nobody wants them any more --------------------------------------------------^
//! ```

use kvferry_core::Time;
use kvferry_core::plan::{Cursor, Slice};
use kvferry_memory::Region;
use kvferry_transport::Fault;

use crate::stream::Stream;
use crate::wire::SLICES_MAX;

/// Bytes received before they are summed: few enough to be in the cache still, where two threads share it (128 KiB gain
/// 2 % over 512 and 64, docs/adr/0019).
const SUMMED_BYTES_MAX: u64 = 128 << 10;

/// What one stream is in the middle of.
pub(crate) struct Inflow {
    piece: Option<Incoming>,
    /// Where the next bytes of the piece go: `slices[front..]`, `queued` bytes.
    slices: Vec<Slice>,
    front: usize,
    queued: u64,
    /// Parts on this stream that have not ended.
    pub(crate) due: usize,
    /// The turn in which the next frame, an offer that nobody waited for, was first seen.
    pub(crate) doubted: Option<u64>,
}

/// The piece whose bytes come now.
struct Incoming {
    /// The read.
    slot: usize,
    left: u64,
    sum: u32,
    /// What the sum must come to; none if nobody asked.
    checksum: Option<u32>,
}

impl Inflow {
    /// Nothing on its way.
    pub(crate) fn new() -> Self {
        Self { piece: None, slices: Vec::with_capacity(SLICES_MAX), front: 0, queued: 0, due: 0, doubted: None }
    }

    /// One more part is due on this stream.
    pub(crate) fn owe(&mut self, stream: &mut Stream, now: Time) {
        if self.due == 0 {
            stream.heard = now;
        }
        self.due += 1;
    }

    /// A piece of `length` bytes comes for the read in `slot`.
    pub(crate) fn begin(&mut self, slot: usize, length: u64, checksum: Option<u32>) {
        self.piece = Some(Incoming { slot, left: length, sum: 0, checksum });
        self.slices.clear();
        self.front = 0;
        self.queued = 0;
    }

    /// Whose bytes come now; `None` if a header does.
    pub(crate) fn slot(&self) -> Option<usize> {
        self.piece.as_ref().map(|piece| piece.slot)
    }

    /// Bytes of the piece that have not come.
    pub(crate) fn left(&self) -> u64 {
        self.piece.as_ref().map_or(0, |piece| piece.left)
    }

    /// Where the next of them go, and how many that is.
    pub(crate) fn slices(&self) -> (&[Slice], u64) {
        (&self.slices[self.front..], self.queued)
    }

    /// Fetches the next slices of the piece from the plan once the last ones are full.
    pub(crate) fn refill(&mut self, cursor: Option<&mut Cursor>) {
        if self.queued == 0
            && let Some(cursor) = cursor
        {
            self.slices.clear();
            self.front = 0;
            let is_summed = self.piece.as_ref().is_some_and(|piece| piece.checksum.is_some());
            let length_max = if is_summed { self.left().min(SUMMED_BYTES_MAX) } else { self.left() };
            self.queued = cursor.take(length_max, SLICES_MAX, &mut self.slices);
        }
    }

    /// `bytes` bytes have been written to the front slices: sums them.
    pub(crate) fn land(&mut self, target: &Region, bytes: u64) -> Result<(), Fault> {
        let Some(piece) = &mut self.piece else { return Ok(()) };
        piece.left -= bytes;
        self.queued -= bytes;
        let mut rest = bytes;
        while rest > 0 {
            let slice = &mut self.slices[self.front];
            let length = slice.length.min(rest);
            if piece.checksum.is_some() {
                piece.sum = target.crc32c(piece.sum, slice.offset, length).map_err(|_| Fault::OutOfBounds)?;
            }
            slice.offset += length;
            slice.length -= length;
            rest -= length;
            if slice.length == 0 {
                self.front += 1;
            }
        }
        Ok(())
    }

    /// `bytes` bytes have been thrown away.
    pub(crate) fn drop_bytes(&mut self, bytes: u64) {
        if let Some(piece) = &mut self.piece {
            piece.left -= bytes;
        }
    }

    /// Once all of the piece has come: whether it is what was sent.
    pub(crate) fn end_piece(&mut self) -> Option<bool> {
        self.piece
            .take_if(|piece| piece.left == 0)
            .map(|piece| piece.checksum.is_none_or(|checksum| checksum == piece.sum))
    }
}
