//! `kvferry cache evict`: blocks go because somebody says so.

use std::io::{IsTerminal as _, Write as _};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use kvferry_client::Sweep;

use super::super::ask::Ask;
use super::super::status::mebibytes;
use super::super::{Exit, INTERRUPTED};
use super::ls::table;
use super::sweeping::{Swept, by_tier, sweep};
use super::which::{Which, listed};
use crate::daemon::cached::{CacheList, SweepSum};

/// Removes blocks from this node's tiers: those that fit everything that is given, or all of them.
#[derive(Args, Debug)]
#[command(after_help = "\
From the moment that the daemon has taken the request nobody finds these blocks. Those that an engine is loading stay
until it has them, and go then. Engines compute what they do not find, so nothing breaks; it costs time. What is stored
meanwhile may stay. Files of the disk tier keep their length, and take other blocks.

Only root and the daemon's own user may do this. Ctrl-C ends it: what went is gone, the rest stays.

Examples:
  kvferry cache evict --model llama-3.1-8b --dry-run
  kvferry cache evict --fingerprint 3f9a01c2
  kvferry cache evict --tenant alice --tier disk
  kvferry cache evict --all --yes

Exit status: 0 done, 1 not done and why, 130 ended by Ctrl-C.")]
pub(crate) struct Evict {
    #[command(flatten)]
    ask: Ask,
    #[command(flatten)]
    which: Which,
    /// Everything in all tiers, after a question.
    #[arg(long, conflicts_with_all = ["model", "fingerprint", "tenant", "tenant_id", "tier"])]
    all: bool,
    /// Does not ask.
    #[arg(long)]
    yes: bool,
    /// Shows what would go, and removes nothing.
    #[arg(long, conflicts_with = "json")]
    dry_run: bool,
    /// Prints one JSON document.
    #[arg(long)]
    json: bool,
}

impl Evict {
    pub(crate) fn run(self) -> Result<()> {
        let client = self.ask.client()?;
        let mut spec = self.which.spec(&client)?;
        spec.everything = self.all;
        let says_what =
            spec.everything || spec.tenant.is_some() || spec.tier.is_some() || !spec.fingerprints.is_empty();
        ensure!(says_what, "say what is to go: --model, --fingerprint, --tenant, --tenant-id, --tier, or --all");
        if self.dry_run {
            table(&listed(&client, &spec)?).iter().for_each(|line| println!("{line}"));
            return Ok(());
        }
        if self.all && !self.yes {
            confirm(&listed(&client, &spec)?)?;
        }
        let Swept { status, interrupted } = sweep(&client, Sweep::Evict, &spec)?;
        if self.json {
            println!("{}", serde_json::to_string(&status)?);
        } else {
            let sum = status.sum();
            println!("evicted {} blocks, {}", sum.blocks, mebibytes(sum.bytes));
            let line = |of: &SweepSum| format!("{} blocks, {}", of.blocks, mebibytes(of.bytes));
            by_tier(&status, line).iter().for_each(|line| println!("{line}"));
            if sum.held_blocks > 0 {
                let held = mebibytes(sum.held_bytes);
                println!("{} blocks, {held}, are held by engines that load them, and go then", sum.held_blocks);
            }
        }
        if interrupted {
            return Err(Exit::new(INTERRUPTED, "ended before all that was meant had gone").into());
        }
        Ok(())
    }
}

/// Asks a person.
fn confirm(meant: &CacheList) -> Result<()> {
    let stdin = std::io::stdin();
    ensure!(stdin.is_terminal(), "--all removes everything: add --yes where nobody can be asked");
    let total = table(meant).pop().unwrap_or_default();
    eprint!("This removes everything that this node keeps: {total}. Go on? [y/N] ");
    std::io::stderr().flush().context("ask")?;
    let mut answer = String::new();
    stdin.read_line(&mut answer).context("read the answer")?;
    if !matches!(answer.trim(), "y" | "Y" | "yes") {
        bail!("nothing was removed");
    }
    Ok(())
}
