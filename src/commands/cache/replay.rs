//! `kvferry cache replay`: how much of a trace would have hit, by policy and size.
//!
//! ```text
//! trace (JSON lines) -> requests of blocks -> each policy, each size -> share of blocks that hit
//! ```
//!
//! A block counts as hit while the whole prefix before it hit: an engine can use no other. Failure: a line that is not
//! understood ends the command with its number.

mod classic;
mod optimum;
mod ours;
mod queues;
mod trace;

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;

use self::classic::{Adaptive, Lru, S3Fifo, TinyLfu};
use self::trace::Trace;

const EXAMPLES: &str = "\
A trace has one request a line: when it came, and the blocks of its prompt, named by numbers:
  {\"timestamp\": 12000, \"hash_ids\": [0, 1, 2]}
Examples:
  kvferry cache replay conversation_trace.jsonl
  kvferry cache replay conversation_trace.jsonl --sizes 0.5,3,30 --json";

/// Replays a trace of requests through eviction policies: the share of blocks that hit, for stores of several sizes.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Replay {
    /// The trace: one JSON object a line, with `timestamp` in milliseconds and `hash_ids`.
    trace: PathBuf,
    /// Sizes of the store, in percent of the trace's different blocks.
    #[arg(long, value_delimiter = ',', default_value = "1,2,5,10,20", value_name = "PERCENT,...")]
    sizes: Vec<f64>,
    /// Prints one JSON object a size, one a line, instead of the table.
    #[arg(long)]
    json: bool,
}

/// One column of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Policy {
    Lru,
    S3Fifo,
    Adaptive,
    TinyLfu,
    Ours,
    /// Knows the future.
    Optimum,
}

const POLICIES: [Policy; 6] =
    [Policy::Lru, Policy::S3Fifo, Policy::Adaptive, Policy::TinyLfu, Policy::Ours, Policy::Optimum];

impl Policy {
    const fn name(self) -> &'static str {
        match self {
            Self::Lru => "LRU",
            Self::S3Fifo => "S3-FIFO",
            Self::Adaptive => "ARC",
            Self::TinyLfu => "W-TinyLFU",
            Self::Ours => "KVFerry",
            Self::Optimum => "optimum",
        }
    }

    /// Blocks that hit.
    fn hits(self, trace: &Trace, capacity: usize) -> u64 {
        let blocks = trace.unique;
        match self {
            Self::Lru => classic::hits(&mut Lru::new(blocks, capacity), trace),
            Self::S3Fifo => classic::hits(&mut S3Fifo::new(blocks, capacity), trace),
            Self::Adaptive => classic::hits(&mut Adaptive::new(blocks, capacity), trace),
            Self::TinyLfu => classic::hits(&mut TinyLfu::new(blocks, capacity), trace),
            Self::Ours => ours::hits(trace, capacity),
            Self::Optimum => optimum::hits(trace, capacity),
        }
    }
}

impl Replay {
    pub(crate) fn run(self) -> Result<()> {
        for &size in &self.sizes {
            ensure!(size > 0.0 && size <= 100.0, "--sizes {size}: a store is more than 0 and at most 100 percent");
        }
        let trace = Trace::read(&self.trace)?;
        let share = |hits: u64| hits as f64 / trace.accesses as f64;
        let best = share(Policy::Optimum.hits(&trace, trace.unique));
        if !self.json {
            println!(
                "{} requests for {} blocks, {} of them different; a store of any size hits {best:.3} at most",
                trace.requests.len(),
                trace.accesses,
                trace.unique
            );
            let names: Vec<String> = POLICIES.iter().map(|policy| format!("{:>9}", policy.name())).collect();
            println!("{:>8}  {:>9}  {}", "size", "blocks", names.join("  "));
        }
        for &size in &self.sizes {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a share of a length that fits"
            )]
            let capacity = ((trace.unique as f64 * size / 100.0) as usize).max(1);
            let mut shares = Vec::new();
            for policy in POLICIES {
                progress(&format!("{size} %: {}", policy.name()));
                shares.push((policy, share(policy.hits(&trace, capacity))));
            }
            progress("");
            if self.json {
                let by_name: serde_json::Map<_, _> =
                    shares.iter().map(|(policy, share)| (policy.name().to_owned(), (*share).into())).collect();
                println!("{}", serde_json::json!({"percent": size, "blocks": capacity, "hit": by_name, "most": best}));
            } else {
                let shares: Vec<String> = shares.iter().map(|(_, share)| format!("{share:>9.3}")).collect();
                println!("{:>8}  {capacity:>9}  {}", format!("{size} %"), shares.join("  "));
            }
        }
        Ok(())
    }
}

/// One line that changes in place, where somebody looks.
fn progress(doing: &str) {
    let mut stderr = std::io::stderr();
    if stderr.is_terminal() {
        // A terminal that went away is no reason to end.
        let _ = write!(stderr, "\r\x1b[K{doing}").and_then(|()| stderr.flush());
    }
}
