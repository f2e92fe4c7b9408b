//! Why a sidecar cannot run, and how errors look in the log.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use thiserror::Error;

/// Why a sidecar did not start. Once it runs, everything that fails is a client's answer.
#[derive(Debug, Error)]
pub enum SidecarError {
    /// The listening socket could not be made.
    #[error("listen on {address}")]
    Bind {
        /// What was asked for.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// A number is outside its limits.
    #[error("{name} is {value}, but must be between 1 and {limit}")]
    Count {
        /// The field of [`SidecarConfig`](super::SidecarConfig).
        name: &'static str,
        /// What it was set to.
        value: usize,
        /// The most it may be.
        limit: usize,
    },
    /// A time limit is zero or longer than a day.
    #[error("{name} is {value:?}, but must be above zero and at most 24 h")]
    Duration {
        /// The field of [`SidecarConfig`](super::SidecarConfig).
        name: &'static str,
        /// What it was set to.
        value: Duration,
    },
}

/// An error with its causes on one line: the HTTP library's own message says that a connection failed, the cause why.
pub(crate) struct Chain<'a>(pub(crate) &'a dyn StdError);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
