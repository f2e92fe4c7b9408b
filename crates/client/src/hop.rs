//! The rings of one connection, and what still goes over its socket.
//!
//! ```text
//! send:    fits? push : announce in the ring, then write a frame      -> doorbell, if the daemon sleeps
//! receive: pop -> record? a message : the frame that the socket brings -> in the ring's order
//! ```
//!
//! All of it happens under the client's lock, by whichever caller has it: who waits for a reply looks for it himself,
//! and sleeps on the ring's own word. The connection's thread only reads the socket, and empties the ring when the
//! daemon says that it is full.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use kvferry_proto::v1::{FromDaemon, LOCAL_FRAME_MAX, ToDaemon};
use prost::Message as _;

use crate::frame;
use crate::ring::{ClientEnd, Popped, Pushed, Sleeper, Spin};

/// How a client uses the rings that a daemon offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingSettings {
    /// Whether to ask for rings at all.
    pub enabled: bool,
    /// How long a caller looks for its reply before it sleeps, while that has paid off lately. Costs as much CPU.
    pub spin: Duration,
}

impl Default for RingSettings {
    fn default() -> Self {
        Self { enabled: true, spin: Duration::from_micros(100) }
    }
}

pub(crate) struct Hop {
    end: ClientEnd,
    doorbell: OwnedFd,
    /// How callers have fared with waiting awake.
    pub(crate) spin: Spin,
    /// Frames from the socket that wait for their turn in the ring.
    from_socket: VecDeque<FromDaemon>,
    /// The ring has said that a frame is next, and it has not come yet.
    at_socket: bool,
    record: Vec<u8>,
}

/// What became of a message that was to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    Done,
    /// The ring is full: later.
    Full,
}

impl Hop {
    pub(crate) fn new(end: ClientEnd, doorbell: OwnedFd, spin: Duration) -> Self {
        let (from_socket, record) = (VecDeque::new(), Vec::new());
        Self { end, doorbell, spin: Spin::new(spin), from_socket, at_socket: false, record }
    }

    /// Sends one message.
    ///
    /// # Errors
    /// `InvalidInput` for one that no frame would take; else the connection is of no use any more.
    pub(crate) fn send(&mut self, stream: &UnixStream, message: &ToDaemon) -> io::Result<Sent> {
        let body = message.encode_to_vec();
        if body.len() > LOCAL_FRAME_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "request is longer than a frame may be"));
        }
        let mut pushed = self.end.submissions.push(&body).map_err(io::Error::other)?;
        if pushed == Pushed::Unfit {
            pushed = self.end.submissions.push_socket().map_err(io::Error::other)?;
            if pushed == Pushed::Done {
                self.wake_daemon();
                frame::write(stream, message, None)?;
            }
        }
        if pushed == Pushed::Full {
            return Ok(Sent::Full);
        }
        self.wake_daemon();
        Ok(Sent::Done)
    }

    fn wake_daemon(&self) {
        if self.end.submissions.take_sleep() {
            // Fails only when the counter is full, and then the daemon has been told often enough.
            let _ = rustix::io::write(&self.doorbell, &1_u64.to_ne_bytes());
        }
    }

    /// A frame has come over the socket.
    pub(crate) fn take_frame(&mut self, message: FromDaemon) {
        self.from_socket.push_back(message);
    }

    /// The next message, if it is here.
    ///
    /// # Errors
    /// What the daemon cannot have meant: the connection is of no use any more.
    pub(crate) fn receive(&mut self) -> io::Result<Option<FromDaemon>> {
        if !self.at_socket {
            match self.end.completions.pop(&mut self.record).map_err(io::Error::other)? {
                Popped::Empty => return Ok(None),
                Popped::Record => {
                    return FromDaemon::decode(self.record.as_slice()).map(Some).map_err(io::Error::other);
                }
                Popped::Socket => self.at_socket = true,
            }
        }
        let message = self.from_socket.pop_front();
        self.at_socket = message.is_none();
        Ok(message)
    }

    /// Asks to be woken. Look once more before sleeping.
    pub(crate) fn announce(&self) {
        self.end.completions.announce();
    }

    pub(crate) fn sleeper(&self) -> Sleeper {
        self.end.completions.sleeper()
    }
}
