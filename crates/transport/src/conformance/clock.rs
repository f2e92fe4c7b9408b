//! The suite's clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kvferry_core::Time;

/// Real time, which a property may push forward so that a deadline passes without waiting for it. Clones share it, on
/// any thread.
#[derive(Clone, Debug)]
pub struct Clock {
    start: Instant,
    skipped_ns: Arc<AtomicU64>,
}

impl Clock {
    /// A clock that starts at one second, so that there are times before it.
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), skipped_ns: Arc::new(AtomicU64::new(1_000_000_000)) }
    }

    /// The time to give to a transport.
    #[must_use]
    pub fn now(&self) -> Time {
        Time::from_start(self.start.elapsed() + Duration::from_nanos(self.skipped_ns.load(Ordering::Acquire)))
    }

    pub(super) fn advance(&self, by: Duration) {
        let by_ns = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        self.skipped_ns.fetch_add(by_ns, Ordering::Release);
    }
}
