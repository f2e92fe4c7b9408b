//! Which headers end at the sidecar, and which go on.

use axum::http::header::{
    ACCEPT_ENCODING, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue,
    PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use uuid::Uuid;

use super::address::{AddressError, HostPort};

const PREFILLERS: HeaderName = HeaderName::from_static("x-prefiller-host-port");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longest request id that is taken from a client, in bytes. Ids end up in log lines and in the engines' tables.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// Most prefillers one request may name.
const PREFILLERS_MAX: usize = 16;

/// What the router's header says.
pub(crate) enum Named {
    /// Nothing.
    Nobody,
    /// More than the sidecar would try.
    TooMany,
    /// Not a list of `host:port`.
    Wrong(AddressError),
    /// These, in the order of preference.
    Engines(Vec<HostPort>),
}

/// Takes the router's choice out of `headers`: it is for the sidecar alone.
pub(crate) fn take_prefillers(headers: &mut HeaderMap) -> Named {
    let lines: Vec<HeaderValue> = headers.get_all(PREFILLERS).iter().cloned().collect();
    headers.remove(PREFILLERS);
    let mut engines = Vec::new();
    for line in &lines {
        // What is not text is no host either; the replacement characters make the parser say so.
        let line = String::from_utf8_lossy(line.as_bytes());
        for entry in line.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            if engines.len() == PREFILLERS_MAX {
                return Named::TooMany;
            }
            match entry.parse() {
                Ok(engine) => engines.push(engine),
                Err(wrong) => return Named::Wrong(wrong),
            }
        }
    }
    if engines.is_empty() { Named::Nobody } else { Named::Engines(engines) }
}

/// The name of one request, on both legs, in the log and in the response.
#[derive(Clone, Debug)]
pub(crate) struct RequestId(HeaderValue);

impl RequestId {
    /// The client's id where it is safe to repeat, else a fresh UUID.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let sane = |id: &&HeaderValue| {
            (1..=REQUEST_ID_BYTES_MAX).contains(&id.len())
                && id.as_bytes().iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:/+=@".contains(byte))
        };
        let fresh = || {
            let mut text = Uuid::encode_buffer();
            let text = Uuid::new_v4().hyphenated().encode_lower(&mut text);
            HeaderValue::from_str(text).expect("a UUID is ASCII")
        };
        Self(headers.get(REQUEST_ID).filter(sane).cloned().unwrap_or_else(fresh))
    }

    /// Makes this the one request id of `headers`.
    pub(crate) fn set(&self, headers: &mut HeaderMap) {
        headers.insert(REQUEST_ID, self.0.clone());
    }

    pub(crate) fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }
}

/// Removes what RFC 9110 section 7.6.1 says is between two neighbours only, and what was addressed to the sidecar.
pub(crate) fn keep_end_to_end(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    // With both, the chunks decide; the length could be a lie that the next server believes (RFC 9112 section 6.3).
    if headers.remove(TRANSFER_ENCODING).is_some() {
        headers.remove(CONTENT_LENGTH);
    }
    let [keep_alive, proxy_connection] = ["keep-alive", "proxy-connection"].map(HeaderName::from_static);
    for name in
        [CONNECTION, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, UPGRADE, keep_alive, proxy_connection]
    {
        headers.remove(name);
    }
    // "100 Continue" was answered here.
    headers.remove(EXPECT);
}

/// Adapts the client's headers to a prefill request: it has another host (the decode engine keeps the client's, for
/// redirects that lead back here), and its response is read by the sidecar itself, so it must not be compressed.
pub(crate) fn for_prefill(headers: &HeaderMap) -> HeaderMap {
    let mut headers = headers.clone();
    headers.remove(HOST);
    headers.remove(ACCEPT_ENCODING);
    headers
}

/// Whether an engine would read a body under these headers as JSON. Engines differ in what they take without a
/// content type, so none counts as JSON too.
pub(crate) fn may_hold_json(headers: &HeaderMap) -> bool {
    let json = |kind: &HeaderValue| kind.as_bytes().to_ascii_lowercase().windows(4).any(|part| part == b"json");
    let mut kinds = headers.get_all(CONTENT_TYPE).iter().peekable();
    kinds.peek().is_none() || kinds.any(|kind| kind.is_empty() || json(kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn hop_by_hop_headers_end_here() {
        let mut all = HeaderMap::new();
        for (name, value) in [
            ("connection", "keep-alive, X-Mine"),
            ("connection", "close"),
            ("x-mine", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("content-length", "7"),
            ("proxy-authorization", "secret"),
            ("expect", "100-continue"),
            ("upgrade", "websocket"),
            ("authorization", "Bearer t"),
            ("accept", "text/event-stream"),
        ] {
            all.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        keep_end_to_end(&mut all);
        assert_eq!(all, headers(&[("authorization", "Bearer t"), ("accept", "text/event-stream")]));
    }

    #[test]
    fn only_sane_ids_are_taken_over() {
        let taken = |id: &str| {
            let mut all = HeaderMap::new();
            all.insert("x-request-id", HeaderValue::from_str(id).unwrap());
            RequestId::of(&all).as_str() == id
        };
        assert!(taken("chat-1.2:3") && taken(&"a".repeat(REQUEST_ID_BYTES_MAX)));
        assert!(!taken("") && !taken("a b") && !taken("a\"b") && !taken(&"a".repeat(REQUEST_ID_BYTES_MAX + 1)));
        let [first, second] = [RequestId::of(&HeaderMap::new()), RequestId::of(&HeaderMap::new())];
        assert!(first.as_str() != second.as_str() && first.as_str().len() == 36);
    }

    #[test]
    fn prefillers_come_from_every_line_in_order() {
        let mut all = headers(&[("x-prefiller-host-port", " a:1 ,, B:2")]);
        all.append(PREFILLERS, HeaderValue::from_static("c:3"));
        let Named::Engines(engines) = take_prefillers(&mut all) else { panic!("no engines") };
        assert_eq!(engines.iter().map(ToString::to_string).collect::<Vec<_>>(), ["a:1", "b:2", "c:3"]);
        assert!(all.is_empty());
        let mut many = headers(&[("x-prefiller-host-port", "a:1,a:1,a:1,a:1,a:1,a:1,a:1,a:1,a:1")]);
        many.append(PREFILLERS, HeaderValue::from_static("a:1,a:1,a:1,a:1,a:1,a:1,a:1,a:1"));
        assert!(matches!(take_prefillers(&mut many), Named::TooMany));
        assert!(matches!(take_prefillers(&mut headers(&[("x-prefiller-host-port", ",")])), Named::Nobody));
    }

    #[test]
    fn json_is_what_an_engine_might_read_as_json() {
        for kind in ["application/json", "Application/JSON; charset=utf-8", "application/vnd.x+json", ""] {
            assert!(may_hold_json(&headers(&[("content-type", kind)])), "{kind}");
        }
        assert!(may_hold_json(&HeaderMap::new()));
        assert!(!may_hold_json(&headers(&[("content-type", "multipart/form-data; boundary=x")])));
    }
}
