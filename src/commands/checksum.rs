//! `kvferry checksum`: what an engine's blocks hold, to compare engines.

use anyhow::Result;
use clap::Args;

use super::ask::Ask;

/// Prints the CRC-32C of blocks of an attached engine, layer after layer, so that two engines' KV can be compared.
#[derive(Args, Debug)]
pub(crate) struct Checksum {
    #[command(flatten)]
    ask: Ask,
    /// Its engine ID, as in its --kv-transfer-config.
    #[arg(long)]
    engine: String,
    /// The worker.
    #[arg(long, default_value_t = 0)]
    rank: u32,
    /// The KV cache group.
    #[arg(long, default_value_t = 0)]
    group: u32,
    /// Block indices, comma-separated.
    #[arg(long, value_delimiter = ',', required = true)]
    blocks: Vec<u32>,
    /// Prints one JSON object: a checksum for each block.
    #[arg(long)]
    json: bool,
}

impl Checksum {
    pub(crate) fn run(self) -> Result<()> {
        let sums = self.ask.client()?.checksums(&self.engine, self.rank, self.group, &self.blocks)?;
        let pairs = self.blocks.iter().zip(&sums);
        if self.json {
            let by_block: serde_json::Map<_, _> =
                pairs.map(|(block, sum)| (block.to_string(), (*sum).into())).collect();
            println!("{}", serde_json::Value::Object(by_block));
        } else {
            pairs.for_each(|(block, sum)| println!("{block:>8}  {sum:08x}"));
        }
        Ok(())
    }
}
