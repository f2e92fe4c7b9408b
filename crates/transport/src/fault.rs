//! Why a piece of work, a post or an endpoint failed.

use thiserror::Error;

/// A failure on the data path: small and `Copy`, so that reporting one costs nothing.
///
/// Whatever the fault, no byte of a failed read may be used: its target is partly written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum Fault {
    /// Our own side called [`cancel`](crate::Endpoint::cancel) or [`close`](crate::Transport::close), or the peer
    /// cancelled this very work.
    #[error("cancelled")]
    Cancelled,
    /// The bytes that landed are not the bytes that left.
    #[error("checksum mismatch: the bytes that arrived are not the bytes that were sent")]
    ChecksumMismatch,
    /// The deadline of the work, or of the connect, has passed.
    #[error("deadline passed")]
    Deadline,
    /// As much work is in flight as this endpoint takes; post again later. What was cancelled counts until the path is
    /// clear of its bytes, which may be a while after its completion.
    #[error("as much work in flight as the endpoint takes")]
    Full,
    /// The operating system said no; the number is its errno.
    #[error("operating system error {0}")]
    Io(i32),
    /// The lease ended, or its gate was closed, before the last byte had been read.
    #[error("the lease ended before the last byte")]
    LeaseEnded,
    /// The plan names bytes outside the region.
    #[error("the plan reaches outside the region")]
    OutOfBounds,
    /// The peer, or the path to it, went away.
    #[error("the peer closed the connection")]
    PeerClosed,
    /// The peer broke the protocol; nothing it said can be trusted.
    #[error("the peer broke the protocol")]
    Protocol,
    /// The peer does not know the work asked for, the endpoint already has work of this id, or the plan reads what it
    /// writes.
    #[error("refused")]
    Refused,
    /// The peer is connected, but no byte came for longer than the endpoint waits.
    #[error("no progress for longer than the endpoint waits")]
    Stalled,
    /// This transport cannot do this kind of work, or has no such endpoint.
    #[error("not a thing this transport does")]
    Unsupported,
    /// No encrypted connection came about, or one broke: a certificate that is missing, expired or not of our
    /// authority, a peer that does not encrypt (or does, where we do not), records that were tampered with.
    #[error("no trusted TLS connection: check both ends' certificates, authority and name, and that both encrypt")]
    Untrusted,
}

impl Fault {
    /// A word for each kind of fault, in the order of the enum: the label values of metrics.
    pub const LABELS: [&'static str; 13] = [
        "cancelled",
        "checksum_mismatch",
        "deadline",
        "full",
        "io",
        "lease_ended",
        "out_of_bounds",
        "peer_closed",
        "protocol",
        "refused",
        "stalled",
        "unsupported",
        "untrusted",
    ];

    /// Whether the same work, posted anew under a new id (over a new endpoint if this one is down), may succeed.
    #[must_use]
    pub const fn is_retryable(self) -> bool {
        match self {
            Self::ChecksumMismatch | Self::Full | Self::Io(_) | Self::PeerClosed | Self::Stalled => true,
            Self::Cancelled
            | Self::Deadline
            | Self::LeaseEnded
            | Self::OutOfBounds
            | Self::Protocol
            | Self::Refused
            | Self::Unsupported
            | Self::Untrusted => false,
        }
    }

    /// This fault's place in [`Fault::LABELS`].
    #[must_use]
    pub const fn position(self) -> usize {
        match self {
            Self::Cancelled => 0,
            Self::ChecksumMismatch => 1,
            Self::Deadline => 2,
            Self::Full => 3,
            Self::Io(_) => 4,
            Self::LeaseEnded => 5,
            Self::OutOfBounds => 6,
            Self::PeerClosed => 7,
            Self::Protocol => 8,
            Self::Refused => 9,
            Self::Stalled => 10,
            Self::Unsupported => 11,
            Self::Untrusted => 12,
        }
    }

    /// This fault as a metric's label value.
    #[must_use]
    pub const fn label(self) -> &'static str {
        Self::LABELS[self.position()]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::Fault;

    #[test]
    fn every_label_belongs_to_one_fault() {
        let all = [
            Fault::Cancelled,
            Fault::ChecksumMismatch,
            Fault::Deadline,
            Fault::Full,
            Fault::Io(5),
            Fault::LeaseEnded,
            Fault::OutOfBounds,
            Fault::PeerClosed,
            Fault::Protocol,
            Fault::Refused,
            Fault::Stalled,
            Fault::Unsupported,
            Fault::Untrusted,
        ];
        let labels: HashSet<_> = all.iter().map(|fault| fault.label()).collect();
        assert_eq!(labels.len(), Fault::LABELS.len());
    }

    #[test]
    fn an_ended_lease_is_never_worth_a_retry() {
        assert!(!Fault::LeaseEnded.is_retryable());
        assert!(Fault::PeerClosed.is_retryable());
    }
}
