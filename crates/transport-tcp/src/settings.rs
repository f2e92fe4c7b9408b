//! What an operator may choose about the TCP transport.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::congestion::Congestion;
use crate::tls::Tls;

/// Most streams of one endpoint.
pub const STREAMS_MAX: usize = 64;

/// Settings of one [`TcpTransport`](crate::TcpTransport); out-of-range values are brought into range by
/// [`TcpTransport::bind`](crate::TcpTransport::bind).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Whether pieces carry a checksum that the reader verifies. Default true; only a benchmark that asks what
    /// verification costs turns it off, at both ends.
    pub checksums: bool,
    /// Which congestion control the kernel runs on data connections. Default [`Congestion::Auto`].
    pub congestion: Congestion,
    /// Connections that have not shown a valid Hello yet. More wait in the kernel's backlog. Default 64, limit 1,024.
    /// Costs about 200 bytes and a file descriptor each.
    pub half_open_max: usize,
    /// How long a connection may take to show a valid Hello. Default 2 s.
    pub hello_max: Duration,
    /// Endpoints, coming and up, in both roles. Default 256, limit 4,096. Each stream costs a file descriptor, about
    /// 50 KiB here and what the kernel keeps in its socket buffers.
    pub endpoints_max: usize,
    /// How long a Fetch may be ahead of the work it asks for. Default 1 s.
    pub fetch_ahead_max: Duration,
    /// Bytes an endpoint may send in a second, all its streams together; `None`, the default, is as fast as the wire
    /// takes them. Met to a piece: a rate of one piece a second sends one at once and the next a second later. At
    /// least 1 MiB; a piece is then at most what may leave in a hundredth of a second, so that no stream seems stalled.
    pub endpoint_bytes_per_second_max: Option<u64>,
    /// Bytes under one checksum and in one system call, at most. Default 512 KiB, 4 KiB to 64 MiB. A smaller piece
    /// costs more calls, a larger one has left the second-level cache between its checksum and its copy (measured over
    /// loopback, 256 KiB to 2 MiB).
    pub piece_bytes: u32,
    /// Kernel send and receive buffer of each stream, in bytes; 0, the default, lets the kernel size them as it goes.
    /// The kernel caps it at `net.core.wmem_max` and `net.core.rmem_max` without a word.
    pub socket_buffer_bytes: u32,
    /// How long a stream with bytes due may stand still until its endpoint goes down. Default 5 s.
    pub stall_max: Duration,
    /// How bytes move between sockets and memory. Default [`Io::Auto`]. What was chosen, and why, says
    /// [`TcpTransport::choice`](crate::TcpTransport::choice).
    pub io: Io,
    /// System calls on one stream in one turn. Default 4, at least 1. More serve one stream better, fewer keep a turn
    /// short.
    pub stream_calls_max: u32,
    /// Certificates and key with which every connection is encrypted, in both directions; `None`, the default, sends in
    /// the clear. Both ends of an endpoint must agree. Costs 32 KiB a stream, and up to 1.1 MiB while it has bytes
    /// under way, of which the transport keeps 8.3 MiB for the next.
    pub tls: Option<Arc<Tls>>,
    /// Works in flight on one endpoint. Default 1,024, limit 65,536. Costs the cursors of their plans, about 200
    /// bytes a stream.
    pub works_max: usize,
}

/// How bytes move between sockets and memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Io {
    /// Whichever was measured to be better: epoll so far (docs/adr/0011). Finds out whether a ring would work here.
    #[default]
    Auto,
    /// Readiness from epoll, then `sendmsg` and `readv`. Works everywhere.
    Epoll,
    /// Operations on a ring of `io_uring`. [`TcpTransport::bind`](crate::TcpTransport::bind) fails where it is missing.
    Uring,
}

impl fmt::Display for Io {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Epoll => "epoll",
            Self::Uring => "io_uring",
        })
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            checksums: true,
            congestion: Congestion::Auto,
            half_open_max: 64,
            hello_max: Duration::from_secs(2),
            io: Io::Auto,
            endpoints_max: 256,
            fetch_ahead_max: Duration::from_secs(1),
            endpoint_bytes_per_second_max: None,
            piece_bytes: 512 << 10,
            socket_buffer_bytes: 0,
            stall_max: Duration::from_secs(5),
            stream_calls_max: 4,
            tls: None,
            works_max: 1024,
        }
    }
}

impl Settings {
    /// The same settings with every number inside its limits.
    #[must_use]
    pub(crate) fn clamped(&self) -> Self {
        let rate = self.endpoint_bytes_per_second_max.map(|rate| rate.max(1 << 20));
        let piece_bytes_max = rate.map_or(64 << 20, |rate| u32::try_from(rate / 100).unwrap_or(u32::MAX).min(64 << 20));
        Self {
            checksums: self.checksums,
            congestion: self.congestion.clone(),
            half_open_max: self.half_open_max.clamp(1, 1024),
            hello_max: self.hello_max,
            io: self.io,
            endpoints_max: self.endpoints_max.clamp(1, 4096),
            fetch_ahead_max: self.fetch_ahead_max,
            endpoint_bytes_per_second_max: rate,
            piece_bytes: self.piece_bytes.clamp(4 << 10, piece_bytes_max),
            socket_buffer_bytes: self.socket_buffer_bytes,
            stall_max: self.stall_max,
            stream_calls_max: self.stream_calls_max.max(1),
            tls: self.tls.clone(),
            works_max: self.works_max.clamp(1, 1 << 16),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_in_range() {
        assert_eq!(Settings::default().clamped(), Settings::default());
    }

    #[test]
    fn nonsense_is_brought_into_range() {
        let settings = Settings {
            piece_bytes: 0,
            works_max: 0,
            stream_calls_max: 0,
            half_open_max: usize::MAX,
            ..Settings::default()
        }
        .clamped();
        assert_eq!((settings.piece_bytes, settings.works_max), (4096, 1));
        assert_eq!((settings.stream_calls_max, settings.half_open_max), (1, 1024));
    }
}
