//! The first phase: ask a prefiller to compute the blocks and to keep them.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header::HeaderMap;
use axum::http::uri::PathAndQuery;
use axum::http::{Method, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper_util::client::legacy;
use serde::Deserialize;
use serde_json::value::RawValue;
use thiserror::Error;
use tokio::time::{Instant, timeout_at};
use tracing::debug;

use super::address::HostPort;
use super::document::Document;
use super::error::Chain;
use super::headers;
use super::metrics::{Metrics, Outcome};
use super::proxy::{Client, to_engine};

/// Largest prefill answer, in bytes. One token is small; log-probabilities of a long prompt, where a client asked for
/// them, are not.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Why there is no ticket. None of it is the client's to know: the decode engine does the work instead.
#[derive(Debug, Error)]
pub(crate) enum PrefillError {
    #[error("read the answer")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("connect")]
    Connect(#[source] legacy::Error),
    #[error("find kv_transfer_params in the answer: is a KV connector configured on the prefiller?")]
    NoParams,
    #[error("parse the answer")]
    NotJson(#[source] serde_json::Error),
    #[error("get an answer: the prefiller says {0}")]
    Status(StatusCode),
    #[error("get an answer within {0:?}")]
    Timeout(Duration),
}

impl PrefillError {
    fn outcome(&self) -> Outcome {
        match self {
            Self::Broken(_) | Self::NotJson(_) => Outcome::Broken,
            Self::Connect(_) => Outcome::Connect,
            Self::NoParams => Outcome::NoParams,
            Self::Status(StatusCode::TOO_MANY_REQUESTS) => Outcome::Busy,
            Self::Status(status) if status.is_server_error() => Outcome::EngineError,
            Self::Status(_) => Outcome::Refused,
            Self::Timeout(_) => Outcome::Timeout,
        }
    }
}

/// One prefill to be asked for.
pub(crate) struct Prefill<'a> {
    pub(crate) client: &'a Client,
    pub(crate) metrics: &'a Metrics,
    /// All attempts together.
    pub(crate) timeout: Duration,
    pub(crate) target: &'a PathAndQuery,
    /// The client's, end to end ones only.
    pub(crate) headers: &'a HeaderMap,
    pub(crate) body: Bytes,
}

impl Prefill<'_> {
    /// Asks one of `prefillers`: the next one only when no connection came about, since any other failure may have
    /// cost the prefiller work that a second one would repeat. On failure, says which one it was.
    ///
    /// Dropping the future closes the connection, which aborts the prefill.
    pub(crate) async fn run<'p>(
        &self,
        prefillers: &'p [HostPort],
    ) -> Result<Box<RawValue>, (PrefillError, Option<&'p HostPort>)> {
        let started = Instant::now();
        let mut failure = None;
        for prefiller in prefillers {
            let asked = timeout_at(started + self.timeout, self.ask(prefiller)).await;
            match asked.unwrap_or(Err(PrefillError::Timeout(self.timeout))) {
                Ok(ticket) => {
                    self.metrics.count_prefill(Outcome::Ok);
                    self.metrics.prefill_seconds.observe(started.elapsed().as_secs_f64());
                    return Ok(ticket);
                }
                Err(error) => {
                    self.metrics.count_prefill(error.outcome());
                    debug!(%prefiller, "failed to {}", Chain(&error));
                    let is_last = !matches!(error, PrefillError::Connect(_));
                    failure = Some((error, Some(prefiller)));
                    if is_last {
                        break;
                    }
                }
            }
        }
        Err(failure.unwrap_or((PrefillError::NoParams, None)))
    }

    async fn ask(&self, prefiller: &HostPort) -> Result<Box<RawValue>, PrefillError> {
        let headers = headers::for_prefill(self.headers);
        let body = Body::from(self.body.clone());
        let request = to_engine(prefiller.authority(), Method::POST, self.target.clone(), headers, body);
        let response = self.client.request(request).await.map_err(|error| {
            if error.is_connect() { PrefillError::Connect(error) } else { PrefillError::Broken(error.into()) }
        })?;
        if !response.status().is_success() {
            return Err(PrefillError::Status(response.status()));
        }
        let answer = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        ticket_in(&answer.map_err(PrefillError::Broken)?.to_bytes())
    }
}

/// The `kv_transfer_params` of a prefill answer, byte for byte: they are between the two engines.
fn ticket_in(answer: &[u8]) -> Result<Box<RawValue>, PrefillError> {
    #[derive(Deserialize)]
    struct Answer<'a> {
        #[serde(borrow)]
        kv_transfer_params: Option<&'a RawValue>,
    }

    let answer: Answer<'_> = serde_json::from_slice(answer).map_err(PrefillError::NotJson)?;
    let ticket = answer.kv_transfer_params.ok_or(PrefillError::NoParams)?;
    match Document::parse(ticket.get().as_bytes()) {
        Ok(Some(fields)) if !fields.is_empty() => Ok(ticket.to_owned()),
        _ => Err(PrefillError::NoParams),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticket_is_the_answers_object_verbatim() {
        let answer = br#"{"id":"x","kv_transfer_params": {"a": 1.0, "b":[[1,2]]} ,"choices":[]}"#;
        assert_eq!(ticket_in(answer).unwrap().get(), r#"{"a": 1.0, "b":[[1,2]]}"#);
    }

    #[test]
    fn answers_without_ticket_are_told_from_broken_ones() {
        for answer in
            ["{}", r#"{"kv_transfer_params":null}"#, r#"{"kv_transfer_params":{}}"#, r#"{"kv_transfer_params":[1]}"#]
        {
            assert!(matches!(ticket_in(answer.as_bytes()), Err(PrefillError::NoParams)), "{answer}");
        }
        for answer in ["", "<html>", "[]", r#"{"kv_transfer_params":{"a":1}"#] {
            assert!(matches!(ticket_in(answer.as_bytes()), Err(PrefillError::NotJson(_))), "{answer}");
        }
    }
}
