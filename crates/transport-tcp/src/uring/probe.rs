//! Whether this kernel lets us use `io_uring`, found out by using it.
//!
//! ```text
//! Settings::io -> probe: a ring with our flags, and each of our operations once -> Choice, or why not
//! ```
//!
//! Container runtimes forbid the calls by seccomp, kernels by `kernel.io_uring_disabled`, sandboxes do not have them:
//! a version number tells none of that.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsFd;

use thiserror::Error;

use super::{Direction, Message, Ring};
use crate::settings::Io;
use crate::token::Token;
use crate::wire::Body;

/// Turns until each operation must have completed; they do in the first few.
const TURNS_MAX: u32 = 10_000;
const WORD: [u8; 4] = *b"ping";

/// What moves the bytes, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// [`Io::Epoll`] or [`Io::Uring`].
    pub io: Io,
    /// What was found, for the log.
    pub reason: String,
}

/// Why a ring cannot be used.
#[derive(Debug, Error)]
#[error(
    "io_uring is not usable here: cannot {step}: {error}; it needs Linux 6.1 or newer, kernel.io_uring_disabled = 0 and a container runtime whose seccomp profile allows it"
)]
pub struct Missing {
    pub(super) step: &'static str,
    pub(super) error: io::Error,
}

/// Decides what a transport uses. The ring, if it is one.
pub(crate) fn choose(io: Io, encrypts: bool) -> io::Result<(Choice, Option<Ring>)> {
    let choice = |io, reason: String| Choice { io, reason };
    match io {
        Io::Epoll => Ok((choice(Io::Epoll, "as configured".to_owned()), None)),
        Io::Uring if encrypts => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "data-path TLS runs over epoll only: set io to auto or epoll, or leave TLS out",
        )),
        Io::Auto if encrypts => Ok((choice(Io::Epoll, "data-path TLS runs over epoll only".to_owned()), None)),
        Io::Uring => match probe().and_then(|()| Ring::open()) {
            Ok(ring) => Ok((choice(Io::Uring, "as configured, and every operation works".to_owned()), Some(ring))),
            Err(missing) => Err(io::Error::new(io::ErrorKind::Unsupported, missing)),
        },
        Io::Auto => Ok(match probe() {
            Ok(()) => (choice(Io::Epoll, "the default (docs/adr/0011); io_uring works here too".to_owned()), None),
            Err(missing) => (choice(Io::Epoll, missing.to_string()), None),
        }),
    }
}

/// Uses everything once that a transport uses: posts, a poll, a recall, the eventfd.
///
/// # Errors
///
/// The first step that this kernel, or whoever confines us, does not allow.
pub fn probe() -> Result<(), Missing> {
    let missing = |step: &'static str| move |error: io::Error| Missing { step, error };
    let mut ring = Ring::open()?;
    let (near, far) = pair().map_err(missing("connect to itself"))?;
    let mut lane = |direction| ring.add_lane(Token::Door, direction);
    let (out, into) = (lane(Direction::Outbound), lane(Direction::Inbound));

    let post = |ring: &mut Ring, lane, socket: &TcpStream, message: &Message<'_>| match ring.post(
        lane,
        socket.as_fd(),
        message,
        &Body::None,
    ) {
        Ok(true) => Ok(()),
        _ => Err(missing("post an operation")(io::ErrorKind::Other.into())),
    };
    ring.reap(|_, _| {});
    if let Some(errno) = ring.broken {
        return Err(missing("enable a ring")(errno.into()));
    }
    post(&mut ring, into, &far, &Message::In { room: WORD.len() })?;
    post(&mut ring, out, &near, &Message::Out { control: &WORD, header: &[], control_first: true })?;
    let sent = result(&mut ring, out).map_err(missing("send a message"))?;
    let received = result(&mut ring, into).map_err(missing("receive a message"))?;
    if (sent, received) != (WORD.len(), WORD.len()) {
        return Err(missing("move four bytes")(io::ErrorKind::InvalidData.into()));
    }

    // Nothing comes: only the recall ends it.
    post(&mut ring, into, &far, &Message::In { room: WORD.len() })?;
    ring.commit();
    let Some(operation) = ring.operation(into) else {
        return Err(missing("keep an operation waiting")(io::ErrorKind::Other.into()));
    };
    ring.recall(operation);
    match result(&mut ring, into) {
        Ok(0) => {}
        Ok(_) => return Err(missing("recall an operation")(io::ErrorKind::InvalidData.into())),
        Err(error) => return Err(missing("recall an operation")(error)),
    }

    let epoll = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC)
        .map_err(|errno| missing("make an epoll")(errno.into()))?;
    ring.watch_door(epoll.as_fd());
    ring.commit();
    match ring.broken {
        Some(errno) => Err(missing("poll an epoll")(errno.into())),
        None => Ok(()),
    }
}

/// Two ends of a TCP connection, as `socketpair` has none of that kind.
fn pair() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    Ok((near, listener.accept()?.0))
}

/// Turns until the lane has a result.
fn result(ring: &mut Ring, lane: usize) -> io::Result<usize> {
    for _ in 0..TURNS_MAX {
        ring.commit();
        ring.reap(|_, _| {});
        if let Some(errno) = ring.broken {
            return Err(errno.into());
        }
        match ring.take(lane) {
            Some(Ok(finished)) => return Ok(usize::try_from(finished.bytes).unwrap_or(0)),
            Some(Err(fault)) => return Err(io::Error::other(fault.to_string())),
            None => std::thread::yield_now(),
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.io, self.reason)
    }
}
