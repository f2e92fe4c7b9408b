//! What the tiers hold, for people.
//!
//! ```text
//! list -> slice, slice, ... each of few rows, between what engines ask -> Listed -> by_fingerprint, on another thread
//! ```
//!
//! What comes and goes meanwhile is told or not. A few rows are told at once, without a slice.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use kvferry_core::{Fingerprint, WorkId};

use super::{Tier, TierEvent, Tiers};
use crate::cache::{Cache, Holding};
use crate::store::Tenant;

/// One that is not all told.
pub(super) struct Listing {
    work: WorkId,
    holdings: Vec<(Tier, Holding)>,
    at: (Tier, usize),
}

impl Tiers {
    /// Asks what the tiers hold. [`TierEvent::Listed`] follows, after some [slices](Self::slice); one list after the other.
    pub fn list(&mut self, work: WorkId) {
        let rows = self.host.holdings() + self.disk.as_ref().map_or(0, Cache::holdings);
        self.lists.push_back(Listing { work, holdings: Vec::with_capacity(rows), at: (Tier::Host, 0) });
        if self.lists.len() == 1 {
            self.list_piece();
        }
    }

    pub(super) fn list_piece(&mut self) {
        let Some(Listing { work, holdings, at }) = self.lists.front_mut() else { return };
        // Not past a piece that was full: the next tier is the next slice's.
        loop {
            let (tier, from) = *at;
            let tell = |holding| holdings.push((tier, holding));
            let next = match (tier, &self.disk) {
                (Tier::Host, _) => self.host.holdings_piece(from, tell),
                (Tier::Disk, Some(disk)) => disk.holdings_piece(from, tell),
                (Tier::Disk, None) => None,
            };
            match (next, tier) {
                (Some(next), _) => return at.1 = next,
                (None, Tier::Host) => *at = (Tier::Disk, 0),
                (None, Tier::Disk) => break,
            }
        }
        let (work, holdings) = (*work, std::mem::take(holdings));
        self.lists.pop_front();
        self.events.push_back(TierEvent::Listed { work, holdings });
    }
}

/// Sums what a list tells of each class by itself: each fingerprint and tenant once for each tier. For a hundred thousand
/// rows this takes many milliseconds, so it is not for a thread that anybody waits for.
#[must_use]
pub fn by_fingerprint(holdings: &[(Tier, Holding)]) -> Vec<(Tier, Holding)> {
    let mut places: HashMap<(Tier, Fingerprint, Tenant), usize, RandomState> = HashMap::default();
    let mut sums: Vec<(Tier, Holding)> = Vec::with_capacity(holdings.len());
    for &(tier, of) in holdings {
        let place = *places.entry((tier, of.fingerprint, of.tenant)).or_insert(sums.len());
        let Some((_, sum)) = sums.get_mut(place) else {
            sums.push((tier, of));
            continue;
        };
        sum.blocks += of.blocks;
        sum.bytes += of.bytes;
        sum.hits += of.hits;
        sum.used = sum.used.max(of.used);
    }
    sums
}
