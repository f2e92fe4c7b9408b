//! How fast an endpoint may send: a piece at a time, each as late as the one before it was large.

use std::time::Duration;

use kvferry_core::Time;

/// Meters the pieces of one endpoint, all streams together.
#[derive(Debug)]
pub(crate) struct Pace {
    bytes_per_second: Option<u64>,
    /// When the next piece may begin.
    next: Time,
    /// A piece had to wait in this turn.
    pub(crate) is_waiting: bool,
}

impl Pace {
    /// At most this many bytes a second; `None`: as fast as the wire takes them.
    pub(crate) fn new(bytes_per_second: Option<u64>) -> Self {
        Self { bytes_per_second, next: Time::default(), is_waiting: false }
    }

    /// Whether a piece may begin now.
    pub(crate) fn admits(&mut self, now: Time) -> bool {
        let admitted = now >= self.next;
        self.is_waiting |= !admitted;
        admitted
    }

    /// A piece of this many bytes begins.
    pub(crate) fn spend(&mut self, now: Time, bytes: u32) {
        if let Some(rate) = self.bytes_per_second {
            let nanos = u64::from(bytes).saturating_mul(1_000_000_000) / rate.max(1);
            self.next = self.next.max(now).after(Duration::from_nanos(nanos));
        }
    }

    /// When a waiting piece may begin; never if none waits.
    pub(crate) const fn wakes_at(&self) -> Time {
        if self.is_waiting { self.next } else { Time::NEVER }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Time {
        Time::from_start(Duration::from_millis(ms))
    }

    #[test]
    fn a_piece_waits_for_the_bytes_before_it() {
        let mut pace = Pace::new(Some(1000));
        assert!(pace.admits(at(5)));
        pace.spend(at(5), 100);
        assert_eq!(pace.wakes_at(), Time::NEVER, "nobody waits yet");
        assert!(!pace.admits(at(104)) && pace.wakes_at() == at(105));
        assert!(pace.admits(at(105)));
    }

    #[test]
    fn an_unmetered_one_never_waits() {
        let mut pace = Pace::new(None);
        pace.spend(at(0), u32::MAX);
        assert!(pace.admits(at(0)) && pace.wakes_at() == Time::NEVER);
    }
}
