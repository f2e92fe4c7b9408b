//! When transfers start.
//!
//! ```text
//! closed loop: the next starts when one has ended        latency: from its start
//! open loop:   transfer k starts at k / rate, come what may   latency: from k / rate, also when it could not start then
//! ```
//!
//! The open loop is what users do: they do not wait for each other. A stall of one second delays every transfer that
//! was due in it, and all these delays are counted; a closed loop would count one (coordinated omission).
//!
//! Pure: time is an argument, in nanoseconds from the start of the round.

/// The schedule of one round.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Nanoseconds from one intended start to the next; `None` in a closed loop.
    interval_ns: Option<f64>,
    duration_ns: u64,
    started: u64,
}

impl Pace {
    /// A round of this length; with a rate, in transfers a second, the loop is open.
    pub(super) fn new(rate: Option<f64>, duration_ns: u64) -> Self {
        Self { interval_ns: rate.map(|rate| 1e9 / rate), duration_ns, started: 0 }
    }

    /// The next transfer's intended start, if it is due; the caller starts it then. Every round has at least one.
    pub(super) fn due(&mut self, now_ns: u64) -> Option<u64> {
        let intended = self.next_start(now_ns)?;
        if intended > now_ns {
            return None;
        }
        self.started += 1;
        Some(intended)
    }

    /// When the next transfer is due, unless the round has started all of its transfers.
    pub(super) fn next_start(&self, now_ns: u64) -> Option<u64> {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a round is far shorter than 2^53 nanoseconds, 104 days"
        )]
        let intended = self.interval_ns.map_or(now_ns, |interval| (interval * self.started as f64) as u64);
        (intended < self.duration_ns || self.started == 0).then_some(intended)
    }

    /// The intended starts of transfers that were due by now and could not start.
    pub(super) fn overdue(mut self, now_ns: u64) -> impl Iterator<Item = u64> {
        let is_open = self.interval_ns.is_some();
        std::iter::from_fn(move || self.due(now_ns).filter(|_| is_open))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_loop_starts_at_once_until_the_time_is_up() {
        let mut pace = Pace::new(None, 1000);
        assert_eq!(pace.due(0), Some(0));
        assert_eq!(pace.due(999), Some(999));
        assert_eq!(pace.due(1000), None);
        assert_eq!(pace.next_start(1000), None);
        assert_eq!(pace.overdue(500).count(), 0);
    }

    #[test]
    fn a_round_has_one_transfer_at_least() {
        assert_eq!(Pace::new(None, 0).due(7), Some(7));
        let mut slow = Pace::new(Some(0.001), 1000);
        assert_eq!((slow.due(5), slow.due(900)), (Some(0), None));
    }

    #[test]
    fn an_open_loop_keeps_its_rate_whatever_happens() {
        // 1,000,000 a second: one each 1,000 ns.
        let mut pace = Pace::new(Some(1e6), 10_000);
        assert_eq!(pace.due(0), Some(0));
        assert_eq!(pace.due(500), None);
        assert_eq!(pace.next_start(500), Some(1000));
        // A stall until 4,500: the ones due meanwhile are counted from when they were due.
        let late: Vec<_> = std::iter::from_fn(|| pace.due(4500)).collect();
        assert_eq!(late, [1000, 2000, 3000, 4000]);
        assert_eq!(pace.overdue(7100).collect::<Vec<_>>(), [5000, 6000, 7000]);
        let rest: Vec<_> = std::iter::from_fn(|| pace.due(1_000_000)).collect();
        assert_eq!(rest, [5000, 6000, 7000, 8000, 9000]);
    }
}
