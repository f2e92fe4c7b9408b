//! `kvferry cache ls`: what is stored, by model, tenant and tier.

use anyhow::Result;
use clap::Args;

use super::super::ask::Ask;
use super::super::status::mebibytes;
use super::which::{Which, listed};
use crate::daemon::cached::{CacheList, CacheRow, CacheSum};

/// Shows what this node's tiers hold: a line for each model, tenant and tier, the largest first.
#[derive(Args, Debug)]
#[command(after_help = "\
model        as its engines call it; - where none of them was attached since the daemon's start: blocks carry the
             fingerprint of their engines (model, dtypes, layout, versions), not the name
tenant       a number made of the cache_salt of requests, or of their engine's namespace; - for blocks of neither.
             Blocks carry the number, not the name: --tenant NAME finds it
blocks       each rank and cache group of an engine has its own
hits         blocks that lookups found in this tier since the daemon's start
last use     the last of those lookups; - where there was none

Examples:
  kvferry cache ls
  kvferry cache ls --tier disk --json
  kvferry cache ls --tenant alice")]
pub(crate) struct List {
    #[command(flatten)]
    ask: Ask,
    #[command(flatten)]
    which: Which,
    /// Prints one JSON document, with the whole fingerprints.
    #[arg(long)]
    json: bool,
}

impl List {
    pub(crate) fn run(self) -> Result<()> {
        let client = self.ask.client()?;
        let list = listed(&client, &self.which.spec(&client)?)?;
        if self.json {
            println!("{}", serde_json::to_string(&list)?);
            return Ok(());
        }
        table(&list).iter().for_each(|line| println!("{line}"));
        Ok(())
    }
}

/// For people.
pub(super) fn table(list: &CacheList) -> Vec<String> {
    let head = ["model", "fingerprint", "tenant", "tier", "blocks", "bytes", "hits", "last use"].map(str::to_owned);
    let or_none = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    let row = |row: &CacheRow| {
        [
            or_none(&row.model),
            row.fingerprint.chars().take(16).collect(),
            or_none(&row.tenant),
            row.tier.clone(),
            row.blocks.to_string(),
            mebibytes(row.bytes),
            row.hits.to_string(),
            row.used_ms_ago.map_or_else(|| "-".to_owned(), |ms| format!("{} s ago", ms / 1000)),
        ]
    };
    let rows: Vec<_> = std::iter::once(head).chain(list.rows.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 8] = std::array::from_fn(width);
    let line = |cells: &[String; 8]| {
        let cell = |(column, text): (usize, &String)| match column {
            // Numbers end where the others do.
            4..=7 => format!("{text:>width$}", width = widths[column]),
            _ => format!("{text:<width$}", width = widths[column]),
        };
        cells.iter().enumerate().map(cell).collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let mut lines: Vec<String> = rows.iter().map(line).collect();
    if list.others.rows > 0 {
        let CacheSum { rows, blocks, bytes } = list.others;
        lines.push(format!("and {rows} smaller ones: {blocks} blocks, {}", mebibytes(bytes)));
    }
    let blocks: u64 = list.rows.iter().map(|row| row.blocks).sum::<u64>() + list.others.blocks;
    let bytes: u64 = list.rows.iter().map(|row| row.bytes).sum::<u64>() + list.others.bytes;
    lines.push(format!("{blocks} blocks, {}", mebibytes(bytes)));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_read_a_table() {
        let row = |model: &str, tenant: &str, used_ms_ago| CacheRow {
            tier: "host".to_owned(),
            model: model.to_owned(),
            fingerprint: "0123456789abcdef".repeat(4),
            tenant: tenant.to_owned(),
            blocks: 12,
            bytes: 3 << 20,
            hits: 5,
            used_ms_ago,
            ..Default::default()
        };
        let rows = vec![row("llama", "00000000000000ff", Some(1999)), row("", "", None)];
        let others = CacheSum { rows: 2, blocks: 3, bytes: 1 << 20 };
        let lines = table(&CacheList { rows, others, ..Default::default() });
        assert_eq!(
            lines,
            [
                "model  fingerprint       tenant            tier  blocks      bytes  hits  last use",
                "llama  0123456789abcdef  00000000000000ff  host      12  3.000 MiB     5   1 s ago",
                "-      0123456789abcdef  -                 host      12  3.000 MiB     5         -",
                "and 2 smaller ones: 3 blocks, 1.000 MiB",
                "27 blocks, 7.000 MiB",
            ]
        );
        assert_eq!(table(&CacheList::default()).len(), 2);
    }
}
