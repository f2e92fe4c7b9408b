//! Blocks on their way from the disk into host memory.
//!
//! ```text
//! want(block) -> Waiting (held on the disk) -> a place in host memory -> Reading -> sealed -> who wants it holds it there
//! ```
//!
//! A lookup wants what it found, before anybody loads it; a load wants what is not there yet. One read serves all who want
//! the block. What nobody wants any more before it is read is not read. Everybody has a queue, and the queues take turns:
//! who wants little does not wait behind all that another wants. Limits: as many as claims and loads name;
//! [`READS_MAX`] at the disk. Failure: whoever waits for the block fails; a block that is damaged is gone from the disk.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use kvferry_core::{Time, WorkId};

use super::loads::Loading;
use super::{DiskJob, Kind, Tier, TierFailure, Tiers};
use crate::cache::{Cache, Left, NotAdmitted};
use crate::disk::{self, DiskError, Shelf, Span};
use crate::host;
use crate::store::{BlockHash, Held as _, Tenant};

/// Reads of blocks at the disk at once.
pub(super) const READS_MAX: usize = 32;
/// Slots of host memory begin on pages, and end on them.
const PAGE: u64 = 4096;

/// One block, and the numbers that its tiers have for it.
pub(super) type Name = (Kind, BlockHash);

/// See the module.
#[derive(Default)]
pub(super) struct Promotions {
    open: HashMap<Name, Promotion>,
    /// What a claim or a load waits for, in the order of its chains: a block is taken in behind the one before it. What has
    /// been begun for another, or is not wanted any more, is passed over.
    queues: HashMap<WorkId, VecDeque<(Name, u64)>>,
    /// Whose turn it is, of those that have a queue.
    turns: VecDeque<WorkId>,
    next_number: u64,
    reading: HashMap<u64, Name>,
}

struct Promotion {
    /// Of its own, so that a place in a queue is not taken for one of a later promotion of the same block.
    number: u64,
    state: State,
    parent: Option<BlockHash>,
    tenant: Tenant,
    claims: Vec<WorkId>,
    loads: Vec<(WorkId, Loading)>,
    /// What the disk brings is to be forgotten.
    is_void: bool,
}

enum State {
    Waiting(disk::Block),
    Reading(host::Filling),
}

/// Who wants a block.
#[derive(Clone, Copy)]
pub(super) enum Wants {
    Claim(WorkId),
    /// With the claim of the lookup that came before it.
    Load {
        claim: WorkId,
        work: WorkId,
        loading: Loading,
    },
}

impl Promotions {
    /// `parent`, where it is known. False: the disk does not have the block.
    pub(super) fn want(
        &mut self,
        disk: Option<&mut Cache<Shelf>>,
        (name, parent): (Name, Option<BlockHash>),
        who: Wants,
    ) -> bool {
        let promotion = match self.open.entry(name) {
            Entry::Occupied(open) => open.into_mut(),
            Entry::Vacant(vacant) => {
                let (Some(disk), Some(class)) = (disk, name.0.disk) else { return false };
                let Some(block) = disk.pin(class, &name.1) else { return false };
                // Not from the disk: nobody waits for it in here.
                let parent = parent.or_else(|| disk.parent(class, &name.1));
                let tenant = disk.owner(class, &name.1).unwrap_or_default();
                let (claims, loads) = (Vec::new(), Vec::new());
                let (state, number) = (State::Waiting(block), self.next_number);
                self.next_number += 1;
                vacant.insert(Promotion { number, state, parent, tenant, claims, loads, is_void: false })
            }
        };
        let queue = match who {
            Wants::Claim(claim) => {
                promotion.claims.push(claim);
                Some(claim)
            }
            Wants::Load { claim, work, loading } => {
                promotion.loads.push((work, loading));
                // Else it is in the claim's queue, behind what it stands on.
                (!promotion.claims.contains(&claim)).then_some(work)
            }
        };
        if let (State::Waiting(_), Some(who)) = (&promotion.state, queue) {
            let queue = self.queues.entry(who).or_default();
            if queue.is_empty() {
                self.turns.push_back(who);
            }
            queue.push_back((name, promotion.number));
        }
        true
    }

    /// The next that waits, and whose turn it is.
    fn next(&mut self) -> Option<(WorkId, Name)> {
        while let Some(who) = self.turns.pop_front() {
            let Entry::Occupied(mut queue) = self.queues.entry(who) else { continue };
            let next = queue.get_mut().pop_front();
            if queue.get().is_empty() {
                queue.remove();
            } else {
                self.turns.push_back(who);
            }
            if let Some((name, number)) = next
                && let Some(Promotion { state: State::Waiting(_), number: of, .. }) = self.open.get(&name)
                && *of == number
            {
                return Some((who, name));
            }
        }
        None
    }

    /// It was the turn of `who`, and there is no room yet: the same again next time.
    fn stay_next(&mut self, who: WorkId, name: Name) {
        let Some(promotion) = self.open.get(&name) else { return };
        let queue = self.queues.entry(who).or_default();
        if !queue.is_empty() {
            self.turns.retain(|of| *of != who);
        }
        queue.push_front((name, promotion.number));
        self.turns.push_front(who);
    }

    /// This claim wants the block no more.
    pub(super) fn leave(&mut self, disk: Option<&mut Cache<Shelf>>, name: Name, claim: WorkId) {
        let Entry::Occupied(mut open) = self.open.entry(name) else { return };
        open.get_mut().claims.retain(|of| *of != claim);
        if let Promotion { state: State::Waiting(_), claims, loads, .. } = open.get()
            && claims.is_empty()
            && loads.is_empty()
            && let (State::Waiting(block), Some(disk)) = (open.remove().state, disk)
        {
            disk.unpin(&block);
        }
    }

    pub(super) fn reads(&self) -> usize {
        self.reading.len()
    }

    /// Whether something of such a kind and tenant is on its way.
    pub(super) fn has(&self, is_of: impl Fn(&Kind, Tenant) -> bool) -> bool {
        self.open.iter().any(|((kind, _), promotion)| is_of(kind, promotion.tenant))
    }

    /// What is on its way of such kinds is to be forgotten.
    pub(super) fn void(&mut self, mut disk: Option<&mut Cache<Shelf>>, is_of: impl Fn(&Kind) -> bool) {
        let of = self.open.extract_if(|(kind, _), promotion| {
            promotion.is_void |= is_of(kind);
            promotion.is_void && matches!(promotion.state, State::Waiting(_))
        });
        for (_, promotion) in of {
            if let (State::Waiting(block), Some(disk)) = (promotion.state, disk.as_deref_mut()) {
                disk.unpin(&block);
            }
        }
    }
}

impl Tiers {
    /// The next block to read.
    pub(super) fn next_read(&mut self, now: Time) -> Option<DiskJob> {
        while self.promotions.reads() < READS_MAX {
            let (who, name) = self.promotions.next()?;
            let Entry::Occupied(mut open) = self.promotions.open.entry(name) else { continue };
            let (parent, tenant) = (open.get().parent, open.get().tenant);
            let State::Waiting(_) = &open.get().state else { continue };
            match self.host.admit_wanted(now, name.0.host, name.1, parent, tenant) {
                Ok(filling) => {
                    let room = filling.bytes.next_multiple_of(PAGE);
                    let span = Span { region: Arc::clone(self.host.store().region()), offset: filling.offset, room };
                    self.next_tag += 1;
                    let tag = self.next_tag;
                    let before = std::mem::replace(&mut open.get_mut().state, State::Reading(filling));
                    self.promotions.reading.insert(tag, name);
                    let State::Waiting(block) = before else { continue };
                    return Some(DiskJob::Read { tag, block, span });
                }
                Err(NotAdmitted::NotYet) => {
                    self.promotions.stay_next(who, name);
                    return None;
                }
                Err(refused) => {
                    let promotion = open.remove();
                    if let (State::Waiting(block), Some(disk)) = (promotion.state, &mut self.disk) {
                        disk.unpin(&block);
                    }
                    // An engine has stored it meanwhile, or what it stands behind did not come.
                    let failure = (refused != NotAdmitted::There).then_some(TierFailure::Evicted);
                    self.promoted(name, &promotion.claims, promotion.loads, failure);
                }
            }
        }
        None
    }

    /// The disk has brought a block, or not.
    pub(super) fn handle_read(&mut self, tag: u64, block: &disk::Block, outcome: Result<(), DiskError>) {
        let Some(name) = self.promotions.reading.remove(&tag) else { return };
        let Some(promotion) = self.promotions.open.remove(&name) else { return };
        let Promotion { state: State::Reading(filling), parent, claims, loads, is_void, .. } = promotion else {
            return;
        };
        let mut failure = match outcome {
            _ if is_void => Some(TierFailure::Cleared),
            Ok(()) => None,
            Err(DiskError::Damaged | DiskError::Short) => Some(TierFailure::Checksum),
            Err(DiskError::Io(_) | DiskError::Outside) => Some(TierFailure::Disk),
        };
        let checksum = block.checksum();
        if let (Some(disk), Some(class)) = (&mut self.disk, name.0.disk) {
            match failure {
                Some(TierFailure::Checksum) if !disk.discard(class, &name.1, block) => {
                    self.doomed.insert(Tier::Disk, class, name.1, Left::Damaged);
                }
                Some(TierFailure::Checksum) => {}
                _ => {
                    disk.unpin(block);
                }
            }
        }
        if failure.is_some() {
            self.host.abandon(filling);
        } else if !self.host.seal(filling, checksum, parent) {
            failure = Some(TierFailure::Evicted);
        }
        self.promoted(name, &claims, loads, failure);
        if self.is_evicting(Tier::Host, name.0.host, &name.1) {
            self.doom(Tier::Host, name.0.host, name.1, Left::Asked);
        }
        self.drop_doomed();
    }

    /// Tells who wants a block that it is there, or not.
    fn promoted(&mut self, name: Name, claims: &[WorkId], loads: Vec<(WorkId, Loading)>, failure: Option<TierFailure>) {
        for claim in claims.iter().filter(|_| failure.is_none()) {
            if let Some(claim) = self.claims.get_mut(claim) {
                claim.blocks.extend(self.host.pin(name.0.host, &name.1));
            }
        }
        for (work, loading) in loads {
            let Some(load) = self.loads.get_mut(&work) else { continue };
            let block = if failure.is_none() { self.host.pin(name.0.host, &name.1) } else { None };
            load.brought(loading, block, failure.unwrap_or(TierFailure::Evicted));
            if !self.load_turns.contains(&work) {
                self.load_turns.push_back(work);
            }
        }
    }
}
