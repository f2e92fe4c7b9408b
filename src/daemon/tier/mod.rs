//! Hub: engines look up, load and store blocks of this node's tiers.
//!
//! ```text
//! Lookup, Load, Store (key) -> work, drawn here -> tier thread -> TierEvent (work) -> Found, Loaded, Copied, Stored (key)
//! ```
//!
//! The hub parses and names; [`Tiers`](kvferry_tier::tiers::Tiers) decides, on a thread of its own ([`thread`]).

mod clearing;
mod disk;
pub(crate) mod listing;
pub(crate) mod metrics;
mod opening;
pub(crate) mod operator;
pub(crate) mod thread;

pub(crate) use self::opening::open;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use kvferry_core::{BlockIndex, Fingerprint, Time, WorkId};
use kvferry_proto::v1::{self, from_daemon};
use kvferry_tier::tiers::{Device, LoadRequest, Lookup, StoreRequest, Tier, TierEvent, TierFailure};
use kvferry_tier::{BlockHash, Tenant};

use self::operator::Operators;
use self::thread::{TierCommand, TierHandle};
use super::command::SessionId;
use super::hub::Hub;

/// What a lookup, a load or a store is answered where there are no tiers.
const NO_TIER: &str = "no_tier";
/// Claims that the hub knows: of lookups that are open, and as many that the tiers keep.
pub(crate) const CLAIMS_PER_WORK: usize = 2;
/// Bytes of a tenant's name.
const TENANT_LENGTH_MAX: usize = 64;

/// What engines have asked of the tiers, and have no last word on.
pub(crate) struct Tiering {
    handle: TierHandle,
    works: HashMap<WorkId, Asked>,
    by_key: HashMap<(SessionId, u64), WorkId>,
    /// What lookups of an engine's scheduler found and hold, by engine and key.
    claims: HashMap<(String, u64), Claim>,
    /// Clears on their way to the tiers, and who ordered another one meanwhile. See [`clearing`].
    clearing: HashMap<Fingerprint, BTreeSet<SessionId>>,
    pub(crate) operators: Operators,
}

struct Claim {
    work: WorkId,
    is_forgotten: bool,
}

struct Asked {
    session: SessionId,
    engine_id: String,
    key: u64,
    since: Time,
    is_committed: bool,
    is_aborted: bool,
}

impl Tiering {
    pub(crate) fn new(handle: TierHandle) -> Self {
        Self {
            handle,
            works: HashMap::new(),
            by_key: HashMap::new(),
            claims: HashMap::new(),
            clearing: HashMap::new(),
            operators: Operators::default(),
        }
    }

    pub(crate) const fn handle(&self) -> &TierHandle {
        &self.handle
    }
}

impl Hub {
    /// A scheduler asks what is there. One `Found` follows.
    pub(super) fn lookup(&mut self, session: SessionId, lookup: &v1::Lookup) {
        let refused = match self.try_lookup(session, lookup) {
            Ok(()) => return,
            Err(word) => word,
        };
        let found = v1::Found { key: lookup.key, failure: refused.to_owned(), ..Default::default() };
        self.reply(session, 0, from_daemon::Body::Found(found));
    }

    fn try_lookup(&mut self, session: SessionId, lookup: &v1::Lookup) -> Result<(), &'static str> {
        if self.tiering.is_none() {
            return Err(NO_TIER);
        }
        let groups = lookup.groups.iter().map(|group| hashes(&group.hashes)).collect::<Result<_, _>>()?;
        let engine_id = self.engines.sessions.get(&session).map(|open| open.engine_id.clone()).unwrap_or_default();
        let engine = self.engines.engines.get(&engine_id).filter(|engine| engine.is_whole());
        let workers = engine.map(|engine| engine.workers.values()).ok_or("engine")?;
        let devices = workers.map(|worker| worker.device.clone().ok_or("layout")).collect::<Result<_, _>>()?;
        let groups: Vec<Vec<BlockHash>> = groups;
        self.metrics.tier.asked(groups.iter().map(Vec::len).sum());
        if !self.pay_clear(session) {
            return Err(TierFailure::Cleared.word());
        }
        let claims_max = CLAIMS_PER_WORK * self.config.tier_works_max();
        if self.tiering.as_ref().is_some_and(|tiering| tiering.claims.len() >= claims_max) {
            return Err(TierFailure::Limit.word());
        }
        let work = self.ask_tier(session, lookup.key, engine_id.clone())?;
        let Some(tiering) = &mut self.tiering else { return Err(NO_TIER) };
        tiering.claims.insert((engine_id, lookup.key), Claim { work, is_forgotten: false });
        let sent = tiering.handle.send(TierCommand::Lookup(work, Lookup { devices, groups }));
        if !sent {
            tiering.claims.retain(|_, claim| claim.work != work);
        }
        self.sent(work, sent)
    }

    /// A scheduler gives up what it found.
    pub(super) fn forget(&mut self, session: SessionId, key: u64) {
        let Some(open) = self.engines.sessions.get(&session) else { return };
        let Some(tiering) = &mut self.tiering else { return };
        let claim = tiering.claims.get_mut(&(open.engine_id.clone(), key)).filter(|claim| !claim.is_forgotten);
        if let Some(claim) = claim {
            claim.is_forgotten = true;
            tiering.handle.send(TierCommand::Forget(claim.work));
        }
    }

    /// A worker wants blocks. One `Loaded` follows.
    pub(super) fn load(&mut self, session: SessionId, load: &v1::Load) {
        if let Err(word) = self.try_load(session, load) {
            let loaded = v1::Loaded { key: load.key, failure: word.to_owned(), ..Default::default() };
            self.reply(session, 0, from_daemon::Body::Loaded(loaded));
        }
    }

    fn try_load(&mut self, session: SessionId, load: &v1::Load) -> Result<(), &'static str> {
        let (device, engine_id) = self.device(session)?;
        let groups = load.groups.iter().map(|group| named(&group.hashes, &group.blocks)).collect::<Result<_, _>>()?;
        let limit = Duration::from_millis(load.deadline_ms).min(self.config.limits.transfer_deadline_max);
        let deadline = self.clock.now().after(limit);
        let claims = self.tiering.as_ref().map(|tiering| &tiering.claims);
        let claim = claims.and_then(|claims| claims.get(&(engine_id.clone(), load.claim)).map(|claim| claim.work));
        // It was too old, and its blocks may be there all the same.
        let claim = claim.unwrap_or(WorkId(0));
        let work = self.ask_tier(session, load.key, engine_id)?;
        let request = LoadRequest { claim, device, groups, deadline };
        let sent = self.tell_tier(TierCommand::Load(work, request));
        self.sent(work, sent)
    }

    /// A worker gives blocks to be kept. One `Copied` follows.
    pub(super) fn store(&mut self, session: SessionId, store: &v1::Store) {
        if let Err(word) = self.try_store(session, store) {
            let copied = v1::Copied { key: store.key, failure: word.to_owned() };
            self.reply(session, 0, from_daemon::Body::Copied(copied));
        }
    }

    fn try_store(&mut self, session: SessionId, store: &v1::Store) -> Result<(), &'static str> {
        let (device, engine_id) = self.device(session)?;
        let group = |group: &v1::StoredBlocks| {
            let parent = if group.parent.is_empty() { None } else { Some(hash(&group.parent)?) };
            Ok((parent, named(&group.hashes, &group.blocks)?))
        };
        let groups = store.groups.iter().map(group).collect::<Result<_, &'static str>>()?;
        let tenant = tenant(&store.tenant)?;
        let work = self.ask_tier(session, store.key, engine_id)?;
        let sent = self.tell_tier(TierCommand::Store(work, StoreRequest { device, groups, tenant }));
        self.sent(work, sent)
    }

    /// A worker vouches for a store. One `Stored` follows.
    pub(super) fn commit(&mut self, session: SessionId, key: u64) {
        match self.asked_mut(session, key) {
            Some((_, asked)) if asked.is_committed => {}
            Some((work, asked)) => {
                asked.is_committed = true;
                self.tell_tier(TierCommand::Commit(work));
            }
            None => self.reply(session, 0, from_daemon::Body::Stored(v1::Stored { key, blocks: 0 })),
        }
    }

    /// Gives up a load or a store. False: this key is neither.
    pub(super) fn abort_tier(&mut self, session: SessionId, key: u64) -> bool {
        let Some((work, asked)) = self.asked_mut(session, key) else { return false };
        if !std::mem::replace(&mut asked.is_aborted, true) {
            self.tell_tier(TierCommand::Abort(work));
        }
        true
    }

    /// A session is gone: what it asked for ends, and nobody is told.
    pub(super) fn leave_tiers(&mut self, session: SessionId, engine_id: &str, was_scheduler: bool) {
        let Some(tiering) = &mut self.tiering else { return };
        let works: Vec<_> = tiering.by_key.extract_if(|(of, _), _| *of == session).map(|(_, work)| work).collect();
        for work in works {
            if tiering.works.remove(&work).is_some_and(|asked| !asked.is_aborted) {
                tiering.handle.send(TierCommand::Abort(work));
            }
        }
        // A lookup that is under way finds its claim gone, or is forgotten with the next session's.
        if was_scheduler {
            for (_, claim) in tiering.claims.extract_if(|(of, _), _| of == engine_id) {
                if !claim.is_forgotten {
                    tiering.handle.send(TierCommand::Forget(claim.work));
                }
            }
        }
    }

    /// Passes on what the tiers say.
    pub(super) fn handle_tier_event(&mut self, event: TierEvent) {
        match event {
            TierEvent::Found { claim, held, on_disk, failure } => {
                self.metrics.tier.found(&held, failure);
                let Some(asked) = self.end_asked(claim) else { return };
                let failure = word(failure);
                self.reply(
                    asked.session,
                    0,
                    from_daemon::Body::Found(v1::Found { key: asked.key, held, on_disk, failure }),
                );
            }
            TierEvent::Released { claim } => {
                if let Some(tiering) = &mut self.tiering {
                    tiering.claims.retain(|_, of| of.work != claim);
                }
            }
            TierEvent::Changed { fingerprint, tier, stored, removed } => {
                self.tell_watchers(fingerprint, &changed(tier, &stored, &removed));
            }
            TierEvent::Cleared { fingerprint } => self.handle_cleared(fingerprint),
            TierEvent::Listed { work, holdings } => self.tell_list(work, holdings),
            TierEvent::Loaded { work, result } => {
                self.metrics.tier.loaded(result);
                let Some(asked) = self.end_asked(work) else { return };
                let micros = u64::try_from(self.clock.now().until(asked.since).as_micros()).unwrap_or(u64::MAX);
                if let Err(failure) = result {
                    tracing::info!(engine = asked.engine_id, failure = failure.word(), "failed to load from a tier");
                }
                let loaded = v1::Loaded {
                    key: asked.key,
                    delivered: result.is_ok(),
                    failure: word(result.err()),
                    bytes: result.unwrap_or_default().bytes,
                    micros,
                    disk_bytes: result.unwrap_or_default().disk_bytes,
                };
                self.reply(asked.session, 0, from_daemon::Body::Loaded(loaded));
            }
            TierEvent::Copied { work, failure } => {
                self.metrics.tier.copied(failure);
                let over = failure.is_some();
                let asked = self.tiering.as_ref().and_then(|tiering| tiering.works.get(&work));
                let Some((session, key)) = asked.map(|asked| (asked.session, asked.key)) else { return };
                // It has been vouched for before it was copied: that needs an answer, too.
                let was_committed = over && self.end_asked(work).is_some_and(|asked| asked.is_committed);
                self.reply(session, 0, from_daemon::Body::Copied(v1::Copied { key, failure: word(failure) }));
                if was_committed {
                    self.reply(session, 0, from_daemon::Body::Stored(v1::Stored { key, blocks: 0 }));
                }
            }
            TierEvent::Stored { work, blocks } => {
                self.metrics.tier.stored(blocks);
                let Some(asked) = self.end_asked(work) else { return };
                self.reply(asked.session, 0, from_daemon::Body::Stored(v1::Stored { key: asked.key, blocks }));
            }
        }
    }

    /// To the schedulers that asked for it, of engines of this fingerprint.
    fn tell_watchers(&mut self, fingerprint: Fingerprint, changed: &v1::TierChanged) {
        let is_of =
            |engine: &super::engines::Engine| engine.workers.values().any(|worker| worker.fingerprint == fingerprint);
        let sessions = self
            .engines
            .sessions
            .iter()
            .filter(|(_, open)| open.watches && self.engines.engines.get(&open.engine_id).is_some_and(is_of));
        for session in sessions.map(|(session, _)| *session).collect::<Vec<_>>() {
            self.reply(session, 0, from_daemon::Body::TierChanged(changed.clone()));
        }
    }

    fn device(&self, session: SessionId) -> Result<(Arc<Device>, String), &'static str> {
        if self.tiering.is_none() {
            return Err(NO_TIER);
        }
        let (_, _, worker) = self.engines.worker_of(session).ok_or("engine")?;
        let engine_id = self.engines.sessions.get(&session).map(|open| open.engine_id.clone()).unwrap_or_default();
        Ok((worker.device.clone().ok_or("layout")?, engine_id))
    }

    /// Notes who asks under which key.
    fn ask_tier(&mut self, session: SessionId, key: u64, engine_id: String) -> Result<WorkId, &'static str> {
        let (work, since) = (self.draw_work(), self.clock.now());
        let Some(tiering) = &mut self.tiering else { return Err(NO_TIER) };
        if tiering.by_key.contains_key(&(session, key)) {
            return Err(TierFailure::Request.word());
        }
        if tiering.works.len() >= self.config.tier_works_max() {
            return Err(TierFailure::Limit.word());
        }
        tiering.by_key.insert((session, key), work);
        tiering.works.insert(work, Asked { session, engine_id, key, since, is_committed: false, is_aborted: false });
        Ok(work)
    }

    fn asked_mut(&mut self, session: SessionId, key: u64) -> Option<(WorkId, &mut Asked)> {
        let tiering = self.tiering.as_mut()?;
        let work = *tiering.by_key.get(&(session, key))?;
        tiering.works.get_mut(&work).map(|asked| (work, asked))
    }

    fn end_asked(&mut self, work: WorkId) -> Option<Asked> {
        let tiering = self.tiering.as_mut()?;
        let asked = tiering.works.remove(&work)?;
        tiering.by_key.remove(&(asked.session, asked.key));
        Some(asked)
    }

    fn tell_tier(&self, command: TierCommand) -> bool {
        self.tiering.as_ref().is_some_and(|tiering| tiering.handle.send(command))
    }

    /// What was asked for is under way, or was not heard.
    fn sent(&mut self, work: WorkId, sent: bool) -> Result<(), &'static str> {
        if !sent {
            self.end_asked(work);
        }
        sent.then_some(()).ok_or(TierFailure::Limit.word())
    }
}

fn changed(tier: Tier, stored: &[(u32, BlockHash)], removed: &[(u32, BlockHash)]) -> v1::TierChanged {
    let by_group = |names: &[(u32, BlockHash)]| {
        let count = names.iter().map(|(group, _)| group + 1).max().unwrap_or(0);
        let of_group = |group| {
            let of = names.iter().filter(|(of, _)| *of == group);
            v1::BlockHashes { hashes: of.flat_map(|(_, hash)| *hash).collect() }
        };
        (0..count).map(of_group).collect()
    };
    v1::TierChanged { tier: tier.word().to_owned(), stored: by_group(stored), removed: by_group(removed) }
}

fn word(failure: Option<TierFailure>) -> String {
    failure.map_or_else(String::new, |failure| failure.word().to_owned())
}

fn hash(bytes: &[u8]) -> Result<BlockHash, &'static str> {
    bytes.try_into().map_err(|_| TierFailure::Request.word())
}

fn hashes(bytes: &[u8]) -> Result<Vec<BlockHash>, &'static str> {
    match bytes.as_chunks::<32>() {
        (hashes, []) => Ok(hashes.to_vec()),
        _ => Err(TierFailure::Request.word()),
    }
}

fn named(names: &[u8], blocks: &[u32]) -> Result<Vec<(BlockHash, BlockIndex)>, &'static str> {
    let names = hashes(names)?;
    if names.len() != blocks.len() {
        return Err(TierFailure::Request.word());
    }
    Ok(names.into_iter().zip(blocks.iter().copied().map(BlockIndex)).collect())
}

fn tenant(name: &[u8]) -> Result<Tenant, &'static str> {
    (name.len() <= TENANT_LENGTH_MAX).then(|| Tenant::named(name)).ok_or(TierFailure::Request.word())
}
