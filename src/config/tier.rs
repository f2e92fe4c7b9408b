//! What the config says of tiers.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use kvferry_tier::Tenant;
use kvferry_tier::disk::Limits;
use kvferry_transport::COPY_THREADS_MAX;
use sha2::{Digest as _, Sha256};

use super::{COPY_THREADS_DEFAULT_MAX, Config, raw};

/// A request has one transfer, and a store for each step in which a block of it became full.
const TIER_WORKS_PER_TRANSFER: usize = 16;
const MIB: u64 = 1 << 20;
/// 16 TiB: more is a slip of the pen.
const MIB_MAX: u64 = 1 << 24;
/// A block of 128 tokens of a model of 70 billion parameters, on one rank of eight, is 5 MiB.
const BLOCK_MIB_MAX_DEFAULT: u64 = 8;
const CLAIM_MS_MAX_DEFAULT: u64 = 30_000;
/// Files are made whole, and given back whole.
const FILE_MIB_DEFAULT: u64 = 1024;
const FILE_MIB_MAX: u64 = 1 << 16;
const FILES_MAX_DEFAULT: u64 = 1024;
/// Each takes two file descriptors.
const FILES_MAX: u64 = 4096;
/// What other programs of the node are left with.
const FREE_MIB_DEFAULT: u64 = 1024;
/// Tenants with a quota of their own.
const TENANTS_MAX: usize = 4096;
/// Writes that may fail one after the other before the disk is taken for broken.
const WRITE_ERRORS_MAX: u32 = 8;

/// Host memory as a tier.
#[derive(Clone, Debug)]
pub(crate) struct HostTier {
    /// On tmpfs or hugetlbfs, where it outlives the daemon.
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
    /// The largest block that it takes.
    pub(crate) block_bytes_max: u64,
    /// Of one tenant's blocks, but for those who have a quota of their own.
    pub(crate) tenant_bytes_max: u64,
    /// Quotas of their own.
    pub(crate) tenants: Vec<(Tenant, u64)>,
    /// How long blocks that were found stay for who does not load them.
    pub(crate) claim_max: Duration,
    pub(crate) copy_threads: usize,
}

/// A disk as a tier, beside host memory.
#[derive(Clone, Debug)]
pub(crate) struct DiskTier {
    pub(crate) path: PathBuf,
    pub(crate) limits: Limits,
    /// Of one tenant's blocks, but for those who have a quota of their own.
    pub(crate) tenant_bytes_max: u64,
    /// Quotas of their own.
    pub(crate) tenants: Vec<(Tenant, u64)>,
}

impl Config {
    /// Lookups, loads and stores of tiers that may be open.
    pub(crate) const fn tier_works_max(&self) -> usize {
        self.limits.transfers_max * TIER_WORKS_PER_TRANSFER
    }
}

impl raw::Tier {
    /// In bytes, and inside of limits: host memory, and the disk.
    pub(super) fn check(self) -> Result<(Option<HostTier>, Option<DiskTier>)> {
        let Self { host, disk, tenants } = self;
        let mut host = host.map(raw::Host::check).transpose()?;
        let mut disk = disk.map(raw::Disk::check).transpose()?;
        ensure!(
            disk.is_none() || host.is_some(),
            "[tier.disk] needs [tier.host]: blocks go to the disk by way of host memory"
        );
        ensure!(tenants.len() <= TENANTS_MAX, "tier.tenants: {} of them, {TENANTS_MAX} at most", tenants.len());
        for (name, raw::Tenant { host_mib_max, disk_mib_max }) in tenants {
            let table = format!("[tier.tenants.{name:?}]");
            ensure!(
                !name.is_empty(),
                "{table}: a tenant is named by the `cache_salt` of its requests, or by the `namespace` that its engines \
                 are given; what has neither counts against nobody in particular, up to tenant_mib_max"
            );
            ensure!(
                host_mib_max.is_some() || disk_mib_max.is_some(),
                "{table}: set host_mib_max, disk_mib_max or both; without a table of its own a tenant has tenant_mib_max"
            );
            if let Some(mib) = host_mib_max {
                let Some(host) = &mut host else {
                    bail!("{table}: host_mib_max is a part of tier.host.mib, and there is no [tier.host]")
                };
                host.tenants.push((tenant(&name), part(&table, ("host", mib), host.bytes)?));
            }
            if let Some(mib) = disk_mib_max {
                let Some(disk) = &mut disk else {
                    bail!("{table}: disk_mib_max is a part of tier.disk.mib, and there is no [tier.disk]")
                };
                disk.tenants.push((tenant(&name), part(&table, ("disk", mib), disk.limits.bytes_max)?));
            }
        }
        Ok((host, disk))
    }
}

/// As engines name it: `tenant_named` in `python/kvferry/vllm/hashes.py`.
fn tenant(name: &str) -> Tenant {
    Tenant::named(&Sha256::digest(name))
}

/// Of one tier, in bytes; 0: nothing is kept.
fn part(table: &str, (tier, mib): (&str, u64), bytes: u64) -> Result<u64> {
    let all = bytes / MIB;
    ensure!(mib <= all, "{table}: {tier}_mib_max = {mib} is more than tier.{tier}.mib = {all}");
    Ok(mib * MIB)
}

impl raw::Host {
    /// In bytes, and inside of limits.
    pub(super) fn check(self) -> Result<HostTier> {
        let Self { mib, path, block_mib_max, tenant_mib_max, claim_ms_max, copy_threads } = self;
        let within = |name: &str, value: u64, low: u64, high: u64| {
            ensure!((low..=high).contains(&value), "tier.host.{name} = {value}: {low} to {high}");
            Ok(value)
        };
        ensure!(path.is_absolute(), "tier.host.path = {path:?}: an absolute path on tmpfs or hugetlbfs");
        let copy_threads = match copy_threads {
            Some(threads) => usize::try_from(within("copy_threads", threads, 1, COPY_THREADS_MAX as u64)?)?,
            None => std::thread::available_parallelism().map_or(1, usize::from).min(COPY_THREADS_DEFAULT_MAX),
        };
        Ok(HostTier {
            path,
            bytes: within("mib", mib, 64, MIB_MAX)? * MIB,
            block_bytes_max: within("block_mib_max", block_mib_max.unwrap_or(BLOCK_MIB_MAX_DEFAULT), 1, 1024)? * MIB,
            tenant_bytes_max: within("tenant_mib_max", tenant_mib_max.unwrap_or(mib), 1, MIB_MAX)? * MIB,
            claim_max: Duration::from_millis(within(
                "claim_ms_max",
                claim_ms_max.unwrap_or(CLAIM_MS_MAX_DEFAULT),
                1,
                600_000,
            )?),
            copy_threads,
            tenants: Vec::new(),
        })
    }
}

impl raw::Disk {
    /// In bytes, and inside of limits.
    pub(super) fn check(self) -> Result<DiskTier> {
        let Self { mib, path, files_max, file_mib, free_mib_min, tenant_mib_max } = self;
        let within = |name: &str, value: u64, low: u64, high: u64| {
            ensure!((low..=high).contains(&value), "tier.disk.{name} = {value}: {low} to {high}");
            Ok(value)
        };
        ensure!(
            path.is_absolute(),
            "tier.disk.path = {path:?}: an absolute path of a directory that is the tier's alone"
        );
        let bytes_max = within("mib", mib, 64, MIB_MAX)? * MIB;
        let extent_bytes =
            within("file_mib", file_mib.unwrap_or_else(|| FILE_MIB_DEFAULT.min(mib / 4)), 1, FILE_MIB_MAX)? * MIB;
        let files_max = within("files_max", files_max.unwrap_or(FILES_MAX_DEFAULT), 3, FILES_MAX)?;
        let limits = Limits {
            bytes_max,
            files_max: u32::try_from(files_max)?,
            extent_bytes,
            free_bytes_min: within("free_mib_min", free_mib_min.unwrap_or(FREE_MIB_DEFAULT), 0, MIB_MAX)? * MIB,
            write_errors_max: WRITE_ERRORS_MAX,
        };
        let tenant_bytes_max = within("tenant_mib_max", tenant_mib_max.unwrap_or(mib), 1, MIB_MAX)? * MIB;
        Ok(DiskTier { path, limits, tenant_bytes_max, tenants: Vec::new() })
    }
}
