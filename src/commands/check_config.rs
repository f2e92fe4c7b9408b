//! `kvferry check-config`: says what a config means, or what is wrong with it.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::config::Config;

/// Reads a config file and says what it means, or what is wrong with it and where. Starts nothing.
#[derive(Args, Debug)]
pub(crate) struct CheckConfig {
    /// The TOML file that `kvferry serve` would be given.
    #[arg(value_name = "FILE")]
    config: PathBuf,
}

impl CheckConfig {
    pub(crate) fn run(self) -> Result<()> {
        let config = Config::load(&self.config)?;
        println!("{} is well-formed:", self.config.display());
        println!("  node        {}", config.node);
        println!("  engines     {}", config.socket().display());
        let tls = match &config.peer_tls {
            Some(tls) if tls.data => "mutual TLS, for data too",
            Some(_) => "mutual TLS, but data in the clear",
            None => "in the clear",
        };
        println!("  peers       {} ({tls}, {} streams a peer)", config.peer_listen, config.peer_streams);
        println!("  may call    {:?}", config.peer_allow);
        if !config.peer_known.is_empty() {
            println!("  calls       {}", config.peer_known.join(", "));
        }
        println!("  admin       http://{}/metrics", config.admin_listen);
        if let Some(warning) = config.in_the_clear() {
            println!("  careful     {warning}");
        }
        println!("  limits      {:?}", config.limits);
        Ok(())
    }
}
