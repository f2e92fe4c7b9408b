//! What a lookup found stays until it is loaded, given up, or too old.

use std::collections::{BTreeSet, HashSet};

use kvferry_core::{Fingerprint, Rank, Time, WorkId};

use super::promotions::{Name, Wants};
use super::{Kind, Lookup, Tier, TierEvent, TierFailure, Tiers};
use crate::host::Block;
use crate::store::{BlockHash, Store as _};

/// Blocks that a lookup found, held.
pub(super) struct Claim {
    pub(super) fingerprint: Fingerprint,
    /// In host memory.
    pub(super) blocks: Vec<Block>,
    /// Brought there from the disk, or on their way.
    pub(super) promoting: HashSet<Name>,
    /// Ranks that have not loaded.
    ranks: BTreeSet<Rank>,
    deadline: Time,
}

impl Tiers {
    /// Says how many of the first blocks are there, and keeps those under the name `claim`. [`TierEvent::Found`] follows.
    pub fn lookup(&mut self, now: Time, claim: WorkId, lookup: &Lookup) {
        let answer = self.look(now, claim, lookup);
        let none = vec![0; lookup.groups.len()];
        let event = match answer {
            Ok(found) => {
                let (held, on_disk) = found.into_iter().unzip();
                TierEvent::Found { claim, held, on_disk, failure: None }
            }
            Err(failure) => TierEvent::Found { claim, held: none.clone(), on_disk: none, failure: Some(failure) },
        };
        self.events.push_back(event);
        if !self.claims.contains_key(&claim) {
            self.events.push_back(TierEvent::Released { claim });
        }
    }

    /// Of each group, how many blocks are there, and how many of those some rank has on the disk alone.
    fn look(&mut self, now: Time, claim: WorkId, lookup: &Lookup) -> Result<Vec<(u32, u32)>, TierFailure> {
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
        if self.claims.len() >= self.limits.claims_max {
            return Err(TierFailure::Limit);
        }
        // All of them before the first block is held: who is refused holds nothing.
        let kinds = self.kinds(lookup).ok_or(TierFailure::Request)?;
        let (mut blocks, mut promoting, mut found) = (Vec::new(), HashSet::new(), Vec::new());
        for (of_ranks, chain) in kinds.into_iter().zip(&lookup.groups) {
            let there = of_ranks.iter().map(|&kind| self.request(now, kind, chain)).min().unwrap_or(0);
            let (mut held, mut on_disk, mut parent) = (0, 0, None);
            for hash in &chain[..there] {
                let before = promoting.len();
                if !of_ranks.iter().all(|&kind| self.hold(claim, (kind, *hash), parent, &mut blocks, &mut promoting)) {
                    break;
                }
                held += 1;
                on_disk += u32::from(promoting.len() > before);
                parent = Some(*hash);
            }
            found.push((held, on_disk));
        }
        if !blocks.is_empty() || !promoting.is_empty() {
            let deadline = now.after(self.limits.claim_max);
            self.deadlines.insert((deadline, claim));
            let ranks = lookup.devices.iter().map(|device| device.rank()).collect();
            let fingerprint = first.fingerprint();
            self.claims.insert(claim, Claim { fingerprint, blocks, promoting, ranks, deadline });
        }
        Ok(found)
    }

    /// Of each group, what its blocks are to each rank. `None`: no tier takes such blocks.
    fn kinds(&mut self, lookup: &Lookup) -> Option<Vec<Vec<Kind>>> {
        let mut of_group =
            |group| lookup.devices.iter().map(|device| self.kind(device, group)).collect::<Option<Vec<_>>>();
        (0..lookup.groups.len()).map(&mut of_group).collect()
    }

    /// A request came for this chain: how many of its first blocks are in some tier.
    fn request(&mut self, now: Time, kind: Kind, chain: &[BlockHash]) -> usize {
        self.host.request(now, kind.host, chain);
        if let (Some(disk), Some(class)) = (&mut self.disk, kind.disk) {
            disk.request(now, class, chain);
        }
        let in_host = |hash: &BlockHash| self.host.contains(kind.host, hash) && !self.is_going(kind, hash);
        let on_disk = |hash: &BlockHash| {
            self.disk
                .as_ref()
                .zip(kind.disk)
                .is_some_and(|(disk, class)| disk.contains(class, hash) && !self.is_hidden(Tier::Disk, class, hash))
        };
        chain.iter().take_while(|hash| in_host(hash) || on_disk(hash)).count()
    }

    /// Holds one block in host memory, or has it brought there. False: it turns out to be damaged, or goes.
    fn hold(
        &mut self,
        claim: WorkId,
        name: Name,
        parent: Option<BlockHash>,
        blocks: &mut Vec<Block>,
        promoting: &mut HashSet<Name>,
    ) -> bool {
        let is_going = self.is_going(name.0, &name.1);
        if !is_going && let Some(block) = self.host.pin(name.0.host, &name.1) {
            blocks.push(block);
            // It was there when it was asked for: somebody has used it before.
            self.want_on_disk(name, parent);
            return true;
        }
        let wanted = !is_going && self.promotions.want(self.disk.as_mut(), (name, parent), Wants::Claim(claim));
        if wanted {
            promoting.insert(name);
        }
        wanted
    }

    /// Whether nobody may begin to hold this block in host memory, or bring it there.
    fn is_going(&self, kind: Kind, hash: &BlockHash) -> bool {
        if self.host.owner(kind.host, hash).is_none() {
            return self.is_kept_from_host(kind, hash);
        }
        self.is_hidden(Tier::Host, kind.host, hash) || self.host.store().is_leaving(kind.host, hash)
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
        for name in claim_.promoting {
            self.promotions.leave(self.disk.as_mut(), name, claim);
        }
        self.drop_doomed();
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
