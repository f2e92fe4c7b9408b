//! What takes long: bit by bit, or somebody else's.

use kvferry_core::Time;

use super::{Cache, Left};
use crate::eviction::{Fit, Fitted};
use crate::store::{ClassId, Store};

/// Blocks that go in one piece of work: some 2 us each where a disk has to be told.
const PIECE_BLOCKS: usize = 64;
/// Blocks that are looked at in one.
const PIECE_NAMES: usize = 1024;

impl<S: Store> Cache<S> {
    /// Nothing of this class is found any more, but for what is held or still being filled.
    pub fn clear(&mut self, class: ClassId) {
        let mut next = Some(0);
        while let Some(from) = next {
            next = self.clear_piece(class, from);
        }
    }

    /// A short piece of [`clear`](Self::clear), from 0 on: where the next one begins. Nothing of the class is to be taken in
    /// before the last one, else that may stay.
    pub fn clear_piece(&mut self, class: ClassId, from: usize) -> Option<usize> {
        let mut left = PIECE_BLOCKS;
        let end = self.names.len().min(from + PIECE_NAMES);
        for number in from..end {
            let Some((of, hash)) = self.names[number] else { continue };
            if of == class && self.remove(of, &hash, Left::Cleared) {
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
