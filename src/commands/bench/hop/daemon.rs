//! A `kvferry serve` of its own, in a directory of its own, with default settings but for what is
//! being measured. Ends with the benchmark.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;

use super::PATIENCE;
use super::cores::Cores;

/// Killed when dropped.
pub(super) struct ChildDaemon {
    child: Child,
    directory: TempDir,
}

impl ChildDaemon {
    /// Starts it and waits until it listens.
    pub(super) fn start(ring_spin_us: Option<u64>, cores: Cores) -> Result<Self> {
        let directory = tempfile::tempdir().context("create a directory")?;
        let file = directory.path().join("kvferry.toml");
        let spin = ring_spin_us.map(|spin| format!("ring_spin_us = {spin}\n")).unwrap_or_default();
        let text = format!(
            "[attach]\ndirectory = {:?}\n{spin}[peer]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"127.0.0.1:0\"\n",
            directory.path()
        );
        std::fs::write(&file, text).context("write a config")?;
        let log = directory.path().join("log");
        let child = Command::new(std::env::current_exe().context("find this program")?)
            .args(["serve", "--config"])
            .arg(&file)
            // A line for each redeem that is refused would be measured, too.
            .env("KVFERRY_LOG", "warn")
            .stdin(Stdio::null())
            .stderr(std::fs::File::create(&log).context("create a log")?)
            .spawn()
            .context("start a daemon")?;
        let mut daemon = Self { child, directory };
        let started = Instant::now();
        while std::os::unix::net::UnixStream::connect(daemon.socket()).is_err() {
            if daemon.child.try_wait()?.is_some() || started.elapsed() > PATIENCE {
                bail!("the daemon did not start:\n{}", std::fs::read_to_string(&log).unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        cores.move_process(daemon.child.id())?;
        Ok(daemon)
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.directory.path().join("kvferry.sock")
    }

    /// Its process.
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The share of a core that it uses while nobody asks for anything.
    pub(super) fn idle_share(&self, watched: Duration) -> Result<f64> {
        let before = self.cpu()?;
        std::thread::sleep(watched);
        Ok((self.cpu()? - before) / watched.as_secs_f64())
    }

    /// CPU seconds of all its threads so far, with the scheduler's nanoseconds.
    fn cpu(&self) -> Result<f64> {
        let tasks =
            std::fs::read_dir(format!("/proc/{}/task", self.child.id())).context("list the daemon's threads")?;
        let mut nanoseconds = 0.0;
        for task in tasks {
            let stat = std::fs::read_to_string(task?.path().join("schedstat")).context("read a thread's CPU time")?;
            let ran: f64 = stat.split(' ').next().unwrap_or_default().parse().context("parse a thread's CPU time")?;
            nanoseconds += ran;
        }
        Ok(nanoseconds / 1e9)
    }
}

impl Drop for ChildDaemon {
    fn drop(&mut self) {
        // It may have ended by itself, and has said why in its log.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
