//! Stand-ins for engines, and the sidecar under test.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use kvferry_gateway::sidecar::{Sidecar, SidecarConfig};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::log::log;

/// When a test gives up on something that should happen at once.
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for something that must happen, and fails the test instead of hanging.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what} did not happen"))
}

/// A request as a stand-in engine got it.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) method: Method,
    pub(crate) target: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Seen {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("the engine got JSON")
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.headers.get_all(name).iter();
        let line = lines.next().map(|value| value.to_str().unwrap());
        assert!(lines.next().is_none(), "{name} came twice");
        line
    }
}

/// Stands in for an engine: an HTTP server that notes every request and gives scripted answers.
pub(crate) struct Engine {
    pub(crate) address: SocketAddr,
    seen: mpsc::Receiver<Seen>,
    server: JoinHandle<()>,
}

impl Engine {
    /// Answers by `answer`, after reading the whole request.
    pub(crate) async fn start<F>(answer: impl Fn() -> F + Clone + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Response> + Send,
    {
        let (note, seen) = mpsc::channel(64);
        let (address, server) = listen(async move |request: Request| {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.expect("the whole body comes").to_bytes();
            let target = parts.uri.to_string();
            note.send(Seen { method: parts.method, target, headers: parts.headers, body }).await.unwrap();
            answer().await
        })
        .await;
        Self { address, seen, server }
    }

    /// Answers everything with 200 and `body`.
    pub(crate) async fn json(body: Value) -> Self {
        let body = body.to_string();
        Self::start(move || std::future::ready(json_response(StatusCode::OK, body.clone()))).await
    }

    /// A prefiller that hands out [`ticket`]s.
    pub(crate) async fn prefiller() -> Self {
        Self::json(json!({"id": "cmpl-1", "choices": [], "kv_transfer_params": ticket()})).await
    }

    /// A decode engine with an answer of its own.
    pub(crate) async fn decoder() -> Self {
        Self::json(json!({"from": "decode"})).await
    }

    /// The next request it got.
    pub(crate) async fn next(&mut self) -> Seen {
        soon("a request to the engine", self.seen.recv()).await.expect("the engine runs")
    }

    /// Every request that came was looked at.
    pub(crate) fn saw_nothing_more(&mut self) {
        assert!(self.seen.try_recv().is_err(), "the engine got one more request");
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Stands in for an engine that wants to see the request as it comes.
pub(crate) async fn listen<F, H>(handler: H) -> (SocketAddr, JoinHandle<()>)
where
    H: FnOnce(Request) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response> + Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = axum::serve(listener, Router::new().fallback(handler));
    (address, tokio::spawn(async move { server.await.unwrap() }))
}

/// An address where nobody answers: bound, so that nobody else takes it, and never listening.
pub(crate) struct Nobody(TcpSocket);

impl Nobody {
    pub(crate) fn new() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        Self(socket)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }
}

/// Tells when it is dropped.
pub(crate) struct Dropped(Option<oneshot::Sender<()>>);

impl Dropped {
    pub(crate) fn new() -> (Self, oneshot::Receiver<()>) {
        let (told, tells) = oneshot::channel();
        (Self(Some(told)), tells)
    }
}

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.take().map(|told| told.send(()));
    }
}

/// What the stand-in prefiller returns, with a number that a careless rewrite would round.
pub(crate) fn ticket() -> Value {
    json!({"do_remote_prefill": true, "do_remote_decode": false, "remote_block_ids": [[1, 2, 3]],
           "remote_engine_id": "P0", "remote_host": "127.0.0.1", "remote_port": 5600, "kvferry": {"ticket": "abc"}})
}

pub(crate) fn json_response(status: StatusCode, body: String) -> Response {
    (status, [("content-type", "application/json")], body).into_response()
}

/// A body that the test writes piece by piece.
pub(crate) fn written_body() -> (Pen, Body) {
    let (pieces, body) = mpsc::channel(1);
    (pieces, Body::from_stream(tokio_stream::wrappers::ReceiverStream::new(body)))
}

/// Writes one body, piece by piece.
pub(crate) type Pen = mpsc::Sender<Result<Bytes, std::io::Error>>;

/// An engine whose answers the test writes: each answer's pen comes out of the returned receiver.
pub(crate) async fn dictated() -> (Engine, mpsc::Receiver<Pen>) {
    let (pens, taken) = mpsc::channel(8);
    let engine = Engine::start(move || {
        let pens = pens.clone();
        async move {
            let (pen, body) = written_body();
            pens.send(pen).await.unwrap();
            ([("content-type", "text/event-stream")], body).into_response()
        }
    })
    .await;
    (engine, taken)
}

/// Settings for a sidecar in front of `decode`, on a free port.
pub(crate) fn config(decode: SocketAddr) -> SidecarConfig {
    SidecarConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        decode: format!("http://{decode}").parse().unwrap(),
        ..SidecarConfig::default()
    }
}

/// A sidecar that serves, and a client for it.
pub(crate) struct Rig {
    pub(crate) address: SocketAddr,
    pub(crate) client: reqwest::Client,
    pub(crate) shutdown: CancellationToken,
    pub(crate) server: JoinHandle<()>,
}

impl Rig {
    pub(crate) async fn start(config: SidecarConfig) -> Self {
        log();
        let sidecar = Sidecar::bind(config, Registry::default()).await.unwrap();
        let (address, shutdown) = (sidecar.local_addr(), CancellationToken::new());
        let server = tokio::spawn(sidecar.serve(shutdown.clone()));
        let client = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none());
        Self { address, client: client.build().unwrap(), shutdown, server }
    }

    pub(crate) fn url(&self, target: &str) -> String {
        format!("http://{}{target}", self.address)
    }

    pub(crate) fn post(&self, target: &str, body: &Value) -> reqwest::RequestBuilder {
        self.client.post(self.url(target)).json(body)
    }

    /// A completion that names `prefiller`.
    pub(crate) fn completion(&self, prefiller: &(impl ToString + ?Sized)) -> reqwest::RequestBuilder {
        self.post("/v1/completions", &prompt()).header("x-prefiller-host-port", prefiller.to_string())
    }

    /// One line of `/kvferry/metrics`: the number behind `name`, 0 when it is not there.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let text = send(self.client.get(self.url("/kvferry/metrics"))).await.text().await.unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("kvferry_gateway_sidecar_")?.strip_prefix(name));
        line.map_or(0.0, |number| number.trim().parse().unwrap())
    }
}

pub(crate) fn prompt() -> Value {
    json!({"model": "m", "prompt": "hello", "max_tokens": 7})
}

pub(crate) async fn send(request: reqwest::RequestBuilder) -> reqwest::Response {
    soon("an answer", request.send()).await.unwrap()
}

/// The status and the JSON of an answer.
pub(crate) async fn answer(request: reqwest::RequestBuilder) -> (StatusCode, Value) {
    let response = send(request).await;
    (response.status(), soon("the whole answer", response.json()).await.unwrap())
}
