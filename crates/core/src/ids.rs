//! Numbers that name things, each with a type of its own.

use std::fmt;
use std::time::Duration;

/// Nanoseconds since the daemon started. Arithmetic saturates: a deadline that overflows is simply far away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(u64);

impl Time {
    /// The instant that never comes.
    pub const NEVER: Self = Self(u64::MAX);

    /// The instant `nanos` nanoseconds after the daemon's start.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// The instant `elapsed` after the daemon's start.
    #[must_use]
    pub fn from_start(elapsed: Duration) -> Self {
        Self(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX))
    }

    /// This instant moved by `delay`; [`Time::NEVER`] stays what it is.
    #[must_use]
    pub fn after(self, delay: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// How long from `now` until this instant; zero when it has passed.
    #[must_use]
    pub const fn until(self, now: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(now.0))
    }
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

number! {
    /// A block's slot in one worker's cache; meaningless anywhere else.
    BlockIndex(u32)
}
number! {
    /// Changes each time a process of an engine comes or goes, and each time a daemon starts.
    Epoch(u64)
}
number! {
    /// One lease of one daemon; random, so that a daemon's restart never repeats one.
    LeaseId(u64)
}
number! {
    /// A worker's place among the workers of its engine.
    Rank(u32)
}
number! {
    /// One posted piece of work of one daemon. Never reused while the daemon lives, so a stale id matches nothing.
    WorkId(u64)
}

impl BlockIndex {
    /// vLLM's null block: it stands in block lists where a request holds nothing (outside a sliding window, say), and
    /// its bytes mean nothing.
    pub const NULL: Self = Self(0);
}

/// Hash of all that must agree before bytes may move: model revision, dtypes, cache shape, attention backend, parallel
/// shape, block size. Opaque here; the engine's connector computes it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..8].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}
