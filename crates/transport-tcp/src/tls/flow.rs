//! Moves bytes between regions, a channel and its socket: what `Wire` does for a stream in the clear.
//!
//! ```text
//! send:    [control][header][region slices] --Region::read--> staging --seal--> outgoing --sendmsg--> socket
//! receive: socket --readv--> incoming --open in place--> Region::write, what comes behind it into the read-ahead
//! ```
//!
//! A byte counts as moved when it is sealed: from then on its region is not read for it again. What is sealed and not
//! sent waits in the channel, and nothing more is sealed before it has left.

use std::os::fd::BorrowedFd;

use kvferry_core::plan::Slice;
use kvferry_memory::Region;
use kvferry_transport::Fault;

use super::buffer::RECORD_PLAIN_MAX;
use super::channel::{Channel, PLAIN_BYTES_MAX};
use crate::wire::{Body, Moved, Wire};

/// Read-ahead of a stream under TLS: what is left of a record behind a piece, and some records of single frames.
pub(crate) const AHEAD_BYTES: usize = 2 * RECORD_PLAIN_MAX;

/// How an alert begins, whatever it says: content type and major version.
pub(crate) const ALERT: [u8; 2] = [21, 3];

/// What one call of [`receive`] came to.
pub(crate) struct Received {
    /// Bytes of the body that landed.
    pub(crate) landed: u64,
    /// What the system call moved, if there was one.
    pub(crate) moved: Option<Moved>,
}

/// Seals `before`, `body` and `after` as far as there is room, and sends as much as the socket takes.
pub(crate) fn send(
    channel: &mut Channel,
    wire: &mut Wire,
    socket: BorrowedFd<'_>,
    before: [&[u8]; 2],
    body: &Body<'_>,
    after: &[u8],
) -> Result<Moved, Fault> {
    let mut bytes = 0;
    if channel.outgoing().is_empty() {
        let mut staging = std::mem::take(&mut wire.staging);
        staging.resize(PLAIN_BYTES_MAX, 0);
        let sealed = seal(channel, wire, &mut staging, before, body, after);
        wire.staging = staging;
        bytes = sealed?;
    }
    let moved = if channel.outgoing().is_empty() {
        Moved { bytes: 0, short: false }
    } else {
        wire.send(socket, [channel.outgoing(), &[]], &Body::None, &[])?
    };
    channel.sent(usize::try_from(moved.bytes).unwrap_or(0));
    channel.rest(&mut wire.pool);
    Ok(Moved { bytes, short: moved.short })
}

fn seal(
    channel: &mut Channel,
    wire: &mut Wire,
    staging: &mut [u8],
    before: [&[u8]; 2],
    body: &Body<'_>,
    after: &[u8],
) -> Result<u64, Fault> {
    let mut source = Gather { before, body, after, slice: 0, taken: 0 };
    let mut bytes = 0;
    loop {
        let room = channel.sealable(&mut wire.pool).min(staging.len());
        let filled = source.fill(&mut staging[..room])?;
        if filled == 0 {
            return Ok(bytes);
        }
        channel.seal(&staging[..filled])?;
        bytes += filled as u64;
    }
}

/// Opens records into `body` and then into `ahead`, with one system call at most and none unless `readable`.
pub(crate) fn receive(
    channel: &mut Channel,
    wire: &mut Wire,
    socket: BorrowedFd<'_>,
    readable: bool,
    body: &Body<'_>,
    body_bytes: u64,
    (ahead, ahead_end): (&mut [u8], &mut usize),
) -> Result<Received, Fault> {
    let mut target = Scatter { body, left: body_bytes, slice: 0, filled: 0 };
    let (mut moved, mut opened) = (None, false);
    loop {
        while channel.may_open() && ahead.len() - *ahead_end >= RECORD_PLAIN_MAX {
            let mut take = |plain: &[u8]| {
                let rest = target.put(plain)?;
                // There is room for a whole record.
                ahead[*ahead_end..*ahead_end + rest.len()].copy_from_slice(rest);
                *ahead_end += rest.len();
                Ok(())
            };
            // What stands behind a body that is filled is looked at before more of it is opened.
            if !channel.open(&mut take)? {
                break;
            }
            opened = true;
            if body_bytes > 0 && target.left == 0 {
                break;
            }
        }
        let is_filled = if body_bytes > 0 { target.left == 0 } else { opened };
        if is_filled || moved.is_some() || !readable {
            break;
        }
        let mut pool = std::mem::take(&mut wire.pool);
        let room = channel.room(&mut pool);
        let received = if room.is_empty() { Err(Fault::Untrusted) } else { wire.receive(socket, &Body::None, room) };
        wire.pool = pool;
        // A peer that hangs up on a handshake does not want to be trusted.
        let is_stranger = !channel.is_established() && received == Err(Fault::PeerClosed);
        let received = if is_stranger { Err(Fault::Untrusted) } else { received }?;
        channel.received(usize::try_from(received.bytes).unwrap_or(0));
        moved = Some(received);
    }
    channel.rest(&mut wire.pool);
    Ok(Received { landed: body_bytes - target.left, moved })
}

/// Tells the peer why, if there is something to tell. It may not listen any more.
pub(crate) fn send_alert(channel: &mut Channel, wire: &mut Wire, socket: BorrowedFd<'_>) {
    if let Ok(moved) = wire.send(socket, [channel.outgoing(), &[]], &Body::None, &[]) {
        channel.sent(usize::try_from(moved.bytes).unwrap_or(0));
    }
}

/// What is to be sent, read from its beginning.
struct Gather<'a> {
    before: [&'a [u8]; 2],
    body: &'a Body<'a>,
    after: &'a [u8],
    /// The slice of the body that is next.
    slice: usize,
    /// How much of that slice, or of the void, was taken.
    taken: u64,
}

impl Gather<'_> {
    /// Takes as many bytes as there is room for, or as there are.
    fn fill(&mut self, into: &mut [u8]) -> Result<usize, Fault> {
        let room = into.len();
        let mut rest = into;
        for edge in &mut self.before {
            rest = take(edge, rest);
        }
        while let (false, Some((region, slice))) = (rest.is_empty(), self.front()) {
            let left = slice.length - self.taken;
            let length = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
            let (now, later) = rest.split_at_mut(length);
            match region {
                Some(region) => region.read(slice.offset + self.taken, now).map_err(|_| Fault::OutOfBounds)?,
                None => now.fill(0),
            }
            self.taken += length as u64;
            if self.taken == slice.length {
                (self.slice, self.taken) = (self.slice + 1, 0);
            }
            rest = later;
        }
        if self.front().is_none() {
            rest = take(&mut self.after, rest);
        }
        Ok(room - rest.len())
    }

    /// The next slice of the body, and its region; the void is one slice of none.
    fn front(&self) -> Option<(Option<&Region>, Slice)> {
        match *self.body {
            Body::None => None,
            Body::Region(region, slices) => slices.get(self.slice).map(|slice| (Some(&**region), *slice)),
            Body::Void(length) => (self.slice == 0 && length > 0).then_some((None, Slice { offset: 0, length })),
        }
    }
}

/// Moves the front of `from` into `into`: what is left of that.
fn take<'b>(from: &mut &[u8], into: &'b mut [u8]) -> &'b mut [u8] {
    let length = from.len().min(into.len());
    let (front, back) = from.split_at(length);
    let (filled, rest) = into.split_at_mut(length);
    filled.copy_from_slice(front);
    *from = back;
    rest
}

/// Where plaintext goes, filled from its beginning.
struct Scatter<'a> {
    body: &'a Body<'a>,
    left: u64,
    slice: usize,
    filled: u64,
}

impl Scatter<'_> {
    /// Lands as many bytes as the body takes and returns the others.
    fn put<'b>(&mut self, plain: &'b [u8]) -> Result<&'b [u8], Fault> {
        let length = usize::try_from(self.left).unwrap_or(usize::MAX).min(plain.len());
        let (mut bytes, rest) = plain.split_at(length);
        self.left -= length as u64;
        if let Body::Region(region, slices) = *self.body {
            while !bytes.is_empty() {
                let slice = slices.get(self.slice).ok_or(Fault::OutOfBounds)?;
                let room = usize::try_from(slice.length - self.filled).unwrap_or(usize::MAX).min(bytes.len());
                let (now, later) = bytes.split_at(room);
                region.write(slice.offset + self.filled, now).map_err(|_| Fault::OutOfBounds)?;
                self.filled += room as u64;
                if self.filled == slice.length {
                    (self.slice, self.filled) = (self.slice + 1, 0);
                }
                bytes = later;
            }
        }
        Ok(rest)
    }
}
