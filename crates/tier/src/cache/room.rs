//! Who goes when a block is to come.

use std::cell::Cell;
use std::collections::HashSet;

use kvferry_core::Time;

use super::{Cache, Left, Name};
use crate::eviction::BlockNumber;
use crate::store::{ClassId, Store, Tenant};

/// The block that room is made for.
#[derive(Clone, Copy)]
pub(super) struct Newest {
    pub(super) number: BlockNumber,
    /// Whether it may turn out to be worth least.
    pub(super) may_go: bool,
}

impl Newest {
    /// Whether this is the block, and may go.
    const fn is(self, block: BlockNumber) -> bool {
        self.may_go && block == self.number
    }
}

impl<S: Store> Cache<S> {
    /// Bytes that these tenants may have from now on. What anybody has beyond its quota goes now, from the ends of its chains
    /// that are worth least, but for what is held; that counts against what is stored later. Looks at all blocks: for the
    /// start.
    pub fn set_quotas(&mut self, now: Time, quotas: impl IntoIterator<Item = (Tenant, u64)>) {
        quotas.into_iter().for_each(|(tenant, bytes)| self.tenants.set_quota(tenant, bytes));
        let over: HashSet<Tenant> = self.tenants.over().into_iter().collect();
        if over.is_empty() {
            return;
        }
        // All of them in one pass: each tenant's own in their order.
        let is_of_those = |leaf| self.tenants.owner(leaf).is_some_and(|tenant| over.contains(&tenant));
        for leaf in self.eviction.least_first(now, is_of_those) {
            let mut end = Some(leaf);
            while let Some(block) = end.filter(|&block| self.is_too_much(block)) {
                end = self.eviction.parent(block);
                self.eviction.lose(block);
                self.evict(block, Left::Quota);
            }
        }
    }

    /// Whether the block's tenant has more than it may, and the block is the last one of its chain, and held by nobody.
    fn is_too_much(&self, block: BlockNumber) -> bool {
        let name = self.names[block as usize];
        self.tenants.owner(block).is_some_and(|tenant| self.held_by(tenant) > self.tenants.quota(tenant))
            && self.eviction.is_leaf(block)
            && !self.fillings.has(block)
            && name.is_some_and(|(class, hash)| self.store.may_go(class, &hash))
    }

    /// One block of this tenant less. False: none goes for this one.
    pub(super) fn evict_of(&mut self, now: Time, tenant: Tenant, newest: Newest) -> bool {
        let (store, names, tenants, fillings) = (&self.store, &self.names, &self.tenants, &self.fillings);
        let may_go = |block: BlockNumber| {
            newest.is(block)
                || (tenants.owner(block) == Some(tenant)
                    && names[block as usize].is_some_and(|(class, hash)| store.may_go(class, &hash))
                    && !fillings.has(block))
        };
        let victim = self.eviction.victim(now, newest.number, may_go).filter(|&victim| victim != newest.number);
        victim.is_some_and(|victim| self.evict(victim, Left::Quota))
    }

    /// A victim leaves the store.
    fn evict(&mut self, victim: BlockNumber, why: Left) -> bool {
        let Some((class, hash)) = self.names[victim as usize] else { return false };
        self.remove(class, &hash, why)
    }

    /// One block less, or a part's worth of them. False: nobody goes for this one.
    pub(super) fn make_room(&mut self, now: Time, class: ClassId, newest: Newest) -> bool {
        let (store, names, fillings) = (&self.store, &self.names, &self.fillings);
        let has_rivals = Cell::new(false);
        // One that comes once more takes its room all the same.
        let may_go = |block: BlockNumber| {
            let is_free = |(of, hash): Name| of == class && store.may_go(of, &hash) && !fillings.has(block);
            let is_rival = names[block as usize].is_some_and(is_free);
            has_rivals.set(has_rivals.get() || is_rival);
            is_rival || newest.is(block)
        };
        match self.eviction.victim(now, newest.number, may_go) {
            Some(victim) if victim != newest.number => self.evict(victim, Left::Room),
            // The first of its class, for one, competes with nobody of its kind.
            _ => !has_rivals.get() && self.take_part(class),
        }
    }

    /// Empties a part of another class. False: nothing goes for this one now.
    fn take_part(&mut self, class: ClassId) -> bool {
        let names = self.store.part_for(class);
        let mut room = false;
        for (of, hash) in names {
            room |= self.remove(of, &hash, Left::Displaced);
        }
        room
    }
}
