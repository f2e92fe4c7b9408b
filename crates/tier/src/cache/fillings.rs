//! Blocks that are on their way into a store.
//!
//! A block may be brought by several at once: engines that compute the same prompt each have a place for it. It takes a
//! tenant's room, and others may stand behind it, until the last of them gives up. Limits: the store's places.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use foldhash::fast::RandomState;

use crate::eviction::BlockNumber;

/// How many places wait for each block.
#[derive(Default)]
pub(super) struct Fillings(HashMap<BlockNumber, u32, RandomState>);

impl Fillings {
    pub(super) fn begin(&mut self, block: BlockNumber) {
        *self.0.entry(block).or_default() += 1;
    }

    pub(super) fn end(&mut self, block: BlockNumber) {
        let Entry::Occupied(mut places) = self.0.entry(block) else {
            debug_assert!(false, "what ends has begun");
            return;
        };
        *places.get_mut() -= 1;
        if *places.get() == 0 {
            places.remove();
        }
    }

    pub(super) fn has(&self, block: BlockNumber) -> bool {
        self.0.contains_key(&block)
    }
}
