//! Both directions as either side has them.
//!
//! ```text
//! daemon: create -> memfd to the client, DaemonEnd       client: open(memfd) -> ClientEnd
//! ```
//!
//! The daemon makes the memory, so that the side that must not be hurt has nothing to believe about it, and its
//! configuration bounds it. The client checks seals and length before it maps: a file that shrinks would kill it.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::thread::futex;
use rustix::time::Timespec;

use super::mapping::{self, RingError};
use super::queue::{Consumer, Producer};
use super::sync::{Lane, Ordering};

/// The shortest ring: a page.
pub const RING_BYTES_MIN: u32 = 4096;
/// The longest ring.
pub const RING_BYTES_MAX: u32 = 1 << 20;
/// Where indexes begin: a page before they wrap, so that every session and every test sees them wrap.
const START: u32 = 0_u32.wrapping_sub(4096);
/// Threads that one wake-up wakes. A process that has more of them sleep on its ring has only itself to blame.
const SLEEPERS_MAX: u32 = 1024;

/// What the daemon keeps.
pub struct DaemonEnd {
    /// From the client.
    pub submissions: Consumer,
    /// To the client.
    pub completions: Producer,
}

/// What the client keeps.
pub struct ClientEnd {
    /// To the daemon.
    pub submissions: Producer,
    /// From the daemon.
    pub completions: Consumer,
}

/// Where callers of the client sleep until something is published. Any number of them may.
#[derive(Clone)]
pub struct Sleeper {
    lane: Lane,
}

fn check(ring_bytes: u32) -> Result<(), RingError> {
    if !ring_bytes.is_power_of_two() || !(RING_BYTES_MIN..=RING_BYTES_MAX).contains(&ring_bytes) {
        return Err(RingError::Length(ring_bytes.into()));
    }
    Ok(())
}

/// Makes two empty rings of `ring_bytes` each. The descriptor is for the client.
///
/// # Errors
/// For a length out of limits, and whatever the operating system refuses.
pub fn create(ring_bytes: u32) -> Result<(OwnedFd, DaemonEnd), RingError> {
    check(ring_bytes)?;
    let fd = mapping::memfd(ring_bytes)?;
    let (submissions, completions) = mapping::lanes(&fd, ring_bytes)?;
    for lane in [&submissions, &completions] {
        lane.tail().store(START, Ordering::Relaxed);
        lane.head().store(START, Ordering::Relaxed);
    }
    Ok((
        fd,
        DaemonEnd { submissions: Consumer::new(submissions, START), completions: Producer::new(completions, START) },
    ))
}

/// Maps the rings that a daemon has made.
///
/// # Errors
/// For a memfd that is not sealed, or not exactly of the length that was told.
pub fn open(fd: impl AsFd, ring_bytes: u32) -> Result<ClientEnd, RingError> {
    check(ring_bytes)?;
    let (submissions, completions) = mapping::lanes(fd, ring_bytes)?;
    Ok(ClientEnd { submissions: Producer::new(submissions, START), completions: Consumer::new(completions, START) })
}

fn wake(lane: &Lane) {
    // Waking nobody is no failure, and an address of ours is always valid.
    let _ = futex::wake(lane.asleep(), futex::Flags::empty(), SLEEPERS_MAX);
}

impl Producer {
    /// Wakes whoever sleeps on this ring's word, if one has said so. Once for each batch of pushes.
    pub fn rouse(&self) {
        if self.take_sleep() {
            wake(&self.lane);
        }
    }
}

impl Consumer {
    /// For callers that sleep without holding the consumer.
    #[must_use]
    pub fn sleeper(&self) -> Sleeper {
        Sleeper { lane: self.lane.clone() }
    }
}

impl Sleeper {
    /// Sleeps until something is published after the last [`Consumer::announce`], or for `timeout`. May return early.
    pub fn sleep(&self, timeout: Duration) {
        let timeout = Timespec::try_from(timeout).ok();
        match futex::wait(self.lane.asleep(), futex::Flags::empty(), 1, timeout.as_ref()) {
            // AGAIN: published meanwhile. The caller looks again in any case.
            Ok(()) | Err(Errno::AGAIN | Errno::INTR | Errno::TIMEDOUT) | Err(_) => {}
        }
    }

    /// Wakes all that sleep here, for news that did not come through the ring.
    pub fn wake_all(&self) {
        self.lane.asleep().store(0, Ordering::SeqCst);
        wake(&self.lane);
    }
}
