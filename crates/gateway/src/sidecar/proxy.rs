//! One request, from the client's headers to the decode engine's answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::header::{CONTENT_LENGTH, HeaderMap};
use axum::http::uri::{Authority, PathAndQuery, Scheme, Uri};
use axum::http::{Method, Version};
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::value::RawValue;
use tokio::time::timeout;
use tracing::{debug, warn};

use super::address::HostPort;
use super::config::SidecarConfig;
use super::document::{Api, Document, PARAMS};
use super::error::Chain;
use super::headers::{self, Named, RequestId};
use super::metrics::{Metrics, Route};
use super::prefill::Prefill;
use super::refusal::Refusal;
use super::relay::Relay;

/// Pooled connections to engines.
pub(crate) type Client = legacy::Client<HttpConnector, Body>;

/// What every request needs.
pub(crate) struct Proxy {
    pub(crate) config: SidecarConfig,
    pub(crate) client: Client,
    pub(crate) metrics: Metrics,
    /// Whose turn it is among the configured prefillers.
    pub(crate) turn: AtomicUsize,
}

/// A request without its body.
struct Head {
    id: RequestId,
    method: Method,
    target: PathAndQuery,
    headers: HeaderMap,
}

/// Answers one request. The response carries the request's id, whoever made it.
pub(crate) async fn handle(State(proxy): State<Arc<Proxy>>, request: Request) -> Response {
    let id = RequestId::of(request.headers());
    let mut response = proxy.answer(&id, request).await.unwrap_or_else(|refusal| {
        proxy.metrics.count_refusal(refusal.label());
        if !refusal.is_ours() {
            debug!(request_id = id.as_str(), "refused: {refusal}");
        }
        refusal.into_response()
    });
    id.set(response.headers_mut());
    response
}

impl Proxy {
    async fn answer(&self, id: &RequestId, request: Request) -> Result<Response, Refusal> {
        let (mut parts, body) = request.into_parts();
        let named = headers::take_prefillers(&mut parts.headers);
        headers::keep_end_to_end(&mut parts.headers);
        id.set(&mut parts.headers);
        // CONNECT has no path: it asks for a tunnel.
        let target = parts.uri.path_and_query().filter(|_| parts.method != Method::CONNECT);
        let target = target.cloned().ok_or(Refusal::MethodNotAllowed)?;
        let head = Head { id: id.clone(), method: parts.method, target, headers: parts.headers };

        let api = Api::of(&head.target).filter(|_| head.method == Method::POST);
        let prefillers = match api {
            Some(_) => self.prefillers(named)?,
            None => Vec::new(),
        };
        if matches!(head.method, Method::GET | Method::HEAD) || !headers::may_hold_json(&head.headers) {
            self.metrics.count_request(if api.is_some() { Route::Decode } else { Route::Forward });
            return self.decode(head, body).await;
        }
        let body = self.read(&head, body).await?;
        let (route, body) = self.decode_body(&head, api, &prefillers, body).await?;
        self.metrics.count_request(route);
        self.decode(head, body.into()).await
    }

    /// The prefillers to try for one request, best first.
    fn prefillers(&self, named: Named) -> Result<Vec<HostPort>, Refusal> {
        let configured = &self.config.prefillers;
        match named {
            Named::Nobody => {
                let mut turns = configured.clone();
                let turn = self.turn.fetch_add(1, Ordering::Relaxed);
                turns.rotate_left(turn.checked_rem(configured.len()).unwrap_or(0));
                Ok(turns)
            }
            Named::TooMany => Err(Refusal::PrefillersTooMany),
            Named::Wrong(wrong) => Err(Refusal::PrefillerInvalid(wrong)),
            Named::Engines(engines) => {
                let allowed = |engine: &HostPort| {
                    configured.contains(engine) || self.config.allowed.iter().any(|entry| entry.covers(engine))
                };
                // One forged entry makes the whole header a forgery.
                if engines.iter().all(allowed) { Ok(engines) } else { Err(Refusal::PrefillerNotAllowed) }
            }
        }
    }

    /// The client's whole body.
    async fn read(&self, head: &Head, body: Body) -> Result<Bytes, Refusal> {
        let limit = self.config.body_bytes_max;
        let announced = head.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if announced.is_some_and(|length| length > u64::try_from(limit).unwrap_or(u64::MAX)) {
            return Err(Refusal::BodyTooLarge { limit });
        }
        let read = timeout(self.config.upload_timeout, Limited::new(body, limit).collect()).await;
        match read.map_err(|_| Refusal::BodyTimeout)? {
            Ok(read) => Ok(read.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => Err(Refusal::BodyTooLarge { limit }),
            Err(_) => Err(Refusal::BodyAborted),
        }
    }

    /// The body that the decode engine gets; asks for prefill on the way where there is somebody to ask.
    async fn decode_body(
        &self,
        head: &Head,
        api: Option<Api>,
        prefillers: &[HostPort],
        body: Bytes,
    ) -> Result<(Route, Bytes), Refusal> {
        let without_prefill = if api.is_some() { Route::Decode } else { Route::Forward };
        let Some(document) = Document::parse(&body).map_err(Refusal::InvalidJson)? else {
            return Ok((without_prefill, body));
        };
        let brought_params = document.has(PARAMS);
        if brought_params && self.config.trust_client_params {
            return Ok((without_prefill, body));
        }
        if brought_params {
            self.metrics.forged_params.inc();
            debug!(request_id = head.id.as_str(), "removed kv_transfer_params from the client's body");
        }
        let Some(api) = api.filter(|_| !prefillers.is_empty()) else {
            let own = if brought_params { document.to_decode(None).into() } else { body.clone() };
            return Ok((without_prefill, own));
        };
        match self.prefill(head, prefillers, document.to_prefill(api)).await {
            Some(ticket) => Ok((Route::TwoPhase, document.to_decode(Some(&ticket)).into())),
            None if brought_params => Ok((Route::Fallback, document.to_decode(None).into())),
            None => Ok((Route::Fallback, body.clone())),
        }
    }

    async fn prefill(&self, head: &Head, prefillers: &[HostPort], body: Vec<u8>) -> Option<Box<RawValue>> {
        let prefill = Prefill {
            client: &self.client,
            metrics: &self.metrics,
            timeout: self.config.prefill_timeout,
            target: &head.target,
            headers: &head.headers,
            body: body.into(),
        };
        match prefill.run(prefillers).await {
            Ok(ticket) => Some(ticket),
            Err((error, prefiller)) => {
                let prefiller = prefiller.map(ToString::to_string).unwrap_or_default();
                let request_id = head.id.as_str();
                warn!(
                    request_id,
                    prefiller,
                    "failed to prefill elsewhere, the decode engine does it: {}",
                    Chain(&error)
                );
                None
            }
        }
    }

    /// Sends the request to the decode engine and begins its answer.
    async fn decode(&self, head: Head, body: Body) -> Result<Response, Refusal> {
        let Head { id, method, target, headers } = head;
        let request = to_engine(self.config.decode.authority(), method, target, headers, body);
        let silence_max = self.config.decode_silence_max;
        let answer = match timeout(silence_max, self.client.request(request)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                let decode = &self.config.decode;
                warn!(request_id = id.as_str(), %decode, "failed to ask the decode engine: {}", Chain(&error));
                return Err(Refusal::DecodeUnreachable);
            }
            Err(_) => {
                warn!(request_id = id.as_str(), "failed to hear from the decode engine within {silence_max:?}");
                return Err(Refusal::DecodeSilent);
            }
        };
        let (mut parts, body) = answer.into_parts();
        headers::keep_end_to_end(&mut parts.headers);
        parts.version = Version::HTTP_11;
        parts.extensions.clear();
        let body = Relay::new(Body::new(body), silence_max, id, self.metrics.clone());
        Ok(Response::from_parts(parts, Body::new(body)))
    }
}

/// A request to an engine. Its body may be another one than the client's, so the HTTP library says how long it is.
pub(crate) fn to_engine(
    engine: &Authority,
    method: Method,
    target: PathAndQuery,
    headers: HeaderMap,
    body: Body,
) -> Request {
    let mut uri = axum::http::uri::Parts::default();
    uri.scheme = Some(Scheme::HTTP);
    uri.authority = Some(engine.clone());
    uri.path_and_query = Some(target);
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = Uri::from_parts(uri).expect("scheme, authority and path make a URI");
    *request.headers_mut() = headers;
    request.headers_mut().remove(CONTENT_LENGTH);
    request
}
