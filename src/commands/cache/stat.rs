//! `kvferry cache stat`: how much the tiers of this node's daemon hold, and what comes of it.

use anyhow::{Context as _, Result};
use clap::Args;

use super::super::ask::Ask;
use super::super::status::mebibytes;
use crate::daemon::status::{Status, TiersStatus};

/// Shows how much this node's tiers hold, how often a lookup finds something, and why blocks left.
#[derive(Args, Debug)]
pub(crate) struct Stat {
    #[command(flatten)]
    ask: Ask,
    /// Prints one JSON document.
    #[arg(long)]
    json: bool,
}

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
        "  host  {} blocks in {}  {} made room, {} were damaged  {} lookups held, {} loads, {} stores",
        tiers.host_blocks,
        mebibytes(tiers.host_bytes),
        tiers.evicted_total,
        tiers.damaged_total,
        tiers.claims,
        tiers.loads,
        tiers.stores
    ));
    if let Some(disk) = &tiers.disk {
        let state = if disk.read_only { "  read only, see the daemon's log" } else { "" };
        lines.push(format!(
            "  disk  {} blocks in {} and {} files  {} made room, {} were damaged, {} writes failed{state}",
            disk.blocks,
            mebibytes(disk.bytes),
            disk.files,
            disk.evicted_total,
            disk.damaged_total,
            disk.failed_writes_total
        ));
    }
    lines
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
            disk: Some(disk),
            ..Default::default()
        };
        let lines = tier_lines(Some(&tiers));
        assert!(lines[0].contains("100 of 300 blocks found that were asked for (33.3 %)"), "{lines:?}");
        assert!(lines[1].contains("12 blocks") && lines[2].contains("7 blocks") && lines[2].contains("read only"));
        assert_eq!(percent(0, 0), "-");
    }
}
