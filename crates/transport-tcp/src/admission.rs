//! The listening socket, and connections that have not said yet who they are.
//!
//! ```text
//! accept -> half open (at most half_open_max, hello_max each) -> Hello + key -> Caller -> the endpoint checks the key
//!                        \-> anything else, or too late: closed without a word, counted
//! ```
//!
//! Exactly a Hello is read, so that a stream's first frame is still in the socket when an endpoint takes it over.
//! Full means that nobody is accepted for a while; the kernel's backlog holds who comes.

use std::io::{self, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use kvferry_core::Time;
use kvferry_transport::{EndpointId, Key};
use rustix::event::epoll::{self, EventData, EventFlags};
use slab::Slab;

use crate::Counters;
use crate::frame::{Frame, HEADER_BYTES, HELLO_BYTES};
use crate::settings::Settings;
use crate::socket;
use crate::token::Token;

/// Connections accepted in one turn.
const ACCEPTS_MAX: usize = 16;
/// How long to wait after a failure to accept (no file descriptor left, most likely).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The listening socket and its half-open connections.
pub(crate) struct Door {
    listener: TcpListener,
    /// Somebody may be waiting.
    readable: bool,
    /// No accept before this.
    pause_until: Time,
    half_open: Slab<HalfOpen>,
    generation: u32,
    half_open_max: usize,
    hello_max: Duration,
}

/// A connection that said who it is; its key is not checked yet.
pub(crate) struct Caller {
    pub(crate) socket: TcpStream,
    pub(crate) endpoint: EndpointId,
    pub(crate) stream: u32,
    pub(crate) key: Key,
}

struct HalfOpen {
    socket: TcpStream,
    generation: u32,
    bytes: [u8; HELLO_BYTES],
    length: usize,
    expires: Time,
}

impl Door {
    /// Listens.
    pub(crate) fn open(epoll: BorrowedFd<'_>, address: SocketAddr, settings: &Settings) -> io::Result<Self> {
        let listener = socket::listen(address, settings.socket_buffer_bytes)?;
        epoll::add(epoll, &listener, EventData::new_u64(Token::Door.to_u64()), EventFlags::IN | EventFlags::ET)?;
        Ok(Self {
            listener,
            readable: true,
            pause_until: Time::default(),
            half_open: Slab::new(),
            generation: 0,
            half_open_max: settings.half_open_max,
            hello_max: settings.hello_max,
        })
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
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
        let waits = self.readable && self.half_open.len() < self.half_open_max;
        if waits { first.min(self.pause_until) } else { first }
    }

    /// Reads what a half-open connection has to say. `Some`: it said it all.
    pub(crate) fn handle_bytes(&mut self, slot: usize, generation: u32, counters: &mut Counters) -> Option<Caller> {
        let half_open = self.half_open.get_mut(slot).filter(|half_open| half_open.generation == generation)?;
        let heard = half_open.hear();
        if matches!(heard, Ok(None)) {
            return None;
        }
        let half_open = self.half_open.remove(slot);
        if let Ok(Some((endpoint, stream, key))) = heard {
            return Some(Caller { socket: half_open.socket, endpoint, stream, key });
        }
        counters.hellos_refused += 1;
        None
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
        let interest = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(epoll, socket.as_fd(), EventData::new_u64(token.to_u64()), interest)?;
        let expires = now.after(self.hello_max);
        entry.insert(HalfOpen { socket, generation: self.generation, bytes: [0; HELLO_BYTES], length: 0, expires });
        Ok(())
    }
}

impl HalfOpen {
    /// Reads on. `Ok(None)`: more is to come. `Err`: not a Hello, or the end.
    fn hear(&mut self) -> Result<Option<(EndpointId, u32, Key)>, ()> {
        while self.length < HELLO_BYTES {
            match self.socket.read(&mut self.bytes[self.length..]) {
                Ok(0) => return Err(()),
                Ok(length) => self.length += length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(()),
            }
        }
        if self.length < HEADER_BYTES {
            return Ok(None);
        }
        let (header, key) = self.bytes.split_first_chunk::<HEADER_BYTES>().ok_or(())?;
        let Ok(Frame::Hello { endpoint, stream, checksum }) = Frame::decode(header) else { return Err(()) };
        if self.length < HELLO_BYTES {
            return Ok(None);
        }
        let key = Key::try_from(key).map_err(|_| ())?;
        if crc32c::crc32c(&key) == checksum { Ok(Some((endpoint, stream, key))) } else { Err(()) }
    }
}

/// Whether two keys are equal, in a time that does not tell where they differ.
pub(crate) fn keys_match(left: &Key, right: &Key) -> bool {
    let difference = left.iter().zip(right).fold(0, |sum, (a, b)| std::hint::black_box(sum | (a ^ b)));
    difference == 0
}
