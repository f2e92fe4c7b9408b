//! How commands ask the daemon of this node.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use kvferry_client::{Client, ClientConfig, ClientError, Role};

/// How long a command waits for the daemon.
const WAIT_MAX: Duration = Duration::from_secs(2);

/// Where the daemon is.
#[derive(Args, Debug)]
pub(crate) struct Ask {
    /// The daemon's socket: kvferry.sock in its attach.directory.
    #[arg(long, value_name = "PATH", default_value = "/run/kvferry/kvferry.sock")]
    socket: PathBuf,
}

impl Ask {
    /// A client that only asks.
    pub(crate) fn client(self) -> Result<Client> {
        let config = ClientConfig {
            socket: self.socket.clone(),
            engine_id: String::new(),
            role: Role::Operator,
            reply_timeout: WAIT_MAX,
        };
        let client = Client::start(config)?;
        if !client.wait_connected(WAIT_MAX) {
            return Err(ClientError::NotConnected(self.socket).into());
        }
        Ok(client)
    }
}
