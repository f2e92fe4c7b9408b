//! What one thread leaves for another, and how it wakes it.
//!
//! ```text
//! put: lock -> push -> ring the bell if it was empty        take: nothing there? -> lock -> silence the bell -> take all
//! ```
//!
//! The bell, an eventfd, can be read exactly while something is there, so whoever sleeps on it misses nothing, and many
//! things cost one wake-up. Limits: whoever puts knows how many there can be, and says so. Failure: none; a thread that
//! panicked with the lock held leaves a queue that is whole.
//!
//! Why not a channel of the standard library: none can be slept on together with sockets.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

/// See the module.
pub(crate) struct Mailbox<T> {
    things: Mutex<Vec<T>>,
    /// Whether there is something, for a look without the lock.
    has_any: AtomicBool,
    bell: OwnedFd,
}

impl<T> Mailbox<T> {
    pub(crate) fn new() -> io::Result<Self> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { things: Mutex::new(Vec::new()), has_any: AtomicBool::new(false), bell })
    }

    /// Leaves things, in this order.
    pub(crate) fn put(&self, new: impl IntoIterator<Item = T>) {
        let mut things = self.things.lock().unwrap_or_else(PoisonError::into_inner);
        let was_empty = things.is_empty();
        things.extend(new);
        if was_empty && !things.is_empty() {
            self.has_any.store(true, Ordering::Release);
            // Fails only when the counter is full, and then it is readable anyway.
            let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
        }
    }

    /// Takes all that is there.
    pub(crate) fn take(&self) -> Vec<T> {
        if !self.has_any.load(Ordering::Acquire) {
            return Vec::new();
        }
        let mut things = self.things.lock().unwrap_or_else(PoisonError::into_inner);
        self.has_any.store(false, Ordering::Release);
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.bell, &mut count);
        std::mem::take(&mut *things)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.things.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl<T> AsFd for Mailbox<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn rings(mailbox: &Mailbox<u32>) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::new(mailbox, PollFlags::IN)], Some(&now)).expect("poll") > 0
    }

    #[test]
    fn it_rings_while_something_is_there() {
        let mailbox = Mailbox::new().expect("an eventfd");
        assert!(!rings(&mailbox) && mailbox.take().is_empty());
        mailbox.put([]);
        assert!(!rings(&mailbox));
        mailbox.put([1, 2]);
        mailbox.put([3]);
        assert!(rings(&mailbox) && mailbox.len() == 3);
        assert_eq!(mailbox.take(), [1, 2, 3]);
        assert!(!rings(&mailbox) && mailbox.take().is_empty());
    }

    #[test]
    fn nothing_is_lost_between_two_threads() {
        const COUNT: u32 = 20_000;
        let mailbox = Mailbox::new().expect("an eventfd");
        std::thread::scope(|scope| {
            scope.spawn(|| (0..COUNT).for_each(|number| mailbox.put([number])));
            let mut taken = Vec::new();
            while taken.len() < COUNT as usize {
                poll(&mut [PollFd::new(&mailbox, PollFlags::IN)], None).expect("poll");
                taken.extend(mailbox.take());
            }
            assert!(taken.into_iter().eq(0..COUNT));
        });
    }
}
