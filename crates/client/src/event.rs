//! What a client learns without asking.

/// One thing that happened. [`crate::Client::poll`] hands each out once, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The daemon took the region, or, for a scheduler, the greeting.
    Connected {
        /// The life of the daemon.
        daemon_epoch: u64,
    },
    /// The connection is gone; the daemon holds nothing of this process any more.
    Disconnected,
    /// A lease ended: its blocks are the engine's again.
    LeaseEnded {
        /// The lease.
        lease_id: u64,
        /// The life of the daemon that granted it.
        daemon_epoch: u64,
        /// The engine's name for the request.
        request_id: String,
        /// Why: `read`, `expired`, `relinquished`, `engine_gone`.
        reason: String,
    },
    /// The daemon refused the region; tried again after a while.
    Refused {
        /// Why, for people.
        message: String,
    },
    /// The one answer to a redeem.
    TransferDone {
        /// What [`crate::Client::redeem`] returned.
        key: u64,
        /// The engine's name for the request.
        request_id: String,
        /// Why nothing may be used; `None` when every byte was delivered.
        failure: Option<String>,
        /// Bytes moved and verified.
        bytes: u64,
        /// From the daemon's receipt of the redeem to its end.
        micros: u64,
    },
}
