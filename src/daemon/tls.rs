//! Mutual TLS with peers: the same files for control and for data connections, read once, at start.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use kvferry_transport_tcp::{Pem, Tls};
use tonic::transport::{Certificate, ClientTlsConfig, Identity, ServerTlsConfig};

use crate::config::TlsFiles;

/// What each kind of connection needs; empty without `[peer.tls]`.
#[derive(Default)]
pub(super) struct PeerTls {
    pub(super) server: Option<ServerTlsConfig>,
    pub(super) client: Option<ClientTlsConfig>,
    /// Empty too where data is sent in the clear on purpose.
    pub(super) data: Option<Arc<Tls>>,
}

impl PeerTls {
    /// Reads the files.
    pub(super) fn load(files: Option<&TlsFiles>) -> Result<Self> {
        let Some(files) = files else { return Ok(Self::default()) };
        let read = |path: &Path| std::fs::read(path).with_context(|| format!("read {}", path.display()));
        let (certificate, key, authority) = (read(&files.certificate)?, read(&files.key)?, read(&files.authority)?);
        let pem = Pem { certificate: &certificate, key: &key, authority: &authority, name: &files.name };
        // Made even if it is not used: what is wrong with a file is better told here than by the first peer.
        let data = Tls::new(&pem).context("use [peer.tls]")?;
        let (identity, authority) = (Identity::from_pem(&certificate, &key), Certificate::from_pem(&authority));
        let server = ServerTlsConfig::new().identity(identity.clone()).client_ca_root(authority.clone());
        let client = ClientTlsConfig::new().identity(identity).ca_certificate(authority).domain_name(&files.name);
        Ok(Self { server: Some(server), client: Some(client), data: files.data.then(|| Arc::new(data)) })
    }
}
