//! Who is attached: sessions, engines, their workers and regions.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use kvferry_core::layout::Layout;
use kvferry_core::{Epoch, Fingerprint, Rank, WorkId};
use kvferry_memory::Region;
use kvferry_proto::v1::{FromDaemon, Role};
use kvferry_tier::tiers::Device;
use tokio::sync::mpsc;

use super::command::{Process, SessionId};
use super::hop::{Completions, Offer, Outgoing};

/// One greeted connection.
pub(crate) struct Session {
    pub(crate) role: Role,
    pub(crate) engine_id: String,
    pub(crate) process: Process,
    pub(crate) outbox: mpsc::Sender<Outgoing>,
    /// Its ring, once it has one.
    pub(crate) ring: Option<Completions>,
    /// It wants to hear what comes into the tiers and leaves them.
    pub(crate) watches: bool,
    /// It has ordered to clear the tiers, which could not be passed on yet.
    pub(crate) owes_clear: bool,
    /// Set once it has attached as a worker.
    pub(crate) rank: Option<Rank>,
}

impl Session {
    /// How its messages travel, for people.
    pub(crate) const fn hop(&self) -> &'static str {
        if self.ring.is_some() { "ring" } else { "socket" }
    }
}

/// One worker's cache.
pub(crate) struct Worker {
    pub(crate) session: SessionId,
    pub(crate) region: Arc<Region>,
    pub(crate) layout: Arc<Layout>,
    pub(crate) fingerprint: Fingerprint,
    /// As tiers see it; none where there are no tiers, or its layout is nothing for them.
    pub(crate) device: Option<Arc<Device>>,
}

/// One vLLM instance.
pub(crate) struct Engine {
    /// Changes whenever a process of it comes or goes.
    pub(crate) epoch: Epoch,
    pub(crate) rank_count: u32,
    pub(crate) workers: BTreeMap<Rank, Worker>,
}

impl Engine {
    pub(crate) fn is_whole(&self) -> bool {
        u32::try_from(self.workers.len()).is_ok_and(|count| count == self.rank_count)
    }
}

/// A region whose owner has gone, kept while posted work names it.
struct Retiring {
    region: Arc<Region>,
    works: BTreeSet<WorkId>,
}

/// All sessions and engines.
#[derive(Default)]
pub(crate) struct Engines {
    pub(crate) sessions: HashMap<SessionId, Session>,
    pub(crate) engines: BTreeMap<String, Engine>,
    /// Posted work by the region it names. A local transfer names two.
    works: HashMap<WorkId, Vec<Arc<Region>>>,
    retiring: Vec<Retiring>,
}

impl Engines {
    pub(crate) fn worker(&self, engine_id: &str, rank: Rank) -> Option<(&Engine, &Worker)> {
        let engine = self.engines.get(engine_id)?;
        Some((engine, engine.workers.get(&rank)?))
    }

    /// The worker that a session attached.
    pub(crate) fn worker_of(&self, session: SessionId) -> Option<(Epoch, Rank, &Worker)> {
        let rank = self.sessions.get(&session)?.rank?;
        let (engine, worker) = self.worker(&self.sessions.get(&session)?.engine_id, rank)?;
        (worker.session == session).then_some((engine.epoch, rank, worker))
    }

    /// Every connection of an engine's processes.
    pub(crate) fn sessions_of(&self, engine_id: &str) -> Vec<SessionId> {
        let of_engine = |open: &Session| open.role != Role::Operator && open.engine_id == engine_id;
        self.sessions.iter().filter(|(_, open)| of_engine(open)).map(|(session, _)| *session).collect()
    }

    /// Whether the engine's scheduler is connected.
    pub(crate) fn has_scheduler(&self, engine_id: &str) -> bool {
        self.sessions.values().any(|open| open.role == Role::Scheduler && open.engine_id == engine_id)
    }

    /// Sends to one session; one that does not read what it asked for loses its connection.
    pub(crate) fn tell(&mut self, session: SessionId, message: FromDaemon) {
        let Some(open) = self.sessions.get(&session) else { return };
        let waits = match &open.ring {
            Some(ring) => ring.push_now(message),
            None => Err(message),
        };
        if let Err(message) = waits {
            self.queue(session, Outgoing::Message(message));
        }
    }

    /// Its messages travel through these rings once it has been told of them.
    pub(crate) fn open_ring(&mut self, session: SessionId, offer: Offer) {
        if let Some(open) = self.sessions.get_mut(&session) {
            open.ring = Some(offer.completions.clone());
            self.queue(session, Outgoing::Open(offer));
        }
    }

    fn queue(&mut self, session: SessionId, outgoing: Outgoing) {
        if let Some(open) = self.sessions.get(&session)
            && let Err(mpsc::error::TrySendError::Full(_)) = open.outbox.try_send(outgoing)
        {
            tracing::warn!(
                engine = open.engine_id,
                pid = open.process.pid,
                "engine does not read; closing its session"
            );
            // Its tasks see the closed outbox and end the connection, which ends all that it holds.
            let (closed, _) = mpsc::channel(1);
            if let Some(open) = self.sessions.get_mut(&session) {
                open.outbox = closed;
            }
        }
    }

    /// Posted work names these regions until [`Self::work_ended`].
    pub(crate) fn work_posted(&mut self, work: WorkId, regions: Vec<Arc<Region>>) {
        self.works.insert(work, regions);
    }

    /// Nothing of this work touches memory any more. Returns regions that can be forgotten now.
    pub(crate) fn work_ended(&mut self, work: WorkId) -> Vec<Arc<Region>> {
        self.works.remove(&work);
        for retiring in &mut self.retiring {
            retiring.works.remove(&work);
        }
        let free = self.retiring.extract_if(.., |retiring| retiring.works.is_empty());
        free.map(|retiring| retiring.region).collect()
    }

    /// Posted works that name this region.
    pub(crate) fn works_on(&self, region: &Arc<Region>) -> BTreeSet<WorkId> {
        let on = self.works.iter().filter(|(_, regions)| regions.iter().any(|named| Arc::ptr_eq(named, region)));
        on.map(|(work, _)| *work).collect()
    }

    /// The region's owner is gone; returns it if nothing names it any more, else keeps it until its works have ended.
    pub(crate) fn retire(&mut self, region: Arc<Region>) -> Option<Arc<Region>> {
        let works = self.works_on(&region);
        if works.is_empty() {
            return Some(region);
        }
        self.retiring.push(Retiring { region, works });
        None
    }
}
