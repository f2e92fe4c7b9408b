//! What a transport has counted since it was made.

/// Counters of one [`TcpTransport`](crate::TcpTransport); they only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes that came in, frames included.
    pub bytes_received: u64,
    /// Bytes that went out, frames included.
    pub bytes_sent: u64,
    /// Connections accepted.
    pub connections_accepted: u64,
    /// Connections closed because no valid Hello came in time.
    pub hellos_late: u64,
    /// Connections closed because of what they said instead of a valid Hello: other bytes, an unknown endpoint, a
    /// wrong, used or expired key.
    pub hellos_refused: u64,
    /// Completions of the ring that matched nothing in flight.
    pub completions_stale: u64,
    /// System calls that received; on a ring, operations.
    pub receive_calls: u64,
    /// Calls of `io_uring_enter`.
    pub ring_enters: u64,
    /// System calls that sent; on a ring, operations.
    pub send_calls: u64,
}

impl Counters {
    /// Both together.
    pub(crate) const fn plus(self, other: Self) -> Self {
        Self {
            bytes_received: self.bytes_received + other.bytes_received,
            bytes_sent: self.bytes_sent + other.bytes_sent,
            connections_accepted: self.connections_accepted + other.connections_accepted,
            hellos_late: self.hellos_late + other.hellos_late,
            hellos_refused: self.hellos_refused + other.hellos_refused,
            completions_stale: self.completions_stale + other.completions_stale,
            receive_calls: self.receive_calls + other.receive_calls,
            ring_enters: self.ring_enters + other.ring_enters,
            send_calls: self.send_calls + other.send_calls,
        }
    }
}
