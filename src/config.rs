//! The one config file: what was written ([`raw`]) and what it means ([`Config`]), read once.
//!
//! Unknown keys are refused with their line. Every setting has a unit in its name or its text, a default that works on
//! a laptop, and a limit.

mod raw;
mod tier;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use kvferry_transport::COPY_THREADS_MAX;
use kvferry_transport_tcp::{Congestion, Io, THREADS_MAX};

use raw::RawConfig;
pub(crate) use tier::{DiskTier, HostTier};

/// What a config must say to let daemons talk in the clear beyond loopback.
pub(crate) const PLAINTEXT_WORDS: &str = "anyone on this network may read and forge KV cache";

/// Peers that a config may name.
const PEERS_KNOWN_MAX: usize = 256;
/// Bytes of a `host:port`: the longest name that DNS has, and the port.
const ADDRESS_LENGTH_MAX: usize = 253 + 6;

/// Most threads that copy on one node unless the config says more: four cores move some 40 GB/s, and the engines want
/// the rest.
const COPY_THREADS_DEFAULT_MAX: usize = 4;
/// Data threads by default, where there are as many cores: two carry what a fast network does (docs/adr/0019).
const DATA_THREADS_DEFAULT_MAX: usize = 2;

/// A smaller buffer holds less than two packets of a loopback device; a larger one than a GiB is a slip of the pen.
const SOCKET_BUFFER_KIB: std::ops::RangeInclusive<u32> = 128..=1 << 20;
/// The lowest but one: it goes before every normal thread and the tiers' threads, which have one less, and other
/// real-time threads go first.
const REALTIME_PRIORITY_DEFAULT: u8 = 2;
const REALTIME_PRIORITY_MAX: u64 = 99;

/// What the daemon runs with.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) node: String,
    pub(crate) attach_directory: PathBuf,
    pub(crate) attach_uids: Vec<u32>,
    /// The rings that engines may use; `None` where all goes over the socket.
    pub(crate) attach_ring: Option<Ring>,
    pub(crate) peer_listen: SocketAddr,
    pub(crate) peer_data_port: u16,
    pub(crate) peer_advertise: Option<String>,
    pub(crate) peer_allow: Vec<AllowedPeer>,
    /// `host:port` of peers that are called from the start, and for ever.
    pub(crate) peer_known: Vec<String>,
    pub(crate) peer_streams: usize,
    pub(crate) peer_io: Io,
    pub(crate) peer_congestion: Congestion,
    /// Of each data connection and direction; 0: the kernel sizes them as it goes.
    pub(crate) peer_socket_buffer_bytes: u32,
    pub(crate) peer_tls: Option<TlsFiles>,
    pub(crate) admin_listen: SocketAddr,
    pub(crate) limits: Limits,
    /// Blocks are kept in host memory.
    pub(crate) tier_host: Option<HostTier>,
    /// And on a disk.
    pub(crate) tier_disk: Option<DiskTier>,
}

/// Files of mutual TLS between daemons, PEM.
#[derive(Clone, Debug)]
pub(crate) struct TlsFiles {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) authority: PathBuf,
    /// The name that every peer's certificate carries.
    pub(crate) name: String,
    /// Whether data connections are encrypted too, or only control.
    pub(crate) data: bool,
}

/// The two rings of one engine's process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ring {
    /// Of each of the two: a power of two.
    pub(crate) bytes: u32,
    /// How long the daemon looks for the next message before it sleeps.
    pub(crate) spin: Duration,
}

/// What the daemon refuses to exceed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) sessions_max: usize,
    pub(crate) transfers_max: usize,
    pub(crate) leases_max: usize,
    pub(crate) lease_blocks_max: usize,
    pub(crate) lease_max: Duration,
    pub(crate) transfer_deadline_max: Duration,
    pub(crate) connect_max: Duration,
    pub(crate) reconnect_min: Duration,
    pub(crate) reconnect_max: Duration,
    pub(crate) peer_idle_max: Duration,
    pub(crate) spin: Duration,
    pub(crate) copy_threads: usize,
    pub(crate) data_threads: usize,
    pub(crate) realtime: Realtime,
    pub(crate) peer_bytes_per_second_max: Option<u64>,
}

/// Whether the threads that engines wait for run in the class `SCHED_RR`, and with which priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Realtime {
    /// Where the kernel allows it: nobody asked.
    IfAllowed(u8),
    Never,
    /// Or the daemon does not start.
    Wanted(u8),
}

/// Whom this daemon may call: tickets name their holder, and anybody can write a ticket's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AllowedPeer {
    /// Whoever proves itself by TLS.
    Any,
    Loopback,
    Network {
        address: IpAddr,
        prefix: u8,
    },
}

impl AllowedPeer {
    pub(crate) fn covers(self, ip: IpAddr) -> bool {
        match (self, ip) {
            (Self::Any, _) => true,
            (Self::Loopback, ip) => ip.is_loopback(),
            (Self::Network { address: IpAddr::V4(net), prefix }, IpAddr::V4(ip)) => {
                let shift = 32 - u32::from(prefix.min(32));
                u64::from(u32::from(net)) >> shift == u64::from(u32::from(ip)) >> shift
            }
            (Self::Network { address: IpAddr::V6(net), prefix }, IpAddr::V6(ip)) => {
                let shift = 128 - u32::from(prefix.min(128));
                u128::from(net).checked_shr(shift) == u128::from(ip).checked_shr(shift)
            }
            (Self::Network { .. }, _) => false,
        }
    }

    fn parse(text: &str) -> Result<Self> {
        match text {
            "any" => return Ok(Self::Any),
            "loopback" => return Ok(Self::Loopback),
            _ => {}
        }
        let (address, prefix) = text.split_once('/').map_or((text, None), |(a, p)| (a, Some(p)));
        let address: IpAddr = address.parse().with_context(|| {
            format!(
                "peer.allow: {text:?} is neither an address, a network such as 10.0.0.0/8, \"loopback\" nor \"any\""
            )
        })?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Ok(longest), str::parse).ok().filter(|p| *p <= longest);
        let prefix = prefix.with_context(|| format!("peer.allow: {text:?} needs a prefix of 0 to {longest}"))?;
        Ok(Self::Network { address, prefix })
    }
}

impl Config {
    /// Reads and checks the file.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("read config {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("use config {}", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        // The error shows the line and marks the place.
        let RawConfig { node, attach, peer, admin, limits, tier } = toml::from_str(text)?;
        let raw::Peer {
            listen,
            data_port,
            advertise,
            allow,
            known,
            streams,
            io,
            congestion,
            socket_buffer_kib,
            tls,
            plaintext_beyond_loopback,
        } = peer;
        let ring_spins = attach.ring_spin_us > 0;
        let (tier_host, tier_disk) = tier.check()?;
        let config = Self {
            node: node.unwrap_or_else(|| rustix::system::uname().nodename().to_string_lossy().into_owned()),
            attach_ring: attach.ring()?,
            attach_directory: attach.directory,
            attach_uids: attach.uids,
            peer_listen: listen,
            peer_data_port: data_port,
            peer_advertise: advertise,
            peer_allow: match allow {
                Some(allow) => allow.iter().map(|text| AllowedPeer::parse(text)).collect::<Result<_>>()?,
                None if tls.is_some() => vec![AllowedPeer::Any],
                None => vec![AllowedPeer::Loopback],
            },
            peer_known: known,
            peer_streams: usize::from(streams),
            peer_io: match io {
                raw::Io::Auto => Io::Auto,
                raw::Io::Epoll => Io::Epoll,
                raw::Io::Uring => Io::Uring,
            },
            peer_congestion: match congestion.as_str() {
                "auto" => Congestion::Auto,
                "system" => Congestion::System,
                name => Congestion::Named(name.to_owned()),
            },
            peer_socket_buffer_bytes: socket_buffer_kib.saturating_mul(1024),
            peer_tls: tls.map(|raw::Tls { certificate, key, authority, name, data }| TlsFiles {
                certificate,
                key,
                authority,
                name,
                data: data.unwrap_or(true),
            }),
            admin_listen: admin.listen,
            limits: limits.check(ring_spins)?,
            tier_host,
            tier_disk,
        };
        ensure!((1..=64).contains(&config.node.len()), "node: a name of 1 to 64 bytes");
        ensure!((1..=16).contains(&config.peer_streams), "peer.streams: 1 to 16");
        ensure!(
            socket_buffer_kib == 0 || SOCKET_BUFFER_KIB.contains(&socket_buffer_kib),
            "peer.socket_buffer_kib: 0, or {} to {}",
            SOCKET_BUFFER_KIB.start(),
            SOCKET_BUFFER_KIB.end()
        );
        ensure!(
            Congestion::is_name(&congestion),
            "peer.congestion: auto, system, or a name out of /proc/sys/net/ipv4/tcp_available_congestion_control"
        );
        if let Some(address) = &config.peer_advertise {
            ensure!(is_host_and_port(address), "peer.advertise: {address:?} is not host:port");
        }
        ensure!(config.peer_known.len() <= PEERS_KNOWN_MAX, "peer.known: at most {PEERS_KNOWN_MAX} peers");
        for address in &config.peer_known {
            ensure!(is_host_and_port(address), "peer.known: {address:?} is not host:port");
        }
        if config.peer_tls.is_none() && !config.peer_listen.ip().is_loopback() {
            match plaintext_beyond_loopback.as_deref() {
                Some(PLAINTEXT_WORDS) => {}
                Some(other) => {
                    bail!("peer.plaintext_beyond_loopback is {other:?}; it counts only as {PLAINTEXT_WORDS:?}")
                }
                None => bail!(
                    "peer.listen = {} reaches beyond loopback without [peer.tls]. Configure certificates, or accept the risk in words: peer.plaintext_beyond_loopback = {PLAINTEXT_WORDS:?}",
                    config.peer_listen
                ),
            }
        }
        ensure!(
            !config.peer_listen.ip().is_unspecified() || config.peer_advertise.is_some(),
            "peer.listen = {} is no address that a peer could call: set peer.advertise = \"host:port\"",
            config.peer_listen
        );
        Ok(config)
    }

    /// What an empty file means.
    pub(crate) fn defaults() -> Result<Self> {
        Self::parse("")
    }

    /// Whether data connections are encrypted, in both directions.
    pub(crate) fn encrypts_data(&self) -> bool {
        self.peer_tls.as_ref().is_some_and(|tls| tls.data)
    }

    /// What of this config leaves the node unencrypted.
    pub(crate) fn in_the_clear(&self) -> Option<&'static str> {
        match &self.peer_tls {
            _ if self.peer_listen.ip().is_loopback() => None,
            Some(tls) if tls.data => None,
            Some(_) => Some(
                "peer.tls.data = false: control is encrypted, but whoever can read this network reads KV cache, and whoever can change packets forges it",
            ),
            None => Some("control and KV bytes travel in the clear, and peers are not authenticated"),
        }
    }

    /// Where engines find the daemon.
    pub(crate) fn socket(&self) -> PathBuf {
        self.attach_directory.join("kvferry.sock")
    }
}

/// Whether this can be called: a name or an address, and a port that is not 0.
pub(crate) fn is_host_and_port(text: &str) -> bool {
    let port = |port: &str| port.parse::<u16>().is_ok_and(|port| port != 0);
    let parts = text.rsplit_once(':');
    text.len() <= ADDRESS_LENGTH_MAX
        && parts.is_some_and(|(host, at)| !host.is_empty() && host.chars().all(|c| c.is_ascii_graphic()) && port(at))
}

impl raw::Attach {
    fn ring(&self) -> Result<Option<Ring>> {
        let (kib, spin) = (self.ring_kib, self.ring_spin_us);
        ensure!(spin <= 10_000, "attach.ring_spin_us = {spin}: 0 to 10000");
        ensure!(
            kib == 0 || (kib.is_power_of_two() && (4..=1024).contains(&kib)),
            "attach.ring_kib = {kib}: 0 for none, or a power of two from 4 to 1024"
        );
        let ring = Ring { bytes: u32::from(kib) << 10, spin: Duration::from_micros(spin) };
        Ok((kib > 0).then_some(ring))
    }
}

impl raw::Limits {
    /// A thread of a real-time class that spins keeps its core from the very thread that it waits for, and
    /// `sched_yield` does not change that: it is one or the other, and who asks for spins alone gets spins.
    fn realtime(&self, ring_spins: bool) -> Result<Realtime> {
        let spins = ring_spins || self.spin_us > 0;
        match self.realtime_priority {
            None if spins => Ok(Realtime::Never),
            None => Ok(Realtime::IfAllowed(REALTIME_PRIORITY_DEFAULT)),
            Some(0) => Ok(Realtime::Never),
            Some(priority) => {
                ensure!(
                    priority <= REALTIME_PRIORITY_MAX,
                    "limits.realtime_priority = {priority}: 0 for none, or 1 to {REALTIME_PRIORITY_MAX}"
                );
                ensure!(
                    !spins,
                    "limits.realtime_priority = {priority} with limits.spin_us or attach.ring_spin_us: a real-time thread that spins keeps the core from the thread it waits for. Set one or the other"
                );
                Ok(Realtime::Wanted(u8::try_from(priority)?))
            }
        }
    }

    fn check(self, ring_spins: bool) -> Result<Limits> {
        let realtime = self.realtime(ring_spins)?;
        let Self {
            sessions_max,
            transfers_max,
            leases_max,
            lease_blocks_max,
            lease_ms_max,
            transfer_deadline_ms_max,
            connect_ms_max,
            reconnect_ms_min,
            reconnect_ms_max,
            peer_idle_s_max,
            spin_us,
            copy_threads,
            data_threads,
            realtime_priority: _,
            peer_bytes_per_second_max,
        } = self;
        let within = |name: &str, value: u64, low: u64, high: u64| {
            ensure!((low..=high).contains(&value), "limits.{name} = {value}: {low} to {high}");
            Ok(value)
        };
        ensure!(
            reconnect_ms_min <= reconnect_ms_max,
            "limits.reconnect_ms_min = {reconnect_ms_min}: at most limits.reconnect_ms_max, {reconnect_ms_max}"
        );
        let count = |name: &str, value: u64, high: u64| -> Result<usize> {
            Ok(usize::try_from(within(name, value, 1, high)?)?)
        };
        Ok(Limits {
            sessions_max: count("sessions_max", sessions_max, 4096)?,
            transfers_max: count("transfers_max", transfers_max, 4096)?,
            leases_max: count("leases_max", leases_max, 1 << 20)?,
            lease_blocks_max: count("lease_blocks_max", lease_blocks_max, 1 << 20)?,
            lease_max: Duration::from_millis(within("lease_ms_max", lease_ms_max, 1, 86_400_000)?),
            transfer_deadline_max: Duration::from_millis(within(
                "transfer_deadline_ms_max",
                transfer_deadline_ms_max,
                1,
                86_400_000,
            )?),
            connect_max: Duration::from_millis(within("connect_ms_max", connect_ms_max, 1, 60_000)?),
            reconnect_min: Duration::from_millis(within("reconnect_ms_min", reconnect_ms_min, 1, 10_000)?),
            reconnect_max: Duration::from_millis(within("reconnect_ms_max", reconnect_ms_max, 1, 600_000)?),
            peer_idle_max: Duration::from_secs(within("peer_idle_s_max", peer_idle_s_max, 1, 604_800)?),
            spin: Duration::from_micros(within("spin_us", spin_us, 0, 10_000)?),
            copy_threads: match copy_threads {
                Some(threads) => count("copy_threads", threads, COPY_THREADS_MAX as u64)?,
                None => std::thread::available_parallelism().map_or(1, usize::from).min(COPY_THREADS_DEFAULT_MAX),
            },
            data_threads: match data_threads {
                Some(threads) => count("data_threads", threads, THREADS_MAX as u64)?,
                None => std::thread::available_parallelism().map_or(1, usize::from).min(DATA_THREADS_DEFAULT_MAX),
            },
            realtime,
            peer_bytes_per_second_max: match peer_bytes_per_second_max {
                0 => None,
                rate => Some(within("peer_bytes_per_second_max", rate, 1 << 20, u64::MAX)?),
            },
        })
    }
}

#[cfg(test)]
mod tests;
