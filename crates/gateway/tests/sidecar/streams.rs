//! Bodies pass as they come, and end where they end.

use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use kvferry_gateway::sidecar::SidecarConfig;
use serde_json::json;
use tokio::sync::mpsc;

use crate::stand_in::{Dropped, Engine, Rig, config, dictated, listen, prompt, send, soon, written_body};

#[tokio::test]
async fn each_piece_of_an_answer_passes_before_the_next_is_made() {
    let (decode, mut pens) = dictated().await;
    let prefill = Engine::prefiller().await;
    let prefillers = vec![prefill.address.to_string().parse().unwrap()];
    for prefillers in [vec![], prefillers] {
        let rig = Rig::start(SidecarConfig { prefillers, ..config(decode.address) }).await;
        let mut response = send(rig.post("/v1/completions", &json!({"prompt": "x", "stream": true}))).await;
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let pen = soon("the decode phase", pens.recv()).await.unwrap();
        for index in 0..20 {
            let piece = format!("data: {{\"index\": {index}}}\n\n");
            pen.send(Ok(piece.clone().into())).await.unwrap();
            // The engine holds the next piece back until the client has this one.
            assert_eq!(soon("the piece", response.chunk()).await.unwrap().unwrap(), piece);
        }
        pen.send(Ok("data: [DONE]\n\n".into())).await.unwrap();
        drop(pen);
        assert_eq!(soon("the last piece", response.chunk()).await.unwrap().unwrap(), "data: [DONE]\n\n");
        assert_eq!(soon("the end", response.chunk()).await.unwrap(), None);
    }
}

#[tokio::test]
async fn each_piece_of_an_upload_passes_before_the_next_is_made() {
    let (note, mut noted) = mpsc::channel(1);
    let (decode, _server) = listen(async move |request: Request| {
        let mut body = request.into_body();
        while let Some(frame) = body.frame().await {
            note.send(frame.unwrap().into_data().unwrap()).await.unwrap();
        }
        StatusCode::OK.into_response()
    })
    .await;
    // Above the limit, which is for bodies that must be read whole.
    let rig = Rig::start(SidecarConfig { body_bytes_max: 1, ..config(decode) }).await;
    let (pen, body) = written_body();
    let request = rig.client.post(rig.url("/v1/audio/transcriptions"));
    let request = request
        .header("content-type", "multipart/form-data; boundary=x")
        .body(reqwest::Body::wrap_stream(body.into_data_stream()));
    let response = tokio::spawn(request.send());
    for piece in ["first", "second"] {
        pen.send(Ok(piece.into())).await.unwrap();
        assert_eq!(soon("the piece", noted.recv()).await.unwrap(), piece);
    }
    drop(pen);
    assert_eq!(soon("an answer", response).await.unwrap().unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn an_answer_that_breaks_off_does_not_look_complete() {
    let (decode, mut pens) = dictated().await;
    let rig = Rig::start(config(decode.address)).await;
    let mut response = send(rig.post("/v1/completions", &prompt())).await;
    let pen = soon("the decode phase", pens.recv()).await.unwrap();
    pen.send(Ok("data: 1\n\n".into())).await.unwrap();
    assert!(soon("a piece", response.chunk()).await.unwrap().is_some());
    pen.send(Err(std::io::Error::other("the stand-in breaks off"))).await.unwrap();
    soon("the end", response.chunk()).await.expect_err("the client is told");
    assert_eq!(rig.metric("broken_answers_total").await, 1.0);
}

#[tokio::test]
async fn an_answer_that_stalls_is_broken_off() {
    let (decode, mut pens) = dictated().await;
    let decode_silence_max = std::time::Duration::from_millis(200);
    let rig = Rig::start(SidecarConfig { decode_silence_max, ..config(decode.address) }).await;
    let mut response = send(rig.post("/v1/completions", &prompt())).await;
    let pen = soon("the decode phase", pens.recv()).await.unwrap();
    pen.send(Ok("data: 1\n\n".into())).await.unwrap();
    assert!(soon("a piece", response.chunk()).await.unwrap().is_some());
    soon("the end", response.chunk()).await.expect_err("the client is told");
    soon("the engine's connection closes", pen.closed()).await;
}

/// An engine that never answers, and tells when a request came and when its connection went away.
async fn hanging() -> (std::net::SocketAddr, mpsc::Receiver<tokio::sync::oneshot::Receiver<()>>) {
    let (arrivals, arrived) = mpsc::channel(1);
    let (address, _server) = listen(async move |request: Request| {
        request.into_body().collect().await.unwrap();
        let (alive, gone) = Dropped::new();
        arrivals.send(gone).await.unwrap();
        std::future::pending::<()>().await;
        drop(alive);
        Response::default()
    })
    .await;
    (address, arrived)
}

#[tokio::test]
async fn a_client_that_leaves_during_prefill_aborts_it() {
    let (prefill, mut arrived) = hanging().await;
    let mut decode = Engine::decoder().await;
    let prefillers = vec![prefill.to_string().parse().unwrap()];
    let rig = Rig::start(SidecarConfig { prefillers, ..config(decode.address) }).await;
    let request = tokio::spawn(rig.post("/v1/completions", &prompt()).send());
    let gone = soon("the prefill phase", arrived.recv()).await.unwrap();
    request.abort();
    soon("the prefill's end", gone).await.unwrap();
    decode.saw_nothing_more();
}

#[tokio::test]
async fn a_client_that_leaves_before_the_answer_aborts_decode() {
    let (decode, mut arrived) = hanging().await;
    let prefill = Engine::prefiller().await;
    let prefillers = vec![prefill.address.to_string().parse().unwrap()];
    let rig = Rig::start(SidecarConfig { prefillers, ..config(decode) }).await;
    let request = tokio::spawn(rig.post("/v1/completions", &prompt()).send());
    let gone = soon("the decode phase", arrived.recv()).await.unwrap();
    request.abort();
    soon("the decode's end", gone).await.unwrap();
}

#[tokio::test]
async fn a_client_that_leaves_mid_answer_aborts_decode() {
    let (decode, mut pens) = dictated().await;
    let rig = Rig::start(config(decode.address)).await;
    let mut response = send(rig.post("/v1/completions", &prompt())).await;
    let pen = soon("the decode phase", pens.recv()).await.unwrap();
    pen.send(Ok("data: 1\n\n".into())).await.unwrap();
    assert!(soon("a piece", response.chunk()).await.unwrap().is_some());
    drop(response);
    // The engine drops its side of the answer when its connection closes; nothing more was written meanwhile.
    soon("the decode's end", pen.closed()).await;
}
