//! `kvferry cache stat`: how much the tiers of this node's daemon hold, and what comes of it.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use clap::Args;

use super::super::ask::Ask;
use super::super::status::mebibytes;
use crate::daemon::status::{Status, TiersStatus};

/// Shows how much this node's tiers hold, how often a lookup finds something, and why blocks left.
#[derive(Args, Debug)]
#[command(after_help = REASONS)]
pub(crate) struct Stat {
    #[command(flatten)]
    ask: Ask,
    /// Prints one JSON document.
    #[arg(long)]
    json: bool,
}

const REASONS: &str = "\
Why blocks leave:
  asked      by kvferry cache evict
  cleared    an engine's weights changed, or its caches were reset
  damaged    what was read was not what was stored
  displaced  another model had too little room, and took a part of the store over
  limits     the disk tier was made smaller, seen at the start
  orphaned   stored a second time when the block before it had gone
  quota      its tenant had more than it may (tier.host.tenant_mib_max, tier.disk.tenant_mib_max)
  record     its record was damaged, seen at the start
  room       other blocks of its model are more likely to be used

All counts begin with the daemon; /metrics has them as kvferry_tier_left_blocks_total.";

impl Stat {
    pub(crate) fn run(self) -> Result<()> {
        let status = self.ask.client()?.status()?;
        let status: Status = serde_json::from_str(&status).context("read the daemon's status")?;
        if self.json {
            println!("{}", serde_json::to_string(&status.tiers)?);
            return Ok(());
        }
        for line in tier_lines(status.tiers.as_ref()) {
            println!("{line}");
        }
        Ok(())
    }
}

/// For people.
pub(crate) fn tier_lines(tiers: Option<&TiersStatus>) -> Vec<String> {
    let Some(tiers) = tiers else {
        return vec!["tiers  none: set tier.host.mib in the daemon's config to keep blocks".to_owned()];
    };
    let mut lines = vec![format!(
        "tiers  {} of {} blocks found that were asked for ({}); {} stored; {} loaded, {} of it from the disk",
        tiers.found_blocks_total,
        tiers.asked_blocks_total,
        percent(tiers.found_blocks_total, tiers.asked_blocks_total),
        tiers.stored_blocks_total,
        mebibytes(tiers.loaded_bytes_total),
        mebibytes(tiers.loaded_disk_bytes_total),
    )];
    lines.push(format!(
        "  host  {} blocks in {}  {} lookups held, {} loads, {} stores{}",
        tiers.host_blocks,
        mebibytes(tiers.host_bytes),
        tiers.claims,
        tiers.loads,
        tiers.stores,
        left(&tiers.left_total)
    ));
    if let Some(disk) = &tiers.disk {
        let state = if disk.read_only { "  read only, see the daemon's log" } else { "" };
        lines.push(format!(
            "  disk  {} blocks in {} and {} files  {} writes failed{state}{}",
            disk.blocks,
            mebibytes(disk.bytes),
            disk.files,
            disk.failed_writes_total,
            left(&disk.left_total)
        ));
    }
    lines
}

/// Why blocks left; what nothing left for is not said.
fn left(reasons: &BTreeMap<String, u64>) -> String {
    let said: Vec<_> = reasons.iter().filter(|(_, count)| **count > 0).collect();
    let total: u64 = said.iter().map(|(_, count)| **count).sum();
    let words = said.iter().map(|(reason, count)| format!("{count} {reason}")).collect::<Vec<_>>().join(", ");
    if total == 0 { "  0 left".to_owned() } else { format!("  {total} left: {words}") }
}

fn percent(part: u64, whole: u64) -> String {
    (part * 1000).checked_div(whole).map_or_else(|| "-".to_owned(), |mille| format!("{}.{} %", mille / 10, mille % 10))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::status::DiskStatus;

    #[test]
    fn people_read_what_there_is_and_what_came_of_it() {
        let none = tier_lines(None);
        assert!(none.len() == 1 && none[0].contains("tier.host.mib"), "{none:?}");
        let disk = DiskStatus { blocks: 7, files: 3, read_only: true, ..Default::default() };
        let tiers = TiersStatus {
            asked_blocks_total: 300,
            found_blocks_total: 100,
            host_blocks: 12,
            left_total: [("room".to_owned(), 7), ("asked".to_owned(), 2), ("quota".to_owned(), 0)].into(),
            disk: Some(disk),
            ..Default::default()
        };
        let lines = tier_lines(Some(&tiers));
        assert!(lines[0].contains("100 of 300 blocks found that were asked for (33.3 %)"), "{lines:?}");
        assert!(lines[1].contains("12 blocks") && lines[2].contains("7 blocks") && lines[2].contains("read only"));
        assert!(lines[1].contains("9 left: 2 asked, 7 room") && lines[2].contains("0 left"), "{lines:?}");
        assert_eq!(percent(0, 0), "-");
    }

    #[test]
    fn every_reason_is_explained() {
        for why in kvferry_tier::Left::ALL {
            assert!(REASONS.lines().any(|line| line.trim_start().starts_with(why.word())), "{}", why.word());
        }
    }
}
