//! What `kvferry status` shows, as data.

use std::collections::BTreeMap;

use kvferry_tier::Departures;
use serde::{Deserialize, Serialize};

use super::engines::Session;
use super::hub::Hub;
use super::link_table::Origin;
use super::scheduling::Scheduling;

/// A moment of one daemon.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) node: String,
    pub(crate) version: String,
    pub(crate) daemon_epoch: u64,
    pub(crate) uptime_s: u64,
    /// Where peers call.
    pub(crate) address: String,
    pub(crate) scheduling: Scheduling,
    pub(crate) engines: Vec<EngineStatus>,
    pub(crate) regions: RegionsStatus,
    pub(crate) leases: Vec<LeaseStatus>,
    pub(crate) peers: Vec<PeerStatus>,
    pub(crate) transfers: TransfersStatus,
    /// Where there are tiers.
    pub(crate) tiers: Option<TiersStatus>,
}

/// What the tiers hold, and what has come of it since the start.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct TiersStatus {
    /// Of host memory, as configured.
    pub(crate) host_bytes: u64,
    pub(crate) host_blocks: usize,
    /// Blocks that left host memory since the start, by reason.
    pub(crate) left_total: BTreeMap<String, u64>,
    /// Lookups whose blocks are held, loads and stores under way.
    pub(crate) claims: usize,
    pub(crate) loads: usize,
    pub(crate) stores: usize,
    pub(crate) loaded_bytes_total: u64,
    pub(crate) loaded_disk_bytes_total: u64,
    /// Blocks that lookups asked for, and that they found.
    pub(crate) asked_blocks_total: u64,
    pub(crate) found_blocks_total: u64,
    pub(crate) stored_blocks_total: u64,
    /// Where there is one.
    pub(crate) disk: Option<DiskStatus>,
}

/// What is on the disk, and what has become of it since the start.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct DiskStatus {
    pub(crate) blocks: usize,
    /// Of all files.
    pub(crate) bytes: u64,
    pub(crate) files: u32,
    /// Blocks that left the disk since the start, by reason.
    pub(crate) left_total: BTreeMap<String, u64>,
    pub(crate) failed_writes_total: u64,
    /// Nothing is written any more.
    pub(crate) read_only: bool,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct EngineStatus {
    pub(crate) engine: String,
    pub(crate) epoch: u64,
    pub(crate) rank_count: u32,
    /// Its scheduler is connected: with all its workers it can grant.
    pub(crate) scheduler: bool,
    pub(crate) workers: Vec<WorkerStatus>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct WorkerStatus {
    pub(crate) rank: u32,
    pub(crate) pid: i32,
    pub(crate) uid: u32,
    pub(crate) order: String,
    pub(crate) blocks: u32,
    pub(crate) bytes: u64,
    pub(crate) fingerprint: String,
    /// How its messages travel: `ring`, shared memory, or `socket`.
    pub(crate) hop: String,
}

/// Mapped memory, also of engines that have gone while posted work still names it.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct RegionsStatus {
    pub(crate) count: u64,
    pub(crate) bytes: u64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct LeaseStatus {
    pub(crate) lease: u64,
    pub(crate) engine: String,
    pub(crate) request: String,
    pub(crate) blocks: usize,
    pub(crate) left_ms: u64,
    pub(crate) reads: usize,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct PeerStatus {
    pub(crate) peer: String,
    /// `out`: we read from it; `in`: it reads from us.
    pub(crate) direction: String,
    pub(crate) up: bool,
    /// `connecting`, `down`, `opening` or `up`.
    pub(crate) state: String,
    /// How long it has been in this state; of an `in`, how long it has been open.
    pub(crate) for_ms: u64,
    /// Out only: named by the config, and never forgotten.
    pub(crate) configured: bool,
    /// Out only: tries since it was last up.
    pub(crate) tries: u32,
    /// Out only: why the last try failed or the link went down; empty once it is up.
    pub(crate) fault: String,
    /// Out only: the life of the peer that last let us in; 0 before.
    pub(crate) epoch: u64,
    /// In only: how long nothing has been read over it.
    pub(crate) idle_ms: u64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct TransfersStatus {
    /// Into this node.
    pub(crate) reading: Vec<ActiveTransfer>,
    /// Out of this node.
    pub(crate) serving: Vec<ActiveTransfer>,
    /// The last 64 into this node, oldest first.
    pub(crate) finished: Vec<FinishedTransfer>,
    pub(crate) delivered_total: u64,
    pub(crate) failed_total: u64,
    pub(crate) bytes_total: u64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct ActiveTransfer {
    pub(crate) work: u64,
    pub(crate) request: String,
    pub(crate) peer: String,
    pub(crate) state: String,
    pub(crate) for_ms: u64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct FinishedTransfer {
    pub(crate) work: u64,
    pub(crate) request: String,
    pub(crate) engine: String,
    pub(crate) engine_epoch: u64,
    pub(crate) holder: String,
    pub(crate) via: String,
    /// `delivered`, or why not.
    pub(crate) outcome: String,
    pub(crate) bytes: u64,
    pub(crate) micros: u64,
    /// The holder's blocks, a list for each group that was asked for.
    pub(crate) source_blocks: Vec<Vec<u32>>,
    /// Where they went, in the same order.
    pub(crate) target_blocks: Vec<Vec<u32>>,
}

impl Hub {
    pub(super) fn status(&self) -> Status {
        let now = self.clock.now();
        let millis = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let engines = self.engines.engines.iter().map(|(name, engine)| EngineStatus {
            engine: name.clone(),
            epoch: engine.epoch.0,
            rank_count: engine.rank_count,
            scheduler: self.engines.has_scheduler(name),
            workers: engine
                .workers
                .iter()
                .map(|(rank, worker)| WorkerStatus {
                    rank: rank.0,
                    pid: self.engines.sessions.get(&worker.session).map_or(0, |open| open.process.pid),
                    uid: self.engines.sessions.get(&worker.session).map_or(0, |open| open.process.uid),
                    order: worker.layout.order().to_string(),
                    blocks: worker.layout.block_count(),
                    bytes: worker.region.len(),
                    fingerprint: worker.fingerprint.to_string(),
                    hop: self.engines.sessions.get(&worker.session).map_or("", Session::hop).to_owned(),
                })
                .collect(),
        });
        let leases = self.leases.iter().map(|(id, request, blocks, deadline, reads)| LeaseStatus {
            lease: id.0,
            engine: self.lease_engines.get(&id).cloned().unwrap_or_default(),
            request: request.to_owned(),
            blocks,
            left_ms: millis(deadline.until(now)),
            reads,
        });
        let outward = self.links.iter().map(|link| PeerStatus {
            peer: link.address.to_owned(),
            direction: "out".to_owned(),
            up: link.state == "up",
            state: link.state.to_owned(),
            for_ms: millis(now.until(link.since)),
            configured: link.origin == Origin::Configured,
            tries: link.tries,
            fault: link.fault.to_owned(),
            epoch: link.epoch,
            idle_ms: 0,
        });
        let inward = self.admitted.values().map(|admitted| PeerStatus {
            peer: if admitted.address.is_empty() { admitted.peer.clone() } else { admitted.address.clone() },
            direction: "in".to_owned(),
            up: admitted.up,
            state: if admitted.up { "up" } else { "connecting" }.to_owned(),
            for_ms: millis(now.until(admitted.since)),
            idle_ms: millis(now.until(admitted.used)),
            ..PeerStatus::default()
        });
        let mut peers: Vec<_> = outward.chain(inward).collect();
        peers.sort_by(|a, b| (&b.direction, &a.peer).cmp(&(&a.direction, &b.peer)));
        let reading = self.reading.iter().map(|(work, reading)| ActiveTransfer {
            work: work.0,
            request: reading.request_id.clone(),
            peer: reading.holder().to_owned(),
            state: reading.transfer.state().to_owned(),
            for_ms: millis(now.until(reading.since)),
        });
        let serving = self.serving.iter().map(|(work, serving)| ActiveTransfer {
            work: work.0,
            request: String::new(),
            peer: serving.peer.clone(),
            state: format!("serving {} bytes", serving.bytes),
            for_ms: millis(now.until(serving.since)),
        });
        let (delivered_total, failed_total, bytes_total) = self.metrics.transfer_totals();
        Status {
            node: self.config.node.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            daemon_epoch: self.epoch.0,
            uptime_s: self.uptime().as_secs(),
            address: self.advertise.clone(),
            scheduling: self.scheduling.clone(),
            engines: engines.collect(),
            regions: RegionsStatus { count: self.meter.regions(), bytes: self.meter.bytes() },
            leases: leases.collect(),
            peers,
            transfers: TransfersStatus {
                reading: reading.collect(),
                serving: serving.collect(),
                finished: self.finished.iter().cloned().collect(),
                delivered_total,
                failed_total,
                bytes_total,
            },
            tiers: self.tiers_status(),
        }
    }

    fn tiers_status(&self) -> Option<TiersStatus> {
        let handle = self.tiering.as_ref()?.handle();
        let inventory = handle.inventory();
        let (loaded_bytes_total, loaded_disk_bytes_total, stored_blocks_total) = self.metrics.tier.totals();
        let (asked_blocks_total, found_blocks_total) = self.metrics.tier.hits();
        Some(TiersStatus {
            host_bytes: handle.bytes,
            host_blocks: inventory.blocks,
            left_total: by_reason(&inventory.left),
            claims: inventory.claims,
            loads: inventory.loads,
            stores: inventory.stores,
            loaded_bytes_total,
            loaded_disk_bytes_total,
            asked_blocks_total,
            found_blocks_total,
            stored_blocks_total,
            disk: inventory.disk.map(|disk| DiskStatus {
                blocks: disk.blocks,
                bytes: disk.bytes,
                files: disk.files,
                left_total: by_reason(&disk.left),
                failed_writes_total: disk.failed_writes,
                read_only: disk.is_read_only,
            }),
        })
    }
}

/// Every reason, also those that nothing left for.
fn by_reason(left: &Departures) -> BTreeMap<String, u64> {
    left.iter().map(|(why, blocks)| (why.word().to_owned(), blocks)).collect()
}
