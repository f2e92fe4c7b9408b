//! `kvferry bench`: how fast bytes move, and how fast they could.
//!
//! ```text
//! options -> cells -> rounds: each cell once, near end ==data==> far end (child process or another host)
//!         -> rows -> table, JSON lines -> `bench report`
//! ```
//!
//! Both ends drive the transports directly, without a daemon, on a thread that waits as the daemon's data thread does.
//! How it measures and why it can be believed: docs/adr/0015. Failure: any transfer that fails and any byte that is
//! wrong ends the run with an error. Ctrl-C ends both processes: the child's life is bound to this one's.
//!
//! Why not cargo benches: they cannot run on two hosts, nor on a machine without a compiler.

mod arena;
mod ceilings;
mod cell;
mod child;
mod content;
mod control;
mod driver;
mod far;
mod hop;
mod identity;
mod measure;
mod near;
mod options;
mod pace;
mod placement;
mod plain;
mod progress;
mod report;
mod row;
mod run;
mod settings;
mod size;
mod table;

use anyhow::Result;
use clap::{Args, Subcommand};

use self::far::Listen;
use self::hop::Hop;
use self::options::Options;
use self::report::Report;

const EXAMPLES: &str = "\
Examples:
  kvferry bench
      Both ends here; a set of cells from one block of 64 bytes to 512 of 1 MiB, in half a minute.
  kvferry bench --transport tcp --direction read --block-size 64K,1M --blocks 1024 --streams 1,2,4
      Which number of streams is best for reads of 64 MiB and of 1 GiB.
  kvferry bench --model llama-3.1-70b --tokens 4096 --tp 8
      One rank's KV of a 4,096-token prompt.
  kvferry bench --block-size 16K --blocks 64 --rate 2000 --duration 5s
      Open loop: 2,000 transfers a second, latency from when each was due.
  kvferry bench hop
      From an engine's request to the daemon's word that it is taken, over rings and over the socket.
  kvferry bench listen --address 10.0.0.2:7500        on one host
  kvferry bench --connect 10.0.0.2:7500               on the other
  kvferry bench --out rows.jsonl && kvferry bench report rows.jsonl -o report.html

GB/s is 10^9 bytes a second: all bytes by all time of a round, the median of the rounds. Latencies are of all rounds.
CPU is that of both processes. Every byte of each cell is compared with what it must be, outside the timed part.";

/// Measures transports: GB/s, latency, CPU time, every byte checked.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true, after_help = EXAMPLES)]
pub(crate) struct Bench {
    #[command(subcommand)]
    part: Option<Part>,
    #[command(flatten)]
    options: Options,
}

#[derive(Subcommand, Debug)]
enum Part {
    Hop(Hop),
    Listen(Listen),
    Report(Report),
}

impl Bench {
    pub(crate) fn run(self) -> Result<()> {
        match self.part {
            Some(Part::Hop(hop)) => hop.run(),
            Some(Part::Listen(listen)) => listen.run(),
            Some(Part::Report(report)) => report.run(),
            None => run::run(&self.options),
        }
    }
}
