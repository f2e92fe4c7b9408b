//! The listening side: binds, accepts up to a limit, and ends in bounded time.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::config::SidecarConfig;
use super::error::{Chain, SidecarError};
use super::metrics::Metrics;
use super::proxy::{Client, Proxy, handle};

/// How long a connection may take to send the headers of its next request. Idle connections end by it too, so that they
/// cannot hold places for ever.
const HEADERS_MAX: Duration = Duration::from_secs(60);

/// How long an unused connection to an engine is kept. vLLM's server closes its own after 5 s
/// (`VLLM_HTTP_TIMEOUT_KEEP_ALIVE`); a request sent in that moment would be lost.
const ENGINE_IDLE_MAX: Duration = Duration::from_secs(4);

/// When TCP begins to ask whether a silent engine's host is still there.
const ENGINE_KEEPALIVE: Duration = Duration::from_secs(30);

/// Pause after the system refused a connection for want of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A sidecar that is bound, so that its address is known, and does not serve yet. Connections wait in its queue.
pub struct Sidecar {
    listener: TcpListener,
    local_addr: SocketAddr,
    registry: Registry,
    proxy: Arc<Proxy>,
}

/// Binds and serves until `shutdown`, see [`Sidecar`].
///
/// # Errors
///
/// When the settings are out of their limits or the address cannot be bound.
pub async fn serve(config: SidecarConfig, registry: Registry, shutdown: CancellationToken) -> Result<(), SidecarError> {
    Sidecar::bind(config, registry).await?.serve(shutdown).await;
    Ok(())
}

impl Sidecar {
    /// Checks the settings and takes the listening address. The sidecar's metrics join those already in `registry`,
    /// which `/kvferry/metrics` shows.
    ///
    /// # Errors
    ///
    /// When the settings are out of their limits or the address cannot be bound.
    pub async fn bind(config: SidecarConfig, mut registry: Registry) -> Result<Self, SidecarError> {
        config.check()?;
        let refused = |source| SidecarError::Bind { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(refused)?;
        let local_addr = listener.local_addr().map_err(refused)?;
        let metrics = Metrics::register(&mut registry);
        let client = client(config.connect_timeout);
        Ok(Self {
            listener,
            local_addr,
            registry,
            proxy: Arc::new(Proxy { config, client, metrics, turn: AtomicUsize::new(0) }),
        })
    }

    /// Where clients can connect.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Serves until `shutdown` is cancelled and the answers under way have ended or were cut. Dropping the future cuts
    /// them at once.
    pub async fn serve(self, shutdown: CancellationToken) {
        let Self { listener, local_addr, registry, proxy } = self;
        let SidecarConfig { connections_max, drain_max, .. } = proxy.config;
        info!(%local_addr, decode = %proxy.config.decode, prefillers = proxy.config.prefillers.len(), "sidecar serves");
        let open = proxy.metrics.connections.clone();
        let service = TowerToHyperService::new(router(proxy, registry, shutdown.clone()));
        let mut server = auto::Builder::new(TokioExecutor::new()).http1_only();
        server.http1().timer(TokioTimer::new()).header_read_timeout(HEADERS_MAX);
        let places = Arc::new(Semaphore::new(connections_max));
        let graceful = GracefulShutdown::new();
        let mut connections = JoinSet::new();
        loop {
            let place = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                Some(_) = connections.join_next() => continue,
                Ok(place) = places.clone().acquire_owned() => place,
            };
            let stream = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                stream = accept(&listener) => stream,
            };
            let connection = server.serve_connection(TokioIo::new(stream), service.clone()).into_owned();
            let connection = graceful.watch(connection);
            let counted = Open::new(&open);
            connections.spawn(async move {
                if let Err(error) = connection.await {
                    debug!("a client's connection ended early: {}", Chain(error.as_ref()));
                }
                drop((place, counted));
            });
        }
        drop(listener);
        info!(connections = connections.len(), "sidecar drains for at most {drain_max:?}");
        if timeout(drain_max, graceful.shutdown()).await.is_err() {
            warn!("cut the answers that did not end within {drain_max:?}");
        }
        connections.shutdown().await;
    }
}

/// Counts one open connection for as long as it lives, however it ends.
struct Open(Gauge);

impl Open {
    fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Tokens are small writes that must not wait for each other.
                if let Err(error) = stream.set_nodelay(true) {
                    debug!("failed to set TCP_NODELAY: {error}");
                }
                return stream;
            }
            Err(error) => match error.kind() {
                // The client was gone before its turn came.
                ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::Interrupted => {}
                _ => {
                    warn!("failed to accept a connection, the limit of open files may be too low: {error}");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
}

fn client(connect_timeout: Duration) -> Client {
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(connect_timeout));
    connector.set_keepalive(Some(ENGINE_KEEPALIVE));
    connector.set_nodelay(true);
    legacy::Client::builder(TokioExecutor::new())
        .pool_idle_timeout(ENGINE_IDLE_MAX)
        .pool_timer(TokioTimer::new())
        .build(connector)
}

fn router(proxy: Arc<Proxy>, registry: Registry, shutdown: CancellationToken) -> Router {
    Router::new()
        .route("/kvferry/livez", get(async || "ok\n"))
        .route("/kvferry/readyz", get(async move || readiness(&shutdown)))
        .route("/kvferry/metrics", get(metrics).with_state(Arc::new(registry)))
        .fallback(handle)
        .with_state(proxy)
}

/// The engine's own readiness is at its `/health`, which is forwarded.
fn readiness(shutdown: &CancellationToken) -> (StatusCode, &'static str) {
    if shutdown.is_cancelled() { (StatusCode::SERVICE_UNAVAILABLE, "draining\n") } else { (StatusCode::OK, "ok\n") }
}

async fn metrics(State(registry): State<Arc<Registry>>) -> Response {
    let mut text = String::new();
    match encode(&mut text, &registry) {
        Ok(()) => {
            ([(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response()
        }
        Err(error) => {
            warn!("failed to write metrics: {error}");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
