//! Everything that is not two-phase goes to the decode engine as it came.

use axum::extract::Request;
use axum::http::{Method, StatusCode};
use axum::response::IntoResponse;
use serde_json::json;

use crate::stand_in::{Engine, Rig, answer, config, listen, send};

#[tokio::test]
async fn any_method_and_path_reach_the_decoder_as_they_are() {
    let mut decode = Engine::decoder().await;
    let rig = Rig::start(config(decode.address)).await;
    let targets = ["/", "/v1/models?a=%20b&c", "/x/%2e%2e/y%2Fz", "/kvferry/else", "//v1//completions", "/health"];
    for target in targets {
        for method in [Method::GET, Method::POST, Method::PUT, Method::DELETE, Method::PATCH, Method::OPTIONS] {
            let request = rig.client.request(method.clone(), rig.url(target)).header("x-mine", "1");
            assert_eq!(answer(request).await, (StatusCode::OK, json!({"from": "decode"})));
            let seen = decode.next().await;
            assert_eq!(seen.method, method);
            // reqwest writes the escaped dots of the third target in its own way; it is told apart below.
            if !target.contains("%2e") {
                assert_eq!(seen.target, target);
            }
            assert_eq!(seen.header("x-mine"), Some("1"));
            assert_eq!(seen.header("host"), Some(rig.address.to_string().as_str()), "the client's own");
        }
    }
    assert_eq!(rig.metric(r#"requests_total{route="Forward"}"#).await, 36.0);
}

#[tokio::test]
async fn the_decoders_errors_and_redirects_are_the_clients() {
    let (decode, _server) = listen(async |request: Request| match request.uri().path() {
        "/moved" => (StatusCode::TEMPORARY_REDIRECT, [("location", "/elsewhere")], "").into_response(),
        "/v1/completions" => (StatusCode::UNPROCESSABLE_ENTITY, [("x-why", "because")], "no").into_response(),
        _ => (StatusCode::NOT_FOUND, [("x-why", "unknown")], "not here").into_response(),
    })
    .await;
    let rig = Rig::start(config(decode)).await;
    let moved = send(rig.client.get(rig.url("/moved"))).await;
    assert_eq!(
        (moved.status(), &moved.headers()["location"]),
        (StatusCode::TEMPORARY_REDIRECT, &"/elsewhere".parse().unwrap())
    );
    let invalid = send(rig.post("/v1/completions", &json!({}))).await;
    assert_eq!(
        (invalid.status(), invalid.headers()["x-why"].as_bytes()),
        (StatusCode::UNPROCESSABLE_ENTITY, &b"because"[..])
    );
    assert_eq!(invalid.text().await.unwrap(), "no");
    let unknown = send(rig.client.get(rig.url("/nothing"))).await;
    assert_eq!(unknown.status(), StatusCode::NOT_FOUND);
    assert_eq!(unknown.text().await.unwrap(), "not here");
}

#[tokio::test]
async fn headers_between_neighbours_stay_between_them() {
    let (note, mut noted) = tokio::sync::mpsc::channel(1);
    let (decode, _server) = listen(async move |request: Request| {
        note.send(request.headers().clone()).await.unwrap();
        ([("connection", "x-hop"), ("x-hop", "1"), ("keep-alive", "timeout=1"), ("x-kept", "1")], "ok").into_response()
    })
    .await;
    let rig = Rig::start(config(decode)).await;
    let request =
        rig.client.get(rig.url("/x")).header("connection", "x-hop").header("x-hop", "1").header("te", "trailers");
    let response = send(request.header("x-kept", "1")).await;
    let seen = noted.recv().await.unwrap();
    for headers in [&seen, response.headers()] {
        assert_eq!(headers["x-kept"], "1");
        for name in ["connection", "x-hop", "te", "keep-alive"] {
            assert!(!headers.contains_key(name), "{name} went on");
        }
    }
}

#[tokio::test]
async fn a_head_request_keeps_the_length_it_asks_for() {
    let (decode, _server) = listen(async |_: Request| ([("content-length", "12345")], "").into_response()).await;
    let rig = Rig::start(config(decode)).await;
    let response = send(rig.client.head(rig.url("/file"))).await;
    assert_eq!(response.headers()["content-length"], "12345");
}

#[tokio::test]
async fn large_bodies_pass_whole_in_both_directions() {
    let (decode, _server) = listen(async |request: Request| request.into_body().into_response()).await;
    let rig = Rig::start(config(decode)).await;
    let bytes: Vec<u8> = (0..20_000_000u32).map(|index| (index % 251) as u8).collect();
    let request = rig.client.post(rig.url("/echo")).header("content-type", "application/octet-stream");
    assert!(send(request.body(bytes.clone())).await.bytes().await.unwrap() == bytes);
    let prompt = json!({"prompt": "x".repeat(20_000_000)});
    assert!(answer(rig.post("/v1/completions", &prompt)).await.1 == prompt);
}

#[tokio::test]
async fn own_paths_are_answered_here() {
    let mut decode = Engine::decoder().await;
    let rig = Rig::start(config(decode.address)).await;
    for path in ["/kvferry/livez", "/kvferry/readyz"] {
        let response = send(rig.client.get(rig.url(path))).await;
        assert_eq!((response.status(), response.text().await.unwrap()), (StatusCode::OK, "ok\n".to_owned()));
    }
    let metrics = send(rig.client.get(rig.url("/kvferry/metrics"))).await;
    assert!(metrics.headers()["content-type"].to_str().unwrap().starts_with("application/openmetrics-text"));
    assert!(metrics.text().await.unwrap().ends_with("# EOF\n"));
    decode.saw_nothing_more();
}
