//! The listening socket, and connections that have not said yet who they are.
//!
//! ```text
//! accept -> half open (at most half_open_max, hello_max each) -> Hello + key -> Caller -> the endpoint checks the key
//!                        \-> anything else, or too late: closed without a word, counted
//! ```
//!
//! Exactly a Hello is read, so that a stream's first frame is still in the socket when an endpoint takes it over; under
//! TLS, where whole records are read, what came behind it goes along. A handshake counts as part of the Hello.
//! Full means that nobody is accepted for a while; the kernel's backlog holds who comes.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use kvferry_core::Time;
use kvferry_transport::{EndpointId, Key};
use rustix::event::epoll::{self, EventData, EventFlags};
use slab::Slab;

use crate::Counters;
use crate::congestion;
use crate::frame::{Frame, HEADER_BYTES, HELLO_BYTES};
use crate::settings::Settings;
use crate::socket;
use crate::stream::INTEREST;
use crate::tls::{Channel, Tls, flow};
use crate::token::Token;
use crate::wire::{Body, Wire};

/// Connections accepted in one turn.
const ACCEPTS_MAX: usize = 16;
/// How long to wait after a failure to accept (no file descriptor left, most likely).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Callers heard in one turn where connections are encrypted: each may ask for a key agreement and a signature, half a
/// millisecond with keys of the usual kind, in which no byte of anybody else moves.
const HANDSHAKES_MAX: usize = 4;

/// The listening socket and its half-open connections.
pub(crate) struct Door {
    listener: TcpListener,
    /// Somebody may be waiting.
    readable: bool,
    /// No accept before this.
    pause_until: Time,
    half_open: Slab<HalfOpen>,
    /// Those of whom epoll said something, and their generations.
    talking: VecDeque<(usize, u32)>,
    generation: u32,
    half_open_max: usize,
    hello_max: Duration,
    tls: Option<Arc<Tls>>,
}

/// A connection that said who it is; its key is not checked yet.
pub(crate) struct Caller {
    pub(crate) socket: TcpStream,
    pub(crate) tls: Option<Box<Channel>>,
    /// What it said behind its Hello.
    pub(crate) ahead: Vec<u8>,
    pub(crate) endpoint: EndpointId,
    pub(crate) stream: u32,
    pub(crate) key: Key,
}

/// What came of listening to one half-open connection.
pub(crate) enum Heard {
    /// It said who it is.
    Caller(Caller),
    /// Nothing yet, or nothing good; another may be waiting.
    More,
    /// Nobody has said anything.
    Nobody,
}

struct HalfOpen {
    socket: TcpStream,
    tls: Option<Box<Channel>>,
    generation: u32,
    bytes: Box<[u8]>,
    length: usize,
    expires: Time,
}

impl Door {
    /// Listens.
    pub(crate) fn open(epoll: BorrowedFd<'_>, address: SocketAddr, settings: &Settings) -> io::Result<Self> {
        let listener = socket::listen(address, settings)?;
        epoll::add(epoll, &listener, EventData::new_u64(Token::Door.to_u64()), EventFlags::IN | EventFlags::ET)?;
        Ok(Self {
            listener,
            readable: true,
            pause_until: Time::default(),
            half_open: Slab::new(),
            talking: VecDeque::new(),
            generation: 0,
            half_open_max: settings.half_open_max,
            hello_max: settings.hello_max,
            tls: settings.tls.clone(),
        })
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// The congestion control that accepted connections begin with.
    pub(crate) fn congestion(&self) -> io::Result<String> {
        congestion::current(&self.listener)
    }

    /// Epoll says somebody knocks.
    pub(crate) const fn handle_knock(&mut self) {
        self.readable = true;
    }

    /// Closes who is late and accepts who waits. True: more may be waiting.
    pub(crate) fn turn(&mut self, epoll: BorrowedFd<'_>, now: Time, counters: &mut Counters) -> bool {
        self.half_open.retain(|_, half_open| {
            counters.hellos_late += u64::from(half_open.expires <= now);
            half_open.expires > now
        });
        for _ in 0..ACCEPTS_MAX {
            if !self.can_accept(now) {
                return false;
            }
            match self.accept(epoll, now) {
                Ok(()) => counters.connections_accepted += 1,
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => self.readable = false,
                    // That one went away again, or is not usable; the next may be.
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted => {}
                    _ => self.pause_until = now.after(ACCEPT_PAUSE),
                },
            }
        }
        self.can_accept(now)
    }

    /// When a turn is due even if nobody knocks.
    pub(crate) fn next_deadline(&self) -> Time {
        let first = self.half_open.iter().map(|(_, half_open)| half_open.expires).min().unwrap_or(Time::NEVER);
        if !self.talking.is_empty() {
            return Time::default();
        }
        let waits = self.readable && self.half_open.len() < self.half_open_max;
        if waits { first.min(self.pause_until) } else { first }
    }

    /// Epoll says that a half-open connection has something to say.
    pub(crate) fn handle_bytes(&mut self, slot: usize, generation: u32) {
        self.talking.push_back((slot, generation));
    }

    /// How many may be heard in one turn.
    pub(crate) fn hears_max(&self) -> usize {
        if self.tls.is_some() { HANDSHAKES_MAX } else { usize::MAX }
    }

    /// Hears the next half-open connection that has something to say.
    pub(crate) fn hear_next(&mut self, wire: &mut Wire) -> Heard {
        let Some((slot, generation)) = self.talking.pop_front() else { return Heard::Nobody };
        let half_open = self.half_open.get_mut(slot).filter(|half_open| half_open.generation == generation);
        let Some(half_open) = half_open else { return Heard::More };
        let heard = half_open.hear(wire);
        if matches!(heard, Ok(None)) {
            return Heard::More;
        }
        let HalfOpen { socket, tls, bytes, length, .. } = self.half_open.remove(slot);
        if let Ok(Some((endpoint, stream, key))) = heard {
            let ahead = bytes[HELLO_BYTES..length].to_vec();
            return Heard::Caller(Caller { socket, tls, ahead, endpoint, stream, key });
        }
        wire.counters.hellos_refused += 1;
        Heard::More
    }

    fn can_accept(&self, now: Time) -> bool {
        self.readable && self.half_open.len() < self.half_open_max && self.pause_until <= now
    }

    fn accept(&mut self, epoll: BorrowedFd<'_>, now: Time) -> io::Result<()> {
        let (stream, _) = self.listener.accept()?;
        // A socket that cannot be set up is dropped alone.
        let Ok(socket) = socket::adopt(stream) else { return Ok(()) };
        self.generation = self.generation.wrapping_add(1);
        let entry = self.half_open.vacant_entry();
        let token = Token::HalfOpen { slot: entry.key(), generation: self.generation };
        // Ready bytes are reported at once, so there is no need to look now.
        let plain = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET;
        let interest = if self.tls.is_some() { INTEREST } else { plain };
        let tls = match self.tls.as_ref().map(|tls| Channel::server(tls)).transpose() {
            Ok(tls) => tls.map(Box::new),
            Err(_) => return Ok(()),
        };
        epoll::add(epoll, socket.as_fd(), EventData::new_u64(token.to_u64()), interest)?;
        let expires = now.after(self.hello_max);
        let bytes = vec![0; if tls.is_some() { flow::AHEAD_BYTES } else { HELLO_BYTES }].into_boxed_slice();
        entry.insert(HalfOpen { socket, tls, generation: self.generation, bytes, length: 0, expires });
        Ok(())
    }
}

impl HalfOpen {
    /// Reads on. `Ok(None)`: more is to come. `Err`: not a Hello, or the end.
    fn hear(&mut self, wire: &mut Wire) -> Result<Option<(EndpointId, u32, Key)>, ()> {
        if self.tls.is_some() {
            self.shake_hands(wire)?;
        } else {
            self.read()?;
        }
        if self.length < HEADER_BYTES {
            return Ok(None);
        }
        let (header, rest) = self.bytes.split_first_chunk::<HEADER_BYTES>().ok_or(())?;
        let Ok(Frame::Hello { endpoint, stream, checksum }) = Frame::decode(header) else { return Err(()) };
        if self.length < HELLO_BYTES {
            return Ok(None);
        }
        let key = *rest.first_chunk::<{ size_of::<Key>() }>().ok_or(())?;
        if crc32c::crc32c(&key) == checksum { Ok(Some((endpoint, stream, key))) } else { Err(()) }
    }
}

impl HalfOpen {
    /// Reads, up to the end of a Hello.
    fn read(&mut self) -> Result<(), ()> {
        while self.length < HELLO_BYTES {
            match self.socket.read(&mut self.bytes[self.length..HELLO_BYTES]) {
                Ok(0) => return Err(()),
                Ok(length) => self.length += length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(()),
            }
        }
        Ok(())
    }

    /// Goes on with the handshake, and reads what comes behind it, up to the record in which a Hello ends.
    fn shake_hands(&mut self, wire: &mut Wire) -> Result<(), ()> {
        let Some(channel) = &mut self.tls else { return Err(()) };
        let socket = self.socket.as_fd();
        loop {
            let ahead = (&mut *self.bytes, &mut self.length);
            let received = flow::receive(channel, wire, socket, true, &Body::None, 0, ahead);
            let answered = flow::send(channel, wire, socket, [&[]; 2], &Body::None, &[]);
            let (Ok(received), Ok(_)) = (received, answered) else { return Err(()) };
            if self.length >= HELLO_BYTES || received.moved.is_some_and(|moved| moved.short) {
                return Ok(());
            }
        }
    }
}

/// Whether two keys are equal, in a time that does not tell where they differ.
pub(crate) fn keys_match(left: &Key, right: &Key) -> bool {
    let difference = left.iter().zip(right).fold(0, |sum, (a, b)| std::hint::black_box(sum | (a ^ b)));
    difference == 0
}
