//! The two phases, as the engines see them.

use axum::http::StatusCode;
use kvferry_gateway::sidecar::SidecarConfig;
use serde_json::json;

use crate::stand_in::{Engine, Nobody, Rig, Seen, answer, config, prompt, send, ticket};

fn allowing(decode: &Engine, prefill: &Engine) -> SidecarConfig {
    SidecarConfig { allowed: vec![prefill.address.to_string().parse().unwrap()], ..config(decode.address) }
}

fn keep() -> serde_json::Value {
    json!({"do_remote_decode": true, "do_remote_prefill": false, "remote_engine_id": null,
           "remote_block_ids": null, "remote_host": null, "remote_port": null})
}

#[tokio::test]
async fn a_named_prefiller_prefills_and_its_ticket_reaches_the_decoder() {
    let (mut prefill, mut decode) = (Engine::prefiller().await, Engine::decoder().await);
    let rig = Rig::start(allowing(&decode, &prefill)).await;
    let body = r#"{"model":"m", "prompt":"\u00e9 \/", "seed":123456789012345678901234567890, "stream":true,
                   "stream_options":{"include_usage":true}, "max_tokens":99, "min_tokens":5, "temperature":0.70}"#;
    let request = rig.client.post(rig.url("/v1/completions?tag=1")).body(body);
    let response = send(
        request
            .header("content-type", "application/json")
            .header("x-prefiller-host-port", prefill.address.to_string())
            .header("authorization", "Bearer secret")
            .header("accept-encoding", "gzip")
            .header("x-request-id", "id-1")
            .header("x-tenant", "t1"),
    )
    .await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers().get_all("x-request-id").iter().collect::<Vec<_>>(), ["id-1"]);
    assert_eq!(response.json::<serde_json::Value>().await.unwrap(), json!({"from": "decode"}));

    let asked = prefill.next().await;
    // The big number is left out of the comparison: serde_json's own tree would round it.
    let mut got = asked.json();
    got.as_object_mut().unwrap().remove("seed");
    let expected = json!({"model": "m", "prompt": "é /", "stream": false, "max_tokens": 1, "temperature": 0.70,
                          "kv_transfer_params": keep()});
    assert_eq!(got, expected);
    assert!(String::from_utf8_lossy(&asked.body).contains("123456789012345678901234567890"));
    assert_eq!(asked.header("host"), Some(prefill.address.to_string().as_str()));
    assert_eq!(asked.header("accept-encoding"), None);

    let decoded = decode.next().await;
    let compact = r#"{"model":"m","prompt":"\u00e9 \/","seed":123456789012345678901234567890,"stream":true,"stream_options":{"include_usage":true},"max_tokens":99,"min_tokens":5,"temperature":0.70,"kv_transfer_params":"#;
    assert_eq!(decoded.body, format!("{compact}{}}}", ticket()));
    assert_eq!(decoded.header("accept-encoding"), Some("gzip"));

    let both = |seen: &Seen| {
        assert_eq!((seen.method.as_str(), seen.target.as_str()), ("POST", "/v1/completions?tag=1"));
        assert_eq!(seen.header("x-prefiller-host-port"), None);
        assert_eq!(seen.header("x-request-id"), Some("id-1"));
        assert_eq!(seen.header("authorization"), Some("Bearer secret"));
        assert_eq!(seen.header("x-tenant"), Some("t1"));
        assert_eq!(seen.header("content-length"), Some(seen.body.len().to_string().as_str()));
    };
    both(&asked);
    both(&decoded);
    prefill.saw_nothing_more();
    decode.saw_nothing_more();
    assert_eq!(rig.metric(r#"requests_total{route="TwoPhase"}"#).await, 1.0);
    assert_eq!(rig.metric(r#"prefills_total{outcome="Ok"}"#).await, 1.0);
}

#[tokio::test]
async fn chat_limits_both_names_of_the_token_count() {
    let (mut prefill, mut decode) = (Engine::prefiller().await, Engine::decoder().await);
    let rig = Rig::start(allowing(&decode, &prefill)).await;
    let body =
        json!({"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_completion_tokens": 50, "n": 2});
    let request = rig.post("/v1/chat/completions", &body).header("x-prefiller-host-port", prefill.address.to_string());
    assert_eq!(answer(request).await.0, StatusCode::OK);
    let mut expected = body.clone();
    for (name, value) in [("stream", json!(false)), ("max_tokens", json!(1)), ("max_completion_tokens", json!(1))] {
        expected[name] = value;
    }
    expected["kv_transfer_params"] = keep();
    assert_eq!(prefill.next().await.json(), expected);
    let mut expected = body;
    expected["kv_transfer_params"] = ticket();
    assert_eq!(decode.next().await.json(), expected);
}

#[tokio::test]
async fn one_fresh_id_marks_both_phases_and_the_answer() {
    let (mut prefill, mut decode) = (Engine::prefiller().await, Engine::decoder().await);
    let rig = Rig::start(allowing(&decode, &prefill)).await;
    for sent in [None, Some("not a sane id")] {
        let request = rig.completion(&prefill.address);
        let request = if let Some(sent) = sent { request.header("x-request-id", sent) } else { request };
        let response = send(request).await;
        let id = response.headers()["x-request-id"].to_str().unwrap();
        assert_eq!(id.len(), 36, "{id} is no UUID");
        assert_eq!(prefill.next().await.header("x-request-id"), Some(id));
        assert_eq!(decode.next().await.header("x-request-id"), Some(id));
    }
}

#[tokio::test]
async fn without_prefiller_the_body_reaches_the_decoder_untouched() {
    let mut decode = Engine::decoder().await;
    let rig = Rig::start(config(decode.address)).await;
    let body = "{ \"prompt\" : \"x\",\n\t\"stream\":false }";
    let request = rig.client.post(rig.url("/v1/completions")).header("content-type", "application/json").body(body);
    assert_eq!(answer(request).await, (StatusCode::OK, json!({"from": "decode"})));
    assert_eq!(decode.next().await.body, body);
    assert_eq!(rig.metric(r#"requests_total{route="Decode"}"#).await, 1.0);
}

#[tokio::test]
async fn configured_prefillers_take_turns_and_a_named_one_goes_first() {
    let [mut first, mut second, mut named] =
        [Engine::prefiller().await, Engine::prefiller().await, Engine::prefiller().await];
    let mut decode = Engine::decoder().await;
    let prefillers = [&first, &second].map(|engine| engine.address.to_string().parse().unwrap()).to_vec();
    let rig = Rig::start(SidecarConfig { prefillers, ..allowing(&decode, &named) }).await;
    for _ in 0..2 {
        answer(rig.post("/v1/completions", &prompt())).await;
        answer(rig.post("/v1/completions", &prompt())).await;
        first.next().await;
        second.next().await;
        first.saw_nothing_more();
        second.saw_nothing_more();
    }
    answer(rig.completion(&named.address)).await;
    named.next().await;
    // Configured ones are allowed to be named too.
    answer(rig.completion(&second.address)).await;
    second.next().await;
    first.saw_nothing_more();
    for _ in 0..6 {
        assert_eq!(decode.next().await.json()["kv_transfer_params"], ticket());
    }
}

#[tokio::test]
async fn the_next_prefiller_is_tried_when_one_cannot_be_reached() {
    let (nobody, mut prefill, mut decode) = (Nobody::new(), Engine::prefiller().await, Engine::decoder().await);
    let rig = Rig::start(SidecarConfig { allowed: vec!["127.0.0.1".parse().unwrap()], ..config(decode.address) }).await;
    let list = format!("{}, {}", nobody.address(), prefill.address);
    assert_eq!(answer(rig.completion(&list)).await.0, StatusCode::OK);
    prefill.next().await;
    assert_eq!(decode.next().await.json()["kv_transfer_params"], ticket());

    let prefillers = [nobody.address(), prefill.address].map(|address| address.to_string().parse().unwrap()).to_vec();
    let rig = Rig::start(SidecarConfig { prefillers, ..config(decode.address) }).await;
    for _ in 0..2 {
        answer(rig.post("/v1/completions", &prompt())).await;
        prefill.next().await;
        assert_eq!(decode.next().await.json()["kv_transfer_params"], ticket());
    }
    assert_eq!(rig.metric(r#"prefills_total{outcome="Connect"}"#).await, 1.0);
    assert_eq!(rig.metric(r#"requests_total{route="TwoPhase"}"#).await, 2.0);
}
