//! What the sidecar is told at start.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::address::{Allowed, EngineUrl, HostPort};
use super::error::SidecarError;

/// Settings of one sidecar. Read once; nothing changes them while it runs.
#[derive(Clone, Debug)]
pub struct SidecarConfig {
    /// Where clients connect. Port 0 takes a free one, see [`Sidecar::local_addr`](super::Sidecar::local_addr).
    /// Default 127.0.0.1:8000.
    pub listen: SocketAddr,
    /// The decode engine behind this sidecar. Default `http://127.0.0.1:8200`.
    pub decode: EngineUrl,
    /// Prefillers that take turns when a request names none. Default none: such a request is decoded without prefill
    /// elsewhere. They are on the allow-list without being repeated there.
    pub prefillers: Vec<HostPort>,
    /// Which prefillers `x-prefiller-host-port` may name. Default none: every such request is refused, because the
    /// header would otherwise send the sidecar to any address its sender likes.
    pub allowed: Vec<Allowed>,
    /// Whether `kv_transfer_params` in a client's body are believed: then they pass unchanged and no prefill is asked
    /// for. Only for sidecars that nobody but a router can reach. Default false: they are removed.
    pub trust_client_params: bool,
    /// Largest JSON body in bytes; beyond it the client gets 413. A buffered body lives until its answer has begun, so
    /// the worst memory is this times [`connections_max`](Self::connections_max). Default 32 MiB, limit 1 GiB.
    pub body_bytes_max: usize,
    /// Most client connections at once, each with one request at a time and up to two more sockets to engines. Further
    /// ones wait unaccepted. Default 4096, limit 65536.
    pub connections_max: usize,
    /// How long one TCP connect to an engine may take before the next prefiller is tried. Default 2 s.
    pub connect_timeout: Duration,
    /// How long all attempts at prefill may take together before the decode engine does it. Default 120 s.
    pub prefill_timeout: Duration,
    /// Longest silence of the decode engine: until its response headers (for an answer that is not streamed, the whole
    /// generation) and between two pieces of its answer. Default 1 h.
    pub decode_silence_max: Duration,
    /// How long a client may take to send a JSON body before it gets 408. Default 60 s.
    pub upload_timeout: Duration,
    /// How long answers under way may go on after shutdown was asked for. Default 60 s.
    pub drain_max: Duration,
}

impl SidecarConfig {
    /// Most [`body_bytes_max`](Self::body_bytes_max) may be: 1 GiB.
    pub const BODY_BYTES_LIMIT: usize = 1 << 30;
    /// Most [`connections_max`](Self::connections_max) may be.
    pub const CONNECTIONS_LIMIT: usize = 1 << 16;
    /// Longest any of the time limits may be: one day.
    pub const DURATION_LIMIT: Duration = Duration::from_secs(24 * 60 * 60);

    /// Refuses settings under which nothing could be served, or nothing would be bounded.
    pub(crate) fn check(&self) -> Result<(), SidecarError> {
        let bounded = |name, value: usize, limit: usize| {
            if (1..=limit).contains(&value) { Ok(()) } else { Err(SidecarError::Count { name, value, limit }) }
        };
        bounded("body_bytes_max", self.body_bytes_max, Self::BODY_BYTES_LIMIT)?;
        bounded("connections_max", self.connections_max, Self::CONNECTIONS_LIMIT)?;
        for (name, value) in [
            ("connect_timeout", self.connect_timeout),
            ("prefill_timeout", self.prefill_timeout),
            ("decode_silence_max", self.decode_silence_max),
            ("upload_timeout", self.upload_timeout),
        ] {
            if value.is_zero() || value > Self::DURATION_LIMIT {
                return Err(SidecarError::Duration { name, value });
            }
        }
        // Zero is a meaningful drain: cut at once.
        if self.drain_max > Self::DURATION_LIMIT {
            return Err(SidecarError::Duration { name: "drain_max", value: self.drain_max });
        }
        Ok(())
    }
}

impl Default for SidecarConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8000)),
            decode: EngineUrl::default(),
            prefillers: Vec::new(),
            allowed: Vec::new(),
            trust_client_params: false,
            body_bytes_max: 32 << 20,
            connections_max: 4096,
            connect_timeout: Duration::from_secs(2),
            prefill_timeout: Duration::from_secs(120),
            decode_silence_max: Duration::from_secs(60 * 60),
            upload_timeout: Duration::from_secs(60),
            drain_max: Duration::from_secs(60),
        }
    }
}
