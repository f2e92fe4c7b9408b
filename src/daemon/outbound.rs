//! Calls to peers. Each runs in a task of its own, with a deadline, and answers with a command.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use kvferry_core::WorkId;
use kvferry_core::transfer::Failure;
use kvferry_proto::v1::{self, Refusal, peer_client::PeerClient};
use kvferry_transport::EndpointId;
use tokio::sync::{Semaphore, mpsc};
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};

use super::command::{Command, NotOpened, Opened};
use crate::config::Config;

/// Best-effort calls (release, cancel) at one time. More are dropped: the lease's deadline stands behind them.
const BEST_EFFORT_MAX: usize = 64;
/// The longest message a peer may send: block lists of the largest transfer.
pub(super) const MESSAGE_BYTES_MAX: usize = 32 << 20;

/// What a call for an endpoint says about who calls: enough to be called back.
pub(crate) struct Greeting {
    /// `host:port`, as our tickets name us.
    pub(crate) address: String,
    /// The life of this daemon.
    pub(crate) epoch: u64,
}

/// Knows how to call peers.
pub(crate) struct Outbound {
    config: Arc<Config>,
    tls: Option<ClientTlsConfig>,
    greeting: Arc<Greeting>,
    commands: mpsc::WeakSender<Command>,
    best_effort: Arc<Semaphore>,
}

impl Outbound {
    pub(crate) fn new(
        config: Arc<Config>,
        tls: Option<ClientTlsConfig>,
        greeting: Greeting,
        commands: mpsc::WeakSender<Command>,
    ) -> Self {
        let best_effort = Arc::new(Semaphore::new(BEST_EFFORT_MAX));
        Self { config, tls, greeting: Arc::new(greeting), commands, best_effort }
    }

    /// Asks a peer for an endpoint; answers with [`Command::LinkAnswered`].
    pub(super) fn open(&self, address: String) {
        let (config, tls, commands) = (Arc::clone(&self.config), self.tls.clone(), self.commands.clone());
        let greeting = Arc::clone(&self.greeting);
        tokio::spawn(async move {
            let limit = config.limits.connect_max;
            let result = match tokio::time::timeout(limit, open(&config, tls, &greeting, &address)).await {
                Ok(result) => result,
                Err(_) => Err((Failure::Unreachable, anyhow::anyhow!("no answer within {limit:?}"))),
            };
            let result = result.map_err(|(failure, error)| NotOpened { failure, message: format!("{error:#}") });
            if let Some(commands) = commands.upgrade() {
                drop(commands.send(Command::LinkAnswered { address, result }).await);
            }
        });
    }

    /// Redeems a ticket at its holder; answers with [`Command::ConfirmAnswered`].
    pub(super) fn confirm(
        &self,
        link: (Channel, EndpointId),
        work: WorkId,
        request: v1::ConfirmRequest,
        deadline: Duration,
    ) {
        let commands = self.commands.clone();
        tokio::spawn(async move {
            let mut client = client(link.0.clone());
            let result = match tokio::time::timeout(deadline, client.confirm(request)).await {
                Ok(Ok(reply)) => Ok(reply.into_inner()),
                Ok(Err(status)) => Err(status.to_string()),
                Err(_) => Err("deadline passed".to_owned()),
            };
            if let Some(commands) = commands.upgrade() {
                drop(commands.send(Command::ConfirmAnswered { work, link, result }).await);
            }
        });
    }

    /// Stops what a confirmation began. Best effort.
    pub(super) fn cancel(&self, channel: Channel, request: v1::CancelRequest) {
        let Ok(permit) = Arc::clone(&self.best_effort).try_acquire_owned() else { return };
        let limit = self.config.limits.connect_max;
        tokio::spawn(async move {
            drop(tokio::time::timeout(limit, client(channel).cancel(request)).await);
            drop(permit);
        });
    }

    /// Tells a holder that nobody will read. Best effort.
    pub(super) fn release(&self, channel: Option<Channel>, address: String, ticket: String) {
        let Ok(permit) = Arc::clone(&self.best_effort).try_acquire_owned() else { return };
        let (config, tls) = (Arc::clone(&self.config), self.tls.clone());
        tokio::spawn(async move {
            let call = async {
                let channel = match channel {
                    Some(channel) => channel,
                    None => connect(&config, tls, &address).await.ok()?.0,
                };
                client(channel).release(v1::ReleaseRequest { ticket }).await.ok()
            };
            drop(tokio::time::timeout(config.limits.connect_max, call).await);
            drop(permit);
        });
    }
}

fn client(channel: Channel) -> PeerClient<Channel> {
    PeerClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// Calls the address of a ticket, which anybody may have written: only peers that the config allows are called.
async fn connect(
    config: &Config,
    tls: Option<ClientTlsConfig>,
    address: &str,
) -> Result<(Channel, SocketAddr), (Failure, anyhow::Error)> {
    let unreachable = |error: anyhow::Error| (Failure::Unreachable, error);
    let mut resolved = tokio::net::lookup_host(address).await.context("resolve").map_err(unreachable)?;
    let allowed = resolved.find(|address| config.peer_allow.iter().any(|allow| allow.covers(address.ip())));
    let Some(address) = allowed else {
        return Err((Failure::Forbidden, anyhow::anyhow!("not among peer.allow")));
    };
    let channel = async {
        let scheme = if tls.is_some() { "https" } else { "http" };
        let mut endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))?
            .connect_timeout(config.limits.connect_max)
            .timeout(config.limits.transfer_deadline_max)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(5));
        if let Some(tls) = tls {
            endpoint = endpoint.tls_config(tls)?;
        }
        endpoint.connect().await.context("connect")
    };
    Ok((channel.await.map_err(unreachable)?, address))
}

async fn open(
    config: &Config,
    tls: Option<ClientTlsConfig>,
    greeting: &Greeting,
    address: &str,
) -> Result<Opened, (Failure, anyhow::Error)> {
    let (channel, called) = connect(config, tls, address).await?;
    let stream_count = u32::try_from(config.peer_streams).unwrap_or(1);
    let request = v1::OpenEndpointRequest {
        protocol: v1::PROTOCOL,
        stream_count,
        node: config.node.clone(),
        address: greeting.address.clone(),
        daemon_epoch: greeting.epoch,
        encrypts_data: config.encrypts_data(),
    };
    let reply = client(channel.clone()).open_endpoint(request).await.context("open an endpoint");
    let reply = reply.map_err(|error| (Failure::Unreachable, error))?.into_inner();
    if reply.refusal() != Refusal::Unspecified {
        let failure = if reply.refusal() == Refusal::Limit { Failure::Limit } else { Failure::Unreachable };
        return Err((failure, anyhow::anyhow!("the peer refused: {}", reply.message)));
    }
    let keys: Result<Vec<_>, _> = reply.keys.iter().map(|key| key.as_slice().try_into()).collect();
    let port = u16::try_from(reply.data_port).ok().filter(|port| *port != 0);
    match (keys, port) {
        (Ok(keys), Some(port)) if keys.len() == config.peer_streams && reply.endpoint != 0 => Ok(Opened {
            channel,
            endpoint: reply.endpoint,
            epoch: reply.daemon_epoch,
            keys,
            data: SocketAddr::new(called.ip(), port),
        }),
        _ => Err((Failure::Unreachable, anyhow::anyhow!("the peer's answer does not fit (is it another version?)"))),
    }
}
