//! Answers that are the sidecar's own, in the shape of errors that clients of the engines understand
//! (the `error` object of `OpenAI`'s API).

use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde_json::json;
use thiserror::Error;

use super::address::AddressError;
use super::metrics::Refused;

/// Why a request is not carried out. The message goes to the client.
#[derive(Debug, Error)]
pub(crate) enum Refusal {
    #[error("the request body broke off")]
    BodyAborted,
    #[error("the request body did not arrive in time")]
    BodyTimeout,
    #[error("the request body is larger than {limit} bytes")]
    BodyTooLarge { limit: usize },
    #[error("the decode engine did not answer in time")]
    DecodeSilent,
    #[error("the decode engine cannot be reached or broke off")]
    DecodeUnreachable,
    #[error("the request body is not valid JSON: {0}")]
    InvalidJson(serde_json::Error),
    #[error("this method opens tunnels, which the sidecar does not carry")]
    MethodNotAllowed,
    #[error("x-prefiller-host-port: {0}")]
    PrefillerInvalid(AddressError),
    #[error("x-prefiller-host-port names more prefillers than the sidecar would try")]
    PrefillersTooMany,
    #[error("x-prefiller-host-port names a prefiller that is not on the sidecar's allow-list")]
    PrefillerNotAllowed,
}

impl Refusal {
    /// Whether the operator should hear of it, and not the client alone.
    pub(crate) fn is_ours(&self) -> bool {
        matches!(self, Self::DecodeSilent | Self::DecodeUnreachable)
    }

    pub(crate) fn label(&self) -> Refused {
        match self {
            Self::BodyAborted => Refused::BodyAborted,
            Self::BodyTimeout => Refused::BodyTimeout,
            Self::BodyTooLarge { .. } => Refused::BodyTooLarge,
            Self::DecodeSilent => Refused::DecodeSilent,
            Self::DecodeUnreachable => Refused::DecodeUnreachable,
            Self::InvalidJson(_) => Refused::InvalidJson,
            Self::MethodNotAllowed => Refused::MethodNotAllowed,
            Self::PrefillerInvalid(_) | Self::PrefillersTooMany => Refused::PrefillerInvalid,
            Self::PrefillerNotAllowed => Refused::PrefillerNotAllowed,
        }
    }

    /// The status, and the two words that clients branch on.
    fn parts(&self) -> (StatusCode, &'static str, &'static str) {
        const CLIENT: &str = "invalid_request_error";
        const SERVER: &str = "server_error";
        match self {
            Self::BodyAborted => (StatusCode::BAD_REQUEST, CLIENT, "body_aborted"),
            Self::BodyTimeout => (StatusCode::REQUEST_TIMEOUT, CLIENT, "body_timeout"),
            Self::BodyTooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, CLIENT, "body_too_large"),
            Self::DecodeSilent => (StatusCode::GATEWAY_TIMEOUT, SERVER, "decode_engine_silent"),
            Self::DecodeUnreachable => (StatusCode::BAD_GATEWAY, SERVER, "decode_engine_unreachable"),
            Self::InvalidJson(_) => (StatusCode::BAD_REQUEST, CLIENT, "invalid_json"),
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, CLIENT, "method_not_allowed"),
            Self::PrefillerInvalid(_) | Self::PrefillersTooMany => {
                (StatusCode::BAD_REQUEST, CLIENT, "prefiller_invalid")
            }
            Self::PrefillerNotAllowed => (StatusCode::FORBIDDEN, CLIENT, "prefiller_not_allowed"),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, kind, code) = self.parts();
        let error = json!({"message": self.to_string(), "type": kind, "param": null, "code": code});
        (status, [(CONTENT_TYPE, "application/json")], json!({"error": error}).to_string()).into_response()
    }
}
