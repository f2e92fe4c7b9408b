//! What the sidecar refuses by itself, and what it takes out of requests.

use std::time::Duration;

use axum::http::StatusCode;
use kvferry_gateway::sidecar::SidecarConfig;
use serde_json::{Value, json};

use crate::stand_in::{Engine, Nobody, Rig, answer, config, prompt, send, soon, ticket, written_body};

#[track_caller]
fn assert_error(answer: &(StatusCode, Value), status: StatusCode, kind: &str, code: &str) {
    let (got, body) = answer;
    let error = body["error"].as_object().unwrap_or_else(|| panic!("{body} is not in OpenAI's shape"));
    assert_eq!(*got, status, "{body}");
    assert_eq!((error["type"].as_str(), error["code"].as_str()), (Some(kind), Some(code)));
    assert_eq!(error["param"], Value::Null);
    assert!(!error["message"].as_str().unwrap().is_empty());
}

#[tokio::test]
async fn prefillers_off_the_allow_list_are_forbidden() {
    let (mut prefill, mut decode) = (Engine::prefiller().await, Engine::decoder().await);
    let port = prefill.address.port();
    let other = format!("127.0.0.1:{}", port ^ 1);
    let exact = prefill.address.to_string();
    // Allow-list, header.
    for (allowed, named) in [
        (vec![], exact.clone()),
        (vec!["10.0.0.7"], exact.clone()),
        (vec!["127.0.0.1.example", "27.0.0.1"], exact.clone()),
        (vec![exact.as_str()], other.clone()),
        (vec![exact.as_str()], format!("localhost:{port}")),
        (vec![exact.as_str()], format!("{exact},{other}")),
        (vec![exact.as_str()], format!("{other},{exact}")),
    ] {
        let allowed = allowed.iter().map(|entry| entry.parse().unwrap()).collect();
        let rig = Rig::start(SidecarConfig { allowed, ..config(decode.address) }).await;
        let got = answer(rig.completion(&named)).await;
        assert_error(&got, StatusCode::FORBIDDEN, "invalid_request_error", "prefiller_not_allowed");
        assert_eq!(rig.metric(r#"refusals_total{reason="PrefillerNotAllowed"}"#).await, 1.0);
    }
    prefill.saw_nothing_more();
    decode.saw_nothing_more();
}

#[tokio::test]
async fn prefillers_that_are_no_addresses_are_told_so() {
    let mut decode = Engine::decoder().await;
    let allowed = vec!["127.0.0.1".parse().unwrap()];
    let rig = Rig::start(SidecarConfig { allowed, ..config(decode.address) }).await;
    let many = vec!["127.0.0.1:1"; 17].join(",");
    for named in ["127.0.0.1", "http://127.0.0.1:1", "user@127.0.0.1:1", "127.0.0.1:1/x", "127.0.0.1:1:2", &many] {
        let request = rig.completion(named).header("x-request-id", "id-7");
        let response = send(request).await;
        assert_eq!(response.headers()["x-request-id"], "id-7");
        let got = (response.status(), response.json().await.unwrap());
        assert_error(&got, StatusCode::BAD_REQUEST, "invalid_request_error", "prefiller_invalid");
    }
    decode.saw_nothing_more();
}

#[tokio::test]
async fn the_header_is_swallowed_where_it_means_nothing() {
    let mut decode = Engine::decoder().await;
    let rig = Rig::start(config(decode.address)).await;
    for target in ["/v1/embeddings", "/v1/completions/"] {
        let request = rig.post(target, &prompt()).header("x-prefiller-host-port", "10.0.0.7:8000");
        assert_eq!(answer(request).await.0, StatusCode::OK);
        assert_eq!(decode.next().await.header("x-prefiller-host-port"), None);
    }
}

#[tokio::test]
async fn forged_params_never_reach_an_engine() {
    let (mut prefill, mut decode) = (Engine::prefiller().await, Engine::decoder().await);
    let prefillers = vec![prefill.address.to_string().parse().unwrap()];
    let plain = Rig::start(config(decode.address)).await;
    let phased = Rig::start(SidecarConfig { prefillers, ..config(decode.address) }).await;
    let forged = r#"{"a":1,"kv_transfer_params":{"remote_host":"10.0.0.7"},"kv_transfer_param\u0073":{"do_remote_prefill":true}}"#;
    let post = |rig: &Rig, target: &str, kind: &str| {
        rig.client.post(rig.url(target)).header("content-type", kind.to_owned()).body(forged)
    };
    // Every path that an engine might read them on, spelled in every way that it might understand.
    for target in ["/v1/completions", "/v1/chat/completions", "/v1/responses", "/invocations", "/v1/%63ompletions"] {
        for kind in ["application/json", "APPLICATION/JSON; charset=utf-8", "application/vnd.api+json", ""] {
            assert_eq!(answer(post(&plain, target, kind)).await.0, StatusCode::OK);
            assert_eq!(decode.next().await.body, r#"{"a":1}"#, "{target} as {kind:?}");
        }
    }
    assert_eq!(plain.metric("forged_params_total").await, 20.0);
    answer(post(&phased, "/v1/completions", "application/json")).await;
    assert_eq!(prefill.next().await.json()["kv_transfer_params"]["remote_host"], Value::Null);
    assert_eq!(decode.next().await.json(), json!({"a": 1, "kv_transfer_params": ticket()}));
    drop(prefill);
    answer(post(&phased, "/v1/completions", "application/json")).await;
    assert_eq!(decode.next().await.body, r#"{"a":1}"#, "after a failed prefill");
}

#[tokio::test]
async fn believed_params_pass_and_replace_the_prefill() {
    let (mut prefill, mut decode) = (Engine::prefiller().await, Engine::decoder().await);
    let prefillers = vec![prefill.address.to_string().parse().unwrap()];
    let trusting = SidecarConfig { prefillers, trust_client_params: true, ..config(decode.address) };
    let rig = Rig::start(trusting).await;
    let body = json!({"prompt": "x", "kv_transfer_params": {"do_remote_prefill": true}});
    assert_eq!(answer(rig.post("/v1/completions", &body)).await.0, StatusCode::OK);
    assert_eq!(decode.next().await.json(), body);
    prefill.saw_nothing_more();
    answer(rig.post("/v1/completions", &prompt())).await;
    prefill.next().await;
}

#[tokio::test]
async fn bodies_that_engines_might_read_differently_are_refused() {
    let mut decode = Engine::decoder().await;
    let rig = Rig::start(config(decode.address)).await;
    let utf16: Vec<u8> = r#"{"kv_transfer_params":{}}"#.encode_utf16().flat_map(u16::to_le_bytes).collect();
    for body in [b"{\"a\":NaN}".to_vec(), b"{".to_vec(), b"\xef\xbb\xbf{}".to_vec(), utf16] {
        for target in ["/v1/completions", "/v1/responses"] {
            let request = rig.client.post(rig.url(target)).header("content-type", "application/json");
            let got = answer(request.body(body.clone())).await;
            assert_error(&got, StatusCode::BAD_REQUEST, "invalid_request_error", "invalid_json");
        }
    }
    decode.saw_nothing_more();
    // What holds no object is the engine's to judge.
    for body in ["", "[1,2]", "null"] {
        let request = rig.client.post(rig.url("/v1/completions")).header("content-type", "application/json");
        assert_eq!(answer(request.body(body)).await.0, StatusCode::OK);
        assert_eq!(decode.next().await.body, body);
    }
}

#[tokio::test]
async fn bodies_above_the_limit_are_too_large() {
    let mut decode = Engine::decoder().await;
    let rig = Rig::start(SidecarConfig { body_bytes_max: 1000, ..config(decode.address) }).await;
    let body = |bytes: usize| format!(r#"{{"a":"{}"}}"#, "x".repeat(bytes - 8));
    let post = || rig.client.post(rig.url("/v1/completions")).header("content-type", "application/json");
    assert_eq!(answer(post().body(body(1000))).await.0, StatusCode::OK);
    assert_eq!(decode.next().await.body.len(), 1000);
    let announced = answer(post().body(body(1001))).await;
    assert_error(&announced, StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", "body_too_large");
    let (pieces, chunked) = written_body();
    pieces.send(Ok(body(1001).into())).await.unwrap();
    drop(pieces);
    let stream = reqwest::Body::wrap_stream(chunked.into_data_stream());
    let unannounced = answer(post().body(stream)).await;
    assert_error(&unannounced, StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", "body_too_large");
    // Far more than the sockets hold: the client is still writing when the answer comes.
    let huge = answer(post().body(body(64 << 20))).await;
    assert_error(&huge, StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", "body_too_large");
    decode.saw_nothing_more();
}

#[tokio::test]
async fn a_body_that_does_not_come_is_given_up() {
    let mut decode = Engine::decoder().await;
    let upload_timeout = Duration::from_millis(50);
    let rig = Rig::start(SidecarConfig { upload_timeout, ..config(decode.address) }).await;
    let (_unsent, body) = written_body();
    let request = rig.client.post(rig.url("/v1/completions")).header("content-type", "application/json");
    let got = answer(request.body(reqwest::Body::wrap_stream(body.into_data_stream()))).await;
    assert_error(&got, StatusCode::REQUEST_TIMEOUT, "invalid_request_error", "body_timeout");
    decode.saw_nothing_more();
}

#[tokio::test]
async fn a_decoder_that_cannot_be_reached_is_a_bad_gateway() {
    let nobody = Nobody::new();
    let rig = Rig::start(config(nobody.address())).await;
    for request in [rig.post("/v1/completions", &prompt()), rig.client.get(rig.url("/health"))] {
        assert_error(&answer(request).await, StatusCode::BAD_GATEWAY, "server_error", "decode_engine_unreachable");
    }
    assert_eq!(rig.metric(r#"refusals_total{reason="DecodeUnreachable"}"#).await, 2.0);
}

#[tokio::test]
async fn a_decoder_that_stays_silent_is_a_gateway_timeout() {
    let silent = Engine::start(std::future::pending).await;
    let decode_silence_max = Duration::from_millis(50);
    let rig = Rig::start(SidecarConfig { decode_silence_max, ..config(silent.address) }).await;
    let got = answer(rig.post("/v1/completions", &prompt())).await;
    assert_error(&got, StatusCode::GATEWAY_TIMEOUT, "server_error", "decode_engine_silent");
}

#[tokio::test]
async fn settings_out_of_their_limits_are_named() {
    use kvferry_gateway::sidecar::{SidecarError, serve};
    let shutdown = tokio_util::sync::CancellationToken::new();
    let base = || config("127.0.0.1:1".parse().unwrap());
    for (config, name) in [
        (SidecarConfig { body_bytes_max: 0, ..base() }, "body_bytes_max"),
        (SidecarConfig { connections_max: 1 << 20, ..base() }, "connections_max"),
        (SidecarConfig { prefill_timeout: Duration::ZERO, ..base() }, "prefill_timeout"),
        (SidecarConfig { drain_max: Duration::MAX, ..base() }, "drain_max"),
    ] {
        let error = soon("a refusal", serve(config, Default::default(), shutdown.clone())).await.unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
    }
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = SidecarConfig { listen: taken.local_addr().unwrap(), ..base() };
    let error = soon("a refusal", serve(config, Default::default(), shutdown)).await.unwrap_err();
    assert!(matches!(error, SidecarError::Bind { .. }), "{error}");
}
