//! A key and its own certificate, for `--tls`: made for one run, believed by its two ends, worth nothing elsewhere.
//!
//! The near end makes it and gives it to the far end over the control connection, in the clear: what is measured is the
//! price of encryption, not a secret. Daemons use the files of `[peer.tls]`.

use std::fmt;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use kvferry_transport_tcp::{Pem, Tls};
use serde::{Deserialize, Serialize};

const NAME: &str = "bench.kvferry";

/// Both texts in PEM.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Identity {
    certificate: String,
    key: String,
}

impl Identity {
    pub(super) fn throw_away() -> Result<Self> {
        let made = rcgen::generate_simple_self_signed(vec![NAME.to_owned()]).context("make a certificate")?;
        Ok(Self { certificate: made.cert.pem(), key: made.signing_key.serialize_pem() })
    }

    pub(super) fn tls(&self) -> Result<Arc<Tls>> {
        let certificate = self.certificate.as_bytes();
        let pem = Pem { certificate, key: self.key.as_bytes(), authority: certificate, name: NAME };
        Ok(Arc::new(Tls::new(&pem).context("use the run's certificate")?))
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_can_use_it() {
        let identity = Identity::throw_away().expect("a certificate");
        let text = serde_json::to_string(&identity).expect("JSON");
        assert!(text.len() < 4096, "it fits into a message: {}", text.len());
        let other: Identity = serde_json::from_str(&text).expect("an identity");
        other.tls().expect("usable");
        assert!(!format!("{identity:?}").contains("PRIVATE"));
    }

    #[test]
    fn nonsense_is_refused() {
        let bad = Identity { certificate: "x".to_owned(), key: "y".to_owned() };
        bad.tls().expect_err("no certificate");
    }
}
