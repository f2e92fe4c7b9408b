//! The tiers of one node: what engines look up, load and store, as decisions without a thread or a clock.
//!
//! ```text
//! lookup(chain)  -> Found: how many first blocks are there; they stay, under a claim
//! load(blocks)   -> poll_load  -> [copying thread] -> handle_copied, checksums compared -> Loaded
//! store(blocks)  -> poll_store -> [copying thread] -> handle_copied -> Copied -> commit -> found by lookups
//! ```
//!
//! A block is found only once its engine has said, after the copy, that nothing wrote to it meanwhile ([`Tiers::commit`]):
//! no engine has to wait for a daemon before it uses its memory again, and what was overwritten in the middle of a copy is
//! never found. A block reaches an engine only with the checksum it was stored with, else the load fails.
//!
//! Every call is short, since a look-up waits for whatever the thread is at: what takes longer than a few hundred
//! microseconds is a [`Chore`] for another thread, or done in pieces by [`Tiers::tidy`].
//!
//! Nobody waits behind all blocks of another request: each load gets one job at a time, in turn, and so does each engine's
//! oldest store. Limits: [`TierLimits`]. Failure: a [`TierFailure`], and nothing in here touches the engine's blocks any more.

mod chores;
mod claims;
mod copying;
mod demotions;
mod device;
mod doomed;
mod evicting;
mod listing;
mod loads;
mod messages;
mod promotions;
mod stores;
mod sweeps;
mod verifying;

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;
use kvferry_core::layout::Layout;
use kvferry_core::{Fingerprint, Time, WorkId};

use self::chores::Clearing;
pub use self::chores::{CHORES_MAX, Chore, ChoreDone};
use self::claims::Claim;
use self::copying::Direction;
pub use self::copying::{Copied, CopyJob, JobId};
use self::demotions::Demotions;
pub use self::device::Device;
use self::doomed::Doomed;
use self::evicting::Evicting;
use self::listing::Listing;
pub use self::listing::by_fingerprint;
use self::loads::{Load, Loading};
pub use self::messages::{
    ChainPiece, DiskJob, LoadRequest, Loaded, Lookup, StoreRequest, Tier, TierEvent, TierFailure,
};
use self::promotions::Promotions;
use self::stores::{Store, StoreTurns};
pub use self::sweeps::{Sweep, SweepCount, SweepFilter, SweepProgress};
use self::verifying::Verifying;
pub use self::verifying::{CheckJob, Checked};
use crate::cache::{Cache, Change};
use crate::disk::{Done, Shelf};
use crate::host::{Arena, Block};
use crate::store::ClassId;

/// Bytes of one job: long enough that its messages cost little, short enough that a load waits for little.
const JOB_BYTES: u64 = 2 << 20;
/// Blocks of one job, where they are small.
const JOB_BLOCKS: usize = 64;

/// What tiers refuse to exceed.
#[derive(Clone, Copy, Debug)]
pub struct TierLimits {
    /// Lookups whose blocks are kept.
    pub claims_max: usize,
    /// Loads and stores that have not ended.
    pub works_max: usize,
    /// Blocks of one lookup, load or store, of all groups.
    pub blocks_max: usize,
    /// How long the blocks of a lookup stay for who does not load them.
    pub claim_max: Duration,
    /// How long blocks that were copied wait for their engine's word.
    pub commit_max: Duration,
}

/// Blocks of one part, as each tier numbers their class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Kind {
    host: ClassId,
    /// None: no disk takes them.
    disk: Option<ClassId>,
}

/// See the module.
pub struct Tiers {
    host: Cache<Arena>,
    disk: Option<Cache<Shelf>>,
    promotions: Promotions,
    demotions: Demotions,
    next_tag: u64,
    limits: TierLimits,
    claims: HashMap<WorkId, Claim>,
    loads: HashMap<WorkId, Load>,
    stores: HashMap<WorkId, Store>,
    /// Whose turn it is.
    load_turns: VecDeque<WorkId>,
    store_turns: StoreTurns,
    jobs: HashMap<JobId, Job>,
    next_job: u64,
    deadlines: BTreeSet<(Time, WorkId)>,
    /// What is to be forgotten once no job is at it.
    clearing: Vec<Clearing>,
    doomed: Doomed,
    lists: VecDeque<Listing>,
    evicting: Evicting,
    verifying: Verifying,
    /// Classes of first ranks: whose they are, and which cache group.
    owners: HashMap<(Tier, ClassId), (Fingerprint, u32)>,
    events: VecDeque<TierEvent>,
}

/// What a copying thread has been handed.
enum Job {
    Load(WorkId, Vec<(Loading, Block)>),
    Store(WorkId, Vec<stores::Place>),
}

impl Tiers {
    /// Over what host memory holds, and a disk where there is one.
    #[must_use]
    pub fn new(host: Cache<Arena>, mut disk: Option<Cache<Shelf>>, limits: TierLimits) -> Self {
        if let Some(disk) = &mut disk {
            disk.store_mut().hand_out_making();
        }
        Self {
            host,
            disk,
            promotions: Promotions::default(),
            demotions: Demotions::default(),
            next_tag: 0,
            limits,
            claims: HashMap::new(),
            loads: HashMap::new(),
            stores: HashMap::new(),
            load_turns: VecDeque::new(),
            store_turns: StoreTurns::default(),
            jobs: HashMap::new(),
            next_job: 0,
            deadlines: BTreeSet::new(),
            clearing: Vec::new(),
            doomed: Doomed::default(),
            lists: VecDeque::new(),
            evicting: Evicting::default(),
            verifying: Verifying::default(),
            owners: HashMap::new(),
            events: VecDeque::new(),
        }
    }

    /// What host memory holds.
    #[must_use]
    pub const fn host(&self) -> &Cache<Arena> {
        &self.host
    }

    /// What the disk holds, where there is one.
    #[must_use]
    pub const fn disk(&self) -> Option<&Cache<Shelf>> {
        self.disk.as_ref()
    }

    /// Claims, loads and stores that have not ended.
    #[must_use]
    pub fn open(&self) -> (usize, usize, usize) {
        (self.claims.len(), self.loads.len(), self.stores.len())
    }

    /// The next thing to say.
    pub fn poll_event(&mut self) -> Option<TierEvent> {
        if self.events.is_empty() {
            self.tell_changes();
        }
        self.events.pop_front()
    }

    /// The next blocks that an engine waits for; every job is to be answered by [`handle_copied`](Self::handle_copied).
    pub fn poll_load(&mut self) -> Option<CopyJob> {
        while let Some(work) = self.load_turns.pop_front() {
            if let Some(job) = self.next_load_job(work) {
                self.load_turns.push_back(work);
                return Some(job);
            }
            self.settle_load(work);
        }
        None
    }

    /// The next block for the disk, or from it: those that somebody waits for come first, those that are only looked at last.
    pub fn poll_disk(&mut self, now: Time) -> Option<DiskJob> {
        self.next_read(now).or_else(|| self.next_write(now)).or_else(|| self.next_disk_check())
    }

    /// The disk is done with a job.
    pub fn handle_disk(&mut self, done: Done) {
        match done {
            Done::Read { tag, block, outcome } if self.verifying.is_at(tag) => {
                self.handle_disk_check(tag, &block, outcome);
            }
            Done::Read { tag, block, outcome } => self.handle_read(tag, &block, outcome),
            Done::Written { tag, filling, outcome } => self.handle_written(tag, filling, outcome),
        }
    }

    /// A copying thread is done with a job.
    pub fn handle_copied(&mut self, now: Time, copied: &Copied) {
        match self.jobs.remove(&copied.id) {
            Some(Job::Load(work, blocks)) => self.handle_loaded(work, blocks, &copied.sums),
            Some(Job::Store(work, places)) => self.handle_stored(now, work, places, &copied.sums),
            // Each job is answered once.
            None => {}
        }
    }

    /// Gives up a load or a store. Its event still follows, once nothing touches its blocks; what a store has copied is
    /// never found. An unknown one is ignored.
    pub fn abort(&mut self, now: Time, work: WorkId) {
        self.fail(now, work, TierFailure::Aborted);
    }

    fn fail(&mut self, now: Time, work: WorkId, failure: TierFailure) {
        if let Some(load) = self.loads.get_mut(&work) {
            load.fail(failure);
            self.settle_load(work);
        } else if let Some(store) = self.stores.get_mut(&work) {
            store.fail(failure);
            self.store_turns.remove(work);
            self.settle_store(now, work);
        }
    }

    /// Ends what has taken too long.
    pub fn handle_timeout(&mut self, now: Time) {
        while let Some(&(deadline, work)) = self.deadlines.first() {
            if deadline > now {
                return;
            }
            self.deadlines.pop_first();
            self.drop_claim(work);
            self.fail(now, work, TierFailure::Deadline);
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do.
    #[must_use]
    pub fn poll_deadline(&self) -> Option<Time> {
        self.deadlines.first().map(|&(deadline, _)| deadline)
    }

    fn kind(&mut self, device: &Device, group: usize) -> Option<Kind> {
        let (fingerprint, part, bytes) =
            (device.fingerprint(), device.part(group)?, device.group(group)?.bytes_per_block(0)?);
        let host = self.host.class(fingerprint, part, bytes).ok()?;
        let disk = self.disk.as_mut().and_then(|disk| disk.class(fingerprint, part, bytes).ok());
        if device.rank().0 == 0 {
            self.owners.insert((Tier::Host, host), (fingerprint, part));
            self.owners.extend(disk.map(|disk| ((Tier::Disk, disk), (fingerprint, part))));
        }
        Some(Kind { host, disk })
    }

    fn tell_changes(&mut self) {
        let disk = self.disk.as_mut().map(Cache::take_changes).unwrap_or_default();
        for (tier, changes) in [(Tier::Host, self.host.take_changes()), (Tier::Disk, disk)] {
            // The last word on each: an event has what came before what went.
            let mut said: HashSet<_, RandomState> = HashSet::default();
            let last = changes.into_iter().rev().filter(|of| said.insert((of.class, of.hash)));
            for Change { class, hash, is_there } in last.collect::<Vec<_>>().into_iter().rev() {
                // Of another rank, or of an engine that was here before this daemon.
                let Some(&(of, group)) = self.owners.get(&(tier, class)) else { continue };
                let goes_on = |event: &TierEvent| matches!(event, TierEvent::Changed { fingerprint, tier: at, .. } if (*fingerprint, *at) == (of, tier));
                if !self.events.back().is_some_and(goes_on) {
                    let (stored, removed) = (Vec::new(), Vec::new());
                    self.events.push_back(TierEvent::Changed { fingerprint: of, tier, stored, removed });
                }
                if let Some(TierEvent::Changed { stored, removed, .. }) = self.events.back_mut() {
                    if is_there { stored } else { removed }.push((group, hash));
                }
            }
        }
    }

    fn draw_tag(&mut self) -> u64 {
        self.next_tag += 1;
        self.next_tag
    }

    fn draw_job(&mut self) -> JobId {
        self.next_job += 1;
        JobId(self.next_job)
    }

    fn is_full(&self) -> bool {
        self.loads.len() + self.stores.len() >= self.limits.works_max
    }
}

/// Layouts of the chunks that one job's blocks are in.
struct Chunks<'a> {
    class: ClassId,
    device: &'a Layout,
    known: HashMap<u32, Arc<Layout>>,
}

impl<'a> Chunks<'a> {
    fn new(class: ClassId, device: &'a Layout) -> Self {
        Self { class, device, known: HashMap::new() }
    }

    fn layout(&mut self, host: &Cache<Arena>, slot: crate::host::Slot) -> Option<Arc<Layout>> {
        if let Some(layout) = self.known.get(&slot.chunk) {
            return Some(Arc::clone(layout));
        }
        let layout = Arc::new(host.store().chunk_layout(self.class, slot, self.device).ok()??);
        self.known.insert(slot.chunk, Arc::clone(&layout));
        Some(layout)
    }
}

impl fmt::Debug for Tiers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (claims, loads, stores) = self.open();
        f.debug_struct("Tiers")
            .field("claims", &claims)
            .field("loads", &loads)
            .field("stores", &stores)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
