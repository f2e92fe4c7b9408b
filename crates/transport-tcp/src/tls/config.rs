//! Who we are, whom we believe, and how we want to talk: read once, used by every stream.
//!
//! TLS 1.3 alone, both ends show a certificate. Who is dialled must carry the agreed name, who dials must come from the
//! same authority: the rules of the control connection, so that one set of files serves both.
//!
//! No session is resumed: a stream lives as long as its endpoint, so a ticket would save one signature in hours, and a
//! resumed session does not look at certificates again.

use std::fmt;
use std::sync::Arc;

use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::{self, cipher_suite};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use thiserror::Error;

/// What these connections carry, so that no certificate lets a caller of another service in here. Frames have a version
/// of their own.
pub(crate) const PROTOCOL: &[u8] = b"kvferry/1";

/// TLS of data connections, for [`Settings::tls`](crate::Settings::tls).
pub struct Tls {
    pub(crate) server: Arc<ServerConfig>,
    pub(crate) client: Arc<ClientConfig>,
    /// The name that every peer's certificate carries.
    pub(crate) name: ServerName<'static>,
}

/// What [`Tls`] is made of; texts in PEM.
#[derive(Clone, Copy)]
pub struct Pem<'a> {
    /// Our certificate, and those between it and the authority's.
    pub certificate: &'a [u8],
    /// Its private key.
    pub key: &'a [u8],
    /// The certificates that every peer's must come from.
    pub authority: &'a [u8],
    /// The name that every peer's certificate carries.
    pub name: &'a str,
}

/// Why certificates and keys are of no use.
#[derive(Debug, Error)]
pub enum TlsError {
    /// The text holds no such thing.
    #[error("no {what} in PEM: {reason}")]
    Pem {
        /// Certificate, key or authority.
        what: &'static str,
        /// What the parser says.
        reason: String,
    },
    /// Not a name that a certificate could carry.
    #[error("{0:?} is not a name that a certificate could carry")]
    Name(String),
    /// They are well-formed, but do not go together or cannot be used.
    #[error("cannot use certificate, key and authority: {0}")]
    Unusable(String),
}

impl Tls {
    /// Reads the texts.
    ///
    /// # Errors
    ///
    /// [`TlsError`], with what is wrong with which of them.
    pub fn new(pem: &Pem<'_>) -> Result<Self, TlsError> {
        // The quickest first, which the dialler's order decides: see docs/adr/0012. Each is as good as TLS 1.3 asks for.
        let suites = vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ];
        Self::with_provider(pem, CryptoProvider { cipher_suites: suites, ..ring::default_provider() })
    }

    pub(super) fn with_provider(pem: &Pem<'_>, provider: CryptoProvider) -> Result<Self, TlsError> {
        let provider = Arc::new(provider);
        let name = ServerName::try_from(pem.name.to_owned()).map_err(|_| TlsError::Name(pem.name.to_owned()))?;
        let chain = certificates("certificate", pem.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(pem.key)
            .map_err(|error| TlsError::Pem { what: "private key", reason: error.to_string() })?;
        let mut roots = RootCertStore::empty();
        for root in certificates("authority", pem.authority)? {
            roots.add(root).map_err(unusable)?;
        }
        let roots = Arc::new(roots);

        let callers = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider));
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(unusable)?
            .with_client_cert_verifier(callers.build().map_err(unusable)?)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(unusable)?;
        server.alpn_protocols = vec![PROTOCOL.to_vec()];
        server.send_tls13_tickets = 0;

        let called = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider));
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(unusable)?
            .with_webpki_verifier(called.build().map_err(unusable)?)
            .with_client_auth_cert(chain, key)
            .map_err(unusable)?;
        client.alpn_protocols = vec![PROTOCOL.to_vec()];
        client.resumption = Resumption::disabled();
        Ok(Self { server: Arc::new(server), client: Arc::new(client), name })
    }
}

fn certificates(what: &'static str, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    let found = found.map_err(|error| TlsError::Pem { what, reason: error.to_string() })?;
    if found.is_empty() {
        return Err(TlsError::Pem { what, reason: "there is no certificate in it".to_owned() });
    }
    Ok(found)
}

fn unusable(error: impl fmt::Display) -> TlsError {
    TlsError::Unusable(error.to_string())
}

impl PartialEq for Tls {
    /// Whether they are one and the same: keys are not compared.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.server, &other.server)
    }
}

impl Eq for Tls {}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Nothing of the keys.
        f.debug_struct("Tls").field("name", &self.name).finish_non_exhaustive()
    }
}
