//! The suite's clock.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use kvferry_core::Time;

/// Real time, which a property may push forward so that a deadline passes without waiting for it. Clones share it.
#[derive(Clone, Debug)]
pub struct Clock {
    start: Instant,
    skipped: Rc<Cell<Duration>>,
}

impl Clock {
    /// A clock that starts at one second, so that there are times before it.
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), skipped: Rc::new(Cell::new(Duration::from_secs(1))) }
    }

    /// The time to give to a transport.
    #[must_use]
    pub fn now(&self) -> Time {
        Time::from_start(self.start.elapsed() + self.skipped.get())
    }

    pub(super) fn advance(&self, by: Duration) {
        self.skipped.set(self.skipped.get() + by);
    }
}
