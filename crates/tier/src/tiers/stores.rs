//! Blocks out of an engine into a tier.
//!
//! ```text
//! Copying -> every block copied, or passed over -> Copied -> commit -> sealed, found
//!                                                        \-> abort, deadline -> room
//! ```
//!
//! Engines take turns, a job each; the stores of one are carried out in the order in which they came, since the blocks of a
//! later one may stand behind those of an earlier one ([`StoreTurns`]).

use std::collections::VecDeque;
use std::sync::Arc;

use kvferry_core::{BlockIndex, Time, WorkId};

use super::copying::BlockCopy;
use super::{
    Chunks, CopyJob, Device, Direction, JOB_BLOCKS, JOB_BYTES, Job, Kind, StoreRequest, TierEvent, TierFailure, Tiers,
};
use crate::cache::NotAdmitted;
use crate::host::{Filling, Slot};
use crate::store::{BlockHash, Reserved as _, Tenant};

/// A block that is to be taken in.
#[derive(Clone, Copy)]
struct Storing {
    kind: Kind,
    group: usize,
    parent: Option<BlockHash>,
    hash: BlockHash,
    source: BlockIndex,
}

/// A block that is on its way to its place.
pub(super) struct Place {
    kind: Kind,
    place: Filling,
    parent: Option<BlockHash>,
}

/// A block that is in its place, and that nobody finds yet.
pub(super) struct Filled {
    kind: Kind,
    place: Filling,
    sum: u32,
    parent: Option<BlockHash>,
}

/// One rank's store.
pub(super) struct Store {
    pub(super) device: Arc<Device>,
    tenant: Tenant,
    left: VecDeque<Storing>,
    jobs: usize,
    filled: Vec<Filled>,
    failure: Option<TierFailure>,
    /// Copied, and by when its engine must have spoken.
    waits_until: Option<Time>,
}

/// Whose blocks are taken in next: those of one rank after those of another, each rank's stores in order.
#[derive(Default)]
pub(super) struct StoreTurns(VecDeque<Waiting>);

/// Stores of one rank that have blocks left.
struct Waiting {
    device: Arc<Device>,
    stores: VecDeque<WorkId>,
}

impl StoreTurns {
    fn push(&mut self, device: &Arc<Device>, work: WorkId) {
        match self.0.iter_mut().find(|waiting| Arc::ptr_eq(&waiting.device, device)) {
            Some(waiting) => waiting.stores.push_back(work),
            None => self.0.push_back(Waiting { device: Arc::clone(device), stores: VecDeque::from([work]) }),
        }
    }

    /// It has nothing left to take in.
    pub(super) fn remove(&mut self, work: WorkId) {
        self.0.iter_mut().for_each(|waiting| waiting.stores.retain(|of| *of != work));
        self.0.retain(|waiting| !waiting.stores.is_empty());
    }
}

impl Store {
    pub(super) fn fail(&mut self, failure: TierFailure) {
        self.failure.get_or_insert(failure);
        self.left.clear();
    }
}

impl Tiers {
    /// Copies blocks out of an engine's memory. [`TierEvent::Copied`] follows, once.
    pub fn store(&mut self, work: WorkId, request: &StoreRequest) {
        match self.accept_store(work, request) {
            Ok(store) => {
                self.store_turns.push(&store.device, work);
                self.stores.insert(work, store);
            }
            Err(failure) => self.events.push_back(TierEvent::Copied { work, failure: Some(failure) }),
        }
    }

    fn accept_store(&mut self, work: WorkId, request: &StoreRequest) -> Result<Store, TierFailure> {
        let device = &request.device;
        if self.is_clearing(device) {
            return Err(TierFailure::Cleared);
        }
        if self.is_full()
            || request.groups.iter().map(|(_, blocks)| blocks.len()).sum::<usize>() > self.limits.blocks_max
        {
            return Err(TierFailure::Limit);
        }
        if self.stores.contains_key(&work) || request.groups.len() > device.group_count() {
            return Err(TierFailure::Request);
        }
        let mut left = VecDeque::new();
        for (group, (first, blocks)) in request.groups.iter().enumerate().filter(|(_, (_, blocks))| !blocks.is_empty())
        {
            let kind = self.kind(device, group).ok_or(TierFailure::Request)?;
            let block_count = device.group(group).map_or(0, kvferry_core::layout::Layout::block_count);
            let mut parent = *first;
            for &(hash, source) in blocks {
                if source.0 >= block_count {
                    return Err(TierFailure::Request);
                }
                left.push_back(Storing { kind, group, parent, hash, source });
                parent = Some(hash);
            }
        }
        let (device, tenant) = (Arc::clone(device), request.tenant);
        Ok(Store { device, tenant, left, jobs: 0, filled: Vec::new(), failure: None, waits_until: None })
    }

    /// The next blocks to take in, for which nobody waits; as [`poll_load`](Self::poll_load).
    pub fn poll_store(&mut self, now: Time) -> Option<CopyJob> {
        while let Some(mut waiting) = self.store_turns.0.pop_front() {
            while let Some(&work) = waiting.stores.front() {
                if let Some(job) = self.next_store_job(now, work) {
                    self.store_turns.0.push_back(waiting);
                    return Some(job);
                }
                waiting.stores.pop_front();
                self.settle_store(now, work);
            }
        }
        None
    }

    /// The next blocks of a store; none when there are no more for which there is room.
    fn next_store_job(&mut self, now: Time, work: WorkId) -> Option<CopyJob> {
        let store = self.stores.get_mut(&work)?;
        let (device, tenant) = (Arc::clone(&store.device), store.tenant);
        let (mut places, mut copies): (Vec<_>, Vec<_>) = (Vec::new(), Vec::new());
        let mut bytes = 0;
        let mut of: Option<(usize, Chunks<'_>)> = None;
        while bytes < JOB_BYTES && places.len() < JOB_BLOCKS {
            let group = of.as_ref().map(|(group, _)| *group);
            let Some(next) = store.left.pop_front_if(|next| group.is_none_or(|group| next.group == group)) else {
                break;
            };
            let place = match self.host.admit(now, next.kind.host, next.hash, next.parent, tenant) {
                Ok(place) => place,
                Err(NotAdmitted::There) => continue,
                // Nor is there room for what stands behind it. Places in memory are never still to be made.
                Err(
                    NotAdmitted::WithoutParent
                    | NotAdmitted::Quota
                    | NotAdmitted::ReadOnly
                    | NotAdmitted::WorthLess
                    | NotAdmitted::NotYet,
                ) => {
                    store.left.retain(|left| left.group != next.group);
                    continue;
                }
            };
            let slot = Slot::from(&place);
            let chunk = match (&mut of, device.group(next.group)) {
                (Some((_, chunks)), _) => chunks.layout(&self.host, slot),
                (none, Some(layout)) => {
                    none.insert((next.group, Chunks::new(next.kind.host, layout))).1.layout(&self.host, slot)
                }
                (None, None) => None,
            };
            let Some(chunk) = chunk else {
                self.host.abandon(place);
                store.fail(TierFailure::Request);
                break;
            };
            bytes += place.bytes;
            copies.push(BlockCopy { block: next.source, slot, chunk });
            places.push(Place { kind: next.kind, place, parent: next.parent });
        }
        let (group, _) = of?;
        if places.is_empty() {
            return None;
        }
        store.jobs += 1;
        let id = self.draw_job();
        self.jobs.insert(id, Job::Store(work, places));
        let host = Arc::clone(self.host.store().region());
        Some(CopyJob { id, direction: Direction::Store, device, group, host, blocks: copies })
    }

    pub(super) fn handle_stored(&mut self, now: Time, work: WorkId, places: Vec<Place>, sums: &[u32]) {
        // Its store ends only once all its jobs have.
        let Some(store) = self.stores.get_mut(&work) else { return };
        store.jobs -= 1;
        for (number, Place { kind, place, parent }) in places.into_iter().enumerate() {
            match sums.get(number) {
                Some(&sum) => store.filled.push(Filled { kind, place, sum, parent }),
                None => {
                    self.host.abandon(place);
                    store.fail(TierFailure::Request);
                }
            }
        }
        self.settle_store(now, work);
    }

    /// Says that a store has copied all it will, or that it came to nothing.
    pub(super) fn settle_store(&mut self, now: Time, work: WorkId) {
        let Some(store) = self.stores.get_mut(&work) else { return };
        if !store.left.is_empty() || store.jobs > 0 {
            return;
        }
        let was_said = store.waits_until.is_some();
        let failure = store.failure;
        if failure.is_some() {
            self.let_go(work);
        } else if !was_said {
            let until = now.after(self.limits.commit_max);
            store.waits_until = Some(until);
            self.deadlines.insert((until, work));
        }
        if !was_said {
            self.events.push_back(TierEvent::Copied { work, failure });
        } else if failure.is_some() {
            // Its engine, which may have vouched for it meanwhile, has no other last word.
            self.events.push_back(TierEvent::Stored { work, blocks: 0 });
        }
    }

    /// The engine's word that nothing wrote to the blocks of a store before [`TierEvent::Copied`] came: they are found from
    /// now on, and [`TierEvent::Stored`] follows. Of a store that has not said so yet nothing is; one that was given up has had
    /// its last word.
    pub fn commit(&mut self, now: Time, work: WorkId) {
        match self.stores.get(&work).map(|store| store.waits_until) {
            // A word about what is still being read is worth nothing.
            Some(None) => return self.fail(now, work, TierFailure::Request),
            Some(Some(until)) if until > now => self.deadlines.remove(&(until, work)),
            // It has had its last word, or is about to have it.
            Some(Some(_)) | None => return,
        };
        let Some(store) = self.stores.remove(&work) else { return };
        let mut blocks = 0;
        for Filled { kind, place, sum, parent } in store.filled {
            let hash = place.hash();
            blocks += u64::from(self.host.seal(place, sum, parent));
            if self.host.is_likely(kind.host, &hash) {
                self.want_on_disk((kind, hash), parent);
            }
        }
        self.events.push_back(TierEvent::Stored { work, blocks });
    }

    /// What a store has copied is room again, the last block first.
    fn let_go(&mut self, work: WorkId) {
        let Some(store) = self.stores.remove(&work) else { return };
        if let Some(until) = store.waits_until {
            self.deadlines.remove(&(until, work));
        }
        for filled in store.filled.into_iter().rev() {
            self.host.abandon(filled.place);
        }
    }
}

#[cfg(test)]
impl StoreTurns {
    pub(super) fn waiting(&self) -> usize {
        self.0.iter().map(|waiting| waiting.stores.len()).sum()
    }
}
