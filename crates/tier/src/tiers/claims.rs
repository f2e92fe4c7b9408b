//! What a lookup found stays until it is loaded, given up, or too old.

use std::collections::BTreeSet;

use kvferry_core::{Fingerprint, Rank, Time, WorkId};

use super::{Lookup, TierEvent, TierFailure, Tiers};
use crate::host::Block;
use crate::store::{BlockHash, ClassId};

/// Blocks that a lookup found, held.
pub(super) struct Claim {
    pub(super) fingerprint: Fingerprint,
    blocks: Vec<Block>,
    /// Ranks that have not loaded.
    ranks: BTreeSet<Rank>,
    deadline: Time,
}

impl Tiers {
    /// Says how many of the first blocks are there, and keeps those under the name `claim`. [`TierEvent::Found`] follows.
    pub fn lookup(&mut self, now: Time, claim: WorkId, lookup: &Lookup) {
        let answer = self.look(now, claim, lookup);
        let (held, failure) = match answer {
            Ok(held) => (held, None),
            Err(failure) => (vec![0; lookup.groups.len()], Some(failure)),
        };
        self.events.push_back(TierEvent::Found { claim, held, failure });
        if !self.claims.contains_key(&claim) {
            self.events.push_back(TierEvent::Released { claim });
        }
    }

    fn look(&mut self, now: Time, claim: WorkId, lookup: &Lookup) -> Result<Vec<u32>, TierFailure> {
        let Some(first) = lookup.devices.first() else { return Err(TierFailure::Request) };
        if lookup.groups.iter().map(Vec::len).sum::<usize>() > self.limits.blocks_max {
            return Err(TierFailure::Limit);
        }
        if self.claims.contains_key(&claim) || lookup.devices.iter().any(|d| d.group_count() < lookup.groups.len()) {
            return Err(TierFailure::Request);
        }
        if self.is_clearing(first) {
            return Err(TierFailure::Cleared);
        }
        let mut classes: Vec<Vec<ClassId>> = Vec::with_capacity(lookup.groups.len());
        let mut held = Vec::with_capacity(lookup.groups.len());
        for (group, chain) in lookup.groups.iter().enumerate() {
            let of_ranks = lookup.devices.iter().map(|device| self.class(device, group).ok_or(TierFailure::Request));
            let of_ranks = of_ranks.collect::<Result<Vec<_>, _>>()?;
            let there = of_ranks.iter().map(|&class| self.host.request(now, class, chain)).min().unwrap_or(0);
            let is_whole = |hash: &BlockHash| !of_ranks.iter().any(|&class| self.damaged.contains(&(class, *hash)));
            held.push(chain.iter().take(there).take_while(|hash| is_whole(hash)).count());
            classes.push(of_ranks);
        }
        if self.claims.len() >= self.limits.claims_max {
            return Err(TierFailure::Limit);
        }
        let blocks = self.hold(&lookup.groups, &classes, &mut held);
        if !blocks.is_empty() {
            let deadline = now.after(self.limits.claim_max);
            self.deadlines.insert((deadline, claim));
            let ranks = lookup.devices.iter().map(|device| device.rank()).collect();
            self.claims.insert(claim, Claim { fingerprint: first.fingerprint(), blocks, ranks, deadline });
        }
        Ok(held.into_iter().map(|count| u32::try_from(count).unwrap_or(u32::MAX)).collect())
    }

    /// Holds the first blocks of each group at each rank; fewer, where one turns out to be damaged.
    fn hold(&mut self, groups: &[Vec<BlockHash>], classes: &[Vec<ClassId>], held: &mut [usize]) -> Vec<Block> {
        let mut blocks = Vec::new();
        for ((chain, classes), held) in groups.iter().zip(classes).zip(held) {
            for (place, hash) in chain.iter().enumerate().take(*held) {
                let pinned: Vec<_> = classes.iter().map_while(|&class| self.host.pin(class, hash)).collect();
                let is_whole = pinned.len() == classes.len();
                blocks.extend(pinned);
                if !is_whole {
                    *held = place;
                    break;
                }
            }
        }
        blocks
    }

    /// Nobody will load what this lookup found. An unknown one is ignored.
    pub fn forget(&mut self, claim: WorkId) {
        self.drop_claim(claim);
    }

    pub(super) fn drop_claim(&mut self, claim: WorkId) {
        let Some(claim_) = self.claims.remove(&claim) else { return };
        self.deadlines.remove(&(claim_.deadline, claim));
        for block in &claim_.blocks {
            self.host.unpin(block);
        }
        self.drop_damaged();
        self.events.push_back(TierEvent::Released { claim });
    }

    /// One rank is done with what a lookup found.
    pub(super) fn rank_loaded(&mut self, claim: WorkId, rank: Rank) {
        let Some(open) = self.claims.get_mut(&claim) else { return };
        open.ranks.remove(&rank);
        if open.ranks.is_empty() {
            self.drop_claim(claim);
        }
    }
}
