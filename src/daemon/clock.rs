//! The daemon's one clock.

use std::time::Instant;

use kvferry_core::Time;

/// Counts from the daemon's start; the rooms below get [`Time`] as an argument.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { start: Instant::now() }
    }

    pub(crate) fn now(self) -> Time {
        Time::from_start(self.start.elapsed())
    }

    /// The instant that timers of the runtime understand.
    pub(crate) fn instant(self, time: Time) -> tokio::time::Instant {
        let elapsed = time.until(Time::from_nanos(0));
        // A deadline that never comes is a day away: the timer is set anew long before.
        let day = std::time::Duration::from_secs(86_400);
        (self.start + elapsed.min(self.start.elapsed() + day)).into()
    }
}
