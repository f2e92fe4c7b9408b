//! A synthetic engine: the cache of a model's shape, filled with known bytes.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use kvferry_client::{AttachSpec, Client, ClientConfig, Event, Role, WantedBlocks};
use kvferry_memory::{Meter, Region};
use tokio::time::{Duration, Instant, sleep};

use super::PATIENCE;
use crate::models::Model;

pub(super) struct SyntheticEngine {
    scheduler: Client,
    worker: Client,
    region: Arc<Region>,
    model: Model,
    block_count: u32,
    block_tokens: u32,
}

/// How one redeem ended.
pub(super) struct Moved {
    pub(super) bytes: u64,
    /// Microseconds, or why nothing was delivered.
    pub(super) outcome: Result<u64, String>,
}

impl SyntheticEngine {
    pub(super) async fn attach(
        socket: &Path,
        name: &str,
        model: Model,
        block_count: u32,
        block_tokens: u32,
    ) -> Result<Self> {
        let layout = model.layout(block_count, block_tokens);
        let memory = kvferry_memory::create("kvferry-demo", layout.region_bytes).context("create the cache")?;
        let region = Region::map(memory.try_clone()?, layout.region_bytes, &Meter::new()).context("map the cache")?;
        let client = |role| {
            Client::start(ClientConfig {
                socket: socket.to_owned(),
                engine_id: name.to_owned(),
                role,
                reply_timeout: Duration::from_secs(5),
            })
        };
        let (worker, scheduler) = (client(Role::Worker)?, client(Role::Scheduler)?);
        let spec = AttachSpec {
            rank: 0,
            rank_count: 1,
            fingerprint: [0; 32],
            layout,
            region: Arc::new(memory),
            model: String::new(),
        };
        worker.attach(spec);
        ensure!(
            worker.wait_connected(PATIENCE) && scheduler.wait_connected(PATIENCE),
            "the daemon did not take the engine: {:?}",
            worker.poll()
        );
        Ok(Self { scheduler, worker, region, model, block_count, block_tokens })
    }

    /// Every byte from `seed`, different in each page.
    pub(super) fn fill(&self, seed: u64) -> Result<()> {
        let page = usize::try_from(self.model.page_bytes(self.block_tokens))?;
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut bytes = vec![0; page];
        for offset in (0..self.region.len()).step_by(page) {
            for word in bytes.chunks_mut(8) {
                // Marsaglia's xorshift64: cheap, and no two pages are alike.
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                let length = word.len();
                word.copy_from_slice(&state.to_le_bytes()[..length]);
            }
            self.region.write(offset, &bytes)?;
        }
        Ok(())
    }

    pub(super) fn grant(&self, blocks: &[u32]) -> Result<String> {
        Ok(self.scheduler.grant("demo", &[blocks.to_vec()], 30_000, &[]).context("lease blocks")?.ticket)
    }

    pub(super) fn start_redeem(&self, ticket: &str, targets: &[u32]) -> u64 {
        let wanted = WantedBlocks { positions: (0..).take(targets.len()).collect(), targets: targets.to_vec() };
        self.worker.redeem("demo", ticket, &[wanted], 15_000, &[])
    }

    pub(super) async fn redeem(&mut self, ticket: &str, targets: &[u32]) -> Moved {
        let key = self.start_redeem(ticket, targets);
        self.outcome(key).await
    }

    pub(super) async fn outcome(&mut self, key: u64) -> Moved {
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            for event in self.worker.poll() {
                if let Event::TransferDone { key: of, failure, bytes, micros, .. } = event
                    && of == key
                {
                    return Moved { bytes, outcome: failure.map_or(Ok(micros), Err) };
                }
            }
            sleep(Duration::from_millis(1)).await;
        }
        Moved { bytes: 0, outcome: Err(format!("no outcome within {PATIENCE:?}")) }
    }

    /// How many pairs of blocks differ, by a checksum over each layer's page that the daemons have no part in.
    pub(super) fn different_blocks(&self, own: &[u32], other: &Self, others: &[u32]) -> Result<usize> {
        let mut different = 0;
        for (own, others) in own.iter().zip(others) {
            different += usize::from(self.checksum(*own)? != other.checksum(*others)?);
        }
        Ok(different)
    }

    fn checksum(&self, block: u32) -> Result<u32> {
        let page = self.model.page_bytes(self.block_tokens);
        (0..self.model.layers).try_fold(0, |sum, layer| {
            let page_index = u64::from(layer) * u64::from(self.block_count) + u64::from(block);
            Ok(self.region.crc32c(sum, page_index * page, page)?)
        })
    }
}
