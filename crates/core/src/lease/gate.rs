//! What a data thread asks about a lease without asking the lease table.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use crate::ids::Time;

/// Says whether a lease is live. Cloned into the work that reads under the lease; the lease table closes it before the
/// engine can get a block back, and only the lease table does.
#[derive(Clone, Debug)]
pub struct LeaseGate {
    closed: Arc<AtomicBool>,
    deadline: Time,
}

impl LeaseGate {
    /// An open gate that closes by itself at `deadline`.
    #[must_use]
    pub fn new(deadline: Time) -> Self {
        Self { closed: Arc::new(AtomicBool::new(false)), deadline }
    }

    /// Whether the blocks were unchanged up to `now`. A `false` stays `false`.
    #[must_use]
    pub fn is_live(&self, now: Time) -> bool {
        // Whoever asks has read the blocks before: the fence keeps those reads from drifting behind the answer.
        fence(Ordering::Acquire);
        now < self.deadline && !self.closed.load(Ordering::Acquire)
    }

    /// Ends the lease for everybody who holds a clone.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }
}
