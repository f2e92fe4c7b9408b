//! `kvferry demo`: two daemons and synthetic KV, no vLLM.
//!
//! ```text
//! two `kvferry serve` children -> two synthetic engines attach -> rounds: grant, redeem, compare every block
//!   -> a third, slowed holder is killed while a transfer runs -> the reader is told, nothing is left behind
//! ```

mod child;
mod engine;

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use self::child::ChildDaemon;
use self::engine::SyntheticEngine;
use super::ended;
use crate::models::Model;

/// Rounds of the first part.
const ROUNDS: u64 = 5;
/// The slowed holder's pace: slow enough to be killed in the middle.
const SLOW_BYTES_PER_SECOND: u64 = 32 << 20;

/// Moves synthetic KV of a named model between two daemons, compares every block, and kills a daemon on the way.
///
/// Needs no vLLM and no config; everything it starts and writes is gone when it ends, also after Ctrl-C.
#[derive(Args, Debug)]
pub(crate) struct Demo {
    /// The model whose KV shape is moved.
    #[arg(long, default_value = "llama-3.1-8b", value_name = "NAME")]
    model: String,
    /// Tokens of the prompt whose KV is moved.
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u32).range(1..=131_072))]
    tokens: u32,
    /// Tokens in a block.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1024))]
    block_tokens: u32,
}

impl Demo {
    pub(crate) fn run(self) -> Result<()> {
        let model = Model::named(&self.model)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let ended = ended().context("listen for signals")?;
            tokio::select! {
                done = self.show(model) => done,
                () = ended => anyhow::bail!("interrupted; everything it started is ended"),
            }
        })
    }

    async fn show(&self, model: Model) -> Result<()> {
        let started = Instant::now();
        let blocks = self.tokens.div_ceil(self.block_tokens);
        let bytes = model.block_bytes(self.block_tokens) * u64::from(blocks);
        println!(
            "{}: {} tokens in {blocks} blocks of {} KiB, {:.1} MiB of KV",
            model.name,
            self.tokens,
            model.block_bytes(self.block_tokens) >> 10,
            mebibytes(bytes)
        );
        progress("starting two daemons");
        let holder = ChildDaemon::start("127.0.0.1", "").await?;
        let reader = ChildDaemon::start("127.0.0.2", "").await?;
        progress("attaching two synthetic engines");
        let prefill =
            SyntheticEngine::attach(&holder.socket(), "prefill", model, blocks + 1, self.block_tokens).await?;
        let mut decode =
            SyntheticEngine::attach(&reader.socket(), "decode", model, blocks + 1, self.block_tokens).await?;

        // Block 0 is vLLM's null block, which is never moved.
        let source: Vec<_> = (1..=blocks).collect();
        // The other way round, so that no two blocks are neighbours on both sides.
        let target: Vec<_> = source.iter().rev().copied().collect();
        for round in 1..=ROUNDS {
            progress(&format!("round {round} of {ROUNDS}"));
            prefill.fill(round)?;
            decode.fill(0)?;
            let ticket = prefill.grant(&source)?;
            let moved = decode.redeem(&ticket, &target).await;
            let micros = moved.outcome.map_err(anyhow::Error::msg).context("move blocks")?;
            ensure!(moved.bytes == bytes, "{} bytes moved, not {bytes}", moved.bytes);
            let different = prefill.different_blocks(&source, &decode, &target)?;
            ensure!(different == 0, "{different} of {blocks} blocks differ");
            println!(
                "round {round}: {:>8.1} MiB in {:>7.2} ms, {:>5.2} GB/s, every block equal by its own checksum",
                mebibytes(bytes),
                micros as f64 / 1e3,
                bytes as f64 / micros as f64 / 1e3,
            );
        }
        self.kill_a_holder(model, blocks, &reader, &mut decode).await?;
        drop((prefill, decode, holder, reader));
        progress("");
        println!("all lines held, in {:.1} s", started.elapsed().as_secs_f64());
        Ok(())
    }

    /// A holder that dies in the middle of a transfer costs a recompute and nothing else.
    async fn kill_a_holder(
        &self,
        model: Model,
        blocks: u32,
        reader: &ChildDaemon,
        decode: &mut SyntheticEngine,
    ) -> Result<()> {
        progress("killing a daemon in the middle of a transfer");
        let pace = format!("[limits]\npeer_bytes_per_second_max = {SLOW_BYTES_PER_SECOND}\n");
        let mut slow = ChildDaemon::start("127.0.0.3", &pace).await?;
        let prefill = SyntheticEngine::attach(&slow.socket(), "slow", model, blocks + 1, self.block_tokens).await?;
        prefill.fill(9)?;
        let blocks: Vec<_> = (1..=blocks).collect();
        let ticket = prefill.grant(&blocks)?;
        let key = decode.start_redeem(&ticket, &blocks);
        reader
            .wait_status("a transfer in flight", |status| {
                status.transfers.reading.iter().any(|transfer| transfer.state == "moving")
            })
            .await?;
        let killed = Instant::now();
        slow.kill().await?;
        let moved = decode.outcome(key).await;
        let Err(reason) = moved.outcome else {
            anyhow::bail!("the transfer was over before its holder could be killed; try more --tokens");
        };
        println!(
            "killed the holder with a transfer in flight: the reader was told {reason:?} after {:.1} ms",
            killed.elapsed().as_secs_f64() * 1e3
        );
        let status =
            reader.wait_status("a reader without transfers", |status| status.transfers.reading.is_empty()).await?;
        println!(
            "the reader's daemon serves on: {} delivered, {} failed, {} transfers left",
            status.transfers.delivered_total,
            status.transfers.failed_total,
            status.transfers.reading.len()
        );
        Ok(())
    }
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// One line that changes in place on a terminal, and is left out of files.
fn progress(doing: &str) {
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K{doing}");
        let _ = std::io::stderr().flush();
        if doing.is_empty() {
            eprint!("\r");
        }
    }
}

/// How long anything in the demo may take.
const PATIENCE: Duration = Duration::from_secs(20);
