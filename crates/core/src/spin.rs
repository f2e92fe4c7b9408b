//! How long a thread with nothing to do spins before it sleeps.
//!
//! ```text
//! nothing to do -> may_spin? -- yes: look again at once -> work came: it paid / the time is over: it did not
//!                     \-- no: sleep
//! ```
//!
//! To wake a sleeping core takes tens of microseconds on a virtual machine, so work that comes soon is worth waiting
//! for. But where cores are short, a thread that spins takes the core from the very thread it waits for: each of its
//! spins is then in vain, and each delays the work by as much. So a spin must pay: ones in vain use up the score, and
//! without a score it sleeps at once and only tries a spin again now and then, ever more rarely.
//!
//! Pure: the caller reads the clock. Limit: the time given to [`Spin::new`]; 0 never spins.
//!
//! Why not by the length of the sleep ("it was short, a spin would have caught the work"): where two ends share a core,
//! the sleep is short because it gave the core away.

use std::time::Duration;

use crate::Time;

/// Spins in vain that a thread which had only good ones affords.
const SCORE_MAX: u32 = 8;
/// The score after a first spin that paid.
const SCORE_AFRESH: u32 = 2;
/// Sleeps between two tries without a score, at most.
const SLEEPS_MAX: u32 = 256;
/// Two looks at the clock this far apart: another thread had the core in between. A look takes about a microsecond.
const PREEMPTED_AFTER: Duration = Duration::from_micros(100);

/// Decides between spinning and sleeping, for one thread.
#[derive(Debug)]
pub struct Spin {
    max: Duration,
    /// Spins in vain it affords.
    score: u32,
    /// Without a score: sleeps until the next try, and how many it will be after that one if it is in vain.
    sleeps_left: u32,
    sleeps_next: u32,
    /// Since when it spins, and when it last looked.
    spinning: Option<(Time, Time)>,
}

impl Spin {
    /// Spins for at most `max` at a time.
    #[must_use]
    pub const fn new(max: Duration) -> Self {
        Self { max, score: SCORE_AFRESH, sleeps_left: 0, sleeps_next: 1, spinning: None }
    }

    /// There was something to do.
    pub fn worked(&mut self) {
        if self.spinning.take().is_some() {
            self.score = if self.score == 0 { SCORE_AFRESH } else { (self.score + 1).min(SCORE_MAX) };
            self.sleeps_next = 1;
        }
    }

    /// There is nothing to do. True: look again at once; false: sleep until there is.
    pub fn may_spin(&mut self, now: Time) -> bool {
        if self.max.is_zero() {
            return false;
        }
        let Some((since, looked)) = self.spinning else {
            if self.score == 0 && self.sleeps_left > 0 {
                self.sleeps_left -= 1;
                return false;
            }
            self.spinning = Some((now, now));
            return true;
        };
        let lost_its_core = looked.after(PREEMPTED_AFTER) < now;
        if !lost_its_core && now < since.after(self.max) {
            self.spinning = Some((since, now));
            return true;
        }
        self.spinning = None;
        self.score = if lost_its_core { 0 } else { self.score.saturating_sub(1) };
        if self.score == 0 {
            self.sleeps_left = self.sleeps_next;
            self.sleeps_next = (self.sleeps_next * 2).min(SLEEPS_MAX);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Duration = Duration::from_micros(64);

    fn us(us: u64) -> Time {
        Time::from_nanos(us * 1000)
    }

    /// Spins from `from` on, a look a microsecond: how long, when nothing comes.
    fn in_vain(spin: &mut Spin, from: u64) -> u64 {
        (from..).find(|&at| !spin.may_spin(us(at))).map_or(0, |at| at - from)
    }

    #[test]
    fn it_gives_up_after_the_most() {
        assert_eq!(in_vain(&mut Spin::new(MAX), 1000), 64);
    }

    #[test]
    fn zero_never_spins() {
        let mut spin = Spin::new(Duration::ZERO);
        assert!(!spin.may_spin(us(5)));
        spin.worked();
        assert!(!spin.may_spin(us(7)));
    }

    #[test]
    fn spins_in_vain_become_rare() {
        let mut spin = Spin::new(MAX);
        let spun = (0..10_000).filter(|round| in_vain(&mut spin, round * 1000) > 0).count();
        // Two to use up the score, then after 1, 2, 4 ... 256 sleeps, and every 256 from there on.
        assert_eq!(spun, 2 + 8 + (10_000 - 2 - 8 - 255) / 257);
    }

    #[test]
    fn a_try_that_pays_makes_it_spin_again() {
        let mut spin = Spin::new(MAX);
        let start = (0..).map(|round| round * 1000).filter(|&at| in_vain(&mut spin, at) == 0).nth(50).unwrap_or(0);
        let found = (start + 1000..).step_by(1000).find(|&at| spin.may_spin(us(at))).unwrap_or(0);
        spin.worked();
        assert_eq!(in_vain(&mut spin, found + 1000), 64);
        assert_eq!(in_vain(&mut spin, found + 2000), 64);
        assert_eq!(in_vain(&mut spin, found + 3000), 0, "the score is used up");
        assert_eq!(in_vain(&mut spin, found + 4000), 64, "the next try comes soon again");
    }

    #[test]
    fn work_at_once_is_no_spin_that_paid() {
        let mut spin = Spin::new(MAX);
        for at in 0..2 {
            in_vain(&mut spin, at * 1000);
        }
        spin.worked();
        assert!(!spin.may_spin(us(5000)));
    }

    #[test]
    fn a_thread_that_spun_well_affords_some_in_vain() {
        let mut spin = Spin::new(MAX);
        for at in 0..100 {
            assert!(spin.may_spin(us(at)));
            spin.worked();
        }
        let spun = (1..100).take_while(|round| in_vain(&mut spin, round * 1000) > 0).count();
        assert_eq!(spun, 8);
    }

    #[test]
    fn a_thread_that_lost_its_core_sleeps() {
        let mut spin = Spin::new(MAX);
        for at in 0..100 {
            assert!(spin.may_spin(us(at)));
            spin.worked();
        }
        assert!(spin.may_spin(us(1000)));
        assert!(!spin.may_spin(us(1101)), "101 us between two looks");
        assert!(!spin.may_spin(us(2000)), "the score is gone");
        assert!(spin.may_spin(us(3000)), "the next try");
    }
}
