//! Addresses of engines, and who may be called: parsed once, compared in one canonical form.

use std::fmt;
use std::str::FromStr;

use axum::http::uri::{Authority, Scheme, Uri};
use thiserror::Error;

/// Why a text is not an address that the sidecar can use.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AddressError {
    /// An engine URL with something other than `http://host:port`.
    #[error("`{0}` is not an engine URL: write http://HOST:PORT, without path, and let a gateway do TLS")]
    EngineUrl(String),
    /// Not a host name or IP address.
    #[error("`{0}` is not a host: write a name, an IPv4 address or an IPv6 address in brackets")]
    Host(String),
    /// Not `host:port`.
    #[error("`{0}` is not HOST:PORT: write for example 10.0.0.7:8000 or [fd00::7]:8000")]
    HostPort(String),
}

/// One engine: a host and a port, in lower case. Also the form of an entry of `x-prefiller-host-port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    host: String,
    authority: Authority,
}

impl HostPort {
    /// The authority part of the engine's URLs.
    pub(crate) fn authority(&self) -> &Authority {
        &self.authority
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.authority.fmt(f)
    }
}

impl FromStr for HostPort {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let wrong = || AddressError::HostPort(text.to_owned());
        let written: Authority = text.parse().map_err(|_| wrong())?;
        let port = written.port_u16().filter(|port| *port != 0).ok_or_else(wrong)?;
        let host = host_of(&written).ok_or_else(wrong)?;
        let authority = format!("{host}:{port}").parse().map_err(|_| wrong())?;
        Ok(Self { host, authority })
    }
}

/// One entry of the allow-list: a host with any port, or exactly one port of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// Every port of this host.
    Host(String),
    /// This port of this host.
    HostPort(HostPort),
}

impl Allowed {
    /// Whether the entry covers `engine`. Names are compared as text, and never looked up for it.
    #[must_use]
    pub fn covers(&self, engine: &HostPort) -> bool {
        match self {
            Self::Host(host) => *host == engine.host,
            Self::HostPort(exact) => exact == engine,
        }
    }
}

impl FromStr for Allowed {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let wrong = || AddressError::Host(text.to_owned());
        let written: Authority = text.parse().map_err(|_| wrong())?;
        let host = host_of(&written).ok_or_else(wrong)?;
        // A bare host is the whole text; anything after it must be a port.
        if written.as_str().len() == host.len() { Ok(Self::Host(host)) } else { text.parse().map(Self::HostPort) }
    }
}

/// The base URL of an engine, `http://host:port`. Paths are the client's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineUrl(Authority);

impl EngineUrl {
    /// The authority part of the engine's URLs.
    pub(crate) fn authority(&self) -> &Authority {
        &self.0
    }
}

impl Default for EngineUrl {
    /// Where llm-d's decode pods run their engine.
    fn default() -> Self {
        Self(Authority::from_static("127.0.0.1:8200"))
    }
}

impl fmt::Display for EngineUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.0)
    }
}

impl FromStr for EngineUrl {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let wrong = || AddressError::EngineUrl(text.to_owned());
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let plain = uri.scheme() == Some(&Scheme::HTTP) && uri.path_and_query().is_none_or(|path| path.as_str() == "/");
        let authority = uri.authority().filter(|written| host_of(written).is_some()).ok_or_else(wrong)?;
        // Anything after the host must be a usable port: what is not would silently become port 80.
        let bare = authority.as_str().len() == authority.host().len();
        let ported = bare || authority.port_u16().is_some_and(|port| port != 0);
        if plain && ported { Ok(Self(authority.clone())) } else { Err(wrong()) }
    }
}

/// The host in lower case, unless it is missing, comes with a user name, or is a pattern such as `*`: an entry that
/// looks like a wildcard and never matches would only be found out in production.
fn host_of(authority: &Authority) -> Option<String> {
    let host = authority.host();
    let name = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte));
    (!name.is_empty() && plain && !authority.as_str().contains('@')).then(|| host.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_and_port_have_one_form() {
        let engine: HostPort = "Prefill-0.Pool:8000".parse().unwrap();
        assert_eq!(engine.to_string(), "prefill-0.pool:8000");
        assert_eq!("[fd00::7]:8000".parse::<HostPort>().unwrap().to_string(), "[fd00::7]:8000");
        assert_eq!("a:08000".parse::<HostPort>().unwrap(), "a:8000".parse().unwrap());
    }

    #[test]
    fn anything_but_host_and_port_is_refused() {
        let wrong =
            ["", "a", "a:", ":1", "a:0", "a:65536", "user@a:1", "http://a:1", "a:1/x", "a b:1", "a:1,b:2", "a:1?x"];
        for text in wrong {
            assert!(text.parse::<HostPort>().is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn allowed_host_covers_every_port_and_no_other_host() {
        let any: Allowed = "10.0.0.7".parse().unwrap();
        let one: Allowed = "10.0.0.7:8000".parse().unwrap();
        let [first, second] = ["10.0.0.7:8000", "10.0.0.7:8001"].map(|text| text.parse::<HostPort>().unwrap());
        let other: HostPort = "10.0.0.70:8000".parse().unwrap();
        assert!(any.covers(&first) && any.covers(&second) && !any.covers(&other));
        assert!(one.covers(&first) && !one.covers(&second) && !one.covers(&other));
        assert!("[fd00::7]".parse::<Allowed>().unwrap().covers(&"[FD00::7]:1".parse().unwrap()));
        assert!(["", "*", "*.pool", "a/b", "a:x", "u@a"].iter().all(|text| text.parse::<Allowed>().is_err()));
    }

    #[test]
    fn engine_url_is_plain_http_without_path() {
        assert_eq!("http://localhost:8200/".parse::<EngineUrl>().unwrap().to_string(), "http://localhost:8200");
        for text in ["localhost:8200", "https://a:1", "http://a:1/v1", "http://a:x", "http://u@a:1", "http://a:0", "/x"]
        {
            assert!(text.parse::<EngineUrl>().is_err(), "{text:?} was taken");
        }
    }
}
