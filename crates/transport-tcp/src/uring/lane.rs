//! One direction of one stream on a ring: the memory that the kernel was lent, and the one operation in flight on it.
//!
//! ```text
//! out: [edge: control, header] [region slice]... or [zeros]... [edge: control] -> sendmsg
//! in:  recvmsg -> [region slice]... or [scratch]... [edge: bytes read ahead]
//! ```
//!
//! Control frames and headers are copied into the edge, since their own memory may move while the kernel looks at it.
//!
//! Limits: [`EDGE_BYTES_MAX`] of edges an operation; what is left waits for the next.

use std::cell::UnsafeCell;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use io_uring::{opcode, squeue, types};
use kvferry_memory::Region;
use kvferry_transport::Fault;
use rustix::io::Errno;

use crate::token::Token;
use crate::wire::{self, Body, Vector};

/// Bytes of control frames that one operation takes.
const EDGE_BYTES_MAX: usize = 128 << 10;

/// Which way a lane goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Inbound,
    Outbound,
}

/// What stands around the body of an operation.
pub(crate) enum Message<'a> {
    /// Control frames, and a header or the rest of one: before it if `control_first`, else behind the body.
    Out { control: &'a [u8], header: &'a [u8], control_first: bool },
    /// Room for this many bytes behind the body, if the body can be filled.
    In { room: usize },
}

/// What an operation came to, and what it was asked.
pub(crate) struct Finished<'a> {
    pub(crate) bytes: u64,
    /// Of the message as it was posted.
    pub(crate) control_first: bool,
    pub(crate) control: u64,
    pub(crate) header: u64,
    pub(crate) body: u64,
    /// What came behind the body.
    pub(crate) ahead: &'a [u8],
}

pub(super) struct Lane {
    pub(super) stream: Token,
    pub(super) direction: Direction,
    state: State,
    /// The kernel was asked to end the operation.
    pub(super) is_recalled: bool,
    vectors: Vec<Vector>,
    // A receive writes back to it.
    message: Box<UnsafeCell<libc::msghdr>>,
    edge: Vec<u8>,
    region: Option<Arc<Region>>,
    control_first: bool,
    control: u64,
    header: u64,
    body: u64,
}

#[derive(Clone, Copy)]
enum State {
    Idle,
    /// Queued, or in the kernel.
    Posted {
        generation: u32,
    },
    Done {
        result: i32,
    },
}

// SAFETY: the message points to memory of this lane and of the region it holds, and is followed by the kernel alone.
unsafe impl Send for Lane {}

impl Lane {
    pub(super) fn new(stream: Token, direction: Direction) -> Self {
        // SAFETY: all zeros is an empty message.
        let message: libc::msghdr = unsafe { std::mem::zeroed() };
        Self {
            stream,
            direction,
            state: State::Idle,
            is_recalled: false,
            vectors: Vec::new(),
            message: Box::new(UnsafeCell::new(message)),
            edge: Vec::new(),
            region: None,
            control_first: true,
            control: 0,
            header: 0,
            body: 0,
        }
    }

    /// The generation of what is in flight.
    pub(super) const fn posted(&self) -> Option<u32> {
        match self.state {
            State::Posted { generation } => Some(generation),
            State::Done { .. } | State::Idle => None,
        }
    }

    pub(super) const fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle)
    }

    pub(super) const fn has_region(&self) -> bool {
        self.region.is_some()
    }

    pub(super) fn has_ended(&self) -> bool {
        matches!(self.state, State::Done { result } if result <= 0 && !asks_again(result))
    }

    /// Fills the message; the entry is to be pushed, or [`withdraw`](Self::withdraw) called.
    pub(super) fn prepare(
        &mut self,
        generation: u32,
        socket: BorrowedFd<'_>,
        message: &Message<'_>,
        body: &Body<'_>,
        scratch: &mut [u8],
    ) -> Result<squeue::Entry, Fault> {
        debug_assert!(matches!(self.state, State::Idle), "one operation a lane");
        self.vectors.clear();
        self.edge.clear();
        (self.control_first, self.control, self.header) = (true, 0, 0);
        let fits = match *message {
            Message::In { room } => {
                self.edge.resize(room, 0);
                true
            }
            Message::Out { control, header, control_first } => {
                let control = &control[..control.len().min(EDGE_BYTES_MAX)];
                let fits = !control_first || control.len() < EDGE_BYTES_MAX;
                let header = if fits { header } else { &[] };
                let (first, second) = if control_first { (control, header) } else { (header, control) };
                self.edge.extend_from_slice(first);
                self.edge.extend_from_slice(second);
                (self.control_first, self.control) = (control_first, control.len() as u64);
                self.header = header.len() as u64;
                fits
            }
        };
        self.name(message, if fits { body } else { &Body::None }, scratch)?;
        if let Body::Region(region, _) = body
            && self.body > 0
        {
            self.region = Some(Arc::clone(region));
        }
        let header = self.message.get_mut();
        header.msg_iov = self.vectors.as_mut_ptr().cast();
        header.msg_iovlen = self.vectors.len();
        self.state = State::Posted { generation };
        self.is_recalled = false;
        let fd = types::Fd(socket.as_raw_fd());
        Ok(match self.direction {
            Direction::Inbound => opcode::RecvMsg::new(fd, self.message.get()).build(),
            Direction::Outbound => {
                opcode::SendMsg::new(fd, self.message.get()).flags(libc::MSG_NOSIGNAL.unsigned_abs()).build()
            }
        })
    }

    /// Writes the vectors: edges and body in the order of the message.
    fn name(&mut self, message: &Message<'_>, body: &Body<'_>, scratch: &mut [u8]) -> Result<(), Fault> {
        let edge = self.edge.as_mut_ptr();
        // How much of the edge stands before the body.
        let before = match message {
            Message::In { .. } => 0,
            Message::Out { control_first: true, .. } => self.edge.len(),
            Message::Out { .. } => self.edge.len().min(usize::try_from(self.header).unwrap_or(0)),
        };
        wire::add_edge(&mut self.vectors, edge, before);
        let whole = match message {
            Message::In { .. } => {
                wire::add_body(&mut self.vectors, body, scratch.as_mut_ptr(), scratch.len(), &mut self.body)?
            }
            Message::Out { .. } => wire::add_zeroable(&mut self.vectors, body, &mut self.body)?,
        };
        if whole {
            // SAFETY: `before` is at most the edge's length.
            let rest = unsafe { edge.add(before) };
            wire::add_edge(&mut self.vectors, rest, self.edge.len() - before);
        }
        Ok(())
    }

    /// What was prepared could not be pushed.
    pub(super) fn withdraw(&mut self) {
        self.state = State::Idle;
        self.region = None;
    }

    /// The kernel is done with the memory.
    pub(super) fn finish(&mut self, result: i32) {
        self.state = State::Done { result };
        self.region = None;
    }

    /// Takes the result.
    pub(super) fn take(&mut self) -> Option<Result<Finished<'_>, Fault>> {
        let State::Done { result } = self.state else { return None };
        self.state = State::Idle;
        let bytes = match u64::try_from(result) {
            Ok(0) if self.direction == Direction::Inbound => return Some(Err(Fault::PeerClosed)),
            Ok(bytes) => bytes,
            Err(_) if asks_again(result) => 0,
            Err(_) => return Some(Err(wire::fault(Errno::from_raw_os_error(-result)))),
        };
        let ahead = usize::try_from(bytes.saturating_sub(self.body)).unwrap_or(0).min(self.edge.len());
        let ahead = if self.direction == Direction::Inbound { &self.edge[..ahead] } else { &[] };
        Some(Ok(Finished {
            bytes,
            control_first: self.control_first,
            control: self.control,
            header: self.header,
            body: self.body,
            ahead,
        }))
    }
}

/// Whether an operation ended without having moved a byte and may be posted again: it was recalled, as a rule.
fn asks_again(result: i32) -> bool {
    matches!(result.saturating_neg(), libc::EAGAIN | libc::ECANCELED | libc::EINTR)
}
