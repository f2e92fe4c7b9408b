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

use std::{fmt, io};

use tokio::signal::unix::{SignalKind, signal};

/// What scripts see of a command that Ctrl-C has ended, as of any other program.
const INTERRUPTED: u8 = 130;

/// An end that scripts tell from failures: with an exit status of its own.
#[derive(Debug)]
pub(crate) struct Exit {
    pub(crate) status: u8,
    message: String,
}

impl Exit {
    fn new(status: u8, message: &str) -> Self {
        Self { status, message: message.to_owned() }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Exit {}

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
