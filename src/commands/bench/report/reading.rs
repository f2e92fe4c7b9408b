//! Rows as files have them: ours, and those of rivals, who measure less and name themselves in "peer".

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use crate::commands::bench::size;

/// What a page needs of a row; the rest of the line is not looked at.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct Shown {
    #[serde(default = "kvferry")]
    pub(super) peer: String,
    /// Where and beside what it was measured, such as "veth".
    #[serde(default)]
    pub(super) setting: String,
    pub(super) cell: ShownCell,
    pub(super) gbps: f64,
    pub(super) gbps_min: Option<f64>,
    pub(super) gbps_max: Option<f64>,
    pub(super) p50_us: Option<f64>,
    pub(super) p99_us: Option<f64>,
    pub(super) p999_us: Option<f64>,
    pub(super) cpu_s_per_gb: Option<f64>,
    pub(super) transfers: Option<u64>,
    pub(super) verified: Option<bool>,
    #[serde(default)]
    pub(super) ceilings: BTreeMap<String, f64>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct ShownCell {
    pub(super) transport: String,
    pub(super) direction: String,
    pub(super) block_bytes: u64,
    pub(super) blocks: u64,
    #[serde(default = "one")]
    pub(super) layers: u64,
    pub(super) model: Option<String>,
    pub(super) streams: Option<u64>,
    pub(super) copy_threads: Option<u64>,
    pub(super) data_threads: Option<u64>,
    pub(super) depth: Option<u64>,
    pub(super) verify: Option<String>,
    pub(super) spin_us: Option<u64>,
    pub(super) io: Option<String>,
    pub(super) rate: Option<f64>,
    #[serde(default)]
    pub(super) tls: bool,
}

fn kvferry() -> String {
    "kvferry".to_owned()
}

const fn one() -> u64 {
    1
}

impl ShownCell {
    /// `1024 x 64K`, or the model's name.
    pub(super) fn shape(&self) -> String {
        if let Some(model) = &self.model {
            return model.clone();
        }
        let layers = if self.layers > 1 { format!(" x {} layers", self.layers) } else { String::new() };
        format!("{} x {}{layers}", self.blocks, size::bytes(self.block_bytes))
    }

    pub(super) const fn transfer_bytes(&self) -> u64 {
        self.blocks.saturating_mul(self.block_bytes).saturating_mul(self.layers)
    }
}

/// All rows of a file. Empty lines, and a first line about the run itself, are passed over.
pub(super) fn rows(text: &str) -> Result<Vec<Shown>> {
    let mut rows = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if line.trim().is_empty() || line.starts_with("{\"meta\"") {
            continue;
        }
        let row: Shown = serde_json::from_str(line).with_context(|| format!("line {}: no result row", number + 1))?;
        let figures = [Some(row.gbps), row.gbps_min, row.gbps_max, row.p50_us, row.p99_us, row.cpu_s_per_gb];
        let sane = figures.iter().flatten().chain(row.ceilings.values()).all(|value| (0.0..1e12).contains(value));
        ensure!(sane, "line {}: a figure is negative or beyond all reason", number + 1);
        rows.push(row);
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::bench::cell::example;
    use crate::commands::bench::measure::{Calls, Round, Summary, histogram};
    use crate::commands::bench::row::{Ceilings, Row};

    #[test]
    fn what_the_bench_writes_is_read() {
        let mut latencies = histogram().expect("a histogram");
        latencies.record(5000).expect("in range");
        let round = Round {
            bytes: 1 << 30,
            seconds: 0.5,
            transfers: 1,
            unstarted: 0,
            latencies,
            cpu_s: 1.0,
            calls: Calls::default(),
            moved_by: String::new(),
            checked_bytes: 1,
        };
        let summary = Summary::of(&[round]).expect("a round");
        let ceilings: Ceilings = [("raw_tcp_gbps".to_owned(), 4.0)].into();
        let row = Row { peer: "kvferry", version: "0", cell: example(), summary, ceilings, ceiling: None };
        let line = serde_json::to_string(&row).expect("JSON");
        let shown = rows(&line).expect("a row").remove(0);
        assert_eq!((shown.peer.as_str(), shown.cell.shape().as_str()), ("kvferry", "16 x 4K"));
        assert_eq!((shown.gbps, shown.verified, shown.transfers), (row.summary.gbps, Some(true), Some(1)));
        assert_eq!(shown.ceilings, row.ceilings);
        assert_eq!(shown.cell.transfer_bytes(), row.cell.transfer_bytes());
    }

    #[test]
    fn a_rival_may_say_little() {
        let text = "{\"meta\":{}}\n\n{\"peer\":\"nixl-tcp\",\"gbps\":1.5,\"cell\":{\"transport\":\"tcp\",\
                    \"direction\":\"read\",\"block_bytes\":1048576,\"blocks\":4,\"way\":\"lo\"},\"rounds\":[]}\n";
        let shown = rows(text).expect("a row").remove(0);
        assert_eq!((shown.peer.as_str(), shown.p50_us, shown.cell.layers), ("nixl-tcp", None, 1));
    }

    #[test]
    fn other_lines_are_named() {
        for bad in ["no json", "[]", "{}", "{\"gbps\":1}", "\n\n{\"cell\":1}"] {
            assert!(format!("{:#}", rows(bad).expect_err(bad)).contains("line "), "{bad}");
        }
        let cell = "{\"transport\":\"tcp\",\"direction\":\"read\",\"block_bytes\":1,\"blocks\":1}";
        for figure in ["-1", "1e300"] {
            let line = format!("{{\"cell\":{cell},\"gbps\":{figure}}}");
            assert!(rows(&line).is_err(), "{line}");
        }
    }
}
