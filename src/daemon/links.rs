//! Hub: links to the peers whose tickets we redeem.
//!
//! One link a peer: a gRPC channel and an endpoint of data connections. It is opened by the first transfer that needs
//! it; those that come meanwhile wait with it. A link whose endpoint breaks is forgotten, and the next transfer opens
//! another.

use std::collections::HashMap;

use kvferry_core::WorkId;
use kvferry_core::transfer::Failure;
use kvferry_transport::{Dial, EndpointId, Fault, Role};
use tonic::transport::Channel;

use super::command::Opened;
use super::data::DataCommand;
use super::hub::Hub;

/// Peers that this daemon keeps links to.
pub(super) const LINKS_MAX: usize = 256;

/// All links, by the holder's `host:port` as tickets spell it.
#[derive(Default)]
pub(crate) struct Links {
    links: HashMap<String, Link>,
}

#[derive(Default)]
struct Link {
    /// Set when the peer has let us in.
    opened: Option<(Channel, EndpointId)>,
    /// All data connections stand.
    up: bool,
    waiting: Vec<WorkId>,
}

impl Links {
    /// The channel and the endpoint to a peer, when both stand.
    pub(super) fn up(&self, address: &str) -> Option<(Channel, EndpointId)> {
        self.links.get(address).filter(|link| link.up).and_then(|link| link.opened.clone())
    }

    /// Peers, for people, and whether their link is up.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, bool)> {
        self.links.iter().map(|(address, link)| (address.as_str(), link.up))
    }

    fn by_endpoint(&mut self, endpoint: EndpointId) -> Option<(&String, &mut Link)> {
        self.links.iter_mut().find(|(_, link)| link.opened.as_ref().is_some_and(|(_, own)| *own == endpoint))
    }
}

impl Hub {
    /// Makes sure of a link for `work`, which goes on when the link stands.
    pub(super) async fn link(&mut self, address: String, work: WorkId) {
        let full = self.links.links.len() >= LINKS_MAX;
        match self.links.links.get_mut(&address) {
            Some(link) if link.up => self.go_on(work),
            Some(link) => link.waiting.push(work),
            None if full => self.refuse(work, Failure::Limit),
            None => {
                self.outbound.open(address.clone());
                self.links.links.insert(address, Link { waiting: vec![work], ..Link::default() });
            }
        }
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

    pub(super) async fn handle_link_answer(&mut self, address: String, result: Result<Opened, Failure>) {
        match result {
            Ok(Opened { channel, endpoint, keys, data }) => {
                let Some(link) = self.links.links.get_mut(&address) else { return };
                link.opened = Some((channel, EndpointId(endpoint)));
                let deadline = self.clock.now().after(self.config.limits.connect_max);
                let dial = Dial { endpoint: EndpointId(endpoint), role: Role::Reads, address: data, keys, deadline };
                self.data.send(DataCommand::Connect(dial)).await;
            }
            Err(failure) => {
                let waiting = self.links.links.remove(&address).map(|link| link.waiting);
                self.refuse_all(waiting.unwrap_or_default(), failure).await;
            }
        }
    }

    pub(super) async fn handle_link_up(&mut self, endpoint: EndpointId) {
        let Some((address, link)) = self.links.by_endpoint(endpoint) else { return };
        link.up = true;
        let waiting = std::mem::take(&mut link.waiting);
        tracing::info!(peer = address, "link is up");
        for work in waiting {
            self.go_on(work);
            Box::pin(self.drive(work)).await;
        }
    }

    pub(super) async fn handle_link_down(&mut self, endpoint: EndpointId, fault: Fault) {
        let Some((address, _)) = self.links.by_endpoint(endpoint) else { return };
        let address = address.clone();
        tracing::info!(peer = address, %fault, "link is down");
        let waiting = self.links.links.remove(&address).map(|link| link.waiting);
        self.refuse_all(waiting.unwrap_or_default(), Failure::Unreachable).await;
    }

    /// Forgets a link that the holder no longer knows.
    pub(super) async fn drop_link(&mut self, endpoint: EndpointId) {
        let address = self.links.by_endpoint(endpoint).map(|(address, _)| address.clone());
        if let Some(address) = address {
            self.links.links.remove(&address);
            self.data.send(DataCommand::Close(endpoint)).await;
        }
    }

    async fn refuse_all(&mut self, works: Vec<WorkId>, failure: Failure) {
        for work in works {
            self.refuse(work, failure);
            Box::pin(self.drive(work)).await;
        }
    }
}
