//! One TCP connection of an endpoint: its socket, what epoll said of it, frames on their way in and out.
//!
//! ```text
//! push(frame) -> control bytes -> Wire::send
//! Wire::receive -> bytes read ahead -> next_frame, or the first bytes of a piece
//! ```
//!
//! Limits: [`AHEAD_BYTES`] in; out, what the two sides bound by the works they admit. Payload is not here: it goes
//! between region and socket in the same system calls as these bytes.

use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};

use kvferry_core::Time;
use kvferry_transport::Fault;
use rustix::event::epoll::EventFlags;

use crate::frame::{Frame, HEADER_BYTES};
use crate::wire::{Body, Moved, Wire};

/// Bytes read ahead of need: some frames in one call. Piece bytes among them are copied once more, which is less than
/// a system call costs as long as it stays this small.
pub(crate) const AHEAD_BYTES: usize = 1024;

/// What epoll is asked about every stream, once: edges, so that no call is needed to change it.
pub(crate) const INTEREST: EventFlags =
    EventFlags::IN.union(EventFlags::OUT).union(EventFlags::RDHUP).union(EventFlags::ET);

/// One connection. Its endpoint owns it; closed on drop.
pub(crate) struct Stream {
    socket: TcpStream,
    /// Bytes, or the end, may be waiting. Cleared by a short read.
    readable: bool,
    /// The socket may take bytes. Cleared by a short write.
    writable: bool,
    /// The peer has ended its direction: a short read does not mean that nothing more comes.
    hangup: bool,
    /// The other end has proved itself (dialler: Welcome came; admitter: its key was good).
    pub(crate) welcomed: bool,
    ahead: Box<[u8; AHEAD_BYTES]>,
    ahead_start: usize,
    ahead_end: usize,
    control: Vec<u8>,
    control_start: usize,
    /// When bytes last came, or came to be due.
    pub(crate) heard: Time,
    /// When bytes were last given to the socket; how long it has stood still, while it is not writable.
    pub(crate) spoke: Time,
}

impl Stream {
    /// A non-blocking socket, connected or about to be.
    pub(crate) fn new(socket: TcpStream, connected: bool, now: Time) -> Self {
        Self {
            socket,
            readable: connected,
            writable: connected,
            hangup: false,
            welcomed: false,
            ahead: Box::new([0; AHEAD_BYTES]),
            ahead_start: 0,
            ahead_end: 0,
            control: Vec::new(),
            control_start: 0,
            heard: now,
            spoke: now,
        }
    }

    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Takes in what epoll says.
    pub(crate) fn handle_flags(&mut self, flags: EventFlags) {
        let ended = flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
        self.hangup |= ended;
        self.readable |= ended || flags.contains(EventFlags::IN);
        self.writable |= flags.intersects(EventFlags::OUT | EventFlags::HUP | EventFlags::ERR);
    }

    pub(crate) const fn is_readable(&self) -> bool {
        self.readable
    }

    pub(crate) const fn is_writable(&self) -> bool {
        self.writable
    }

    pub(crate) const fn is_hung_up(&self) -> bool {
        self.hangup
    }

    /// Queues a frame without payload, the hello, or a small piece.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        if self.control_start == self.control.len() {
            self.control.clear();
            self.control_start = 0;
        }
        self.control.extend_from_slice(bytes);
    }

    /// Frames that have not left yet.
    pub(crate) fn control(&self) -> &[u8] {
        &self.control[self.control_start..]
    }

    /// `bytes` of the control frames have left.
    pub(crate) fn control_sent(&mut self, bytes: usize) {
        self.control_start += bytes;
    }

    /// Sends control frames and nothing else.
    pub(crate) fn flush(&mut self, wire: &mut Wire, now: Time) -> Result<(), Fault> {
        if self.writable && !self.control().is_empty() {
            let moved = wire.send(self.socket.as_fd(), [self.control(), &[]], &Body::None, &[])?;
            self.sent(moved, now);
            self.control_sent(usize::try_from(moved.bytes).unwrap_or(0));
        }
        Ok(())
    }

    /// Notes the outcome of a send.
    pub(crate) fn sent(&mut self, moved: Moved, now: Time) {
        self.writable = !moved.short;
        self.spoke = now;
    }

    /// The next header, if all of it is here.
    pub(crate) fn next_frame(&mut self) -> Result<Option<Frame>, Fault> {
        let Some(header) = self.ahead[self.ahead_start..self.ahead_end].first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let frame = Frame::decode(header).map_err(|_| Fault::Protocol)?;
        self.ahead_start += HEADER_BYTES;
        Ok(Some(frame))
    }

    /// Whether a frame is the Welcome that this stream waits for. Anything else before it is a fault.
    pub(crate) fn take_welcome(&mut self, frame: &Frame) -> Result<bool, Fault> {
        if self.welcomed {
            return Ok(false);
        }
        self.welcomed = *frame == Frame::Welcome;
        if self.welcomed { Ok(true) } else { Err(Fault::Protocol) }
    }

    /// Piece bytes that were read ahead, at most `length_max` of them.
    pub(crate) fn take_ahead(&mut self, length_max: u64) -> &[u8] {
        let start = self.ahead_start;
        let length = (self.ahead_end - start).min(usize::try_from(length_max).unwrap_or(usize::MAX));
        self.ahead_start += length;
        &self.ahead[start..start + length]
    }

    /// Whether bytes were read ahead and not used yet.
    pub(crate) const fn has_ahead(&self) -> bool {
        self.ahead_start < self.ahead_end
    }

    /// Receives into `body`, and what comes behind it into the read-ahead. Returns how much of it was `body`'s.
    pub(crate) fn receive(
        &mut self,
        wire: &mut Wire,
        body: &Body<'_>,
        body_bytes: u64,
        body_is_whole: bool,
        now: Time,
    ) -> Result<u64, Fault> {
        if self.ahead_start > 0 {
            self.ahead.copy_within(self.ahead_start..self.ahead_end, 0);
            self.ahead_end -= self.ahead_start;
            self.ahead_start = 0;
        }
        let room = if body_is_whole { &mut self.ahead[self.ahead_end..] } else { &mut [] };
        let moved = wire.receive(self.socket.as_fd(), body, room)?;
        // Behind a hang-up no new edge comes, so it is read until its end.
        self.readable = !moved.short || (self.hangup && moved.bytes > 0);
        if moved.bytes > 0 {
            self.heard = now;
        }
        let landed = moved.bytes.min(body_bytes);
        self.ahead_end += usize::try_from(moved.bytes - landed).unwrap_or(0);
        Ok(landed)
    }
}
