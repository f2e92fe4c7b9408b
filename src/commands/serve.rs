//! `kvferry serve`: the daemon.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Args;

use super::ended;
use crate::config::Config;
use crate::daemon::Daemon;
use crate::daemon::scheduling::Scheduling;

/// Runs this node's daemon until Ctrl-C or SIGTERM.
///
/// Engines attach to the socket kvferry.sock in attach.directory; peers call peer.listen. Without a config file every
/// setting has its default: loopback only, /run/kvferry. KVFERRY_LOG sets the log's level, such as debug.
#[derive(Args, Debug)]
pub(crate) struct Serve {
    /// A TOML file; `kvferry check-config FILE` explains one.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Serve {
    pub(crate) fn run(self) -> Result<()> {
        let config = self.config.as_deref().map_or_else(Config::defaults, Config::load)?;
        // First of all: every thread that is started from here on inherits it.
        let scheduling = Scheduling::take(config.limits.realtime)?;
        let background = scheduling.clone();
        // Control never touches a transfer's bytes: one thread is plenty, and with two each message would wake the other
        // one (docs/adr/0016). It is this thread, so that the hook sees the blocking pool alone.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .thread_name("kvferry-files")
            .on_thread_start(move || background.stand_back())
            .build()?;
        runtime.block_on(async {
            let socket = config.socket();
            let ended = ended().context("listen for signals")?;
            let daemon = Daemon::start(config, scheduling).await?;
            tracing::info!(
                socket = %socket.display(), peer = %daemon.peer, data = %daemon.data, admin = %daemon.admin, "ready"
            );
            daemon.run(ended).await
        })
    }
}
