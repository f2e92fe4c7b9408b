//! What the rest of the daemon asks of the hub.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use kvferry_core::WorkId;
use kvferry_core::transfer::Failure;
use kvferry_proto::v1::{self, to_daemon};
use kvferry_transport::{EndpointId, Key};
use tokio::sync::{mpsc, oneshot};
use tonic::transport::Channel;

use super::hop::{Offer, Outgoing};
use super::status::Status;
use super::tier::listing::Answer;

/// One connection on the attach socket. Never reused while the daemon lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SessionId(pub(crate) u64);

/// Who is at the other end of a session, by the kernel's word.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) uid: u32,
}

pub(crate) enum Command {
    /// A greeted session.
    SessionOpened {
        session: SessionId,
        process: Process,
        hello: v1::Hello,
        outbox: mpsc::Sender<Outgoing>,
    },
    SessionSaid {
        session: SessionId,
        id: u64,
        body: to_daemon::Body,
        fds: Vec<OwnedFd>,
    },
    SessionClosed {
        session: SessionId,
    },
    /// It is offered rings, through which its messages travel from then on.
    SessionRing {
        session: SessionId,
        offer: Offer,
    },
    /// From peers.
    OpenEndpoint {
        request: v1::OpenEndpointRequest,
        reply: oneshot::Sender<v1::OpenEndpointReply>,
    },
    Confirm {
        request: v1::ConfirmRequest,
        reply: oneshot::Sender<v1::ConfirmReply>,
    },
    Release {
        ticket: String,
    },
    Cancel {
        request: v1::CancelRequest,
    },
    /// Answers to what the hub asked of peers.
    LinkAnswered {
        address: String,
        result: Result<Opened, NotOpened>,
    },
    ConfirmAnswered {
        work: WorkId,
        link: (Channel, EndpointId),
        result: Result<v1::ConfirmReply, String>,
    },
    /// What people asked of the tiers.
    ListMade {
        answers: Vec<Answer>,
    },
    Status {
        reply: oneshot::Sender<Status>,
    },
}

/// Why a peer did not let us in: for the transfers that wait, and for people.
pub(crate) struct NotOpened {
    pub(crate) failure: Failure,
    pub(crate) message: String,
}

/// A peer that let us in.
pub(crate) struct Opened {
    pub(crate) channel: Channel,
    pub(crate) endpoint: u64,
    /// The life it is in.
    pub(crate) epoch: u64,
    pub(crate) keys: Vec<Key>,
    pub(crate) data: SocketAddr,
}
