//! The admin port: `/livez`, `/readyz` and `/metrics`.

use std::sync::Arc;

use anyhow::Result;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::command::Command;

#[derive(Clone)]
struct Admin {
    registry: Arc<Registry>,
    commands: mpsc::WeakSender<Command>,
    stop: CancellationToken,
}

pub(crate) async fn serve(
    listener: TcpListener,
    registry: Registry,
    commands: mpsc::WeakSender<Command>,
    stop: CancellationToken,
) -> Result<()> {
    let admin = Admin { registry: Arc::new(registry), commands, stop: stop.clone() };
    let router = Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(admin);
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await?;
    Ok(())
}

/// Ready while the hub answers and the daemon is not stopping.
async fn ready(State(admin): State<Admin>) -> (StatusCode, &'static str) {
    let stopping = (StatusCode::SERVICE_UNAVAILABLE, "stopping\n");
    let Some(commands) = admin.commands.upgrade().filter(|_| !admin.stop.is_cancelled()) else { return stopping };
    let (reply, answer) = oneshot::channel();
    if commands.send(Command::Status { reply }).await.is_err() || answer.await.is_err() {
        return stopping;
    }
    (StatusCode::OK, "ready\n")
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    let mut text = String::new();
    match encode(&mut text, &admin.registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            (StatusCode::OK, [(header::CONTENT_TYPE, kind)], text)
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, "text/plain")], format!("{error}\n")),
    }
}
