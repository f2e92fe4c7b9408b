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
    /// The answer to a lookup.
    Found {
        /// What [`crate::Client::lookup`] returned.
        key: u64,
        /// The engine's name for the request.
        request_id: String,
        /// Of each group, how many of the first blocks all ranks have in a tier of this node.
        held: Vec<u32>,
        /// How many of those have to be read from a disk.
        on_disk: Vec<u32>,
        /// Why nothing is held, if not because nothing is there; `no_tier` where the daemon keeps none.
        failure: Option<String>,
    },
    /// The answer to a load: the daemon does not touch its blocks any more.
    Loaded {
        /// What [`crate::Client::load`] returned.
        key: u64,
        /// The engine's name for the request.
        request_id: String,
        /// Why nothing may be used; `None` when every byte is there.
        failure: Option<String>,
        /// Bytes moved and verified.
        bytes: u64,
        /// From the daemon's receipt to the end.
        micros: u64,
        /// Of the bytes, those that were read from a disk for this load.
        disk_bytes: u64,
    },
    /// The first answer to a store: the daemon will not read its blocks again, and nobody finds them yet.
    Copied {
        /// What [`crate::Client::store`] returned.
        key: u64,
        /// The engine's name for the request.
        request_id: String,
        /// Why there is nothing to commit.
        failure: Option<String>,
    },
    /// The answer to a commit: the blocks are found from now on, and outlive the daemon.
    Stored {
        /// What [`crate::Client::store`] returned.
        key: u64,
        /// Blocks that were not there before.
        blocks: u64,
        /// Why it is not known what became of them.
        failure: Option<String>,
    },
    /// To schedulers: blocks that came and went for their engine's fingerprint, by cache group.
    TierChanged {
        /// `host` or `disk`.
        tier: String,
        /// Found from now on.
        stored: Vec<(u32, [u8; 32])>,
        /// Not there any more.
        removed: Vec<(u32, [u8; 32])>,
    },
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
