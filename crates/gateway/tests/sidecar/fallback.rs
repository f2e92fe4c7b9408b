//! A failed prefill costs a recompute, not the request.

use std::io;
use std::time::Duration;

use axum::body::Bytes;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use kvferry_gateway::sidecar::SidecarConfig;
use serde_json::json;

use crate::log::log;
use crate::stand_in::{Engine, Nobody, Rig, answer, config, json_response, prompt, written_body};

/// Names `prefill` in a request whose prefill must fail as `outcome`, and checks that the decoder got the client's own
/// request.
async fn falls_back(prefill: Engine, outcome: &str) {
    let mut prefill = prefill;
    falls_back_from(&prefill.address.to_string(), outcome, Duration::from_secs(20)).await;
    prefill.next().await;
    prefill.saw_nothing_more();
}

async fn falls_back_from(prefillers: &str, outcome: &str, prefill_timeout: Duration) {
    let mut decode = Engine::decoder().await;
    let allowed = vec!["127.0.0.1".parse().unwrap()];
    let rig = Rig::start(SidecarConfig { allowed, prefill_timeout, ..config(decode.address) }).await;
    assert_eq!(answer(rig.completion(prefillers)).await, (StatusCode::OK, json!({"from": "decode"})), "{outcome}");
    let seen = decode.next().await;
    assert_eq!(seen.body, prompt().to_string(), "{outcome}");
    assert!(seen.header("x-request-id").is_some());
    decode.saw_nothing_more();
    assert_eq!(rig.metric(r#"requests_total{route="Fallback"}"#).await, 1.0, "{outcome}");
    let attempts = prefillers.split(',').count();
    assert_eq!(rig.metric(&format!(r#"prefills_total{{outcome="{outcome}"}}"#)).await, attempts as f64, "{outcome}");
}

async fn answering(status: StatusCode, body: &'static str) -> Engine {
    Engine::start(move || std::future::ready(json_response(status, body.to_owned()))).await
}

#[tokio::test]
async fn statuses_that_are_no_success() {
    for (status, outcome) in [
        (StatusCode::INTERNAL_SERVER_ERROR, "EngineError"),
        (StatusCode::SERVICE_UNAVAILABLE, "EngineError"),
        (StatusCode::TOO_MANY_REQUESTS, "Busy"),
        (StatusCode::TEMPORARY_REDIRECT, "Refused"),
        (StatusCode::BAD_REQUEST, "Refused"),
        (StatusCode::UNAUTHORIZED, "Refused"),
    ] {
        // Even with a ticket in it, an error's body is not a prefill.
        falls_back(answering(status, r#"{"kv_transfer_params":{"do_remote_prefill":true}}"#).await, outcome).await;
    }
}

#[tokio::test]
async fn answers_without_ticket() {
    for body in [r#"{"choices":[]}"#, r#"{"kv_transfer_params":null}"#, r#"{"kv_transfer_params":{}}"#] {
        falls_back(answering(StatusCode::OK, body).await, "NoParams").await;
    }
}

#[tokio::test]
async fn answers_that_are_not_json() {
    falls_back(answering(StatusCode::OK, "<html>").await, "Broken").await;
    falls_back(answering(StatusCode::OK, "").await, "Broken").await;
}

#[tokio::test]
async fn an_answer_that_breaks_off() {
    let broken = Engine::start(async || {
        let (pieces, body) = written_body();
        tokio::spawn(async move {
            pieces.send(Ok(Bytes::from_static(b"{\"kv_transfer_params\":"))).await.unwrap();
            pieces.send(Err(io::Error::other("the stand-in breaks off"))).await.unwrap();
        });
        Response::new(body)
    })
    .await;
    falls_back(broken, "Broken").await;
}

#[tokio::test]
async fn a_prefiller_that_cannot_be_reached() {
    let [first, second] = [Nobody::new(), Nobody::new()];
    let both = format!("{},{}", first.address(), second.address());
    falls_back_from(&both, "Connect", Duration::from_secs(20)).await;
}

#[tokio::test]
async fn a_prefiller_that_does_not_answer_in_time() {
    let silent = Engine::start(std::future::pending).await;
    falls_back_from(&silent.address.to_string(), "Timeout", Duration::from_millis(50)).await;
}

#[tokio::test]
async fn a_prefiller_that_failed_is_not_followed_by_another() {
    let (mut failing, mut spare) =
        (answering(StatusCode::INTERNAL_SERVER_ERROR, "{}").await, Engine::prefiller().await);
    let decode = Engine::decoder().await;
    let prefillers = [&failing, &spare].map(|engine| engine.address.to_string().parse().unwrap()).to_vec();
    let rig = Rig::start(SidecarConfig { prefillers, ..config(decode.address) }).await;
    assert_eq!(answer(rig.post("/v1/completions", &prompt())).await.0, StatusCode::OK);
    failing.next().await;
    spare.saw_nothing_more();
}

#[tokio::test]
async fn an_error_of_the_request_is_told_by_the_decoder() {
    let prefill = answering(StatusCode::NOT_FOUND, r#"{"error":{"message":"from prefill"}}"#).await;
    let decode = Engine::start(async || {
        (StatusCode::NOT_FOUND, [("x-from", "decode")], r#"{"error":{"message":"from decode"}}"#).into_response()
    })
    .await;
    let prefillers = vec![prefill.address.to_string().parse().unwrap()];
    let rig = Rig::start(SidecarConfig { prefillers, ..config(decode.address) }).await;
    let (status, body) = answer(rig.post("/v1/completions", &prompt())).await;
    assert_eq!((status, body), (StatusCode::NOT_FOUND, json!({"error": {"message": "from decode"}})));
}

#[tokio::test]
async fn a_fallback_is_logged_once_with_its_request() {
    let (nobody, decode) = (Nobody::new(), Engine::decoder().await);
    let prefillers = vec![nobody.address().to_string().parse().unwrap(); 3];
    let rig = Rig::start(SidecarConfig { prefillers, ..config(decode.address) }).await;
    answer(rig.post("/v1/completions", &prompt()).header("x-request-id", "logged-once")).await;
    let lines = log().about("logged-once");
    assert_eq!(lines.len(), 1, "{lines:?}");
    for part in ["WARN", "failed to prefill elsewhere", &nobody.address().to_string(), "refused"] {
        assert!(lines[0].contains(part), "no {part} in {lines:?}");
    }
}
