//! The tiers of one node: what engines look up, load and store, as decisions without a thread or a clock.
//!
//! ```text
//! lookup(chain)  -> Found: how many first blocks are there; they stay, under a claim
//! load(blocks)   -> poll_load  -> [copying thread] -> handle_copied, checksums compared -> Loaded
//! store(blocks)  -> poll_store -> [copying thread] -> handle_copied -> Copied -> commit -> found by lookups
//! ```
//!
//! A block is found only once its engine has said, after the copy, that nothing wrote to it meanwhile ([`Tiers::commit`]):
//! no engine waits for a daemon before it uses its memory again, and what was overwritten in the middle of a copy is never
//! found. A block reaches an engine only with the checksum it was stored with, else the load fails.
//!
//! Nobody waits behind all blocks of another request: each gets one job at a time, in turn. Limits: [`TierLimits`]. Failure: a [`TierFailure`], and nothing in here touches the engine's blocks any more.

mod claims;
mod copying;
mod device;
mod loads;
mod stores;

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use kvferry_core::layout::Layout;
use kvferry_core::{BlockIndex, Fingerprint, Time, WorkId};

use self::claims::Claim;
use self::copying::Direction;
pub use self::copying::{Copied, CopyJob, JobId};
pub use self::device::Device;
use self::loads::{Load, Loading};
use self::stores::Store;
use crate::cache::Cache;
use crate::host::{Arena, Block, Filling};
use crate::store::{BlockHash, ClassId, Tenant};

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

/// Why a lookup, a load or a store came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TierFailure {
    /// Given up by who asked for it.
    Aborted,
    /// Bytes were not what was stored.
    Checksum,
    /// Everything of this fingerprint was to be forgotten.
    Cleared,
    /// It took longer than it might.
    Deadline,
    /// A block is not there any more.
    Evicted,
    /// Too much at a time.
    Limit,
    /// It does not fit the engine's own layout.
    Request,
}

impl TierFailure {
    /// One word, as messages and metrics have it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Aborted => "aborted",
            Self::Checksum => "checksum",
            Self::Cleared => "cleared",
            Self::Deadline => "deadline",
            Self::Evicted => "evicted",
            Self::Limit => "limit",
            Self::Request => "request",
        }
    }
}

/// What whoever asked is to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TierEvent {
    /// The answer to a lookup.
    Found {
        /// The lookup, and the claim's name.
        claim: WorkId,
        /// Of each group, how many of the first blocks every rank has.
        held: Vec<u32>,
        /// Why none is held, if not because none is there.
        failure: Option<TierFailure>,
    },
    /// What a lookup found is not held any more, or was nothing.
    Released {
        /// The lookup.
        claim: WorkId,
    },
    /// Nothing that was stored before is found any more.
    Cleared {
        /// Of whom.
        fingerprint: Fingerprint,
    },
    /// A load has ended; nothing touches its blocks any more.
    Loaded {
        /// The load.
        work: WorkId,
        /// Bytes that arrived and were verified, if all were.
        result: Result<u64, TierFailure>,
    },
    /// The blocks of a store were copied, and will not be read again. Nobody finds them before they are committed.
    Copied {
        /// The store.
        work: WorkId,
        /// Why it comes to nothing; less than all blocks is no failure.
        failure: Option<TierFailure>,
    },
    /// The blocks of a store are found from now on.
    Stored {
        /// The store.
        work: WorkId,
        /// How many they are; those that were there before are not among them.
        blocks: u64,
    },
}

/// One engine asks what is there for a prompt.
#[derive(Debug)]
pub struct Lookup {
    /// All ranks of the engine.
    pub devices: Vec<Arc<Device>>,
    /// Of each cache group, the prompt's blocks in order.
    pub groups: Vec<Vec<BlockHash>>,
}

/// One rank wants blocks.
#[derive(Debug)]
pub struct LoadRequest {
    /// The lookup that found them.
    pub claim: WorkId,
    /// Where they go.
    pub device: Arc<Device>,
    /// Of each cache group, blocks and the engine's own for them.
    pub groups: Vec<Vec<(BlockHash, BlockIndex)>>,
    /// When it is given up.
    pub deadline: Time,
}

/// Blocks that follow each other, and the one before the first.
pub type ChainPiece = (Option<BlockHash>, Vec<(BlockHash, BlockIndex)>);

/// One rank gives blocks to be kept.
#[derive(Debug)]
pub struct StoreRequest {
    /// Where they come from.
    pub device: Arc<Device>,
    /// Of each cache group.
    pub groups: Vec<ChainPiece>,
    /// Whose they are.
    pub tenant: Tenant,
}

/// See the module.
pub struct Tiers {
    host: Cache<Arena>,
    limits: TierLimits,
    claims: HashMap<WorkId, Claim>,
    loads: HashMap<WorkId, Load>,
    stores: HashMap<WorkId, Store>,
    /// Whose turn it is.
    load_turns: VecDeque<WorkId>,
    store_turns: VecDeque<WorkId>,
    jobs: HashMap<JobId, Job>,
    next_job: u64,
    deadlines: BTreeSet<(Time, WorkId)>,
    /// What is to be forgotten once no job is at it.
    clearing: Vec<(Fingerprint, Vec<ClassId>)>,
    /// Blocks that are not what was stored, and go once nobody holds them. Nobody finds them meanwhile.
    damaged: HashSet<(ClassId, BlockHash)>,
    events: VecDeque<TierEvent>,
}

/// What a copying thread has been handed.
enum Job {
    Load(WorkId, Vec<(Loading, Block)>),
    Store(WorkId, Vec<(Filling, Option<BlockHash>)>),
}

impl Tiers {
    /// Over what host memory holds.
    #[must_use]
    pub fn new(host: Cache<Arena>, limits: TierLimits) -> Self {
        Self {
            host,
            limits,
            claims: HashMap::new(),
            loads: HashMap::new(),
            stores: HashMap::new(),
            load_turns: VecDeque::new(),
            store_turns: VecDeque::new(),
            jobs: HashMap::new(),
            next_job: 0,
            deadlines: BTreeSet::new(),
            clearing: Vec::new(),
            damaged: HashSet::new(),
            events: VecDeque::new(),
        }
    }

    /// What host memory holds.
    #[must_use]
    pub const fn host(&self) -> &Cache<Arena> {
        &self.host
    }

    /// Claims, loads and stores that have not ended.
    #[must_use]
    pub fn open(&self) -> (usize, usize, usize) {
        (self.claims.len(), self.loads.len(), self.stores.len())
    }

    /// The next thing to say.
    pub fn poll_event(&mut self) -> Option<TierEvent> {
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

    /// The next blocks to take in, for which nobody waits; as [`poll_load`](Self::poll_load).
    pub fn poll_store(&mut self, now: Time) -> Option<CopyJob> {
        while let Some(work) = self.store_turns.pop_front() {
            if let Some(job) = self.next_store_job(now, work) {
                self.store_turns.push_back(work);
                return Some(job);
            }
            self.settle_store(now, work);
        }
        None
    }

    /// A copying thread is done with a job.
    pub fn handle_copied(&mut self, now: Time, copied: &Copied) {
        match self.jobs.remove(&copied.id) {
            Some(Job::Load(work, blocks)) => self.handle_loaded(work, blocks, &copied.sums),
            Some(Job::Store(work, places)) => self.handle_stored(now, work, places, &copied.sums),
            // Each job is answered once.
            None => {}
        }
        self.clear_what_rests();
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

    /// Nothing that is stored for the fingerprint of these devices, all of one engine, is found any more, nor what is being
    /// stored now.
    pub fn clear(&mut self, now: Time, devices: &[Arc<Device>]) {
        let Some(fingerprint) = devices.first().map(|device| device.fingerprint()) else { return };
        let claims = self.claims.iter().filter(|(_, claim)| claim.fingerprint == fingerprint);
        for work in claims.map(|(work, _)| *work).collect::<Vec<_>>() {
            self.drop_claim(work);
        }
        let loads = self.loads.iter().filter(|(_, load)| load.device.fingerprint() == fingerprint);
        let stores = self.stores.iter().filter(|(_, store)| store.device.fingerprint() == fingerprint);
        let works: Vec<_> = loads.map(|(work, _)| *work).chain(stores.map(|(work, _)| *work)).collect();
        for work in works {
            self.fail(now, work, TierFailure::Cleared);
        }
        let names = devices.iter().flat_map(|device| (0..device.group_count()).map(move |group| (device, group)));
        let classes: Vec<_> =
            names.collect::<Vec<_>>().into_iter().filter_map(|(d, group)| self.class(d, group)).collect();
        self.clearing.push((fingerprint, classes));
        self.events.push_back(TierEvent::Cleared { fingerprint });
        self.clear_what_rests();
    }

    /// Nobody finds what is to be cleared meanwhile, and nothing of it is taken in.
    fn clear_what_rests(&mut self) {
        let (loads, stores, host) = (&self.loads, &self.stores, &mut self.host);
        self.clearing.retain(|(fingerprint, classes)| {
            let is_of = |device: &Device| device.fingerprint() == *fingerprint;
            let busy =
                loads.values().any(|load| is_of(&load.device)) || stores.values().any(|store| is_of(&store.device));
            if !busy {
                classes.iter().for_each(|&class| host.clear(class));
            }
            busy
        });
    }

    fn is_clearing(&self, device: &Device) -> bool {
        self.clearing.iter().any(|(fingerprint, _)| *fingerprint == device.fingerprint())
    }

    /// Lets go of what is damaged and held by nobody any more.
    fn drop_damaged(&mut self) {
        let host = &mut self.host;
        self.damaged.retain(|(class, hash)| host.contains(*class, hash) && !host.damaged(*class, hash));
    }

    fn class(&mut self, device: &Device, group: usize) -> Option<ClassId> {
        let bytes = device.group(group)?.bytes_per_block(0)?;
        self.host.class(device.fingerprint(), device.part(group)?, bytes).ok()
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
