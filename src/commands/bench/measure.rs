//! What a round measured, and what several rounds of a cell come to.
//!
//! ```text
//! latencies -> histogram --+
//! bytes, seconds ----------+--> Round --+--> Summary: median, min and max of the rounds' GB/s, percentiles of all latencies
//! CPU of both processes ---+            |
//! ```
//!
//! GB/s is all bytes over all time of a round (10^9 bytes), not the mean of transfers' rates. Latencies keep three
//! digits (a high dynamic range histogram) and are merged over the rounds.

use anyhow::{Context as _, Result};
use hdrhistogram::Histogram;
use kvferry_transport_tcp::TcpTransport;
use serde::{Deserialize, Serialize};

use super::driver::Driver;

/// Longest latency that can be told from longer ones: 10 minutes.
const LATENCY_NS_MAX: u64 = 600_000_000_000;

/// One round of one cell.
#[derive(Clone, Debug)]
pub(super) struct Round {
    pub(super) bytes: u64,
    pub(super) seconds: f64,
    pub(super) transfers: u64,
    /// Due in an open loop but never started, because all before them took too long. Their latency counts so far.
    pub(super) unstarted: u64,
    /// Nanoseconds.
    pub(super) latencies: Histogram<u64>,
    /// CPU time of both processes.
    pub(super) cpu_s: f64,
    /// Of both ends' transports and threads.
    pub(super) calls: Calls,
    /// What the transport chose: what moves bytes, and the congestion control; empty of a copy.
    pub(super) moved_by: String,
    /// Bytes compared with what they must be.
    pub(super) checked_bytes: u64,
}

impl Round {
    pub(super) fn gbps(&self) -> f64 {
        ratio(self.bytes as f64 / 1e9, self.seconds)
    }

    pub(super) fn p50_us(&self) -> f64 {
        self.latencies.value_at_percentile(50.0) as f64 / 1e3
    }
}

/// What an end did besides moving bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Calls {
    /// System calls that sent.
    sends: u64,
    /// System calls that received.
    receives: u64,
    /// Times the thread slept.
    sleeps: u64,
}

impl Calls {
    pub(super) fn of(driver: &Driver<TcpTransport>) -> Self {
        let counters = driver.transport.counters();
        Self { sends: counters.send_calls, receives: counters.receive_calls, sleeps: driver.sleeps }
    }

    pub(super) const fn since(self, earlier: Self) -> Self {
        Self {
            sends: self.sends.saturating_sub(earlier.sends),
            receives: self.receives.saturating_sub(earlier.receives),
            sleeps: self.sleeps.saturating_sub(earlier.sleeps),
        }
    }

    pub(super) const fn plus(self, other: Self) -> Self {
        Self {
            sends: self.sends.saturating_add(other.sends),
            receives: self.receives.saturating_add(other.receives),
            sleeps: self.sleeps.saturating_add(other.sleeps),
        }
    }
}

/// An empty histogram of latencies.
pub(super) fn histogram() -> Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).context("make a histogram")
}

/// A round's part of a result row.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct RoundRow {
    pub(crate) gbps: f64,
}

/// All rounds of a cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Summary {
    pub(crate) rounds: Vec<RoundRow>,
    /// Median of the rounds.
    pub(crate) gbps: f64,
    pub(crate) gbps_min: f64,
    pub(crate) gbps_max: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    pub(crate) max_us: f64,
    /// CPU seconds of both processes for each 10^9 bytes.
    pub(crate) cpu_s_per_gb: f64,
    /// System calls and sleeps of both ends for each MiB; 0 of a copy, which makes none.
    pub(crate) sends_per_mib: f64,
    pub(crate) receives_per_mib: f64,
    pub(crate) sleeps_per_mib: f64,
    pub(crate) transfers: u64,
    /// What the near end's transport chose.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) moved_by: String,
    #[serde(default)]
    pub(crate) unstarted: u64,
    /// Every byte that the last round wrote was compared with what it must be.
    pub(crate) verified: bool,
}

impl Summary {
    /// `None` without a round.
    pub(super) fn of(rounds: &[Round]) -> Option<Self> {
        let mut latencies = rounds.first()?.latencies.clone();
        for round in &rounds[1..] {
            // Equal bounds, so it cannot fail.
            latencies.add(&round.latencies).ok()?;
        }
        let rates: Vec<f64> = rounds.iter().map(Round::gbps).collect();
        let percentile = |percent| latencies.value_at_percentile(percent) as f64 / 1e3;
        let bytes = rounds.iter().map(|round| round.bytes).sum::<u64>() as f64;
        let calls = rounds.iter().fold(Calls::default(), |calls, round| calls.plus(round.calls));
        let per_mib = |count: u64| ratio(count as f64, bytes / f64::from(1 << 20));
        Some(Self {
            gbps: median(&rates),
            gbps_min: rates.iter().copied().fold(f64::INFINITY, f64::min),
            gbps_max: rates.iter().copied().fold(0.0, f64::max),
            rounds: rates.into_iter().map(|gbps| RoundRow { gbps }).collect(),
            p50_us: percentile(50.0),
            p99_us: percentile(99.0),
            p999_us: percentile(99.9),
            max_us: latencies.max() as f64 / 1e3,
            cpu_s_per_gb: ratio(rounds.iter().map(|round| round.cpu_s).sum(), bytes / 1e9),
            sends_per_mib: per_mib(calls.sends),
            receives_per_mib: per_mib(calls.receives),
            sleeps_per_mib: per_mib(calls.sleeps),
            transfers: rounds.iter().map(|round| round.transfers).sum(),
            moved_by: rounds.last().map(|round| round.moved_by.clone()).unwrap_or_default(),
            unstarted: rounds.iter().map(|round| round.unstarted).sum(),
            verified: rounds.iter().any(|round| round.checked_bytes > 0),
        })
    }
}

/// The middle value; the mean of the two middle ones of an even number; 0 of none.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match (sorted.len() % 2, sorted.get(middle)) {
        (_, None) => 0.0,
        (1, Some(&value)) => value,
        (_, Some(&value)) => f64::midpoint(sorted[middle - 1], value),
    }
}

/// 0 where there is nothing to divide by.
pub(super) fn ratio(above: f64, below: f64) -> f64 {
    if below > 0.0 { above / below } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(bytes: u64, latencies_us: std::ops::RangeInclusive<u64>) -> Round {
        let mut latencies = histogram().expect("a histogram");
        latencies_us.for_each(|micros| latencies.record(micros * 1000).expect("in range"));
        let transfers = latencies.len();
        let calls = Calls { sends: bytes >> 19, receives: bytes >> 18, sleeps: 0 };
        Round {
            bytes,
            seconds: 2.0,
            transfers,
            unstarted: 0,
            latencies,
            cpu_s: 1.5,
            calls,
            moved_by: String::new(),
            checked_bytes: 0,
        }
    }

    #[test]
    fn medians() {
        assert_eq!(median(&[]), 0.0);
        assert_eq!(median(&[3.0]), 3.0);
        assert_eq!(median(&[9.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[9.0, 1.0, 2.0, 4.0]), 3.0);
    }

    #[test]
    fn a_summary_is_of_all_rounds() {
        let last = Round { checked_bytes: 1, ..round(8_000_000_000, 501..=1000) };
        let rounds = [round(2_000_000_000, 1..=250), round(4_000_000_000, 251..=500), last];
        let summary = Summary::of(&rounds).expect("rounds");
        assert_eq!((summary.gbps, summary.gbps_min, summary.gbps_max), (2.0, 1.0, 4.0));
        // 1,000 latencies of 1 to 1,000 us.
        for (is, must) in [(summary.p50_us, 500.0), (summary.p99_us, 990.0), (summary.p999_us, 999.0)] {
            assert!((is / must - 1.0_f64).abs() < 0.002, "{is} for {must}");
        }
        assert_eq!(summary.transfers, 1000);
        assert!((summary.cpu_s_per_gb - 4.5 / 14.0).abs() < 1e-9);
        let per_mib = [summary.sends_per_mib, summary.receives_per_mib, summary.sleeps_per_mib];
        assert!(per_mib.iter().zip([2.0, 4.0, 0.0]).all(|(is, must)| (is - must).abs() < 1e-3), "{per_mib:?}");
        assert!(summary.verified);
        assert_eq!(Summary::of(&[]), None);
        assert!(!Summary::of(&rounds[..2]).expect("rounds").verified);
    }
}
