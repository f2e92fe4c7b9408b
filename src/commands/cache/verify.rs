//! `kvferry cache verify`: every block is read, and held against its checksum.

use anyhow::Result;
use clap::Args;
use kvferry_client::Sweep;

use super::super::ask::Ask;
use super::super::status::mebibytes;
use super::super::{Exit, INTERRUPTED};
use super::sweeping::{Swept, by_tier, sweep};
use super::which::Which;
use crate::daemon::cached::{SweepStatus, SweepSum};

/// What scripts see where a block was damaged, or could not be read.
const DAMAGED: u8 = 3;

/// Reads every block of this node's tiers and holds it against its checksum. What is damaged goes.
#[derive(Args, Debug)]
#[command(after_help = "\
The daemon reads beside what engines ask of it: a little at a time, behind their loads and lookups. Blocks are checked
whenever they are loaded, too; this finds damage before an engine asks, and says whether a disk or memory is failing.
What is damaged is a miss from then on, and counts as such in `kvferry cache stat`; engines compute it again.
What is stored meanwhile may be read or not.

One at a time. Only root and the daemon's own user may do this. Ctrl-C ends it, in the daemon too.

Examples:
  kvferry cache verify
  kvferry cache verify --tier disk --json

Exit status: 0 all that was read is whole, 1 not done and why, 3 something was damaged or could not be read,
130 ended by Ctrl-C.")]
pub(crate) struct Verify {
    #[command(flatten)]
    ask: Ask,
    #[command(flatten)]
    which: Which,
    /// Prints one JSON document at the end; progress still goes to standard error.
    #[arg(long)]
    json: bool,
}

impl Verify {
    pub(crate) fn run(self) -> Result<()> {
        let client = self.ask.client()?;
        let spec = self.which.spec(&client)?;
        let Swept { status, interrupted } = sweep(&client, Sweep::Verify, &spec)?;
        if self.json {
            println!("{}", serde_json::to_string(&status)?);
        } else {
            lines(&status).iter().for_each(|line| println!("{line}"));
        }
        let sum = status.sum();
        if sum.damaged_blocks + sum.unreadable_blocks > 0 {
            let (damaged, unreadable) = (sum.damaged_blocks, sum.unreadable_blocks);
            let message = format!("{damaged} blocks were damaged and are gone, {unreadable} could not be read");
            return Err(Exit::new(DAMAGED, &message).into());
        }
        if interrupted {
            return Err(Exit::new(INTERRUPTED, "ended before everything was read").into());
        }
        Ok(())
    }
}

fn lines(status: &SweepStatus) -> Vec<String> {
    let sum = status.sum();
    let seconds = status.elapsed_ms / 1000;
    let mut lines = vec![format!("{} blocks are whole, {}, in {seconds} s", sum.blocks, mebibytes(sum.bytes))];
    let line = |of: &SweepSum| {
        let (blocks, bytes) = (of.blocks, mebibytes(of.bytes));
        format!("{blocks} whole, {bytes}; {} damaged, {} unreadable", of.damaged_blocks, of.unreadable_blocks)
    };
    lines.extend(by_tier(status, line));
    lines
}
