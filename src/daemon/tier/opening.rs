//! The tiers at the start: what the daemon before has left.

use std::time::Duration;

use anyhow::{Context as _, Result};
use kvferry_core::Time;
use kvferry_memory::Meter;
use kvferry_tier::disk::Shelf;
use kvferry_tier::host::{Arena, Recovered};
use kvferry_tier::tiers::{TierLimits, Tiers};
use kvferry_tier::{Cache, CacheLimits, Left, Store, Tenant};

use crate::config::{DiskTier, HostTier};
use crate::random;

/// Blocks that are remembered though few are stored: one that comes back tells how long others like it will take
/// (docs/adr/0020). Each takes 200 bytes or less.
const KNOWN_MIN: u64 = 1 << 18;
/// No block takes less room: a small tier remembers what would fit in it.
const SLOT_BYTES_MIN: u64 = 4096;
/// How long what was copied waits for its engine's word.
const COMMIT_MAX: Duration = Duration::from_secs(30);

/// Opens host memory and the disk, with what the daemon before has left there. Neither is an engine's region, and counted as
/// one. A disk that cannot be had is none: the daemon serves without, and says so.
pub(crate) fn open(
    host: &HostTier,
    disk: Option<&DiskTier>,
    works_max: usize,
    blocks_max: usize,
    now: Time,
) -> Result<Tiers> {
    let (arena, recovery) = Arena::open(&host.path, host.bytes, host.block_bytes_max, &Meter::new())
        .with_context(|| format!("open the host tier {} (tier.host)", host.path.display()))?;
    let found = match recovery.recovered {
        Recovered::New => "new",
        Recovered::Found => "found",
        Recovered::Replaced => "replaced: it was of another size or version",
    };
    tracing::info!(
        path = %host.path.display(), bytes = host.bytes, blocks = recovery.blocks,
        unfinished = recovery.unfinished, damaged = recovery.damaged, "host tier is open: {found}"
    );
    if recovery.damaged > 0 {
        tracing::warn!(records = recovery.damaged, "records in host memory are damaged: their places are room");
    }
    let limits = CacheLimits {
        known_min: known_min(host.bytes)?,
        tenant_bytes_max: host.tenant_bytes_max,
        seed: random::number()?,
    };
    let mut cache = with_quotas(Cache::new(arena, limits, now), &host.tenants, now);
    cache.left_before(Left::Record, recovery.damaged);
    let limits =
        TierLimits { claims_max: works_max, works_max, blocks_max, claim_max: host.claim_max, commit_max: COMMIT_MAX };
    let disk = disk.and_then(|disk| {
        open_disk(disk, now)
            .inspect_err(|error| {
                tracing::warn!("serves without a disk tier: {error:#}");
            })
            .ok()
    });
    Ok(Tiers::new(cache, disk, limits))
}

fn open_disk(disk: &DiskTier, now: Time) -> Result<Cache<Shelf>> {
    let path = disk.path.display();
    let (shelf, recovery) = Shelf::open(&disk.path, disk.limits).context("open tier.disk")?;
    tracing::info!(%path, blocks = recovery.blocks, ?recovery, "disk tier is open");
    if recovery.damaged_records > 0 || !recovery.damaged_files.is_empty() {
        tracing::warn!(
            %path, records = recovery.damaged_records, files = ?recovery.damaged_files,
            "records on the disk are damaged: their places are room; damaged files are left where they are"
        );
    }
    if let Some(reason) = shelf.read_only() {
        tracing::warn!(%path, "the disk tier is only read from: {reason}");
    }
    let limits = CacheLimits {
        known_min: known_min(disk.limits.bytes_max)?,
        tenant_bytes_max: disk.tenant_bytes_max,
        seed: random::number()?,
    };
    let mut cache = with_quotas(Cache::new(shelf, limits, now), &disk.tenants, now);
    cache.left_before(Left::Record, recovery.damaged_records);
    cache.left_before(Left::Limits, recovery.over_limits);
    Ok(cache)
}

/// Blocks that a tier of so many bytes remembers in any case.
fn known_min(bytes: u64) -> Result<usize> {
    Ok(usize::try_from((bytes / SLOT_BYTES_MIN).min(KNOWN_MIN))?)
}

/// What a tenant has beyond its quota, as after that was lowered, goes before anybody asks for it.
fn with_quotas<S: Store>(mut cache: Cache<S>, quotas: &[(Tenant, u64)], now: Time) -> Cache<S> {
    cache.set_quotas(now, quotas.iter().copied());
    if cache.evicted() > 0 {
        tracing::info!(blocks = cache.evicted(), "tenants had more than their quotas: blocks of theirs went");
    }
    cache
}
