//! `kvferry sidecar`: the prefill/decode sidecar in front of a decode engine.

use anyhow::{Context as _, Result};
use clap::Args;
use kvferry_gateway::sidecar::{Sidecar, SidecarConfig, SidecarOptions};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use super::ended;

/// Runs the prefill/decode sidecar in front of a decode engine.
///
/// Clients talk to the sidecar as they would to the engine. A completion whose request names a prefill engine
/// (x-prefiller-host-port, or --prefill) is prefilled there, and its KV moved here, before it is decoded.
#[derive(Args, Debug)]
pub(crate) struct RunSidecar {
    #[command(flatten)]
    options: SidecarOptions,
}

impl RunSidecar {
    pub(crate) fn run(self) -> Result<()> {
        let config = SidecarConfig::from(self.options);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        runtime.block_on(async {
            let ended = ended().context("listen for signals")?;
            let sidecar = Sidecar::bind(config, Registry::default()).await?;
            tracing::info!(listen = %sidecar.local_addr(), "sidecar ready");
            let stop = CancellationToken::new();
            let stopping = stop.clone();
            tokio::spawn(async move {
                ended.await;
                stopping.cancel();
            });
            sidecar.serve(stop).await;
            Ok(())
        })
    }
}
