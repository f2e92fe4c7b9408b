//! Start, limits and end of a sidecar.

use std::time::Duration;

use axum::http::StatusCode;
use kvferry_gateway::sidecar::SidecarConfig;

use crate::stand_in::{Rig, config, dictated, prompt, send, soon};

#[tokio::test]
async fn shutdown_lets_answers_end_and_takes_no_new_ones() {
    let (decode, mut pens) = dictated().await;
    let rig = Rig::start(config(decode.address)).await;
    let response = send(rig.post("/v1/completions", &prompt())).await;
    let pen = soon("the decode phase", pens.recv()).await.unwrap();
    rig.shutdown.cancel();
    // The listener closes: asked until it does, each try on a new connection.
    soon("the listener's end", async {
        while tokio::net::TcpStream::connect(rig.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(!rig.server.is_finished());
    pen.send(Ok("the rest".into())).await.unwrap();
    drop(pen);
    assert_eq!(soon("the whole answer", response.text()).await.unwrap(), "the rest");
    soon("the sidecar's end", rig.server).await.unwrap();
}

#[tokio::test]
async fn answers_that_outlast_the_drain_are_cut() {
    let (decode, mut pens) = dictated().await;
    let rig = Rig::start(SidecarConfig { drain_max: Duration::ZERO, ..config(decode.address) }).await;
    let response = send(rig.post("/v1/completions", &prompt())).await;
    let pen = soon("the decode phase", pens.recv()).await.unwrap();
    rig.shutdown.cancel();
    soon("the sidecar's end", rig.server).await.unwrap();
    soon("the cut", response.text()).await.expect_err("the client is told");
    soon("the decode's end", pen.closed()).await;
}

#[tokio::test]
async fn connections_above_the_limit_wait_for_a_place() {
    let (decode, mut pens) = dictated().await;
    let rig = Rig::start(SidecarConfig { connections_max: 1, ..config(decode.address) }).await;
    let first = send(rig.post("/v1/completions", &prompt())).await;
    let pen = soon("the decode phase", pens.recv()).await.unwrap();
    // A client of its own, so that it has a connection of its own.
    let second = reqwest::Client::builder().no_proxy().build().unwrap();
    let waiting = tokio::spawn(second.get(rig.url("/kvferry/livez")).send());
    pen.send(Ok("x".into())).await.unwrap();
    drop(pen);
    assert_eq!(soon("the whole answer", first.text()).await.unwrap(), "x");
    assert!(!waiting.is_finished(), "two connections at once");
    // The first client's connection is idle now, and gives its place up with its client.
    let Rig { client, .. } = rig;
    drop(client);
    assert_eq!(soon("a place", waiting).await.unwrap().unwrap().status(), StatusCode::OK);
}
