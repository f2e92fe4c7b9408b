//! Hub: links to peers, kept open before a transfer needs them ([`LinkTable`] decides, the hub carries out).
//!
//! One link a peer: a gRPC channel and an endpoint of data connections. While it stands nothing runs for it here: TCP
//! keepalive watches the data connections, and a peer whose process ends takes them with it.

use kvferry_core::WorkId;
use kvferry_core::transfer::Failure;
use kvferry_transport::{Dial, EndpointId, Fault, Role};

use super::command::{NotOpened, Opened};
use super::data::DataCommand;
use super::hub::Hub;
use super::link_table::{Found, LinkAction, Opening, Origin};
use crate::random;

/// Peers that this daemon keeps links to.
pub(crate) const LINKS_MAX: usize = 256;

impl Hub {
    /// Makes sure of a link for `work`, which goes on when the link stands.
    pub(super) fn link(&mut self, address: &str, work: WorkId) {
        match self.links.want(self.clock.now(), address, work) {
            Found::Up => self.go_on(work),
            // The turn of the hub that we are in opens it.
            Found::Waits => {}
            Found::Full => self.refuse(work, Failure::Limit),
        }
    }

    /// A peer is known from now on, or has shown that it lives, in the life `epoch` if it says so.
    pub(super) fn learn(&mut self, address: &str, origin: Origin, epoch: Option<u64>) {
        if address != self.advertise && !self.links.learn(self.clock.now(), address, origin, epoch) {
            tracing::info!(peer = address, "no room for a link to one more peer");
        }
    }

    /// Calls whom it is time to call, and forgets whom nothing wants.
    pub(super) async fn drive_links(&mut self) {
        let now = self.clock.now();
        while let Some(action) = self.links.poll(now) {
            match action {
                LinkAction::Open(address) => self.outbound.open(address),
                LinkAction::Idle(address) => {
                    let endpoint = self.links.up(&address).map(|(_, endpoint)| endpoint);
                    if endpoint.is_some() && self.reading.values().any(|reading| reading.endpoint == endpoint) {
                        self.links.touch(now, &address);
                        continue;
                    }
                    tracing::info!(peer = address, "forgot a peer that nothing wanted");
                    if let Some(endpoint) = self.links.forget(&address) {
                        self.data.send(DataCommand::Close(endpoint)).await;
                    }
                }
            }
        }
        self.remember_peers();
    }

    /// The link of a waiting transfer stands.
    fn go_on(&mut self, work: WorkId) {
        let Some(reading) = self.reading.get_mut(&work) else { return };
        if reading.transfer.state() == "confirming" {
            // It was confirmed over a link that the holder had lost.
            self.ask_holder(work);
        } else {
            reading.transfer.handle_connected();
        }
    }

    pub(super) async fn handle_link_answer(&mut self, address: String, result: Result<Opened, NotOpened>) {
        let now = self.clock.now();
        self.metrics.link_tried();
        match result {
            Ok(Opened { channel, endpoint, epoch, keys, data }) => {
                let endpoint = EndpointId(endpoint);
                let Opening::Connect { replaces } = self.links.handle_opened(now, &address, channel, endpoint, epoch)
                else {
                    // The peer lets go of an endpoint to which nobody comes.
                    return;
                };
                if let Some(old) = replaces {
                    tracing::info!(peer = address, "peer has started anew");
                    self.data.send(DataCommand::Close(old)).await;
                }
                let deadline = now.after(self.config.limits.connect_max);
                let dial = Dial { endpoint, role: Role::Reads, address: data, keys, deadline };
                self.data.send(DataCommand::Connect(dial)).await;
            }
            Err(NotOpened { failure, message }) => {
                let works = match failure {
                    Failure::Forbidden => self.links.handle_forbidden(now, &address, &message),
                    _ => self.links.handle_failed(now, &address, &message, dice()),
                };
                if works.is_empty() {
                    tracing::debug!(peer = address, message, "failed to open a link");
                } else {
                    tracing::info!(peer = address, transfers = works.len(), message, "failed to open a link");
                }
                self.refuse_all(works, failure).await;
            }
        }
    }

    pub(super) async fn handle_link_up(&mut self, endpoint: EndpointId) {
        let Some((address, works)) = self.links.handle_up(self.clock.now(), endpoint) else { return };
        self.metrics.link_came_up();
        tracing::info!(peer = address, endpoint = endpoint.0, "link is up");
        for work in works {
            self.go_on(work);
            Box::pin(self.drive(work)).await;
        }
    }

    pub(super) async fn handle_link_down(&mut self, endpoint: EndpointId, fault: Fault) {
        let Some((address, works)) = self.links.handle_down(self.clock.now(), endpoint, fault, dice()) else { return };
        self.metrics.link_went_down();
        tracing::info!(peer = address, endpoint = endpoint.0, %fault, "link is down");
        self.refuse_all(works, Failure::Unreachable).await;
    }

    /// Gives up an endpoint that the holder no longer knows.
    pub(super) async fn drop_link(&mut self, endpoint: EndpointId) {
        self.data.send(DataCommand::Close(endpoint)).await;
        self.handle_link_down(endpoint, Fault::Refused).await;
    }

    async fn refuse_all(&mut self, works: Vec<WorkId>, failure: Failure) {
        for work in works {
            self.refuse(work, failure);
            Box::pin(self.drive(work)).await;
        }
    }
}

/// For jitter; when there are no random numbers, every wait is the whole one.
fn dice() -> u64 {
    random::number().unwrap_or(u64::MAX)
}
