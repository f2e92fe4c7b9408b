//! A `kvferry serve` that ends with the demo.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context as _, Result, bail, ensure};
use kvferry_client::{Client, ClientConfig, Role};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::{Duration, Instant, sleep};

use super::PATIENCE;
use crate::daemon::status::Status;

pub(super) struct ChildDaemon {
    child: Child,
    directory: TempDir,
    operator: Client,
}

impl ChildDaemon {
    /// Starts a daemon on `host` with further lines of config, and waits until it answers.
    pub(super) async fn start(host: &str, config: &str) -> Result<Self> {
        let directory = tempfile::tempdir().context("create a directory")?;
        let file = directory.path().join("kvferry.toml");
        let text = format!(
            "[attach]\ndirectory = {:?}\n[peer]\nlisten = \"{host}:0\"\n[admin]\nlisten = \"{host}:0\"\n{config}",
            directory.path()
        );
        std::fs::write(&file, text).context("write the config")?;
        let mut child = Command::new(std::env::current_exe().context("find this program")?)
            .args(["serve", "--config"])
            .arg(&file)
            .stdin(Stdio::null())
            .stderr(std::fs::File::create(directory.path().join("log")).context("create the log")?)
            // Its end is this program's business, also when Ctrl-C reaches the whole group.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .context("start a daemon")?;
        let socket = directory.path().join("kvferry.sock");
        let operator = Client::start(ClientConfig {
            socket,
            engine_id: String::new(),
            role: Role::Operator,
            reply_timeout: Duration::from_secs(2),
        })?;
        let started = Instant::now();
        while !operator.is_connected() {
            if child.try_wait()?.is_some() || started.elapsed() > PATIENCE {
                let log = std::fs::read_to_string(directory.path().join("log")).unwrap_or_default();
                bail!("the daemon on {host} did not start:\n{log}");
            }
            sleep(Duration::from_millis(5)).await;
        }
        Ok(Self { child, directory, operator })
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.directory.path().join("kvferry.sock")
    }

    pub(super) async fn kill(&mut self) -> Result<()> {
        self.child.kill().await.context("kill the daemon")
    }

    /// Waits until its status is as wanted.
    pub(super) async fn wait_status(&self, what: &str, wanted: impl Fn(&Status) -> bool) -> Result<Status> {
        let started = Instant::now();
        loop {
            let status: Status = serde_json::from_str(&self.operator.status()?)?;
            if wanted(&status) {
                return Ok(status);
            }
            ensure!(started.elapsed() < PATIENCE, "waited in vain for {what}");
            sleep(Duration::from_millis(1)).await;
        }
    }
}
