//! How long a caller looks again before it sleeps: as long as it has paid off lately, and not at all where cores are short.
//!
//! ```text
//! nothing there -> go_on(now)? look again : sleep ... something there -> found(now)
//! ```
//!
//! What counts is how soon something came after the wait began. If it came while spinning, that was worth it. If it
//! came soon after falling asleep, spinning would have been. Everything else takes credit away, and without credit
//! nobody spins: an idle side costs nothing. A spin whose clock jumps shared its core with somebody who needed it; it
//! ends at once and all credit is lost.

use std::time::{Duration, Instant};

/// What one success is worth, and how much can be saved up: after four failures in a row nobody spins.
const EARNED: u32 = 2;
const CREDIT_MAX: u32 = 8;
/// Waking up takes some tens of microseconds on a virtual machine: what came within this many times the longest spin
/// could have been caught.
const SOON: u32 = 3;
/// Between two looks of a spin. A look takes about a microsecond; being scheduled away takes more than this.
const JUMP_MAX: Duration = Duration::from_micros(30);

/// The waiting of one client's callers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spin {
    max: Duration,
    credit: u32,
    /// Since when nothing has come.
    idle_since: Option<Instant>,
    /// The last look of a spin that goes on.
    looked: Option<Instant>,
}

impl Spin {
    /// Spins for at most `max`; never, when it is zero.
    pub(crate) const fn new(max: Duration) -> Self {
        // Begins with the benefit of the doubt.
        Self { max, credit: EARNED, idle_since: None, looked: None }
    }

    /// Nothing is there: whether to look again at once.
    pub(crate) fn go_on(&mut self, now: Instant) -> bool {
        let since = *self.idle_since.get_or_insert(now);
        if self.credit == 0 || self.max.is_zero() {
            return false;
        }
        if self.looked.is_some_and(|looked| now.duration_since(looked) > JUMP_MAX) {
            self.credit = 0;
            self.looked = None;
            return false;
        }
        if now.duration_since(since) >= self.max {
            // It spun in vain, unless it sleeps already.
            if self.looked.take().is_some() {
                self.credit = self.credit.saturating_sub(EARNED);
            }
            return false;
        }
        self.looked = Some(now);
        true
    }

    /// Something is there.
    pub(crate) fn found(&mut self, now: Instant) {
        let spinning = self.looked.take().is_some();
        let Some(since) = self.idle_since.take() else { return };
        let waited = now.duration_since(since);
        if spinning {
            self.credit = (self.credit + EARNED).min(CREDIT_MAX);
        } else if waited <= self.max * SOON {
            self.credit = (self.credit + 1).min(CREDIT_MAX);
        } else {
            self.credit /= 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Duration = Duration::from_micros(50);
    const LOOK: Duration = Duration::from_micros(1);

    /// Waits until something comes after `gap`; says how long it spun.
    fn wait(spin: &mut Spin, now: &mut Instant, gap: Duration) -> Duration {
        let since = *now;
        let mut spun = Duration::ZERO;
        while *now - since < gap && spin.go_on(*now) {
            *now += LOOK;
            spun = *now - since;
        }
        *now = (*now).max(since + gap);
        spin.found(*now);
        spun
    }

    #[test]
    fn spins_while_it_pays_and_stops_when_it_does_not() {
        let (mut spin, mut now) = (Spin::new(MAX), Instant::now());
        let short = Duration::from_micros(10);
        for _ in 0..20 {
            assert_eq!(wait(&mut spin, &mut now, short), short);
        }
        let spun: Duration = (0..100).map(|_| wait(&mut spin, &mut now, Duration::from_millis(5))).sum();
        assert!(spun <= MAX * CREDIT_MAX, "{spun:?} in vain");
        assert_eq!(wait(&mut spin, &mut now, Duration::from_millis(5)), Duration::ZERO);
        // Work that comes often again is noticed without a spin.
        for _ in 0..4 {
            wait(&mut spin, &mut now, short);
        }
        assert_eq!(wait(&mut spin, &mut now, short), short);
    }

    #[test]
    fn a_core_that_others_need_is_given_back() {
        let (mut spin, mut now) = (Spin::new(MAX), Instant::now());
        for _ in 0..10 {
            wait(&mut spin, &mut now, LOOK * 5);
        }
        assert!(spin.go_on(now));
        now += JUMP_MAX + LOOK;
        assert!(!spin.go_on(now), "somebody else ran meanwhile");
        assert!(!spin.go_on(now + LOOK));
    }

    #[test]
    fn zero_never_spins() {
        let mut spin = Spin::new(Duration::ZERO);
        let now = Instant::now();
        for _ in 0..10 {
            assert!(!spin.go_on(now));
            spin.found(now);
        }
    }
}
