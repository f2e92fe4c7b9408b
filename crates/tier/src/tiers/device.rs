//! One worker's cache, as tiers see it: where its blocks come from and go to.

use std::sync::Arc;

use kvferry_core::layout::{GroupLayout, Layout, LayoutError};
use kvferry_core::{Fingerprint, Rank};
use kvferry_memory::Region;

/// Cache groups of one rank, as numbers of a class have room for them.
const GROUPS_MAX: u32 = 1 << 16;

/// The region of one rank and how its blocks lie in it, group by group.
#[derive(Debug)]
pub struct Device {
    fingerprint: Fingerprint,
    rank: Rank,
    region: Arc<Region>,
    /// A layout of one group each.
    groups: Vec<Layout>,
}

impl Device {
    /// Of one worker.
    ///
    /// # Errors
    ///
    /// [`LayoutError`], for groups that are no layout each by itself.
    pub fn new(
        fingerprint: Fingerprint,
        rank: Rank,
        region: Arc<Region>,
        layout: &Layout,
    ) -> Result<Self, LayoutError> {
        let single = |group: &GroupLayout| {
            Layout::new(layout.order(), layout.block_count(), layout.region_bytes(), vec![group.clone()])
        };
        let groups = layout.groups().iter().map(single).collect::<Result<_, _>>()?;
        Ok(Self { fingerprint, rank, region, groups })
    }

    /// What must agree before a block of one engine may be another's.
    #[must_use]
    pub const fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Its place among the workers of its engine.
    #[must_use]
    pub const fn rank(&self) -> Rank {
        self.rank
    }

    /// The memory that it shares.
    #[must_use]
    pub const fn region(&self) -> &Arc<Region> {
        &self.region
    }

    pub(super) fn group(&self, group: usize) -> Option<&Layout> {
        self.groups.get(group)
    }

    pub(super) const fn group_count(&self) -> usize {
        self.groups.len()
    }

    /// Which blocks of the fingerprint these are: each rank has its own part of a block's content.
    pub(super) fn part(&self, group: usize) -> Option<u32> {
        let group = u32::try_from(group).ok().filter(|&group| group < GROUPS_MAX)?;
        self.rank.0.checked_mul(GROUPS_MAX)?.checked_add(group)
    }
}
