//! Hub: the holder's side. Grants leases, confirms tickets, serves reads.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use kvferry_core::layout::Layout;
use kvferry_core::lease::{GrantError, LeaseGate, LeaseSpec, RedeemError};
use kvferry_core::plan::{GroupBlocks, Plan};
use kvferry_core::ticket::{Sealed, Ticket};
use kvferry_core::{BlockIndex, Fingerprint, LeaseId, Rank, Time, WorkId};
use kvferry_memory::Region;
use kvferry_proto::v1::{self, Refusal, from_daemon};
use kvferry_transport::{Admission, EndpointId, Role, ServeWork, Start, Work};

use super::command::SessionId;
use super::data::{DataCommand, Via};
use super::engines::Worker;
use super::hub::{COPY_ENDPOINT, Hub};
use super::link_table::Origin;
use super::wire;
use crate::config::is_host_and_port;
use crate::random;

/// Bytes of a lease's binding.
const BINDING_LENGTH_MAX: usize = 64;
/// Streams that one endpoint may have.
const STREAMS_MAX: u32 = 16;
/// How long the keys of an endpoint wait for their connections.
const ADMISSION_MAX: Duration = Duration::from_secs(5);
/// Endpoints that peers may hold open here.
pub(super) const ENDPOINTS_MAX: usize = 256;

/// An endpoint that a peer opened here.
pub(crate) struct Admitted {
    /// The peer's name for itself.
    pub(crate) peer: String,
    /// Its `host:port`; empty if it named none that one could call.
    pub(crate) address: String,
    pub(crate) since: Time,
    /// The last time it read something.
    pub(crate) used: Time,
    /// All its data connections have come.
    pub(crate) up: bool,
}

/// A read that a peer makes of one of our regions.
pub(crate) struct Serving {
    pub(crate) endpoint: EndpointId,
    pub(crate) peer: String,
    pub(crate) bytes: u64,
    pub(crate) since: Time,
}

/// What a reader, here or at a peer, asks of a ticket.
pub(super) struct Ask<'a> {
    pub(super) sealed: &'a Sealed,
    pub(super) rank: Rank,
    pub(super) fingerprint: Fingerprint,
    pub(super) layout: &'a Layout,
    pub(super) wanted: &'a [v1::WantedBlocks],
    /// What the reader's prompt is, in its engine's words.
    pub(super) binding: &'a [u8],
    /// The work that pins the blocks until it completes.
    pub(super) work: WorkId,
}

/// A confirmed ticket: the blocks are pinned under the asking work.
pub(super) struct Confirmed {
    pub(super) region: Arc<Region>,
    pub(super) layout: Arc<Layout>,
    pub(super) gate: LeaseGate,
    pub(super) plan: Arc<Plan>,
    /// A list for each asked group.
    pub(super) blocks: Vec<GroupBlocks>,
}

/// A refusal, with words for people.
pub(super) type Refused = (Refusal, String);

impl Hub {
    /// Leases blocks for an engine's scheduler.
    pub(super) fn grant(&mut self, session: SessionId, grant: v1::Grant) -> Result<from_daemon::Body, String> {
        let engine_id = self.engines.sessions.get(&session).map(|open| open.engine_id.clone()).unwrap_or_default();
        let engine = self.engines.engines.get(&engine_id).filter(|engine| engine.is_whole());
        let engine = engine.ok_or_else(|| format!("engine {engine_id:?} has not attached all its workers"))?;
        let Some(worker) = engine.workers.values().next() else { return Err("engine has no worker".to_owned()) };
        let blocks: Vec<_> = grant.groups.iter().map(|list| wire::blocks(&list.blocks)).collect();
        if blocks.len() > worker.layout.groups().len() {
            return Err(format!("{} groups, but the layout has {}", blocks.len(), worker.layout.groups().len()));
        }
        if let Some(block) = blocks.iter().flatten().find(|block| block.0 >= worker.layout.block_count()) {
            return Err(format!("block {block} is not among the layout's {}", worker.layout.block_count()));
        }
        if grant.binding.len() > BINDING_LENGTH_MAX {
            return Err(format!("a binding has at most {BINDING_LENGTH_MAX} bytes, not {}", grant.binding.len()));
        }
        let spec = LeaseSpec {
            epoch: engine.epoch,
            request_id: grant.request_id,
            blocks,
            rank_count: engine.rank_count,
            duration: Duration::from_millis(grant.lease_ms),
            binding: grant.binding,
        };
        let (engine_epoch, fingerprint) = (engine.epoch, worker.fingerprint);
        let now = self.clock.now();
        let granted = loop {
            let id = LeaseId(random::number().map_err(|error| error.to_string())?);
            match self.leases.grant(now, id, spec.clone()) {
                Err(GrantError::NumberTaken) => {}
                other => break other.map_err(|error| error.to_string())?,
            }
        };
        self.lease_engines.insert(granted.id, engine_id);
        self.metrics.lease_granted();
        let ticket = Ticket {
            address: self.advertise.clone(),
            daemon_epoch: self.epoch,
            engine_epoch,
            fingerprint,
            lease: granted.id,
        };
        let (host, port) = self.advertise.rsplit_once(':').unwrap_or_default();
        Ok(from_daemon::Body::Granted(v1::Granted {
            lease_id: granted.id.0,
            ticket: ticket.seal(&self.ticket_key).map_err(|error| error.to_string())?,
            lease_ms: u64::try_from(granted.deadline.until(now).as_millis()).unwrap_or(u64::MAX),
            host: host.to_owned(),
            port: port.parse().unwrap_or_default(),
        }))
    }

    /// A peer wants data connections.
    pub(super) async fn open_endpoint(&mut self, request: &v1::OpenEndpointRequest) -> v1::OpenEndpointReply {
        match self.try_open_endpoint(request).await {
            Ok(reply) => reply,
            Err((refusal, message)) => {
                self.metrics.link_refused();
                tracing::info!(peer = request.node, ?refusal, message, "refused an endpoint");
                let refusal = refusal.into();
                v1::OpenEndpointReply { daemon_epoch: self.epoch.0, refusal, message, ..Default::default() }
            }
        }
    }

    async fn try_open_endpoint(&mut self, request: &v1::OpenEndpointRequest) -> Result<v1::OpenEndpointReply, Refused> {
        let count = request.stream_count;
        if request.protocol != v1::PROTOCOL {
            let message = format!("protocol {} is not {}: both daemons need the same", request.protocol, v1::PROTOCOL);
            return Err((Refusal::Request, message));
        }
        if !(1..=STREAMS_MAX).contains(&count) {
            return Err((Refusal::Request, format!("{count} streams: 1 to {STREAMS_MAX}")));
        }
        if request.encrypts_data != self.config.encrypts_data() {
            let does = |encrypts| if encrypts { "encrypts" } else { "does not encrypt" };
            let (holder, caller) = (does(self.config.encrypts_data()), does(request.encrypts_data));
            let message = format!(
                "this daemon {holder} data connections, the caller {caller} them: set peer.tls.data alike on both"
            );
            return Err((Refusal::Request, message));
        }
        if self.admitted.len() >= ENDPOINTS_MAX && !self.close_idle_endpoint().await {
            return Err((Refusal::Limit, format!("all {ENDPOINTS_MAX} endpoints for peers are in use")));
        }
        let no_random = |error: anyhow::Error| (Refusal::Limit, format!("{error:#}"));
        let keys = (0..count).map(|_| random::key()).collect::<Result<Vec<_>, _>>().map_err(no_random)?;
        let endpoint = EndpointId(random::number().map_err(no_random)?);
        let peer = request.node.chars().filter(|c| !c.is_control()).take(64).collect();
        let address = if is_host_and_port(&request.address) { request.address.clone() } else { String::new() };
        let now = self.clock.now();
        if !address.is_empty() {
            // It lives, and may one day hold what our engines want.
            self.learn(&address, Origin::Learnt, Some(request.daemon_epoch));
        }
        self.admitted.insert(endpoint, Admitted { peer, address, since: now, used: now, up: false });
        self.peers_changed = true;
        let expires = now.after(ADMISSION_MAX);
        self.data
            .send(DataCommand::Admit(Admission { endpoint, role: Role::Serves, keys: keys.clone(), expires }))
            .await;
        Ok(v1::OpenEndpointReply {
            daemon_epoch: self.epoch.0,
            endpoint: endpoint.0,
            keys: keys.iter().map(|key| key.to_vec()).collect(),
            data_port: u32::from(self.data_port),
            ..Default::default()
        })
    }

    /// Makes room at the limit: closes the endpoint over which nothing was read for the longest time, if that is
    /// longer than a peer may be idle. A peer that still wants it opens another.
    async fn close_idle_endpoint(&mut self) -> bool {
        let busy: HashSet<_> = self.serving.values().map(|serving| serving.endpoint).collect();
        let idle = self.admitted.iter().filter(|(endpoint, _)| !busy.contains(endpoint));
        let oldest =
            idle.min_by_key(|(_, admitted)| admitted.used).map(|(endpoint, admitted)| (*endpoint, admitted.used));
        let Some((endpoint, used)) = oldest else { return false };
        if self.clock.now().until(used) < self.config.limits.peer_idle_max {
            return false;
        }
        self.admitted.remove(&endpoint);
        self.data.send(DataCommand::Close(endpoint)).await;
        true
    }

    /// A peer redeems a ticket: checks it and posts our half.
    pub(super) async fn confirm_for_peer(&mut self, request: &v1::ConfirmRequest) -> v1::ConfirmReply {
        match self.try_confirm_for_peer(request).await {
            Ok(reply) => reply,
            Err((refusal, message)) => {
                self.metrics.refused(refusal);
                tracing::debug!(?refusal, message, "refused a ticket");
                v1::ConfirmReply { refusal: refusal.into(), message, ..Default::default() }
            }
        }
    }

    async fn try_confirm_for_peer(&mut self, request: &v1::ConfirmRequest) -> Result<v1::ConfirmReply, Refused> {
        let malformed = |message: String| (Refusal::Request, message);
        let endpoint = EndpointId(request.endpoint);
        let now = self.clock.now();
        let admitted = self.admitted.get_mut(&endpoint);
        let peer = admitted.map(|admitted| {
            admitted.used = now;
            admitted.peer.clone()
        });
        let peer = peer.ok_or_else(|| (Refusal::Endpoint, "the endpoint is not open; open another".to_owned()))?;
        if self.serving.len() >= self.config.limits.transfers_max {
            return Err((Refusal::Limit, format!("{} transfers are being served", self.serving.len())));
        }
        let sealed = Sealed::parse(&request.ticket).map_err(|error| (Refusal::Ticket, error.to_string()))?;
        let layout = wire::layout(request.layout.as_ref()).map_err(malformed)?;
        let fingerprint = wire::fingerprint(&request.fingerprint).map_err(malformed)?;
        let work = self.draw_work();
        let confirmed = self.confirm(&Ask {
            sealed: &sealed,
            rank: Rank(request.rank),
            fingerprint,
            layout: &layout,
            wanted: &request.groups,
            binding: &request.binding,
            work,
        })?;
        let asked = Duration::from_millis(request.deadline_ms).min(self.config.limits.transfer_deadline_max);
        // The lease's own end is watched by the lease table, which says so to the reader.
        let deadline = now.after(asked);
        let bytes = confirmed.plan.bytes();
        self.serving.insert(work, Serving { endpoint, peer, bytes, since: now });
        self.engines.work_posted(work, vec![Arc::clone(&confirmed.region)]);
        let reply = v1::ConfirmReply {
            refusal: Refusal::Unspecified.into(),
            message: String::new(),
            work: work.0,
            layout: Some(wire::sent_layout(&confirmed.layout)),
            blocks: confirmed.blocks.iter().map(|group| wire::sent_blocks(&group.source)).collect(),
            plan_digest: confirmed.plan.digest(),
        };
        let serve = ServeWork {
            id: work,
            plan: confirmed.plan,
            source: confirmed.region,
            lease: confirmed.gate,
            start: Start::Fetched,
            deadline,
        };
        self.data.send(DataCommand::Post { via: Via::Tcp, endpoint, work: Work::Serve(serve) }).await;
        Ok(reply)
    }

    /// The checks that every reader passes, from this node or another, and the pin.
    pub(super) fn confirm(&mut self, ask: &Ask<'_>) -> Result<Confirmed, Refused> {
        let ticket = ask.sealed.open(&self.ticket_key).map_err(|error| (Refusal::Ticket, error.to_string()))?;
        let stale = || (Refusal::Ticket, "the ticket is from another life of its engine".to_owned());
        if ticket.daemon_epoch != self.epoch {
            return Err(stale());
        }
        let engine_id = self.lease_engines.get(&ticket.lease);
        let engine_id = engine_id.ok_or_else(|| (Refusal::Lease, RedeemError::Unknown.to_string()))?;
        let (engine, worker) = self.engines.worker(engine_id, ask.rank).ok_or_else(stale)?;
        if engine.epoch != ticket.engine_epoch {
            return Err(stale());
        }
        if ticket.fingerprint != ask.fingerprint || worker.fingerprint != ask.fingerprint {
            let message = format!("the engines differ: holder {}, reader {}", worker.fingerprint, ask.fingerprint);
            return Err((Refusal::Fingerprint, message));
        }
        if !self.leases.is_bound_to(ticket.lease, ask.binding) {
            return Err((Refusal::Ticket, "the ticket is for another prompt".to_owned()));
        }
        let Worker { region, layout, .. } = worker;
        let (region, layout) = (Arc::clone(region), Arc::clone(layout));

        let now = self.clock.now();
        let redeemed =
            self.leases.redeem(now, ticket.lease, ticket.engine_epoch, ask.rank, ask.work).map_err(|error| {
                let refusal = match error {
                    RedeemError::Epoch => Refusal::Ticket,
                    RedeemError::Ended | RedeemError::Rank | RedeemError::Redeemed | RedeemError::Unknown => {
                        Refusal::Lease
                    }
                };
                (refusal, error.to_string())
            })?;
        let planned = pair(&redeemed.blocks, ask.wanted).and_then(|blocks| {
            let plan = Plan::compile(&layout, ask.layout, &blocks).map_err(|error| error.to_string())?;
            Ok((blocks, Arc::new(plan)))
        });
        match planned {
            Ok((blocks, plan)) => Ok(Confirmed { region, layout, gate: redeemed.gate, plan, blocks }),
            Err(message) => {
                // The ticket is used up: what asks wrongly once gets no second guess.
                self.leases.handle_read_ended(ask.work);
                Err((Refusal::Request, message))
            }
        }
    }

    /// Stops a peer's read, if it is one; its completion still comes.
    pub(super) async fn stop_serving(&mut self, work: WorkId, only_on: Option<u64>) {
        let Some(serving) = self.serving.get(&work) else { return };
        let endpoint = serving.endpoint;
        if only_on.is_none_or(|only| only == endpoint.0) && endpoint != COPY_ENDPOINT {
            self.stop_work(Via::Tcp, endpoint, work).await;
        }
    }

    /// A reader will not come for this ticket.
    pub(super) fn release(&mut self, ticket: &str) {
        if let Ok(ticket) = Sealed::parse(ticket).and_then(|sealed| sealed.open(&self.ticket_key)) {
            self.leases.relinquish(ticket.lease, ticket.engine_epoch);
        }
    }
}

/// The lease's blocks at the wanted positions, beside where they go.
fn pair(leased: &[Vec<BlockIndex>], wanted: &[v1::WantedBlocks]) -> Result<Vec<GroupBlocks>, String> {
    let mut pairs = Vec::with_capacity(wanted.len());
    for (group, wanted) in wanted.iter().enumerate() {
        if wanted.positions.is_empty() && wanted.targets.is_empty() {
            continue;
        }
        let leased = leased.get(group).ok_or_else(|| format!("the lease has no group {group}"))?;
        // Also bounds what a reader can make us plan.
        if wanted.positions.len() > leased.len() {
            return Err(format!(
                "{} blocks of group {group}, whose lease has {}",
                wanted.positions.len(),
                leased.len()
            ));
        }
        let at = |position: &u32| {
            let block = usize::try_from(*position).ok().and_then(|position| leased.get(position));
            match block {
                Some(&BlockIndex::NULL) => Err(format!("the lease holds nothing at {position}")),
                Some(block) => Ok(*block),
                None => Err(format!("the lease has {} blocks, not one at {position}", leased.len())),
            }
        };
        if wanted.targets.contains(&BlockIndex::NULL.0) {
            return Err("the null block takes no bytes".to_owned());
        }
        pairs.push(GroupBlocks {
            group: u32::try_from(group).map_err(|_| "too many groups".to_owned())?,
            source: wanted.positions.iter().map(at).collect::<Result<_, _>>()?,
            target: wire::blocks(&wanted.targets),
        });
    }
    Ok(pairs)
}

/// The plan that both sides compile, from the reader's end: what the holder says its blocks are.
pub(super) fn pair_reply(wanted: &[v1::WantedBlocks], reply: &v1::ConfirmReply) -> Result<Vec<GroupBlocks>, String> {
    let asked = wanted.iter().enumerate().filter(|(_, wanted)| !wanted.targets.is_empty());
    let mut lists = reply.blocks.iter();
    let mut pairs = Vec::new();
    for (group, wanted) in asked {
        let list = lists.next().ok_or("the holder named too few groups")?;
        pairs.push(GroupBlocks {
            group: u32::try_from(group).map_err(|_| "too many groups".to_owned())?,
            source: wire::blocks(&list.blocks),
            target: wire::blocks(&wanted.targets),
        });
    }
    if lists.next().is_some() {
        return Err("the holder named too many groups".to_owned());
    }
    Ok(pairs)
}
