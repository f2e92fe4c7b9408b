//! The daemon: how its parts are wired.
//!
//! ```text
//! engines --- attach socket --- sessions --+
//! peers ----- gRPC ------------ service ---+--> hub --- data thread --- transports --- peers' data ports
//! operator -- admin port ------------------+
//! ```
//!
//! Control runs on one tokio thread, data on a thread of its own; both are real-time where that is allowed
//! ([`scheduling`]). Stopping: no new sessions and calls, every session
//! closed (which ends leases and transfers), the hub ends when the last sender of commands is gone, the data thread
//! when the hub is.

mod admin;
mod attach;
mod attaching;
pub(crate) mod cached;
mod clock;
mod command;
mod data;
mod engines;
mod hop;
mod hub;
mod link_table;
mod links;
mod metrics;
mod outbound;
mod peer_service;
mod reader;
mod remembered;
pub(crate) mod scheduling;
mod serving;
pub(crate) mod status;
mod tier;
mod tls;
mod wire;

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};
use kvferry_core::Epoch;
use kvferry_core::ticket::TicketKey;
use kvferry_proto::v1::peer_server::PeerServer;
use kvferry_transport::{CopySettings, CopyTransport};
use kvferry_transport_tcp::{TcpTransport, Threads, Tls};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use self::clock::Clock;
use self::hub::{Hub, HubParts};
use self::metrics::Metrics;
use self::outbound::{Greeting, MESSAGE_BYTES_MAX, Outbound};
use self::peer_service::PeerService;
use self::remembered::{Remembered, recall};
use self::scheduling::Scheduling;
use self::tier::Tiering;
use self::tls::PeerTls;
use crate::config::Config;
use crate::random;

/// Commands that wait for the hub; senders wait when it is full.
const COMMANDS_MAX: usize = 1024;
/// What the tiers have to say and the hub has not heard; their thread waits when it is full.
const TIER_EVENTS_MAX: usize = 1024;
/// Stopping takes no longer, whatever a peer or an engine does.
const STOP_MAX: Duration = Duration::from_secs(5);
/// Calls that one peer connection may have in flight.
const CALLS_MAX: u32 = 256;

/// A daemon that is up.
pub(crate) struct Daemon {
    /// Where peers call.
    pub(crate) peer: SocketAddr,
    /// Where data connections come in.
    pub(crate) data: SocketAddr,
    /// Where `/metrics` is.
    pub(crate) admin: SocketAddr,
    config: Arc<Config>,
    tasks: JoinSet<()>,
    data_thread: JoinHandle<()>,
    tier_thread: Option<JoinHandle<()>>,
    stop: CancellationToken,
}

impl Daemon {
    /// Binds everything, or nothing.
    pub(crate) async fn start(config: Config, scheduling: Scheduling) -> Result<Self> {
        let config = Arc::new(config);
        let limits = config.limits;
        let clock = Clock::start();
        if let Some(warning) = config.in_the_clear() {
            tracing::warn!("{warning}");
        }
        let tls = PeerTls::load(config.peer_tls.as_ref())?;
        let peer_listener = TcpListener::bind(config.peer_listen)
            .await
            .with_context(|| format!("listen on peer.listen = {}", config.peer_listen))?;
        let peer = peer_listener.local_addr()?;
        let data_address = SocketAddr::new(peer.ip(), config.peer_data_port);
        let data_clock = Arc::new(move || clock.now());
        let threads = Threads { count: limits.data_threads, clock: data_clock };
        let tcp = TcpTransport::bind_threads(data_address, &tcp_settings(&config, tls.data), &threads).with_context(
            || {
                format!(
                    "listen for data on {data_address} (peer.data_port, peer.io, peer.congestion, limits.data_threads)"
                )
            },
        )?;
        tracing::info!(
            "data connections by {}; congestion control: {}; threads: {}",
            tcp.choice(),
            tcp.congestion()?,
            tcp.thread_count()
        );
        let data = tcp.local_addr()?;
        let admin_listener = TcpListener::bind(config.admin_listen)
            .await
            .with_context(|| format!("listen on admin.listen = {}", config.admin_listen))?;
        let admin = admin_listener.local_addr()?;
        let attach_listener = attach::bind(&config)?;

        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        let epoch = Epoch(random::number()?);
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        // Room for the completion of all that can be in flight, and for each endpoint's coming and going.
        let (events, outbox) = mpsc::channel(2 * limits.transfers_max + 1024);
        let copy = CopyTransport::new(CopySettings {
            works_max: limits.transfers_max,
            threads: limits.copy_threads,
            ..CopySettings::default()
        });
        if copy.threads() < limits.copy_threads {
            tracing::warn!(
                threads = copy.threads(),
                wanted = limits.copy_threads,
                "the system gave fewer copy threads"
            );
        }
        let (data_handle, data_thread) = data::start(clock, limits.spin, Box::new(copy), Box::new(tcp), events)?;
        let (tier_events, tier_outbox) = mpsc::channel(TIER_EVENTS_MAX);
        let (tiering, tier_thread) = match &config.tier_host {
            None => (None, None),
            Some(host) => {
                let works_max = config.tier_works_max();
                let tiers =
                    tier::open(host, config.tier_disk.as_ref(), works_max, limits.lease_blocks_max, clock.now())?;
                let (handle, thread) = scheduling.one_below(|| {
                    tier::thread::start(
                        clock,
                        tiers,
                        host.copy_threads,
                        tier::thread::COMMANDS_PER_WORK * (works_max + tier::operator::OPERATORS_MAX)
                            + tier::CLAIMS_PER_WORK * works_max
                            + limits.sessions_max,
                        &scheduling,
                        tier_events,
                    )
                })?;
                (Some(Tiering::new(handle)), Some(thread))
            }
        };
        let advertise = config.peer_advertise.clone().unwrap_or_else(|| peer.to_string());
        let greeting = Greeting { address: advertise.clone(), epoch: epoch.0 };
        let remembered = config.attach_directory.join("kvferry.peers");
        let recalled = recall(&remembered);
        let hub = Hub::new(HubParts {
            clock,
            config: Arc::clone(&config),
            epoch,
            ticket_key: TicketKey(random::key()?),
            advertise,
            data_port: data.port(),
            outbound: Outbound::new(Arc::clone(&config), tls.client, greeting, commands.downgrade()),
            commands: commands.downgrade(),
            data: data_handle,
            metrics,
            remembered: Remembered::start(remembered),
            scheduling,
            tiering,
        });

        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(hub.run(recalled, inbox, outbox, tier_outbox));
        tasks.spawn(attach::serve(attach_listener, Arc::clone(&config), clock, commands.clone(), stop.clone()));
        let admin_served = admin::serve(admin_listener, registry, commands.downgrade(), stop.clone());
        tasks.spawn(async move {
            if let Err(error) = admin_served.await {
                tracing::error!("failed to serve the admin port: {error:#}");
            }
        });
        let service = PeerService { commands };
        let service = PeerServer::new(service)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let mut server = Server::builder()
            .timeout(limits.transfer_deadline_max)
            .concurrency_limit_per_connection(CALLS_MAX as usize)
            .max_concurrent_streams(CALLS_MAX)
            .http2_keepalive_interval(Some(Duration::from_secs(10)))
            .http2_keepalive_timeout(Some(Duration::from_secs(5)));
        if let Some(tls) = tls.server {
            server = server.tls_config(tls).context("use [peer.tls]")?;
        }
        // The server's own setting does not reach an incoming that is handed over; without it Nagle's algorithm
        // holds small answers back for 40 ms.
        let incoming = TcpIncoming::from(peer_listener).with_nodelay(Some(true));
        let until = stop.clone().cancelled_owned();
        let serving = server.add_service(service).serve_with_incoming_shutdown(incoming, until);
        tasks.spawn(async move {
            if let Err(error) = serving.await {
                tracing::error!("failed to serve peers: {error:#}");
            }
        });
        Ok(Self { peer, data, admin, config, tasks, data_thread, tier_thread, stop })
    }

    /// Runs until `until` resolves or a part of the daemon ends, then stops.
    pub(crate) async fn run(mut self, until: impl Future<Output = ()>) -> Result<()> {
        let ended_by_itself = tokio::select! {
            () = until => false,
            _ = self.tasks.join_next() => true,
        };
        tracing::info!("stopping");
        self.stop.cancel();
        let stopped = tokio::time::timeout(STOP_MAX, async { while self.tasks.join_next().await.is_some() {} }).await;
        if stopped.is_err() {
            tracing::warn!("gave up waiting for peers after {STOP_MAX:?}");
            self.tasks.shutdown().await;
        }
        attach::unbind(&self.config.socket());
        tokio::task::spawn_blocking(|| self.data_thread.join())
            .await?
            .map_err(|_| anyhow::anyhow!("data thread panicked"))?;
        if let Some(thread) = self.tier_thread {
            tokio::task::spawn_blocking(|| thread.join())
                .await?
                .map_err(|_| anyhow::anyhow!("the tiers' thread panicked"))?;
        }
        anyhow::ensure!(!ended_by_itself, "a part of the daemon ended; its log line says why");
        Ok(())
    }
}

fn tcp_settings(config: &Config, tls: Option<Arc<Tls>>) -> kvferry_transport_tcp::Settings {
    // One endpoint may carry all transfers of both directions.
    kvferry_transport_tcp::Settings {
        endpoints_max: links::LINKS_MAX + serving::ENDPOINTS_MAX,
        works_max: 2 * config.limits.transfers_max,
        congestion: config.peer_congestion.clone(),
        socket_buffer_bytes: config.peer_socket_buffer_bytes,
        io: config.peer_io,
        endpoint_bytes_per_second_max: config.limits.peer_bytes_per_second_max,
        tls,
        ..Default::default()
    }
}
