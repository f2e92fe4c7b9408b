//! The config file as it is written.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde::Deserialize;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawConfig {
    pub(super) node: Option<String>,
    pub(super) attach: Attach,
    pub(super) peer: Peer,
    pub(super) admin: Admin,
    pub(super) limits: Limits,
    pub(super) tier: Tier,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Tier {
    pub(super) host: Option<Host>,
    pub(super) disk: Option<Disk>,
    pub(super) tenants: BTreeMap<String, Tenant>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Tenant {
    pub(super) host_mib_max: Option<u64>,
    pub(super) disk_mib_max: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Disk {
    pub(super) mib: u64,
    pub(super) path: PathBuf,
    pub(super) files_max: Option<u64>,
    pub(super) file_mib: Option<u64>,
    pub(super) free_mib_min: Option<u64>,
    pub(super) tenant_mib_max: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Host {
    pub(super) mib: u64,
    #[serde(default = "arena")]
    pub(super) path: PathBuf,
    pub(super) block_mib_max: Option<u64>,
    pub(super) tenant_mib_max: Option<u64>,
    pub(super) claim_ms_max: Option<u64>,
    pub(super) copy_threads: Option<u64>,
}

fn arena() -> PathBuf {
    PathBuf::from("/dev/shm/kvferry.arena")
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Attach {
    pub(super) directory: PathBuf,
    pub(super) uids: Vec<u32>,
    pub(super) ring_kib: u16,
    pub(super) ring_spin_us: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Peer {
    pub(super) listen: SocketAddr,
    pub(super) data_port: u16,
    pub(super) advertise: Option<String>,
    pub(super) allow: Option<Vec<String>>,
    pub(super) known: Vec<String>,
    pub(super) streams: u16,
    pub(super) io: Io,
    pub(super) congestion: String,
    pub(super) socket_buffer_kib: u32,
    pub(super) tls: Option<Tls>,
    pub(super) plaintext_beyond_loopback: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Io {
    Auto,
    Epoll,
    #[serde(rename = "io_uring")]
    Uring,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tls {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
    pub(super) authority: PathBuf,
    pub(super) name: String,
    pub(super) data: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Admin {
    pub(super) listen: SocketAddr,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Limits {
    pub(super) sessions_max: u64,
    pub(super) transfers_max: u64,
    pub(super) leases_max: u64,
    pub(super) lease_blocks_max: u64,
    pub(super) lease_ms_max: u64,
    pub(super) transfer_deadline_ms_max: u64,
    pub(super) connect_ms_max: u64,
    pub(super) reconnect_ms_min: u64,
    pub(super) reconnect_ms_max: u64,
    pub(super) peer_idle_s_max: u64,
    pub(super) spin_us: u64,
    pub(super) copy_threads: Option<u64>,
    pub(super) data_threads: Option<u64>,
    pub(super) realtime_priority: Option<u64>,
    pub(super) peer_bytes_per_second_max: u64,
}

impl Default for Attach {
    fn default() -> Self {
        Self { directory: PathBuf::from("/run/kvferry"), uids: Vec::new(), ring_kib: 128, ring_spin_us: 0 }
    }
}

impl Default for Peer {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 7405)),
            data_port: 0,
            advertise: None,
            allow: None,
            known: Vec::new(),
            streams: 2,
            io: Io::Auto,
            congestion: "auto".to_owned(),
            socket_buffer_kib: 0,
            tls: None,
            plaintext_beyond_loopback: None,
        }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self { listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 7407)) }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sessions_max: 256,
            transfers_max: 256,
            leases_max: 16_384,
            lease_blocks_max: 1 << 16,
            lease_ms_max: 600_000,
            transfer_deadline_ms_max: 60_000,
            connect_ms_max: 2_000,
            reconnect_ms_min: 10,
            reconnect_ms_max: 2_000,
            peer_idle_s_max: 600,
            spin_us: 0,
            copy_threads: None,
            data_threads: None,
            realtime_priority: None,
            peer_bytes_per_second_max: 0,
        }
    }
}
