//! The two traits every way to move bytes implements.

use std::fmt;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use kvferry_core::{Time, WorkId};
use kvferry_memory::Region;

use crate::{Event, Fault, Work};

/// Names one connected path. Chosen by the daemons, the same on both ends, never reused while a daemon lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointId(pub u64);

/// One-time key of one data connection, agreed over the authenticated control plane. Never printed.
pub type Key = [u8; 32];

/// What one end of an endpoint does; the other end does the opposite, whoever dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Takes [`Work::Read`].
    Reads,
    /// Takes [`Work::Serve`].
    Serves,
}

/// A path to open.
#[derive(Clone)]
pub struct Dial {
    /// The name of the path on both ends.
    pub endpoint: EndpointId,
    /// What this end does. A daemon that fetches dials to read, one that pushes dials to serve.
    pub role: Role,
    /// Where the peer's transport listens.
    pub address: SocketAddr,
    /// One key for each stream to open; at least one.
    pub keys: Vec<Key>,
    /// When an endpoint that is not up by now is given up, as [`Event::EndpointDown`] with [`Fault::Deadline`].
    pub deadline: Time,
}

/// A path that may come.
#[derive(Clone)]
pub struct Admission {
    /// The name of the path on both ends.
    pub endpoint: EndpointId,
    /// What this end does: the opposite of what the dialling end does.
    pub role: Role,
    /// One key for each stream that must come; each admits one connection, once.
    pub keys: Vec<Key>,
    /// When the keys stop to admit, and an endpoint whose streams have not all come goes down.
    pub expires: Time,
}

/// One connected path to one peer.
///
/// Everything posted completes exactly once, as [`Event::Completed`] of a later turn, also when the endpoint dies.
pub trait Endpoint: Send {
    /// Takes work on. From here until its completion the endpoint holds the work's regions.
    ///
    /// Never moves a byte itself and never completes: that is the turn's business. A deadline that has passed or a
    /// lease that has ended is found in a turn too.
    ///
    /// # Errors
    ///
    /// What it was given comes back untouched, with the reason: [`Fault::Full`] at the endpoint's limit,
    /// [`Fault::OutOfBounds`] for a plan that reaches outside the region, [`Fault::Refused`] for an id in flight here,
    /// [`Fault::Unsupported`] for a kind of work this transport does not do.
    fn post(&mut self, now: Time, work: Work) -> Result<(), (Fault, Work)>;

    /// Asks for an early end; the completion comes in a later turn, once, as [`Fault::Cancelled`] unless the work had
    /// already ended. An id that is not in flight is ignored.
    fn cancel(&mut self, now: Time, id: WorkId);

    /// Works posted whose completion has not been reported yet.
    fn in_flight(&self) -> usize;
}

/// One way to move bytes, with all its endpoints; owned and driven by one data thread.
pub trait Transport: Send {
    /// What logs, metrics and configuration call it.
    fn name(&self) -> &'static str;

    /// Makes a region known before work names it: a NIC pins and maps it, others have nothing to do. May hold the
    /// `Arc` until [`deregister`](Self::deregister).
    ///
    /// # Errors
    ///
    /// [`Fault::Io`] if the operating system or a driver refuses.
    fn register(&mut self, region: &Arc<Region>) -> Result<(), Fault>;

    /// Forgets a region. The caller does so once no work in flight names it.
    fn deregister(&mut self, region: &Arc<Region>);

    /// Starts to open a path. [`Event::EndpointUp`] or [`Event::EndpointDown`] follows, by the deadline.
    ///
    /// # Errors
    ///
    /// [`Fault::Refused`] for an endpoint id in use or no keys, [`Fault::Full`] at the limit of endpoints,
    /// [`Fault::Unsupported`] if this transport has nothing to dial.
    fn connect(&mut self, now: Time, dial: Dial) -> Result<(), Fault>;

    /// Lets one path in. [`Event::EndpointUp`] follows once all its streams came, else
    /// [`Event::EndpointDown`] when the admission expires.
    ///
    /// # Errors
    ///
    /// As for [`connect`](Self::connect).
    fn admit(&mut self, now: Time, admission: Admission) -> Result<(), Fault>;

    /// Ends an endpoint. Every work posted on it completes ([`Fault::Cancelled`] here, [`Fault::PeerClosed`] at the
    /// peer, or as it had already ended), then [`Event::EndpointDown`] follows. An unknown endpoint is ignored.
    fn close(&mut self, now: Time, endpoint: EndpointId);

    /// The endpoint of this name, while it is up.
    fn endpoint(&mut self, id: EndpointId) -> Option<&mut dyn Endpoint>;

    /// Does a bounded amount of work and appends what happened. True: there is more to do, call again at once; false:
    /// nothing to do until [`wait_fd`](Self::wait_fd) is readable or [`next_deadline`](Self::next_deadline) passes.
    fn turn(&mut self, now: Time, events: &mut Vec<Event>) -> bool;

    /// When a turn is due even if no byte comes. May be early, never late.
    fn next_deadline(&self) -> Option<Time>;

    /// Whether a thread with nothing to do may spin for a while before it sleeps. Not while other threads are at the
    /// same works: those are large, and the threads at the other end need the cores.
    fn may_spin(&self) -> bool {
        true
    }

    /// Readable when a turn has something to do (an epoll fd). `None`: there is never anything to wait for; a turn
    /// that returned false has nothing to do before the next post, cancel or close.
    fn wait_fd(&self) -> Option<BorrowedFd<'_>>;
}

impl fmt::Debug for Dial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dial")
            .field("endpoint", &self.endpoint)
            .field("role", &self.role)
            .field("address", &self.address)
            .field("stream_count", &self.keys.len())
            .field("deadline", &self.deadline)
            .finish()
    }
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admission")
            .field("endpoint", &self.endpoint)
            .field("role", &self.role)
            .field("stream_count", &self.keys.len())
            .field("expires", &self.expires)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_never_printed() {
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let keys = vec![[0xab; 32]];
        let dial =
            Dial { endpoint: EndpointId(1), role: Role::Reads, address, keys: keys.clone(), deadline: Time::NEVER };
        let admission = Admission { endpoint: EndpointId(1), role: Role::Serves, keys, expires: Time::NEVER };
        let printed = format!("{dial:?} {admission:?}");
        assert!(!printed.contains("171") && !printed.contains("ab, ab"), "{printed}");
        assert!(printed.contains("stream_count: 1"), "{printed}");
    }
}
