//! The TCP transport's settings for a cell: the daemon's, but for what the cell says.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, ensure};
use kvferry_core::Time;
use kvferry_transport::EndpointId;
use kvferry_transport_tcp::{Io, Settings, TcpTransport, Threads};

use super::cell::{Asks, Cell, Verify};
use super::identity::Identity;

/// The one path of a cell.
pub(super) const ENDPOINT: EndpointId = EndpointId(1);

/// A transport that listens, and whose threads count from `origin`.
pub(super) fn bind(
    address: SocketAddr,
    cell: &Cell,
    identity: Option<&Identity>,
    origin: Instant,
) -> Result<TcpTransport> {
    let clock = Arc::new(move || Time::from_start(origin.elapsed()));
    let threads = Threads { count: cell.data_threads, clock };
    Ok(TcpTransport::bind_threads(address, &settings(cell, identity)?, &threads)?)
}

/// The same at both ends. An encrypted cell needs the run's identity.
fn settings(cell: &Cell, identity: Option<&Identity>) -> Result<Settings> {
    ensure!(cell.tls == identity.is_some(), "TLS and a certificate go together");
    let io = match cell.io {
        Asks::Auto => Io::Auto,
        Asks::Epoll => Io::Epoll,
        Asks::Uring => Io::Uring,
    };
    let tls = identity.map(Identity::tls).transpose()?;
    Ok(Settings { checksums: cell.verify == Verify::Full, io, tls, ..Settings::default() })
}
