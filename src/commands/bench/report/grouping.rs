//! Which rows stand in which chart, what each bar is called, and which ceiling stands beside it.
//!
//! A chart holds one setting, transport and direction; in it, a shape (blocks and sizes) holds a bar for each peer and
//! way. Rows that agree in all of that (rounds of another program, runs of ours) become one bar: the median, from the
//! lowest to the highest. A bar is named by its peer and by what differs between that peer's rows in the chart.

use std::collections::{BTreeMap, BTreeSet};

use super::reading::{Shown, ShownCell};
use crate::commands::bench::measure::median;

/// A smaller transfer is shown by its latency.
const LATENCY_BYTES_MAX: u64 = 64 << 10;
/// What may bound bytes over a network, and copies on one core.
const TCP_CEILINGS: [&str; 3] = ["raw_tcp_gbps", "raw_sockets_gbps", "iperf3_gbps"];
const COPY_CEILINGS: [&str; 2] = ["memcpy_blocks_gbps", "memcpy_1_core_gbps"];
const LATENCY_CEILINGS: [&str; 1] = ["tcp_ping_pong_p50_us"];

/// What one chart shows.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Chart {
    pub(super) title: String,
    pub(super) shapes: Vec<Shape>,
}

/// Bars that move the same.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Shape {
    pub(super) name: String,
    /// Whether it is small, so that latency is what counts.
    pub(super) is_small: bool,
    /// Its name without the unit, and its value.
    pub(super) ceiling: Option<(String, f64)>,
    pub(super) bars: Vec<Bar>,
    pub(super) ceilings: BTreeMap<String, f64>,
}

/// One peer's figures; medians where there were several rows.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Bar {
    pub(super) name: String,
    pub(super) is_ours: bool,
    pub(super) gbps: f64,
    pub(super) gbps_min: f64,
    pub(super) gbps_max: f64,
    pub(super) p50_us: Option<f64>,
    pub(super) p99_us: Option<f64>,
    pub(super) p999_us: Option<f64>,
    pub(super) cpu_s_per_gb: Option<f64>,
    pub(super) transfers: Option<u64>,
    pub(super) verified: Option<bool>,
}

type ChartKey = (String, String, String);

/// All charts, in the order in which the files name them.
pub(super) fn charts(rows: Vec<Shown>) -> Vec<Chart> {
    let key = |row: &Shown| (row.setting.clone(), row.cell.transport.clone(), row.cell.direction.clone());
    grouped(rows, key).into_iter().map(|(key, rows)| chart(&key, rows)).collect()
}

fn chart((setting, transport, direction): &ChartKey, rows: Vec<Shown>) -> Chart {
    let way = if transport == "copy" { "copy on one node".to_owned() } else { format!("{transport} {direction}") };
    let title = if setting.is_empty() { way } else { format!("{way}, {setting}") };
    let varying = varying(&rows);
    let mut shapes: Vec<((u64, u64, String), Shape)> = grouped(rows, |row| row.cell.shape())
        .into_iter()
        .map(|(name, rows)| {
            let order = rows.first().map_or((0, 0), |row| (row.cell.block_bytes, row.cell.blocks));
            ((order.0, order.1, name.clone()), shape(name, rows, &varying))
        })
        .collect();
    shapes.sort_by(|(a, _), (b, _)| a.cmp(b));
    Chart { title, shapes: shapes.into_iter().map(|(_, shape)| shape).collect() }
}

fn shape(name: String, rows: Vec<Shown>, varying: &Varying) -> Shape {
    let is_small = rows.iter().all(|row| row.cell.transfer_bytes() <= LATENCY_BYTES_MAX);
    let is_copy = rows.iter().any(|row| row.cell.transport == "copy");
    let candidates: &[&str] = match (is_copy, is_small) {
        (true, _) => &COPY_CEILINGS,
        (false, true) => &LATENCY_CEILINGS,
        (false, false) => &TCP_CEILINGS,
    };
    let mut values: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for (name, &value) in rows.iter().flat_map(|row| &row.ceilings) {
        values.entry(name.clone()).or_default().push(value);
    }
    let ceilings: BTreeMap<String, f64> = values.iter().map(|(name, values)| (name.clone(), median(values))).collect();
    let ceiling = candidates
        .iter()
        .filter_map(|&name| Some((name, *ceilings.get(name)?)))
        .max_by(|(_, a), (_, b)| a.total_cmp(b))
        .map(|(name, value)| (readable(name), value));
    let mut bars: Vec<Bar> =
        grouped(rows, |row| varying.name(row)).into_iter().map(|(name, rows)| bar(name, &rows)).collect();
    // Ours first, then as the files have them.
    bars.sort_by_key(|bar| !bar.is_ours);
    Shape { name, is_small: is_small && !is_copy, ceiling, bars, ceilings }
}

fn bar(name: String, rows: &[Shown]) -> Bar {
    let of = |figure: fn(&Shown) -> Option<f64>| -> Option<f64> {
        let values: Vec<f64> = rows.iter().filter_map(figure).collect();
        (!values.is_empty()).then(|| median(&values))
    };
    let rates: Vec<f64> = rows.iter().map(|row| row.gbps).collect();
    let lows = rows.iter().map(|row| row.gbps_min.unwrap_or(row.gbps));
    let highs = rows.iter().map(|row| row.gbps_max.unwrap_or(row.gbps));
    let verdicts: Vec<bool> = rows.iter().filter_map(|row| row.verified).collect();
    Bar {
        name,
        is_ours: rows.iter().all(|row| row.peer.to_lowercase().starts_with("kvferry")),
        gbps: median(&rates),
        gbps_min: lows.fold(f64::INFINITY, f64::min),
        gbps_max: highs.fold(0.0, f64::max),
        p50_us: of(|row| row.p50_us),
        p99_us: of(|row| row.p99_us),
        p999_us: of(|row| row.p999_us),
        cpu_s_per_gb: of(|row| row.cpu_s_per_gb),
        transfers: rows.iter().filter_map(|row| row.transfers).reduce(u64::saturating_add),
        verified: (!verdicts.is_empty()).then(|| verdicts.iter().all(|&good| good)),
    }
}

/// For each peer of a chart: the parameters in which its rows differ.
struct Varying(BTreeMap<String, BTreeSet<&'static str>>);

fn varying(rows: &[Shown]) -> Varying {
    let mut seen: BTreeMap<(String, &'static str), BTreeSet<String>> = BTreeMap::new();
    for row in rows {
        for (parameter, value) in parameters(&row.cell) {
            seen.entry((row.peer.clone(), parameter)).or_default().insert(value);
        }
    }
    let mut varying: BTreeMap<String, BTreeSet<&'static str>> = BTreeMap::new();
    for ((peer, parameter), values) in seen {
        if values.len() > 1 {
            varying.entry(peer).or_default().insert(parameter);
        }
    }
    Varying(varying)
}

impl Varying {
    fn name(&self, row: &Shown) -> String {
        let Some(varying) = self.0.get(&row.peer) else { return row.peer.clone() };
        let told = parameters(&row.cell)
            .into_iter()
            .filter(|(parameter, value)| varying.contains(parameter) && !value.is_empty());
        told.fold(row.peer.clone(), |name, (_, value)| format!("{name}, {value}"))
    }
}

fn parameters(cell: &ShownCell) -> [(&'static str, String); 9] {
    let told = |value: Option<u64>, unit: &str| value.map_or_else(String::new, |value| format!("{value} {unit}"));
    [
        ("streams", told(cell.streams, "streams")),
        ("copy threads", told(cell.copy_threads, "threads")),
        ("data threads", told(cell.data_threads, "data threads")),
        ("depth", cell.depth.map_or_else(String::new, |depth| format!("depth {depth}"))),
        ("verify", cell.verify.as_ref().map_or_else(String::new, |verify| format!("verify {verify}"))),
        ("spin", told(cell.spin_us, "us spin")),
        ("rate", cell.rate.map_or_else(|| "closed loop".to_owned(), |rate| format!("{rate}/s"))),
        ("io", cell.io.clone().unwrap_or_default()),
        ("tls", if cell.tls { "TLS".to_owned() } else { String::new() }),
    ]
}

/// `raw_tcp_gbps` -> `raw tcp`.
fn readable(ceiling: &str) -> String {
    ceiling.trim_end_matches("_gbps").trim_end_matches("_us").replace('_', " ")
}

/// Keeps the order in which keys are first seen.
fn grouped<K: PartialEq>(rows: Vec<Shown>, key: impl Fn(&Shown) -> K) -> Vec<(K, Vec<Shown>)> {
    let mut groups: Vec<(K, Vec<Shown>)> = Vec::new();
    for row in rows {
        let key = key(&row);
        match groups.iter_mut().find(|(known, _)| *known == key) {
            Some((_, rows)) => rows.push(row),
            None => groups.push((key, vec![row])),
        }
    }
    groups
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::commands::bench::report::reading;

    pub(in crate::commands::bench::report) fn row(peer: &str, blocks: u32, more: &str, gbps: f64, raw: f64) -> Shown {
        let line = format!(
            "{{\"peer\":\"{peer}\",\"gbps\":{gbps},\"p50_us\":10,\"cell\":{{\"transport\":\"tcp\",\"direction\":\"read\",\
             \"block_bytes\":65536,\"blocks\":{blocks}{more}}},\"ceilings\":{{\"raw_tcp_gbps\":{raw},\"iperf3_gbps\":2,\
             \"tcp_ping_pong_p50_us\":5,\"memcpy_blocks_gbps\":9}}}}"
        );
        reading::rows(&line).expect("a row").remove(0)
    }

    #[test]
    fn rounds_of_one_peer_become_a_bar() {
        let charts = charts(vec![
            row("nixl", 64, "", 1.0, 4.0),
            row("kvferry", 64, "", 3.0, 4.0),
            row("nixl", 64, "", 3.0, 5.0),
            row("nixl", 64, "", 2.0, 6.0),
        ]);
        assert_eq!((charts.len(), charts[0].shapes.len()), (1, 1));
        let shape = &charts[0].shapes[0];
        assert_eq!(shape.ceiling, Some(("raw tcp".to_owned(), 4.5)));
        let names: Vec<_> = shape.bars.iter().map(|bar| bar.name.as_str()).collect();
        assert_eq!(names, ["kvferry", "nixl"]);
        assert_eq!((shape.bars[1].gbps, shape.bars[1].gbps_min, shape.bars[1].gbps_max), (2.0, 1.0, 3.0));
    }

    #[test]
    fn bars_are_named_by_what_differs() {
        let charts = charts(vec![
            row("kvferry", 64, ",\"streams\":1,\"depth\":1", 1.0, 4.0),
            row("kvferry", 64, ",\"streams\":4,\"depth\":1", 3.0, 4.0),
            row("nixl", 64, ",\"streams\":1", 3.0, 4.0),
        ]);
        let names: Vec<_> = charts[0].shapes[0].bars.iter().map(|bar| bar.name.as_str()).collect();
        assert_eq!(names, ["kvferry, 1 streams", "kvferry, 4 streams", "nixl"]);
    }

    #[test]
    fn small_transfers_are_held_against_a_ping_pong() {
        let charts = charts(vec![row("kvferry", 64, "", 1.0, 4.0), row("kvferry", 1, "", 1.0, 4.0)]);
        let shapes = &charts[0].shapes;
        assert_eq!((shapes[0].name.as_str(), shapes[0].is_small), ("1 x 64K", true), "smallest first");
        assert_eq!(shapes[0].ceiling, Some(("tcp ping pong p50".to_owned(), 5.0)));
        assert_eq!(shapes[1].ceiling, Some(("raw tcp".to_owned(), 4.0)));
    }
}
