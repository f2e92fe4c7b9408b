//! The far end as a child process of this one, so that both ends are real processes with CPU times of their own.
//!
//! The child ends when its control connection does, and the kernel kills it should this process end in any other way
//! (Ctrl-C, kill -9): see `bench listen --child`.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// Killed when dropped.
pub(super) struct FarChild {
    child: Child,
    pub(super) address: SocketAddr,
}

impl FarChild {
    /// Starts it on loopback and waits until it listens. Must be called from the main thread, whose end it follows.
    pub(super) fn start() -> Result<Self> {
        let mut child = Command::new(std::env::current_exe().context("find this program")?)
            .args(["bench", "listen", "--child", "--address", "127.0.0.1:0"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("start the far end")?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line).context("hear from the far end")?;
        }
        let address = line.trim().strip_prefix("listening on ").and_then(|address| address.parse().ok());
        let Some(address) = address else {
            // It is on its way out, or nothing of ours.
            let _ = child.kill();
            let _ = child.wait();
            bail!("the far end did not start: {line:?}");
        };
        Ok(Self { child, address })
    }
}

impl Drop for FarChild {
    fn drop(&mut self) {
        // It may have ended by itself, because its control connection did.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
