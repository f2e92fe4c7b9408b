//! One TCP connection of an endpoint: its socket, what epoll or the ring said of it, frames on their way in and out.
//!
//! ```text
//! push(frame) -> control bytes -> Wire::send
//! Wire::receive -> bytes read ahead -> next_frame, or the first bytes of a piece
//! ```
//!
//! On a ring the same calls post operations and take their results: see [`uring`](crate::uring). Under TLS a channel stands before the socket, and payload is copied once each way: see [`tls`](crate::tls).
//!
//! Limits: [`AHEAD_BYTES`] in; out, what the two sides bound by the works they admit. Payload is not here: it goes
//! between region and socket in the same system calls as these bytes.

use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};

use kvferry_core::Time;
use kvferry_transport::Fault;
use rustix::event::epoll::EventFlags;

use crate::frame::{Frame, HEADER_BYTES};
use crate::socket::set_low_water;
use crate::tls::{Channel, flow};
use crate::token::Token;
use crate::uring::{Direction, Message, Ring};
use crate::wire::{Body, Moved, Wire, fault};

/// Bytes read ahead of need: some frames in one call. Piece bytes among them are copied once more, which is less than
/// a system call costs as long as it stays this small.
pub(crate) const AHEAD_BYTES: usize = 1024;

/// In the middle of a piece, epoll tells of bytes once this many are there, or all that are left: a wake-up for each of
/// the kernel's packets of 64 KiB costs more than the wait for four.
const GATHER_BYTES_MAX: u64 = 256 << 10;

/// What epoll is asked about every stream, once: edges, so that no call is needed to change it.
pub(crate) const INTEREST: EventFlags =
    EventFlags::IN.union(EventFlags::OUT).union(EventFlags::RDHUP).union(EventFlags::ET);

/// One connection. Its endpoint owns it; closed on drop.
pub(crate) struct Stream {
    socket: TcpStream,
    /// Stands between frames and socket if the transport encrypts.
    tls: Option<Box<Channel>>,
    /// Its places on the ring, if the transport has one.
    lanes: Option<Lanes>,
    /// Bytes, or the end, may be waiting. Cleared by a short read.
    readable: bool,
    /// The socket may take bytes. Cleared by a short write.
    writable: bool,
    /// How many bytes must be there for epoll to tell of them.
    low_water: u32,
    /// None came for long: until some do, any will do.
    starves: bool,
    /// The peer has ended its direction: a short read does not mean that nothing more comes.
    hangup: bool,
    /// The other end has proved itself (dialler: Welcome came; admitter: its key was good).
    pub(crate) welcomed: bool,
    ahead: Box<[u8]>,
    ahead_start: usize,
    ahead_end: usize,
    control: Vec<u8>,
    control_start: usize,
    /// When bytes last came, or came to be due.
    pub(crate) heard: Time,
    /// When bytes were last given to the socket; how long it has stood still, while it is not writable.
    pub(crate) spoke: Time,
}

/// Where the operations of one stream are posted.
#[derive(Clone, Copy)]
struct Lanes {
    inbound: usize,
    outbound: usize,
}

impl Stream {
    /// A non-blocking socket, connected or about to be.
    pub(crate) fn new(socket: TcpStream, tls: Option<Box<Channel>>, connected: bool, now: Time) -> Self {
        let ahead_bytes = if tls.is_some() { flow::AHEAD_BYTES } else { AHEAD_BYTES };
        Self {
            socket,
            tls,
            lanes: None,
            readable: connected,
            writable: connected,
            low_water: 1,
            starves: false,
            hangup: false,
            welcomed: false,
            ahead: vec![0; ahead_bytes].into_boxed_slice(),
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

    /// From here on operations are posted on a ring, which waits for the socket by itself.
    pub(crate) fn ride(&mut self, ring: &mut Ring, token: Token) -> std::io::Result<()> {
        // A socket that does not block would make operations fail that ought to wait.
        self.socket.set_nonblocking(false)?;
        let mut add = |direction| ring.add_lane(token, direction);
        self.lanes = Some(Lanes { inbound: add(Direction::Inbound), outbound: add(Direction::Outbound) });
        (self.readable, self.writable) = (true, true);
        Ok(())
    }

    /// Its lanes, both or none.
    pub(crate) fn lanes(&self) -> impl Iterator<Item = usize> + use<> {
        self.lanes.into_iter().flat_map(|lanes| [lanes.inbound, lanes.outbound])
    }

    /// An operation has completed: its result can be taken.
    pub(crate) fn handle_done(&mut self, direction: Direction) {
        match direction {
            Direction::Inbound => self.readable = true,
            Direction::Outbound => self.writable = true,
        }
    }

    /// Before frames are looked at: has the ring tell of a peer that goes again, as epoll would.
    pub(crate) fn watch(&mut self, wire: &mut Wire) -> Result<(), Fault> {
        let (Some(lanes), Some(ring)) = (self.lanes, &mut wire.ring) else { return Ok(()) };
        if !self.readable {
            return Ok(());
        }
        self.hangup |= ring.has_ended(lanes.inbound);
        if ring.is_idle(lanes.inbound) {
            let room = self.ahead.len() - self.ahead_end;
            let posted = ring.post(lanes.inbound, self.socket.as_fd(), &Message::In { room }, &Body::None)?;
            self.readable = !posted;
        }
        Ok(())
    }

    /// Whether a send is on its way of which it is not known yet how far it got.
    pub(crate) const fn is_sending(&self) -> bool {
        self.lanes.is_some() && !self.writable
    }

    /// Whether there may be more to receive.
    pub(crate) fn is_readable(&self) -> bool {
        self.readable || self.tls.as_ref().is_some_and(|channel| channel.may_open())
    }

    /// Nothing is there to receive and `due` bytes of a piece are sure to come: has epoll wait for many of them; for any
    /// if none are due. Not on a ring, which waits by itself, and not under TLS, where records count.
    pub(crate) fn gather(&mut self, due: u64) -> Result<(), Fault> {
        let wanted = if self.starves { 1 } else { u32::try_from(due.clamp(1, GATHER_BYTES_MAX)).unwrap_or(1) };
        if self.readable || self.hangup || wanted == self.low_water || self.tls.is_some() || self.lanes.is_some() {
            return Ok(());
        }
        set_low_water(self.socket.as_fd(), wanted).map_err(fault)?;
        self.low_water = wanted;
        Ok(())
    }

    /// No bytes were told of for long: looks for fewer than many. False: it looked for any already.
    pub(crate) fn look_for_any(&mut self) -> Result<bool, Fault> {
        let gathers = self.low_water > 1;
        self.starves = true;
        self.gather(1)?;
        self.readable |= gathers;
        Ok(gathers)
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

    /// Whether something here could leave once the socket takes it: control frames, or records that were sealed.
    pub(crate) fn has_output(&self) -> bool {
        match &self.tls {
            Some(channel) => !channel.outgoing().is_empty() || channel.is_established() && !self.control().is_empty(),
            None => !self.control().is_empty(),
        }
    }

    /// Sends what is here and nothing else.
    pub(crate) fn flush(&mut self, wire: &mut Wire, now: Time) -> Result<(), Fault> {
        if self.writable && self.has_output() {
            self.send(wire, &[], &Body::None, 0, now)?;
        }
        Ok(())
    }

    /// One system call: control frames, and as much as goes of a frame whose header, or the rest of it, and body are
    /// given. A frame that has begun is finished first. Returns how much has left of header and body.
    pub(crate) fn send(
        &mut self,
        wire: &mut Wire,
        header: &[u8],
        body: &Body<'_>,
        body_bytes: u64,
        now: Time,
    ) -> Result<(usize, u64), Fault> {
        if let Some(lanes) = self.lanes {
            return self.send_posted(wire, lanes.outbound, header, body, body_bytes, now);
        }
        let control = &self.control[self.control_start..];
        let control_first = header.len() == HEADER_BYTES || body_bytes == 0;
        let (before, after): (_, &[u8]) =
            if control_first { ([control, header], &[]) } else { ([header, &[]], control) };
        let socket = self.socket.as_fd();
        let moved = match &mut self.tls {
            Some(channel) => flow::send(channel, wire, socket, before, body, after)?,
            None => wire.send(socket, before, body, after)?,
        };
        let mut rest = moved.bytes;
        let mut take = |length: u64| {
            let taken = rest.min(length);
            rest -= taken;
            taken
        };
        let mut control_sent = if control_first { take(control.len() as u64) } else { 0 };
        let sent = (usize::try_from(take(header.len() as u64)).unwrap_or(0), take(body_bytes));
        if !control_first {
            control_sent = take(control.len() as u64);
        }
        self.control_start += usize::try_from(control_sent).unwrap_or(0);
        self.writable = !moved.short;
        self.spoke = now;
        Ok(sent)
    }

    /// The same by the ring: the first call posts, the call after the completion takes its result.
    fn send_posted(
        &mut self,
        wire: &mut Wire,
        lane: usize,
        header: &[u8],
        body: &Body<'_>,
        body_bytes: u64,
        now: Time,
    ) -> Result<(usize, u64), Fault> {
        let Some(ring) = &mut wire.ring else { return Err(Fault::PeerClosed) };
        if let Some(finished) = ring.take(lane) {
            let finished = finished?;
            wire.counters.bytes_sent += finished.bytes;
            wire.counters.send_calls += 1;
            if finished.bytes > 0 {
                self.spoke = now;
            }
            let mut rest = finished.bytes;
            let mut take = |length: u64| {
                let taken = rest.min(length);
                rest -= taken;
                taken
            };
            let control_before = if finished.control_first { take(finished.control) } else { 0 };
            let sent = (usize::try_from(take(finished.header)).unwrap_or(0), take(finished.body));
            let control_after = if finished.control_first { 0 } else { take(finished.control) };
            self.control_start += usize::try_from(control_before + control_after).unwrap_or(0);
            return Ok(sent);
        }
        let control_first = header.len() == HEADER_BYTES || body_bytes == 0;
        let message = Message::Out { control: &self.control[self.control_start..], header, control_first };
        self.writable = !ring.post(lane, self.socket.as_fd(), &message, body)?;
        Ok((0, 0))
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

    /// The frame that was taken last is the next once more.
    pub(crate) const fn unread_frame(&mut self) {
        self.ahead_start -= HEADER_BYTES;
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
        if self.tls.is_some() {
            return self.receive_records(wire, body, body_bytes, now);
        }
        if let Some(lanes) = self.lanes {
            return self.receive_posted(wire, lanes.inbound, body, body_is_whole, now);
        }
        let room = if body_is_whole { &mut self.ahead[self.ahead_end..] } else { &mut [] };
        let moved = wire.receive(self.socket.as_fd(), body, room).map_err(|fault| self.explain(fault))?;
        self.received(moved, now);
        let landed = moved.bytes.min(body_bytes);
        self.ahead_end += usize::try_from(moved.bytes - landed).unwrap_or(0);
        Ok(landed)
    }

    /// The same by the ring: the first call posts, the call after the completion takes its result.
    fn receive_posted(
        &mut self,
        wire: &mut Wire,
        lane: usize,
        body: &Body<'_>,
        body_is_whole: bool,
        now: Time,
    ) -> Result<u64, Fault> {
        let Some(ring) = &mut wire.ring else { return Err(Fault::PeerClosed) };
        let room = self.ahead.len() - self.ahead_end;
        if let Some(finished) = ring.take(lane) {
            let finished = match finished {
                Ok(finished) => finished,
                Err(fault) => return Err(self.explain(fault)),
            };
            wire.counters.bytes_received += finished.bytes;
            wire.counters.receive_calls += 1;
            if finished.bytes > 0 {
                self.heard = now;
            }
            let ahead = &finished.ahead[..finished.ahead.len().min(room)];
            self.ahead[self.ahead_end..][..ahead.len()].copy_from_slice(ahead);
            self.ahead_end += ahead.len();
            return Ok(finished.bytes.min(finished.body));
        }
        let message = Message::In { room: if body_is_whole { room } else { 0 } };
        self.readable = !ring.post(lane, self.socket.as_fd(), &message, body)?;
        Ok(0)
    }

    fn receive_records(&mut self, wire: &mut Wire, body: &Body<'_>, body_bytes: u64, now: Time) -> Result<u64, Fault> {
        let Some(channel) = &mut self.tls else { return Ok(0) };
        let (socket, ahead) = (self.socket.as_fd(), (&mut *self.ahead, &mut self.ahead_end));
        match flow::receive(channel, wire, socket, self.readable, body, body_bytes, ahead) {
            Ok(received) => {
                if let Some(moved) = received.moved {
                    self.received(moved, now);
                }
                Ok(received.landed)
            }
            Err(fault) => {
                flow::send_alert(channel, wire, socket);
                Err(fault)
            }
        }
    }

    /// Notes the outcome of a system call that received.
    fn received(&mut self, moved: Moved, now: Time) {
        // Behind a hang-up no new edge comes, so it is read until its end.
        self.readable = !moved.short || (self.hangup && moved.bytes > 0);
        if moved.bytes > 0 {
            self.heard = now;
            self.starves = false;
        }
    }

    /// A peer that encrypts answers our first frame with an alert of TLS, and hangs up.
    fn explain(&self, fault: Fault) -> Fault {
        let is_alert = self.ahead[self.ahead_start..self.ahead_end].starts_with(&flow::ALERT);
        if fault == Fault::PeerClosed && !self.welcomed && is_alert { Fault::Untrusted } else { fault }
    }

    /// Bytes that came before this stream was one.
    pub(crate) fn put_ahead(&mut self, bytes: &[u8]) {
        let length = bytes.len().min(self.ahead.len());
        self.ahead[..length].copy_from_slice(&bytes[..length]);
        (self.ahead_start, self.ahead_end) = (0, length);
    }
}
