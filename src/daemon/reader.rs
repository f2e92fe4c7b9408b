//! Hub: the reader's side. Carries out what each [`Transfer`] asks for.

use std::sync::Arc;
use std::time::Duration;

use kvferry_core::layout::Layout;
use kvferry_core::plan::Plan;
use kvferry_core::ticket::Sealed;
use kvferry_core::transfer::{Action, Failure, Outcome, Transfer};
use kvferry_core::{Epoch, Fingerprint, Rank, Time, WorkId};
use kvferry_memory::Region;
use kvferry_proto::v1::{self, Refusal, from_daemon};
use kvferry_transport::{EndpointId, Fault, ReadWork, Source, Work};
use tonic::transport::Channel;

use super::command::SessionId;
use super::data::{DataCommand, Via};
use super::hub::{COPY_ENDPOINT, Hub};
use super::link_table::Origin;
use super::serving::{Ask, pair_reply};
use super::status::FinishedTransfer;
use super::wire;

/// One transfer into a region of ours, and what its shell must remember.
pub(crate) struct Reading {
    pub(crate) transfer: Transfer,
    pub(crate) request_id: String,
    pub(crate) engine_id: String,
    pub(crate) since: Time,
    session: SessionId,
    key: u64,
    ticket: String,
    sealed: Sealed,
    wanted: Vec<v1::WantedBlocks>,
    binding: Vec<u8>,
    rank: Rank,
    fingerprint: Fingerprint,
    region: Arc<Region>,
    layout: Arc<Layout>,
    engine_epoch: Epoch,
    /// Ours: the ticket's holder is this daemon.
    local: bool,
    /// The link's endpoint that was confirmed on.
    pub(super) endpoint: Option<EndpointId>,
    /// The holder once lost our endpoint, and we opened another.
    pub(super) reopened: bool,
    /// Compiled at the confirmation, taken by the post.
    posted: Option<(Arc<Plan>, Source)>,
    /// The holder's blocks, for people who compare.
    source_blocks: Vec<Vec<u32>>,
}

impl Reading {
    pub(crate) fn holder(&self) -> &str {
        self.sealed.address()
    }
}

impl Hub {
    /// An engine wants the blocks of a ticket. Whatever happens, one `TransferDone` follows.
    pub(super) async fn redeem(&mut self, session: SessionId, id: u64, redeem: v1::Redeem) {
        let failed = |failure: Failure| v1::TransferDone {
            key: redeem.key,
            failure: failure.word().to_owned(),
            ..Default::default()
        };
        let sealed = Sealed::parse(&redeem.ticket);
        let refusal = match (self.engines.worker_of(session), &sealed) {
            _ if self.by_key.contains_key(&(session, redeem.key)) => return,
            (None, _) => Some(Failure::Aborted),
            (_, Err(_)) => Some(Failure::Ticket),
            _ if self.reading.len() >= self.config.limits.transfers_max => Some(Failure::Limit),
            // Bounds what an engine can make us plan.
            _ if redeem.groups.iter().map(|group| group.targets.len()).sum::<usize>()
                > self.config.limits.lease_blocks_max =>
            {
                Some(Failure::Request)
            }
            _ => None,
        };
        if let Some(failure) = refusal {
            self.metrics.transferred(Outcome::Failed(failure), Duration::ZERO);
            if failure == Failure::Request {
                // It will not get any better; what is leased for it is leased for nobody.
                self.relinquish(&redeem.ticket);
            }
            self.reply(session, 0, from_daemon::Body::TransferDone(failed(failure)));
            if redeem.acknowledge {
                let message = format!("the redeem is refused: {failure}");
                self.reply(session, id, from_daemon::Body::Problem(v1::Problem { message }));
            }
            return;
        }
        let (Some((engine_epoch, rank, worker)), Ok(sealed)) = (self.engines.worker_of(session), sealed) else {
            return;
        };
        let (region, layout) = (Arc::clone(&worker.region), Arc::clone(&worker.layout));
        let fingerprint = worker.fingerprint;
        let engine_id = self.engines.sessions.get(&session).map(|open| open.engine_id.clone()).unwrap_or_default();
        let work = self.draw_work();
        let now = self.clock.now();
        let limit = Duration::from_millis(redeem.deadline_ms).min(self.config.limits.transfer_deadline_max);
        let deadline = now.after(limit);
        let reading = Reading {
            transfer: Transfer::new(work, deadline),
            request_id: redeem.request_id,
            engine_id,
            since: now,
            session,
            key: redeem.key,
            ticket: redeem.ticket,
            local: sealed.open(&self.ticket_key).is_ok(),
            sealed,
            wanted: redeem.groups,
            binding: redeem.binding,
            rank,
            fingerprint,
            region,
            layout,
            engine_epoch,
            endpoint: None,
            reopened: false,
            posted: None,
            source_blocks: Vec::new(),
        };
        self.by_key.insert((session, redeem.key), work);
        self.deadlines.insert((deadline, work));
        self.reading.insert(work, reading);
        if redeem.acknowledge {
            self.reply(session, id, from_daemon::Body::Accepted(v1::Accepted {}));
        }
        self.drive(work).await;
    }

    /// Carries out what the transfer asks for, until it waits or is done.
    pub(super) async fn drive(&mut self, work: WorkId) {
        while let Some(action) = self.reading.get_mut(&work).and_then(|reading| reading.transfer.poll_action()) {
            match action {
                Action::Connect => self.connect(work),
                Action::Confirm => self.ask_holder(work),
                Action::Post { work } => self.post(work).await,
                Action::Stop { work } => self.stop_reading(work).await,
                Action::Relinquish => {
                    if let Some(reading) = self.reading.get(&work) {
                        let ticket = reading.ticket.clone();
                        self.relinquish(&ticket);
                    }
                }
                Action::Report(outcome) => self.finish(work, outcome),
            }
        }
    }

    fn connect(&mut self, work: WorkId) {
        let Some(reading) = self.reading.get_mut(&work) else { return };
        if reading.local {
            return reading.transfer.handle_connected();
        }
        let address = reading.sealed.address().to_owned();
        self.link(&address, work);
    }

    /// Confirms the ticket with its holder: ourselves at once, a peer by a call.
    pub(super) fn ask_holder(&mut self, work: WorkId) {
        let Some(reading) = self.reading.get(&work) else { return };
        if reading.local {
            return self.ask_ourselves(work);
        }
        let link = self.links.up(reading.sealed.address());
        let Some(link) = link else { return self.refuse(work, Failure::Unreachable) };
        let left = reading.transfer.deadline().until(self.clock.now());
        let request = v1::ConfirmRequest {
            ticket: reading.ticket.clone(),
            rank: reading.rank.0,
            endpoint: link.1.0,
            fingerprint: reading.fingerprint.0.to_vec(),
            layout: Some(wire::sent_layout(&reading.layout)),
            groups: reading.wanted.clone(),
            binding: reading.binding.clone(),
            deadline_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
        };
        if let Some(reading) = self.reading.get_mut(&work) {
            reading.endpoint = Some(link.1);
        }
        self.outbound.confirm(link, work, request, left);
    }

    fn ask_ourselves(&mut self, work: WorkId) {
        let Some(reading) = self.reading.get(&work) else { return };
        let (sealed, layout, wanted) = (reading.sealed.clone(), Arc::clone(&reading.layout), reading.wanted.clone());
        let binding = reading.binding.clone();
        let (rank, fingerprint) = (reading.rank, reading.fingerprint);
        match self.confirm(&Ask {
            sealed: &sealed,
            rank,
            fingerprint,
            layout: &layout,
            wanted: &wanted,
            binding: &binding,
            work,
        }) {
            Ok(confirmed) => {
                let Some(reading) = self.reading.get_mut(&work) else { return };
                let bytes = confirmed.plan.bytes();
                reading.source_blocks =
                    confirmed.blocks.iter().map(|group| wire::sent_blocks(&group.source).blocks).collect();
                let source = Source::Region { region: confirmed.region, lease: confirmed.gate };
                reading.posted = Some((confirmed.plan, source));
                reading.transfer.handle_confirmed(bytes);
            }
            Err((refusal, message)) => {
                self.metrics.refused(refusal);
                tracing::debug!(?refusal, message, "refused a ticket");
                self.refuse(work, failure_of(refusal));
            }
        }
    }

    /// A holder's answer has come, or has not in time.
    pub(super) async fn handle_confirm_answer(
        &mut self,
        work: WorkId,
        (channel, endpoint): (Channel, EndpointId),
        result: Result<v1::ConfirmReply, String>,
    ) {
        let cancel_at_holder = |hub: &Self, holder_work: u64| {
            hub.outbound.cancel(channel, v1::CancelRequest { endpoint: endpoint.0, work: holder_work });
        };
        let waiting = self.reading.get_mut(&work).filter(|reading| reading.transfer.state() == "confirming");
        let Some(reading) = waiting else {
            // Given up meanwhile; what the holder has pinned for it is pinned for nobody.
            if let Ok(reply) = result
                && reply.refusal() == Refusal::Unspecified
            {
                cancel_at_holder(self, reply.work);
            }
            return;
        };
        let address = reading.sealed.address().to_owned();
        match result {
            Err(message) => {
                tracing::debug!(work = work.0, message, "holder did not confirm");
                // No answer by the deadline is the deadline's failure, whichever timer was first.
                reading.transfer.handle_timeout(self.clock.now());
                self.refuse(work, Failure::Unreachable);
            }
            Ok(reply) if reply.refusal() == Refusal::Endpoint && !reading.reopened => {
                // The holder started anew, or closed what we thought open: once more, from the start.
                reading.reopened = true;
                if let Some(endpoint) = reading.endpoint.take() {
                    self.drop_link(endpoint).await;
                }
                self.link(&address, work);
            }
            Ok(reply) if reply.refusal() != Refusal::Unspecified => {
                tracing::debug!(work = work.0, message = reply.message, "holder refused");
                self.refuse(work, failure_of(reply.refusal()));
            }
            Ok(reply) => {
                let planned = wire::layout(reply.layout.as_ref()).and_then(|source| {
                    let pairs = pair_reply(&reading.wanted, &reply)?;
                    Plan::compile(&source, &reading.layout, &pairs).map_err(|error| error.to_string())
                });
                match planned {
                    Ok(plan) if plan.digest() == reply.plan_digest => {
                        let bytes = plan.bytes();
                        reading.source_blocks = reply.blocks.iter().map(|list| list.blocks.clone()).collect();
                        reading.posted = Some((Arc::new(plan), Source::Peer { work: WorkId(reply.work) }));
                        reading.transfer.handle_confirmed(bytes);
                    }
                    other => {
                        let message = other.err().unwrap_or_else(|| "both sides' plans differ".to_owned());
                        tracing::warn!(work = work.0, holder = address, message, "holder's answer does not fit");
                        cancel_at_holder(self, reply.work);
                        self.refuse(work, Failure::Protocol);
                    }
                }
            }
        }
        self.drive(work).await;
    }

    async fn post(&mut self, work: WorkId) {
        let Some(reading) = self.reading.get_mut(&work) else { return };
        let Some((plan, source)) = reading.posted.take() else { return self.refuse(work, Failure::Protocol) };
        let mut regions = vec![Arc::clone(&reading.region)];
        let (via, endpoint) = match &source {
            Source::Region { region, .. } => {
                regions.push(Arc::clone(region));
                (Via::Copy, COPY_ENDPOINT)
            }
            Source::Peer { .. } | Source::Pushed { .. } => (Via::Tcp, reading.endpoint.unwrap_or(COPY_ENDPOINT)),
        };
        let deadline = reading.transfer.deadline();
        let read = ReadWork { id: work, plan, target: Arc::clone(&reading.region), source, deadline };
        self.engines.work_posted(work, regions);
        self.data.send(DataCommand::Post { via, endpoint, work: Work::Read(read) }).await;
    }

    async fn stop_reading(&self, work: WorkId) {
        let Some(reading) = self.reading.get(&work) else { return };
        match (reading.local, reading.endpoint) {
            (true, _) => self.stop_work(Via::Copy, COPY_ENDPOINT, work).await,
            (false, Some(endpoint)) => self.stop_work(Via::Tcp, endpoint, work).await,
            (false, None) => {}
        }
    }

    /// The posted read has completed, or could not be posted.
    pub(super) async fn handle_read_completed(&mut self, work: WorkId, result: Result<u64, Fault>) {
        if let Some(reading) = self.reading.get_mut(&work) {
            reading.transfer.handle_completed(result.map_err(failure_of_fault));
            self.drive(work).await;
        }
    }

    /// Gives a transfer up. Unknown ones are none of ours.
    pub(super) async fn cancel_transfer(&mut self, work: WorkId, failure: Failure) {
        if let Some(reading) = self.reading.get_mut(&work) {
            reading.transfer.handle_cancel(failure);
            self.drive(work).await;
        }
    }

    pub(super) fn refuse(&mut self, work: WorkId, failure: Failure) {
        if let Some(reading) = self.reading.get_mut(&work) {
            reading.transfer.handle_refused(failure);
        }
    }

    /// Tells the holder of a ticket that nobody reads it.
    pub(super) fn relinquish(&mut self, ticket: &str) {
        let Ok(sealed) = Sealed::parse(ticket) else { return };
        if sealed.open(&self.ticket_key).is_ok() {
            self.release(ticket);
        } else {
            self.learn(sealed.address(), Origin::Learnt, None);
            let channel = self.links.up(sealed.address()).map(|(channel, _)| channel);
            self.outbound.release(channel, sealed.address().to_owned(), ticket.to_owned());
        }
    }

    fn finish(&mut self, work: WorkId, outcome: Outcome) {
        let Some(reading) = self.reading.remove(&work) else { return };
        self.deadlines.remove(&(reading.transfer.deadline(), work));
        self.by_key.remove(&(reading.session, reading.key));
        let took = self.clock.now().until(reading.since);
        self.metrics.transferred(outcome, took);
        let (bytes, failure) = match outcome {
            Outcome::Delivered { bytes } => (bytes, ""),
            Outcome::Failed(failure) => (0, failure.word()),
        };
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        if let Outcome::Failed(failure) = outcome {
            tracing::info!(
                work = work.0, request = reading.request_id, holder = reading.sealed.address(), %failure,
                "transfer failed"
            );
        } else {
            tracing::debug!(work = work.0, request = reading.request_id, bytes, micros, "transfer delivered");
        }
        let done = v1::TransferDone {
            key: reading.key,
            delivered: failure.is_empty(),
            failure: failure.to_owned(),
            bytes,
            micros,
        };
        self.reply(reading.session, 0, from_daemon::Body::TransferDone(done));
        self.remember(FinishedTransfer {
            work: work.0,
            request: reading.request_id,
            engine: reading.engine_id,
            engine_epoch: reading.engine_epoch.0,
            holder: reading.sealed.address().to_owned(),
            via: if reading.local { "copy" } else { "tcp" }.to_owned(),
            outcome: if failure.is_empty() { "delivered" } else { failure }.to_owned(),
            bytes,
            micros,
            source_blocks: reading.source_blocks,
            target_blocks: reading.wanted.into_iter().filter(|w| !w.targets.is_empty()).map(|w| w.targets).collect(),
        });
    }
}

fn failure_of(refusal: Refusal) -> Failure {
    match refusal {
        Refusal::Endpoint => Failure::Unreachable,
        Refusal::Fingerprint => Failure::Fingerprint,
        Refusal::Lease => Failure::Lease,
        Refusal::Limit => Failure::Limit,
        Refusal::Request => Failure::Request,
        Refusal::Ticket => Failure::Ticket,
        Refusal::Unspecified => Failure::Protocol,
    }
}

fn failure_of_fault(fault: Fault) -> Failure {
    match fault {
        // Ours are cancelled only after their failure is known; so the holder has withdrawn what it leased, before we
        // fetched it (refused) or after.
        Fault::Cancelled | Fault::LeaseEnded | Fault::Refused => Failure::Lease,
        Fault::ChecksumMismatch => Failure::Checksum,
        Fault::Deadline => Failure::Deadline,
        Fault::Full => Failure::Limit,
        Fault::Io(_) | Fault::PeerClosed | Fault::Stalled => Failure::Unreachable,
        Fault::OutOfBounds | Fault::Protocol | Fault::Unsupported | Fault::Untrusted => Failure::Protocol,
    }
}
