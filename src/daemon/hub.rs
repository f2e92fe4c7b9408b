//! The hub: the one task that owns the daemon's state and decides.
//!
//! ```text
//! attach sessions --+                       +--> DataCommand -> data thread
//! peer service -----+--> Command -> Hub ----+--> FromDaemon -> sessions
//! data thread ------+--> Event  ->          +--> calls to peers (tasks that answer with a Command)
//! ```
//!
//! Decisions are `core`'s (leases, transfers, plans); the hub carries them out. It never blocks and holds no lock. What
//! waits for a peer runs in a task of its own, with a deadline.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use kvferry_core::lease::{LeaseEvent, LeaseLimits, LeaseTable};
use kvferry_core::ticket::TicketKey;
use kvferry_core::{Epoch, LeaseId, Time, WorkId};
use kvferry_memory::Meter;
use kvferry_proto::v1::{self, from_daemon, to_daemon};
use kvferry_tier::tiers::TierEvent;
use kvferry_transport::{EndpointId, Event};
use tokio::sync::mpsc;
use tonic::transport::Channel;

use super::clock::Clock;
use super::command::{Command, SessionId};
use super::data::{DataCommand, DataHandle, Via};
use super::engines::{Engines, Session};
use super::link_table::{LinkLimits, LinkTable, Origin};
use super::links::LINKS_MAX;
use super::metrics::Metrics;
use super::outbound::Outbound;
use super::reader::Reading;
use super::remembered::Remembered;
use super::scheduling::Scheduling;
use super::serving::{Admitted, Serving};
use super::status::FinishedTransfer;
use super::tier::Tiering;
use crate::config::Config;

/// Finished transfers that `kvferry status` still shows.
const FINISHED_MAX: usize = 64;

pub(crate) struct Hub {
    pub(super) clock: Clock,
    pub(super) config: Arc<Config>,
    pub(super) epoch: Epoch,
    pub(super) ticket_key: TicketKey,
    /// `host:port` that our tickets carry.
    pub(super) advertise: String,
    pub(super) data_port: u16,
    pub(super) engines: Engines,
    pub(super) leases: LeaseTable,
    /// Whose blocks a lease holds.
    pub(super) lease_engines: HashMap<LeaseId, String>,
    /// Reads that peers make of our regions.
    pub(super) serving: HashMap<WorkId, Serving>,
    /// Transfers into our regions.
    pub(super) reading: HashMap<WorkId, Reading>,
    pub(super) by_key: HashMap<(SessionId, u64), WorkId>,
    pub(super) deadlines: BTreeSet<(Time, WorkId)>,
    pub(super) links: LinkTable<Channel>,
    /// Endpoints that peers opened here.
    pub(super) admitted: HashMap<EndpointId, Admitted>,
    /// Somebody came or went since `remembered` was told.
    pub(super) peers_changed: bool,
    pub(super) remembered: Remembered,
    pub(super) scheduling: Scheduling,
    /// Where there are tiers.
    pub(super) tiering: Option<Tiering>,
    pub(super) outbound: Outbound,
    /// For what other threads do for the hub.
    pub(super) commands: mpsc::WeakSender<Command>,
    pub(super) data: DataHandle,
    pub(super) meter: Meter,
    pub(super) metrics: Metrics,
    pub(super) finished: VecDeque<FinishedTransfer>,
    next_work: u64,
    next_epoch: u64,
}

/// What a hub is made of.
pub(crate) struct HubParts {
    pub(crate) clock: Clock,
    pub(crate) config: Arc<Config>,
    pub(crate) epoch: Epoch,
    pub(crate) ticket_key: TicketKey,
    pub(crate) advertise: String,
    pub(crate) data_port: u16,
    pub(crate) outbound: Outbound,
    pub(crate) commands: mpsc::WeakSender<Command>,
    pub(crate) data: DataHandle,
    pub(crate) metrics: Metrics,
    pub(crate) remembered: Remembered,
    pub(crate) scheduling: Scheduling,
    pub(crate) tiering: Option<Tiering>,
}

impl Hub {
    pub(crate) fn new(parts: HubParts) -> Self {
        let limits = parts.config.limits;
        let leases = LeaseTable::new(LeaseLimits {
            leases_max: limits.leases_max,
            blocks_max: limits.lease_blocks_max,
            duration_max: limits.lease_max,
        });
        let HubParts {
            clock,
            config,
            epoch,
            ticket_key,
            advertise,
            data_port,
            outbound,
            commands,
            data,
            metrics,
            remembered,
            scheduling,
            tiering,
        } = parts;
        let links = LinkTable::new(LinkLimits {
            links_max: LINKS_MAX,
            retry_min: limits.reconnect_min,
            retry_max: limits.reconnect_max,
            idle_max: limits.peer_idle_max,
        });
        Self {
            clock,
            config,
            epoch,
            ticket_key,
            advertise,
            data_port,
            engines: Engines::default(),
            leases,
            lease_engines: HashMap::new(),
            serving: HashMap::new(),
            reading: HashMap::new(),
            by_key: HashMap::new(),
            deadlines: BTreeSet::new(),
            links,
            admitted: HashMap::new(),
            peers_changed: false,
            remembered,
            scheduling,
            tiering,
            outbound,
            commands,
            data,
            meter: Meter::new(),
            metrics,
            finished: VecDeque::with_capacity(FINISHED_MAX),
            next_work: 1,
            next_epoch: 1,
        }
    }

    /// Runs until every sender of commands is gone. Calls the peers of the config, and `recalled` ones.
    pub(crate) async fn run(
        mut self,
        recalled: Vec<String>,
        mut commands: mpsc::Receiver<Command>,
        mut events: mpsc::Receiver<Event>,
        mut tier_events: mpsc::Receiver<TierEvent>,
    ) {
        let config = Arc::clone(&self.config);
        let configured = config.peer_known.iter().map(|address| (address, Origin::Configured));
        for (address, origin) in configured.chain(recalled.iter().map(|address| (address, Origin::Learnt))) {
            self.learn(address, origin, None);
        }
        self.drive_links().await;
        loop {
            let deadline = [
                self.leases.poll_deadline(),
                self.deadlines.first().map(|(time, _)| *time),
                self.links.poll_deadline(),
            ];
            let wake = self.clock.instant(deadline.into_iter().flatten().min().unwrap_or(Time::NEVER));
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.handle_command(command).await,
                    None => return,
                },
                Some(event) = events.recv() => self.handle_event(event).await,
                Some(event) = tier_events.recv() => self.handle_tier_event(event),
                () = tokio::time::sleep_until(wake) => {}
            }
            self.handle_timeouts().await;
            self.settle_leases().await;
            self.drive_links().await;
            self.observe();
        }
    }

    async fn handle_command(&mut self, command: Command) {
        match command {
            Command::Cancel { request } => self.stop_serving(WorkId(request.work), Some(request.endpoint)).await,
            Command::Confirm { request, reply } => {
                let answer = self.confirm_for_peer(&request).await;
                // The peer hung up: its cancel or the lease's deadline ends what was pinned.
                drop(reply.send(answer));
            }
            Command::ConfirmAnswered { work, link, result } => self.handle_confirm_answer(work, link, result).await,
            Command::LinkAnswered { address, result } => self.handle_link_answer(address, result).await,
            Command::ListMade { answers } => self.tell_answers(answers),
            Command::OpenEndpoint { request, reply } => {
                let answer = self.open_endpoint(&request).await;
                drop(reply.send(answer));
            }
            Command::Release { ticket } => self.release(&ticket),
            Command::SessionClosed { session } => self.close_session(session).await,
            Command::SessionOpened { session, process, hello, outbox } => {
                let welcome = v1::Welcome {
                    daemon_epoch: self.epoch.0,
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                    ring_bytes: self.config.attach_ring.map_or(0, |ring| ring.bytes),
                };
                let open = Session {
                    role: hello.role(),
                    engine_id: hello.engine_id,
                    process,
                    outbox,
                    ring: None,
                    watches: false,
                    owes_clear: false,
                    rank: None,
                };
                self.engines.sessions.insert(session, open);
                self.reply(session, 1, from_daemon::Body::Welcome(welcome));
            }
            Command::SessionRing { session, offer } => self.engines.open_ring(session, offer),
            Command::SessionSaid { session, id, body, fds } => self.handle_request(session, id, body, fds).await,
            Command::Status { reply } => drop(reply.send(self.status())),
        }
    }

    async fn handle_request(
        &mut self,
        session: SessionId,
        id: u64,
        body: to_daemon::Body,
        fds: Vec<std::os::fd::OwnedFd>,
    ) {
        let Some(role) = self.engines.sessions.get(&session).map(|open| open.role) else { return };
        let result = match (body, role) {
            (to_daemon::Body::Attach(attach), v1::Role::Worker) => self.attach(session, &attach, fds).await.map(Some),
            (to_daemon::Body::Grant(grant), v1::Role::Scheduler) => self.grant(session, grant).map(Some),
            (to_daemon::Body::Redeem(redeem), v1::Role::Worker) => {
                self.redeem(session, id, redeem).await;
                Ok(None)
            }
            (to_daemon::Body::Abort(abort), v1::Role::Worker) => {
                if self.abort_tier(session, abort.key) {
                } else if let Some(work) = self.by_key.get(&(session, abort.key)).copied() {
                    self.cancel_transfer(work, kvferry_core::transfer::Failure::Aborted).await;
                }
                Ok(None)
            }
            (to_daemon::Body::Relinquish(relinquish), v1::Role::Scheduler | v1::Role::Worker) => {
                self.relinquish(&relinquish.ticket);
                Ok(None)
            }
            (to_daemon::Body::Lookup(lookup), v1::Role::Scheduler) => {
                self.lookup(session, &lookup);
                Ok(None)
            }
            (to_daemon::Body::Forget(forget), v1::Role::Scheduler) => {
                self.forget(session, forget.key);
                Ok(None)
            }
            (to_daemon::Body::Watch(_), v1::Role::Scheduler) => {
                if let Some(open) = self.engines.sessions.get_mut(&session) {
                    open.watches = true;
                }
                Ok(None)
            }
            (to_daemon::Body::Clear(_), v1::Role::Scheduler) => {
                self.clear_tiers(session);
                Ok(None)
            }
            (to_daemon::Body::Load(load), v1::Role::Worker) => {
                self.load(session, &load);
                Ok(None)
            }
            (to_daemon::Body::Store(store), v1::Role::Worker) => {
                self.store(session, &store);
                Ok(None)
            }
            (to_daemon::Body::Commit(commit), v1::Role::Worker) => {
                self.commit(session, commit.key);
                Ok(None)
            }
            (to_daemon::Body::Status(_), _) => {
                let json = serde_json::to_string(&self.status()).unwrap_or_default();
                Ok(Some(from_daemon::Body::Status(v1::StatusReply { json })))
            }
            (to_daemon::Body::Checksums(query), _) => self.checksums(&query).map(Some),
            (to_daemon::Body::Cache(query), v1::Role::Operator) => self.list_cache(session, id, &query),
            (to_daemon::Body::Sweep(sweep), v1::Role::Operator) => self.begin_sweep(session, &sweep).map(Some),
            (to_daemon::Body::SweepQuery(_), v1::Role::Operator) => self.sweep_status(session).map(Some),
            (to_daemon::Body::OpenRing(_), _) => {
                Err("this daemon offers no rings, or this session has some".to_owned())
            }
            _ => Err("this request is not for this role, or came twice".to_owned()),
        };
        match result {
            Ok(Some(body)) => self.reply(session, id, body),
            Ok(None) => {}
            Err(message) => self.reply(session, id, from_daemon::Body::Problem(v1::Problem { message })),
        }
    }

    async fn handle_event(&mut self, event: Event) {
        match event {
            Event::Completed(completion) => {
                for region in self.engines.work_ended(completion.id) {
                    self.data.send(DataCommand::Deregister(region)).await;
                }
                if let Some(serving) = self.serving.remove(&completion.id) {
                    self.metrics.served(completion.result);
                    tracing::debug!(work = completion.id.0, peer = serving.peer, result = ?completion.result, "served");
                }
                // A read that its lease's end has stopped must not pass for one that was read.
                self.leases.handle_timeout(self.clock.now());
                // A local transfer pins its source under its own work id.
                self.leases.handle_read_ended(completion.id);
                self.handle_read_completed(completion.id, completion.result).await;
            }
            Event::EndpointUp(endpoint) => match self.admitted.get_mut(&endpoint) {
                Some(admitted) => admitted.up = true,
                None => self.handle_link_up(endpoint).await,
            },
            Event::EndpointDown(endpoint, fault) => {
                if let Some(Admitted { peer, .. }) = self.admitted.remove(&endpoint) {
                    self.peers_changed = true;
                    tracing::debug!(peer, endpoint = endpoint.0, %fault, "peer's endpoint is down");
                }
                self.handle_link_down(endpoint, fault).await;
            }
        }
    }

    async fn handle_timeouts(&mut self) {
        let now = self.clock.now();
        self.leases.handle_timeout(now);
        while let Some(&(deadline, work)) = self.deadlines.first() {
            if deadline > now {
                break;
            }
            self.deadlines.pop_first();
            if let Some(reading) = self.reading.get_mut(&work) {
                reading.transfer.handle_timeout(now);
            }
            self.drive(work).await;
        }
    }

    /// Carries out what the lease table asks for.
    pub(super) async fn settle_leases(&mut self) {
        while let Some(event) = self.leases.poll_event() {
            match event {
                LeaseEvent::Quiesce { work } => {
                    self.stop_serving(work, None).await;
                    self.cancel_transfer(work, kvferry_core::transfer::Failure::Lease).await;
                }
                LeaseEvent::Ended { id, request_id, reason, .. } => {
                    self.metrics.lease_ended(reason);
                    let Some(engine_id) = self.lease_engines.remove(&id) else { continue };
                    let sessions = self.engines.sessions_of(&engine_id);
                    let ended = v1::LeaseEnded { lease_id: id.0, request_id, reason: reason.word().to_owned() };
                    for session in sessions {
                        self.reply(session, 0, from_daemon::Body::LeaseEnded(ended.clone()));
                    }
                }
            }
        }
    }

    pub(super) fn reply(&mut self, session: SessionId, reply_to: u64, body: from_daemon::Body) {
        self.engines.tell(session, v1::FromDaemon { reply_to, body: Some(body) });
    }

    /// A work's name, never used before.
    pub(super) fn draw_work(&mut self) -> WorkId {
        self.next_work += 1;
        WorkId(self.next_work)
    }

    /// An engine's epoch, never used before by any daemon.
    pub(super) fn draw_epoch(&mut self) -> Epoch {
        self.next_epoch += 1;
        Epoch(self.epoch.0.wrapping_add(self.next_epoch))
    }

    pub(super) fn remember(&mut self, transfer: FinishedTransfer) {
        if self.finished.len() == FINISHED_MAX {
            self.finished.pop_front();
        }
        self.finished.push_back(transfer);
    }

    /// Stops a posted read; its completion still comes.
    pub(super) async fn stop_work(&self, via: Via, endpoint: EndpointId, work: WorkId) {
        self.data.send(DataCommand::Cancel { via, endpoint, work }).await;
    }

    fn observe(&self) {
        self.metrics.gauges(
            self.engines.engines.len(),
            self.leases.len(),
            self.reading.len(),
            self.serving.len(),
            &self.meter,
        );
        if let Some(tiering) = &self.tiering {
            self.metrics.tier.gauges(&tiering.handle().inventory());
        }
        self.metrics.links(self.links.iter().map(|link| link.state), self.admitted.len());
    }

    pub(super) fn uptime(&self) -> Duration {
        self.clock.now().until(Time::from_nanos(0))
    }
}

/// The one endpoint of the copy transport.
pub(super) const COPY_ENDPOINT: EndpointId = EndpointId(0);
