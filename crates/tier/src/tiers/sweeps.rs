//! What a person asks of all blocks that fit: that they go, or that they are read and held against their checksums.
//!
//! ```text
//! sweep(filter) -> slice, slice, ... each of few blocks, between what engines ask -> SweepProgress -> is_over
//! ```
//!
//! One of each kind at a time. A slice looks at [`LOOKS`] blocks at most, so that no lookup waits for long; bytes are read
//! elsewhere ([`CheckJob`](super::CheckJob), [`DiskJob`](super::DiskJob)). Blocks that come meanwhile may be met or not.

use kvferry_core::{Fingerprint, WorkId};

use super::{Tier, Tiers};
use crate::cache::Cache;
use crate::store::{ClassId, Store, Tenant};

/// Places that one slice looks at: some 100 us where nothing is done about them.
pub(super) const LOOKS: usize = 4096;

/// What is done about blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sweep {
    /// They go.
    Evict,
    /// They are read, and go if they are not what was stored.
    Verify,
}

/// Which blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SweepFilter {
    /// Of one of these; none: of any.
    pub fingerprints: Vec<Fingerprint>,
    /// Of this one; none: of any.
    pub tenant: Option<Tenant>,
    /// In this one; none: in all.
    pub tier: Option<Tier>,
}

/// How far a sweep has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SweepProgress {
    /// Which.
    pub work: WorkId,
    /// Nothing more is done.
    pub is_over: bool,
    /// Of host memory.
    pub host: SweepCount,
    /// Of the disk.
    pub disk: SweepCount,
}

/// What a sweep has done in one tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SweepCount {
    /// Blocks that fitted when it began, and their bytes.
    pub blocks_total: u64,
    /// See `blocks_total`.
    pub bytes_total: u64,
    /// Blocks that went, or that are what was stored, and their bytes.
    pub blocks: u64,
    /// See `blocks`.
    pub bytes: u64,
    /// Blocks that go once those who hold them let go, and their bytes. Nobody finds them meanwhile.
    pub held_blocks: u64,
    /// See `held_blocks`.
    pub held_bytes: u64,
    /// Blocks that are not what was stored.
    pub damaged: u64,
    /// Blocks that the disk would not give, and that stay.
    pub unreadable: u64,
}

impl SweepFilter {
    /// Whether blocks of this tier are meant.
    #[must_use]
    pub fn is_in(&self, tier: Tier) -> bool {
        self.tier.is_none_or(|of| of == tier)
    }

    /// Whether such a block is meant, in a tier that is.
    #[must_use]
    pub fn fits(&self, fingerprint: Fingerprint, tenant: Tenant) -> bool {
        self.is_of(fingerprint) && self.tenant.is_none_or(|of| of == tenant)
    }

    pub(super) fn is_of(&self, fingerprint: Fingerprint) -> bool {
        self.fingerprints.is_empty() || self.fingerprints.contains(&fingerprint)
    }

    fn total<S: Store>(&self, tier: Tier, cache: &Cache<S>) -> SweepCount {
        let is_meant = |fingerprint| self.is_in(tier) && self.is_of(fingerprint);
        let (blocks_total, bytes_total) = cache.total(is_meant, self.tenant);
        SweepCount { blocks_total, bytes_total, ..SweepCount::default() }
    }
}

impl SweepProgress {
    pub(super) fn count(&mut self, tier: Tier) -> &mut SweepCount {
        match tier {
            Tier::Host => &mut self.host,
            Tier::Disk => &mut self.disk,
        }
    }
}

impl Tiers {
    /// Begins a sweep; one of the same kind that is under way ends.
    pub fn sweep(&mut self, work: WorkId, sweep: Sweep, filter: SweepFilter) {
        let host = filter.total(Tier::Host, &self.host);
        let disk = self.disk.as_ref().map(|disk| filter.total(Tier::Disk, disk)).unwrap_or_default();
        let progress = SweepProgress { work, is_over: false, host, disk };
        match sweep {
            Sweep::Evict => self.begin_eviction(progress, filter),
            Sweep::Verify => self.begin_verification(progress, filter),
        }
    }

    /// Ends a sweep; what it has done is done. One that is over or unknown is left alone.
    pub fn end_sweep(&mut self, work: WorkId) {
        self.end_eviction(work);
        self.end_verification(work);
    }

    /// How far the last one of each kind has come.
    #[must_use]
    pub fn sweeps(&self, sweep: Sweep) -> Option<SweepProgress> {
        match sweep {
            Sweep::Evict => self.evicting.progress(),
            Sweep::Verify => self.verifying.progress(),
        }
    }

    /// Whether a sweep or a list would go on now, without anything having happened.
    #[must_use]
    pub fn has_slice(&self) -> bool {
        !self.lists.is_empty() || self.evicting.has_slice() || self.verifying.has_slice()
    }

    /// Goes on with sweeps and lists, for a moment.
    pub fn slice(&mut self) {
        self.list_piece();
        self.evict_slice();
        self.turn_verification();
    }

    pub(super) fn fingerprint(&self, tier: Tier, class: ClassId) -> Option<Fingerprint> {
        match tier {
            Tier::Host => Some(self.host.store().fingerprint(class)),
            Tier::Disk => self.disk.as_ref().map(|disk| disk.store().fingerprint(class)),
        }
    }
}
