//! Metrics of the tiers.

use std::sync::atomic::{AtomicU64, Ordering};

use kvferry_tier::Departures;
use kvferry_tier::tiers::{Loaded, Tier, TierFailure};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::super::metrics::Reason;
use super::thread::Inventory;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Departure {
    tier: &'static str,
    reason: &'static str,
}

/// Handles; cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct TierMetrics {
    lookups: Family<Reason, Counter>,
    asked: Counter<u64, AtomicU64>,
    found: Counter<u64, AtomicU64>,
    loads: Family<Reason, Counter>,
    loaded_bytes: Counter<u64, AtomicU64>,
    disk_bytes: Counter<u64, AtomicU64>,
    stores: Family<Reason, Counter>,
    stored: Counter<u64, AtomicU64>,
    left: Family<Departure, Counter<u64, AtomicU64>>,
    blocks: Gauge,
    disk_blocks: Gauge,
    disk_used: Gauge,
    disk_failed: Gauge,
}

impl TierMetrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register("tier_lookup", "Lookups, by outcome", self.lookups.clone());
        registry.register("tier_asked_blocks", "Blocks that lookups asked for, of all groups", self.asked.clone());
        registry.register("tier_found_blocks", "Blocks that lookups found, of all groups", self.found.clone());
        registry.register("tier_load", "Loads, by outcome", self.loads.clone());
        registry.register("tier_load_bytes", "Bytes loaded and verified", self.loaded_bytes.clone());
        registry.register(
            "tier_load_disk_bytes",
            "Of those, bytes that the disk brought first",
            self.disk_bytes.clone(),
        );
        registry.register("tier_disk_blocks", "Blocks on the disk", self.disk_blocks.clone());
        registry.register("tier_disk_bytes", "Bytes of the files on the disk", self.disk_used.clone());
        registry.register(
            "tier_disk_failed_writes",
            "Writes that the disk refused, since the start",
            self.disk_failed.clone(),
        );
        registry.register("tier_store", "Stores that were copied, by outcome", self.stores.clone());
        registry.register("tier_stored_blocks", "Blocks that were stored", self.stored.clone());
        registry.register("tier_left_blocks", "Blocks that left, by tier and reason", self.left.clone());
        registry.register("tier_host_blocks", "Blocks in host memory", self.blocks.clone());
    }

    pub(super) fn asked(&self, blocks: usize) {
        self.asked.inc_by(blocks as u64);
    }

    pub(super) fn found(&self, held: &[u32], failure: Option<TierFailure>) {
        let found: u64 = held.iter().map(|&held| u64::from(held)).sum();
        let none = if found == 0 { "none" } else { "found" };
        self.lookups.get_or_create(&Reason { reason: failure.map_or(none, TierFailure::word) }).inc();
        self.found.inc_by(found);
    }

    pub(super) fn loaded(&self, result: Result<Loaded, TierFailure>) {
        let loaded = result.unwrap_or_default();
        self.loaded_bytes.inc_by(loaded.bytes);
        self.disk_bytes.inc_by(loaded.disk_bytes);
        let reason = result.err().map_or("loaded", TierFailure::word);
        self.loads.get_or_create(&Reason { reason }).inc();
    }

    pub(super) fn copied(&self, failure: Option<TierFailure>) {
        self.stores.get_or_create(&Reason { reason: failure.map_or("copied", TierFailure::word) }).inc();
    }

    pub(super) fn stored(&self, blocks: u64) {
        self.stored.inc_by(blocks);
    }

    pub(crate) fn gauges(&self, inventory: &Inventory) {
        let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        self.blocks.set(number(inventory.blocks as u64));
        self.departed(Tier::Host, &inventory.left);
        if let Some(disk) = inventory.disk {
            self.disk_blocks.set(number(disk.blocks as u64));
            self.disk_used.set(number(disk.bytes));
            self.departed(Tier::Disk, &disk.left);
            self.disk_failed.set(number(disk.failed_writes));
        }
    }

    /// The tiers count; here stands what they have counted.
    fn departed(&self, tier: Tier, left: &Departures) {
        for (why, blocks) in left.iter() {
            let counter = self.left.get_or_create(&Departure { tier: tier.word(), reason: why.word() });
            counter.inner().store(blocks, Ordering::Relaxed);
        }
    }

    /// Blocks asked for and found.
    pub(crate) fn hits(&self) -> (u64, u64) {
        (self.asked.get(), self.found.get())
    }

    /// Bytes loaded, of those from the disk, and blocks stored.
    pub(crate) fn totals(&self) -> (u64, u64, u64) {
        (self.loaded_bytes.get(), self.disk_bytes.get(), self.stored.get())
    }
}
