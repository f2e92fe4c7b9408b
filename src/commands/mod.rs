//! One file for each command.

pub(crate) mod ask;
pub(crate) mod bench;
pub(crate) mod cache;
pub(crate) mod check_config;
pub(crate) mod checksum;
pub(crate) mod demo;
pub(crate) mod serve;
pub(crate) mod sidecar;
pub(crate) mod status;

use std::io;

use tokio::signal::unix::{SignalKind, signal};

/// Resolves at Ctrl-C or SIGTERM.
fn ended() -> io::Result<impl Future<Output = ()>> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}
