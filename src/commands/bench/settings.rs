//! The TCP transport's settings for a cell: the daemon's, but for what the cell says.

use anyhow::{Result, ensure};
use kvferry_transport::EndpointId;
use kvferry_transport_tcp::{Io, Settings};

use super::cell::{Asks, Cell, Verify};
use super::identity::Identity;

/// The one path of a cell.
pub(super) const ENDPOINT: EndpointId = EndpointId(1);

/// The same at both ends. An encrypted cell needs the run's identity.
pub(super) fn settings(cell: &Cell, identity: Option<&Identity>) -> Result<Settings> {
    ensure!(cell.tls == identity.is_some(), "TLS and a certificate go together");
    let io = match cell.io {
        Asks::Auto => Io::Auto,
        Asks::Epoll => Io::Epoll,
        Asks::Uring => Io::Uring,
    };
    let tls = identity.map(Identity::tls).transpose()?;
    Ok(Settings { checksums: cell.verify == Verify::Full, io, tls, ..Settings::default() })
}
