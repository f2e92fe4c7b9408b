//! What the machine and the path could do, measured in each round beside the cells.
//!
//! ```text
//! round -> memcpy of each cell's blocks, raw sockets each way, iperf3, ping-pongs -> values by name for each cell
//!       -> the one that a cell is held against, the round's ratio to it
//! ```
//!
//! The first round tries every way to use raw sockets, later rounds the best [`BEST_KEPT`] of them: which way is best
//! does not change within a run, how fast it is does. Failure: a ceiling that cannot be measured ends the run, but for
//! iperf3, which may be missing.

pub(super) mod echo;
pub(super) mod iperf;
mod memcpy;
pub(super) mod raw;

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use anyhow::{Context as _, Result};

use self::echo::RoundTrip;
use self::raw::RawWay;
use super::arena::Arena;
use super::cell::{Cell, Direction, Via};
use super::control::Line;
use super::measure::{Round, median, ratio};
use super::progress::Progress;
use super::row::{Ceilings, Held};

const MEMCPY_TIME: Duration = Duration::from_millis(80);
const PING_PONG_TIME: Duration = Duration::from_millis(100);
const RAW_MILLIS: u64 = 120;
/// Ways to use raw sockets that are measured again in later rounds.
const BEST_KEPT: usize = 4;
/// A smaller transfer is a matter of wake-ups, not of bytes: it is held against a ping-pong.
const LATENCY_BYTES_MAX: u64 = 64 << 10;

/// A block's shape and threads, of which copies depend.
type CopyShape = (u32, u32, u64);

/// Measures ceilings, round by round.
#[derive(Default)]
pub(super) struct Prober {
    best: HashMap<Direction, Vec<RawWay>>,
}

/// The ceilings of one round.
#[derive(Default)]
pub(super) struct RoundCeilings {
    memcpy: HashMap<CopyShape, f64>,
    tcp: HashMap<Direction, Ceilings>,
    ping_pong: HashMap<u32, Ceilings>,
    futex: Ceilings,
}

impl Prober {
    /// One round of everything that some cell is held against or shows.
    pub(super) fn probe(
        &mut self,
        cells: &[Cell],
        mut line: Option<&mut Line>,
        arena: &mut Arena,
        progress: &Progress,
    ) -> Result<RoundCeilings> {
        let mut found = RoundCeilings::default();
        for cell in cells {
            for threads in [1, 2] {
                let shape = (cell.block_bytes, cell.layers, threads);
                if let Entry::Vacant(room) = found.memcpy.entry(shape) {
                    progress.doing(format!("ceiling: memcpy of {}", cell.block_bytes));
                    let rate = memcpy::measure(cell, arena, threads, MEMCPY_TIME).context("copy blocks")?;
                    room.insert(rate);
                }
            }
            if let Entry::Vacant(room) = found.ping_pong.entry(cell.spin_us) {
                progress.doing("ceiling: ping-pong".to_owned());
                room.insert(ping_pongs(cell.spin_us, line.as_deref_mut())?);
            }
            if let (Via::Tcp, false, Some(line)) =
                (cell.transport, found.tcp.contains_key(&cell.direction), line.as_deref_mut())
            {
                let ceilings = self.sockets(cell, line, arena, progress).context("measure raw sockets")?;
                found.tcp.insert(cell.direction, ceilings);
            }
        }
        named(&mut found.futex, "futex_round_trip", echo::futex(PING_PONG_TIME)?);
        Ok(found)
    }

    fn sockets(&mut self, cell: &Cell, line: &mut Line, arena: &mut Arena, progress: &Progress) -> Result<Ceilings> {
        let direction = cell.direction;
        let ways = match self.best.get(&direction) {
            Some(best) => best.clone(),
            None => RawWay::all(direction, RAW_MILLIS, cell.region_bytes),
        };
        let mut rates = Vec::new();
        for way in ways {
            progress.doing(format!("ceiling: {}", way.name()));
            rates.push((raw::measure(&way, line, arena)?, way));
        }
        rates.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        let mut ceilings: Ceilings = rates.iter().map(|(rate, way)| (way.name(), *rate)).collect();
        if let Some((best, _)) = rates.first() {
            ceilings.insert("raw_tcp_gbps".to_owned(), *best);
        }
        rates.truncate(BEST_KEPT);
        self.best.entry(direction).or_insert_with(|| rates.into_iter().map(|(_, way)| way).collect());
        progress.doing("ceiling: iperf3".to_owned());
        if let Some(rate) = iperf::measure(direction, line)? {
            ceilings.insert("iperf3_gbps".to_owned(), rate);
        }
        Ok(ceilings)
    }
}

fn ping_pongs(spin_us: u32, line: Option<&mut Line>) -> Result<Ceilings> {
    let spin = Duration::from_micros(spin_us.into());
    let mut ceilings = Ceilings::new();
    named(&mut ceilings, "uds_ping_pong", echo::unix(spin, PING_PONG_TIME).context("ping-pong over a Unix socket")?);
    if let Some(line) = line {
        named(&mut ceilings, "tcp_ping_pong", echo::tcp(line, spin, PING_PONG_TIME).context("ping-pong over TCP")?);
    }
    Ok(ceilings)
}

fn named(ceilings: &mut Ceilings, name: &str, round_trip: RoundTrip) {
    ceilings.insert(format!("{name}_p50_us"), round_trip.p50_us);
    ceilings.insert(format!("{name}_p99_us"), round_trip.p99_us);
}

impl RoundCeilings {
    /// Those that have to do with this cell.
    pub(super) fn of(&self, cell: &Cell) -> Ceilings {
        let mut ceilings = self.futex.clone();
        for (threads, name) in [(1, "memcpy_blocks_gbps"), (2, "memcpy_blocks_2_cores_gbps")] {
            let rate = self.memcpy.get(&(cell.block_bytes, cell.layers, threads));
            ceilings.extend(rate.map(|&rate| (name.to_owned(), rate)));
        }
        ceilings.extend(self.ping_pong.get(&cell.spin_us).cloned().unwrap_or_default());
        if cell.transport == Via::Tcp {
            ceilings.extend(self.tcp.get(&cell.direction).cloned().unwrap_or_default());
        }
        ceilings
    }
}

/// Median of each ceiling over the rounds, and the one that the cell is held against.
pub(super) fn hold(cell: &Cell, rounds: &[Round], ceilings: &[RoundCeilings]) -> (Ceilings, Option<Held>) {
    let by_round: Vec<Ceilings> = ceilings.iter().map(|round| round.of(cell)).collect();
    let mut values: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (name, &value) in by_round.iter().flatten() {
        values.entry(name).or_default().push(value);
    }
    let medians: Ceilings = values.iter().map(|(name, values)| ((*name).to_owned(), median(values))).collect();
    let best = candidates(cell)
        .iter()
        .filter_map(|&name| Some((name, *medians.get(name)?)))
        .max_by(|(_, a), (_, b)| a.total_cmp(b));
    let held = best.map(|(name, value)| {
        let of_round = |(round, ceilings): (&Round, &Ceilings)| {
            let ours = if name.ends_with("_us") { round.p50_us() } else { round.gbps() };
            Some(ratio(ours, *ceilings.get(name)?))
        };
        let ratios: Vec<f64> = rounds.iter().zip(&by_round).filter_map(of_round).collect();
        Held { name: name.to_owned(), value, ratio: median(&ratios) }
    });
    (medians, held)
}

/// The names of ceilings that bound this cell; the highest counts.
fn candidates(cell: &Cell) -> &'static [&'static str] {
    match cell.transport {
        Via::Copy if cell.copy_threads > 1 => &["memcpy_blocks_2_cores_gbps"],
        Via::Copy => &["memcpy_blocks_gbps"],
        Via::Tcp if cell.transfer_bytes() <= LATENCY_BYTES_MAX => &["tcp_ping_pong_p50_us"],
        Via::Tcp => &["raw_tcp_gbps", "iperf3_gbps"],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::bench::cell::example;
    use crate::commands::bench::measure::{Calls, histogram};

    fn round(gbps: f64, p50_us: u64) -> Round {
        let mut latencies = histogram().expect("a histogram");
        latencies.record(p50_us * 1000).expect("in range");
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small and positive")]
        let bytes = (gbps * 1e9) as u64;
        Round {
            bytes,
            seconds: 1.0,
            transfers: 1,
            unstarted: 0,
            latencies,
            cpu_s: 0.0,
            calls: Calls::default(),
            moved_by: String::new(),
            checked_bytes: 1,
        }
    }

    fn ceilings(raw: f64, iperf3: f64, ping_us: f64) -> RoundCeilings {
        let tcp = [("raw_tcp_gbps".to_owned(), raw), ("iperf3_gbps".to_owned(), iperf3)].into();
        RoundCeilings {
            memcpy: [((4096, 1, 1), 8.0), ((4096, 1, 2), 16.0), ((64, 1, 1), 0.5)].into(),
            tcp: [(Direction::Read, tcp)].into(),
            ping_pong: [(0, [("tcp_ping_pong_p50_us".to_owned(), ping_us)].into())].into(),
            futex: Ceilings::new(),
        }
    }

    #[test]
    fn ratios_are_within_a_round() {
        let cell = Cell { blocks: 1000, ..example() };
        // A machine that was twice as slow in the second round, for both.
        let rounds = [round(4.0, 1), round(2.0, 1), round(3.8, 1)];
        let found = [ceilings(5.0, 2.0, 1.0), ceilings(2.5, 1.0, 1.0), ceilings(4.0, 2.0, 1.0)];
        let (medians, held) = hold(&cell, &rounds, &found);
        let held = held.expect("a ceiling");
        assert_eq!((held.name.as_str(), held.value), ("raw_tcp_gbps", 4.0));
        assert!((held.ratio - 0.8).abs() < 1e-9, "{held:?}");
        assert_eq!((medians["memcpy_blocks_gbps"], medians["memcpy_blocks_2_cores_gbps"]), (8.0, 16.0));
    }

    #[test]
    fn the_highest_ceiling_counts() {
        let cell = Cell { blocks: 1000, ..example() };
        let (_, held) = hold(&cell, &[round(1.0, 1)], &[ceilings(1.0, 2.0, 1.0)]);
        assert_eq!(held.map(|held| (held.name, held.ratio)), Some(("iperf3_gbps".to_owned(), 0.5)));
    }

    #[test]
    fn small_transfers_are_held_against_a_ping_pong() {
        let cell = Cell { blocks: 1, ..example() };
        let (_, held) = hold(&cell, &[round(1.0, 30)], &[ceilings(1.0, 2.0, 10.0)]);
        let held = held.expect("a ceiling");
        assert_eq!(held.name, "tcp_ping_pong_p50_us");
        assert!((held.ratio - 3.0).abs() < 0.01, "{held:?}");
    }

    #[test]
    fn without_ceilings_nothing_is_held() {
        assert_eq!(hold(&example(), &[round(1.0, 1)], &[]), (Ceilings::new(), None));
    }
}
