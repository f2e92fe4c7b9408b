//! What a person's command asks of the tiers: what is there, that it goes, that it is read.

use kvferry_proto::v1::{self, from_daemon, to_daemon};

use crate::client::{Client, ClientError};

/// What is done about blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sweep {
    /// They go.
    Evict,
    /// They are read, and go if they are not what was stored.
    Verify,
}

/// Which blocks: those that fit all of these.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SweepSpec {
    /// Of engines of one of these fingerprints; none: of any.
    pub fingerprints: Vec<[u8; 32]>,
    /// Of this tenant, by its number; none: of any.
    pub tenant: Option<u64>,
    /// In `host` or `disk`; none: in both.
    pub tier: Option<String>,
    /// Must be said where nothing else says which blocks go.
    pub everything: bool,
}

impl Client {
    /// What the tiers hold of these blocks, as a JSON document. Nothing that is said means all.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn cache_list(&self, spec: &SweepSpec) -> Result<String, ClientError> {
        let query = v1::CacheQuery {
            fingerprints: spec.fingerprints.iter().map(|fingerprint| fingerprint.to_vec()).collect(),
            tenant: spec.tenant,
            tier: spec.tier.clone().unwrap_or_default(),
        };
        match self.call(to_daemon::Body::Cache(query))? {
            from_daemon::Body::Cache(reply) => Ok(reply.json),
            _ => Err(Self::surprised()),
        }
    }

    /// Begins to do something about blocks, and says how far it is, as a JSON document. It ends with the connection.
    ///
    /// # Errors
    /// [`ClientError`]; nothing is done then.
    pub fn begin_sweep(&self, sweep: Sweep, spec: &SweepSpec) -> Result<String, ClientError> {
        let kind = match sweep {
            Sweep::Evict => v1::SweepKind::Evict,
            Sweep::Verify => v1::SweepKind::Verify,
        };
        let sweep = v1::Sweep {
            kind: kind.into(),
            fingerprints: spec.fingerprints.iter().map(|fingerprint| fingerprint.to_vec()).collect(),
            tenant: spec.tenant,
            tier: spec.tier.clone().unwrap_or_default(),
            everything: spec.everything,
        };
        self.swept(to_daemon::Body::Sweep(sweep))
    }

    /// How far what was begun has come, as a JSON document.
    ///
    /// # Errors
    /// [`ClientError`]; also where the daemon has started again meanwhile, which ends it.
    pub fn sweep_status(&self) -> Result<String, ClientError> {
        self.swept(to_daemon::Body::SweepQuery(v1::SweepQuery {}))
    }

    fn swept(&self, body: to_daemon::Body) -> Result<String, ClientError> {
        match self.call(body)? {
            from_daemon::Body::Sweep(reply) => Ok(reply.json),
            _ => Err(Self::surprised()),
        }
    }
}
