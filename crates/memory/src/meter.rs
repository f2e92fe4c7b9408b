//! How much is mapped right now.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts the regions made with it, and their bytes, until each is unmapped. Clones share the count.
///
/// Passed in rather than global, so that a test sees its own regions alone.
#[derive(Clone, Debug, Default)]
pub struct Meter(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    /// Regions mapped and not yet unmapped.
    regions: AtomicU64,
    /// Their bytes.
    bytes: AtomicU64,
}

impl Meter {
    /// A meter at zero.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Regions mapped and not yet unmapped.
    #[must_use]
    pub fn regions(&self) -> u64 {
        self.0.regions.load(Ordering::Acquire)
    }

    /// Bytes of those regions.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.bytes.load(Ordering::Acquire)
    }

    pub(crate) fn add(&self, bytes: u64) {
        self.0.regions.fetch_add(1, Ordering::AcqRel);
        self.0.bytes.fetch_add(bytes, Ordering::AcqRel);
    }

    /// Called after the unmap, so that a count of zero means that nothing is mapped any more.
    pub(crate) fn subtract(&self, bytes: u64) {
        self.0.bytes.fetch_sub(bytes, Ordering::AcqRel);
        self.0.regions.fetch_sub(1, Ordering::AcqRel);
    }
}
