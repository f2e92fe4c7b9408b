//! How commands follow what the daemon does about many blocks.
//!
//! ```text
//! begin -> every 200 ms: how far? -> a line for people -> complete, or Ctrl-C: the session closes, which ends it
//! ```

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use kvferry_client::{Client, ClientError, Sweep, SweepSpec};

use super::super::ended;
use super::super::status::mebibytes;
use crate::daemon::cached::{SweepStatus, SweepSum};

/// Between two questions.
const POLL: Duration = Duration::from_millis(200);
/// Between two lines where nobody watches: logs need fewer.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// How it went.
pub(super) struct Swept {
    pub(super) status: SweepStatus,
    /// Ended by Ctrl-C or SIGTERM.
    pub(super) interrupted: bool,
}

/// Begins, and follows to the end. Progress goes to standard error.
pub(super) fn sweep(client: &Client, sweep: Sweep, spec: &SweepSpec) -> Result<Swept> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
    runtime.block_on(follow(client, sweep, spec))
}

async fn follow(client: &Client, sweep: Sweep, spec: &SweepSpec) -> Result<Swept> {
    // Before anything is begun, so that no signal is missed.
    let mut ended = std::pin::pin!(ended().context("listen for signals")?);
    let mut line = Line::new(sweep);
    let mut status = parse(&client.begin_sweep(sweep, spec)?)?;
    while !status.complete {
        tokio::select! {
            () = &mut ended => {
                line.end();
                return Ok(Swept { status, interrupted: true });
            }
            () = tokio::time::sleep(POLL) => {}
        }
        let answer = client.sweep_status().map_err(|error| {
            line.end();
            let happened = what_happened(&error);
            anyhow::Error::new(error).context(happened)
        });
        status = parse(&answer?)?;
        line.show(&status);
    }
    line.end();
    Ok(Swept { status, interrupted: false })
}

/// What became of a sweep whose daemon does not say how far it is.
const fn what_happened(error: &ClientError) -> &'static str {
    match error {
        // The next daemon knows of none that this session began.
        ClientError::NotConnected(_) | ClientError::Refused(_) => {
            "the daemon ended meanwhile, and with it what was asked"
        }
        ClientError::Timeout(_) => {
            "the daemon runs, and does not say how far it is; what was asked ends with this command"
        }
    }
}

fn parse(json: &str) -> Result<SweepStatus> {
    serde_json::from_str(json).context("read the daemon's answer")
}

/// One line, written again and again.
struct Line {
    sweep: Sweep,
    is_terminal: bool,
    last: Instant,
    is_open: bool,
}

impl Line {
    fn new(sweep: Sweep) -> Self {
        Self { sweep, is_terminal: std::io::stderr().is_terminal(), last: Instant::now(), is_open: false }
    }

    fn show(&mut self, status: &SweepStatus) {
        let text = progress(self.sweep, status);
        if self.is_terminal {
            eprint!("\r{text}\u{1b}[K");
            // What is not seen at once is seen with the next one.
            drop(std::io::stderr().flush());
            self.is_open = true;
        } else if self.last.elapsed() >= LINE_EVERY {
            self.last = Instant::now();
            eprintln!("{text}");
        }
    }

    fn end(&mut self) {
        if std::mem::take(&mut self.is_open) {
            eprintln!();
        }
    }
}

fn progress(sweep: Sweep, status: &SweepStatus) -> String {
    let verb = match sweep {
        Sweep::Evict => "evicted",
        Sweep::Verify => "verified",
    };
    let of = status.sum();
    let seen = of.blocks + of.held_blocks + of.damaged_blocks + of.unreadable_blocks;
    let percent = (of.bytes * 100).checked_div(of.bytes_total).unwrap_or(100).min(100);
    let mut text = format!("{verb} {seen} of {} blocks, {}  {percent} %", of.blocks_total, mebibytes(of.bytes));
    if of.damaged_blocks + of.unreadable_blocks > 0 {
        text += &format!("  {} damaged, {} unreadable", of.damaged_blocks, of.unreadable_blocks);
    }
    text
}

/// A line for each tier that was meant.
pub(super) fn by_tier(status: &SweepStatus, line: impl Fn(&SweepSum) -> String) -> Vec<String> {
    let tiers = [("host", Some(status.host)), ("disk", status.disk)];
    tiers.into_iter().filter_map(|(name, sum)| Some(format!("  {name}  {}", line(&sum?)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_it_is() {
        let host = SweepSum {
            blocks_total: 10,
            bytes_total: 10 << 20,
            blocks: 4,
            bytes: 4 << 20,
            damaged_blocks: 1,
            ..Default::default()
        };
        let status = SweepStatus { host, disk: Some(SweepSum::default()), ..Default::default() };
        let line = progress(Sweep::Verify, &status);
        assert_eq!(line, "verified 5 of 10 blocks, 4.000 MiB  40 %  1 damaged, 0 unreadable");
        assert_eq!(progress(Sweep::Evict, &SweepStatus::default()), "evicted 0 of 0 blocks, 0.000 MiB  100 %");
        assert_eq!(by_tier(&status, |of| of.blocks.to_string()), ["  host  4", "  disk  0"]);
    }
}
