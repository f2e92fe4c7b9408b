//! Blocks go because a person asked for it.
//!
//! From the beginning to the end nobody finds what is meant, so that nothing of it comes back by way of the other tier. What
//! somebody holds goes when it is let go. It ends once nothing that is meant is on its way from one tier to the other.

use kvferry_core::WorkId;

use super::sweeps::LOOKS;
use super::{Kind, SweepFilter, SweepProgress, Tier, Tiers};
use crate::cache::{Left, Stored, Walk};
use crate::store::{BlockHash, ClassId, Store as _};

/// Blocks that go in one slice: each is a write of 128 bytes where it is on a disk.
const BLOCKS_PER_SLICE: usize = 64;

/// The last one.
#[derive(Default)]
pub(super) struct Evicting(Option<Run>);

struct Run {
    filter: SweepFilter,
    progress: SweepProgress,
    walk: Option<(Tier, Walk)>,
}

impl Evicting {
    pub(super) fn progress(&self) -> Option<SweepProgress> {
        self.0.as_ref().map(|run| run.progress)
    }

    /// Also while it waits for the disk, whose answer may come between two slices.
    pub(super) fn has_slice(&self) -> bool {
        self.running().is_some()
    }

    fn running(&self) -> Option<&Run> {
        self.0.as_ref().filter(|run| !run.progress.is_over)
    }
}

impl Tiers {
    pub(super) fn begin_eviction(&mut self, progress: SweepProgress, filter: SweepFilter) {
        let Self { demotions, host, .. } = self;
        if filter.is_in(Tier::Disk) {
            demotions.void(|(kind, hash)| {
                let tenant = host.owner(kind.host, hash).unwrap_or_default();
                filter.fits(host.store().fingerprint(kind.host), tenant)
            });
        }
        let first = if filter.is_in(Tier::Host) { Some((Tier::Host, self.host.walk())) } else { None };
        let walk = first.or_else(|| self.disk.as_ref().map(|disk| (Tier::Disk, disk.walk())));
        self.evicting.0 = Some(Run { filter, progress, walk });
    }

    pub(super) fn end_eviction(&mut self, work: WorkId) {
        if let Some(run) = self.evicting.0.as_mut().filter(|run| run.progress.work == work) {
            run.progress.is_over = true;
        }
    }

    /// Whether this block is meant, which is in this tier.
    pub(super) fn is_evicting(&self, tier: Tier, class: ClassId, hash: &BlockHash) -> bool {
        let Some(run) = self.evicting.running().filter(|run| run.filter.is_in(tier)) else { return false };
        let owner = match tier {
            Tier::Host => self.host.owner(class, hash),
            Tier::Disk => self.disk.as_ref().and_then(|disk| disk.owner(class, hash)),
        };
        self.fingerprint(tier, class).is_some_and(|of| run.filter.fits(of, owner.unwrap_or_default()))
    }

    /// Whether a block that only the disk has must not come into host memory: it would be meant there.
    pub(super) fn is_kept_from_host(&self, kind: Kind, hash: &BlockHash) -> bool {
        let Some(run) = self.evicting.running().filter(|run| run.filter.is_in(Tier::Host)) else { return false };
        let owner = self.disk.as_ref().zip(kind.disk).and_then(|(disk, class)| disk.owner(class, hash));
        run.filter.fits(self.host.store().fingerprint(kind.host), owner.unwrap_or_default())
    }

    /// Whether a block of host memory must not go to the disk.
    pub(super) fn is_kept_from_disk(&self, class: ClassId, hash: &BlockHash) -> bool {
        let run = self.evicting.running().filter(|run| run.filter.is_in(Tier::Disk));
        let owner = self.host.owner(class, hash).unwrap_or_default();
        self.is_hidden(Tier::Host, class, hash)
            || run.is_some_and(|run| run.filter.fits(self.host.store().fingerprint(class), owner))
    }

    pub(super) fn evict_slice(&mut self) {
        let (mut looks, mut left) = (LOOKS, BLOCKS_PER_SLICE);
        while looks > 0 && left > 0 {
            let Some(run) = self.evicting.0.as_mut().filter(|run| !run.progress.is_over) else { return };
            let Some((tier, walk)) = &mut run.walk else { return self.settle_eviction() };
            let tier = *tier;
            let stored = match (tier, &self.disk) {
                (Tier::Host, _) => self.host.step(walk, &mut looks),
                (Tier::Disk, Some(disk)) => disk.step(walk, &mut looks),
                (Tier::Disk, None) => None,
            };
            match stored {
                Some(stored) => left -= usize::from(self.evict_stored(tier, stored)),
                None if walk.is_over() => {
                    let disk = self.disk.as_ref().filter(|_| tier == Tier::Host && run.filter.is_in(Tier::Disk));
                    run.walk = disk.map(|disk| (Tier::Disk, disk.walk()));
                }
                None => return,
            }
        }
    }

    /// Whether it was meant.
    fn evict_stored(&mut self, tier: Tier, Stored { class, hash, .. }: Stored) -> bool {
        if !self.is_evicting(tier, class, &hash) {
            return false;
        }
        let bytes = match (tier, &self.disk) {
            (Tier::Disk, Some(disk)) => disk.store().block_bytes(class),
            (Tier::Host, _) | (Tier::Disk, None) => self.host.store().block_bytes(class),
        };
        let gone = self.doom(tier, class, hash, Left::Asked);
        if let Some(run) = &mut self.evicting.0 {
            let count = run.progress.count(tier);
            let (blocks, sum) = match gone {
                true => (&mut count.blocks, &mut count.bytes),
                false => (&mut count.held_blocks, &mut count.held_bytes),
            };
            *blocks += 1;
            *sum += bytes;
        }
        true
    }

    /// Everything was looked at; what the disk is at comes or goes yet.
    fn settle_eviction(&mut self) {
        let Some(run) = &mut self.evicting.0 else { return };
        let (host, filter) = (&self.host, &run.filter);
        let comes = filter.is_in(Tier::Host)
            && self.promotions.has(|kind, tenant| filter.fits(host.store().fingerprint(kind.host), tenant));
        let goes = filter.is_in(Tier::Disk) && self.demotions.has_void();
        run.progress.is_over = !comes && !goes;
        if let Some(disk) = self.disk.as_mut().filter(|_| run.progress.is_over && filter.is_in(Tier::Disk)) {
            disk.store_mut().erase_lost(|of| filter.is_of(of));
        }
    }
}
