//! Rows for people.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::row::Row;

const HEAD: [&str; 11] = [
    "cell",
    "streams",
    "depth",
    "GB/s",
    "min-max",
    "p50 us",
    "p99 us",
    "p99.9 us",
    "CPU s/GB",
    "transfers",
    "of ceiling",
];

/// All rows, columns aligned, with what the figures mean below.
pub(super) fn render(rows: &[Row]) -> String {
    let mut lines = vec![HEAD.map(str::to_owned)];
    lines.extend(rows.iter().map(line));
    let width = |column: usize| lines.iter().map(|line| line[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..HEAD.len()).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let mut row = format!("{:<width$}", line[0], width = widths[0]);
        for (value, width) in line.iter().zip(&widths).skip(1) {
            // Writing to a string does not fail.
            let _ = write!(row, "  {value:>width$}");
        }
        text.push_str(row.trim_end());
        text.push('\n');
    }
    text
}

fn line(row: &Row) -> [String; HEAD.len()] {
    let (cell, summary) = (&row.cell, &row.summary);
    let mut transfers = summary.transfers.to_string();
    if summary.unstarted > 0 {
        let _ = write!(transfers, " ({} never started)", summary.unstarted);
    }
    [
        if cell.tls { format!("{cell}, TLS") } else { cell.to_string() },
        match (cell.way(), cell.data_threads) {
            ("copy", _) => format!("{} threads", cell.copy_threads),
            (_, 1) => cell.streams.to_string(),
            (_, threads) => format!("{} on {threads} threads", cell.streams),
        },
        cell.depth.to_string(),
        rate(summary.gbps),
        format!("{}-{}", rate(summary.gbps_min), rate(summary.gbps_max)),
        micros(summary.p50_us),
        micros(summary.p99_us),
        micros(summary.p999_us),
        format!("{:.2}", summary.cpu_s_per_gb),
        transfers,
        row.ceiling.as_ref().map_or_else(String::new, |held| {
            if held.name.ends_with("_us") {
                format!("{:.1} x {}", held.ratio, held.name)
            } else {
                format!("{:.2} of {}", held.ratio, held.name)
            }
        }),
    ]
}

/// The ceilings of all rows, a line each, with the lowest and the highest where rows differ.
pub(super) fn render_ceilings(rows: &[Row]) -> String {
    let mut spans: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
    for (name, &value) in rows.iter().flat_map(|row| &row.ceilings) {
        // How raw sockets did each way is in the JSON lines.
        if name.starts_with("raw_tcp_") && name != "raw_tcp_gbps" {
            continue;
        }
        let span = spans.entry(name).or_insert((value, value));
        *span = (span.0.min(value), span.1.max(value));
    }
    let width = spans.keys().map(|name| name.len()).max().unwrap_or(0);
    let head = if spans.is_empty() { "" } else { "\nceilings of the same rounds, medians\n" };
    spans.iter().fold(head.to_owned(), |mut text, (name, &(low, high))| {
        let show = if name.ends_with("_us") { micros } else { rate };
        let span = if low < high { format!("{}-{}", show(low), show(high)) } else { show(low) };
        let _ = writeln!(text, "  {name:<width$}  {span}");
        text
    })
}

fn rate(gbps: f64) -> String {
    if gbps < 0.1 { format!("{gbps:.4}") } else { format!("{gbps:.2}") }
}

fn micros(us: f64) -> String {
    if us < 100.0 { format!("{us:.1}") } else { format!("{us:.0}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::bench::cell::example;
    use crate::commands::bench::measure::{RoundRow, Summary};
    use crate::commands::bench::row::{Ceilings, Held};

    #[test]
    fn columns_line_up() {
        let summary = Summary {
            rounds: vec![RoundRow { gbps: 1.0 }],
            gbps: 1.0,
            gbps_min: 0.5,
            gbps_max: 12.25,
            p50_us: 3.25,
            p99_us: 99.96,
            p999_us: 123_456.0,
            max_us: 123_456.0,
            cpu_s_per_gb: 0.5,
            sends_per_mib: 0.0,
            receives_per_mib: 0.0,
            sleeps_per_mib: 0.0,
            transfers: 7,
            moved_by: String::new(),
            unstarted: 2,
            verified: true,
        };
        let held = Held { name: "raw_tcp_gbps".to_owned(), value: 2.0, ratio: 0.5 };
        let row = Row {
            peer: "kvferry",
            version: "0",
            cell: example(),
            summary,
            ceilings: Ceilings::new(),
            ceiling: Some(held),
        };
        let text = render(&[row.clone(), row]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[1], lines[2]);
        assert!(lines[1].contains("0.50-12.25") && lines[1].contains("123456") && lines[1].contains("2 never started"));
        assert!(lines[1].ends_with("0.50 of raw_tcp_gbps"), "{text}");
        let end_of = |line: &str, word: &str| line.find(word).map(|at| at + word.len());
        assert_eq!(end_of(lines[0], "min-max"), end_of(lines[1], "0.50-12.25"), "{text}");
    }
}
