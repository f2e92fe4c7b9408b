//! What takes long: bit by bit, or somebody else's.

use kvferry_core::{Fingerprint, Time};

use super::{Cache, Left};
use crate::eviction::{Fit, Fitted};
use crate::store::Store;

/// Blocks that go in one piece of work: some 2 us each where a disk has to be told.
const PIECE_BLOCKS: usize = 64;
/// Blocks that are looked at in one.
const PIECE_NAMES: usize = 1024;

impl<S: Store> Cache<S> {
    /// Of all classes of this fingerprint, whoever stored them, a few blocks go, but for what is held or still being filled;
    /// from 0 on: where the next piece begins. Nothing of it is to be taken in before the last one, else that may stay.
    pub fn clear_piece(&mut self, fingerprint: Fingerprint, from: usize) -> Option<usize> {
        let mut left = PIECE_BLOCKS;
        let end = self.names.len().min(from + PIECE_NAMES);
        for number in from..end {
            let Some((class, hash)) = self.names[number] else { continue };
            if self.store.fingerprint(class) == fingerprint && self.remove(class, &hash, Left::Cleared) {
                left -= 1;
                if left == 0 {
                    return Some(number + 1);
                }
            }
        }
        (end < self.names.len()).then_some(end)
    }

    /// Learns some more of how blocks grow old, where a request came after a long silence. True: there is more of it.
    pub fn catch_up(&mut self, now: Time) -> bool {
        self.eviction.catch_up(now)
    }

    /// See [`Eviction::poll_fit`](crate::eviction::Eviction::poll_fit).
    pub fn poll_fit(&mut self) -> Option<Fit> {
        self.eviction.poll_fit()
    }

    /// See [`Eviction::handle_fit`](crate::eviction::Eviction::handle_fit).
    pub fn handle_fit(&mut self, fitted: Fitted) {
        self.eviction.handle_fit(fitted);
    }
}
