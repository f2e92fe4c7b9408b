//! Blocks leave, and it is counted why.

use super::Cache;
use crate::store::{BlockHash, ClassId, Store};

/// Why a block left a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// A person asked for it.
    Asked,
    /// Its engine said that what was stored is worth nothing any more.
    Cleared,
    /// It was not what was stored, or its record was not.
    Damaged,
    /// The part of the store that it was in was given to blocks of another class.
    Displaced,
    /// The store is smaller than it was.
    Limits,
    /// The block before it had gone when it was stored a second time.
    Orphaned,
    /// Its tenant had too much.
    Quota,
    /// Its record was none any more when the store was opened.
    Record,
    /// Others of its class were worth more.
    Room,
}

impl Left {
    /// All there are.
    pub const ALL: [Self; 9] = [
        Self::Asked,
        Self::Cleared,
        Self::Damaged,
        Self::Displaced,
        Self::Limits,
        Self::Orphaned,
        Self::Quota,
        Self::Record,
        Self::Room,
    ];

    /// Whether it must not come back: others may be found again by the next daemon where its record could not be taken back.
    const fn is_for_good(self) -> bool {
        matches!(self, Self::Asked | Self::Cleared)
    }

    /// One word, as metrics have it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::Cleared => "cleared",
            Self::Damaged => "damaged",
            Self::Displaced => "displaced",
            Self::Limits => "limits",
            Self::Orphaned => "orphaned",
            Self::Quota => "quota",
            Self::Record => "record",
            Self::Room => "room",
        }
    }
}

/// How many blocks left, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Departures([u64; Left::ALL.len()]);

impl Departures {
    /// For this reason.
    #[must_use]
    pub const fn of(&self, why: Left) -> u64 {
        self.0[why as usize]
    }

    /// Each reason, and how many.
    pub fn iter(&self) -> impl Iterator<Item = (Left, u64)> {
        Left::ALL.into_iter().zip(self.0)
    }

    fn count(&mut self, why: Left, blocks: u64) {
        self.0[why as usize] += blocks;
    }
}

impl<S: Store> Cache<S> {
    /// A block goes. False: it is not there, or held; if it goes for good, the next daemon does not find it all the same.
    pub fn remove(&mut self, class: ClassId, hash: &BlockHash, why: Left) -> bool {
        let gone = if why.is_for_good() { self.store.erase(class, hash) } else { self.store.remove(class, hash) };
        if gone {
            self.departures.count(why, 1);
            let number = self.numbers.get(&(class, *hash));
            if let Some(tenant) = number.and_then(|&number| self.tenants.owner(number)) {
                self.census.went(class, tenant, self.store.block_bytes(class));
            }
            self.lose(class, hash);
            self.changed(class, *hash, false);
        }
        gone
    }

    /// The bytes of a block that the caller holds do not have the checksum that they must have: it is held once less, and
    /// goes. False: others hold it too; it is for the caller to [remove](Self::remove) it later.
    pub fn discard(&mut self, class: ClassId, hash: &BlockHash, block: &S::Block) -> bool {
        self.store.unpin(block) && self.remove(class, hash, Left::Damaged)
    }

    /// How many blocks left, and why.
    #[must_use]
    pub const fn departures(&self) -> Departures {
        self.departures
    }

    /// Blocks that had left before this cache knew of them, such as at the start.
    pub fn left_before(&mut self, why: Left, blocks: u64) {
        self.departures.count(why, blocks);
    }

    /// Blocks that went to make room for others.
    #[must_use]
    pub const fn evicted(&self) -> u64 {
        let left = &self.departures;
        left.of(Left::Displaced) + left.of(Left::Quota) + left.of(Left::Room)
    }

    /// Blocks that went because they were not what was stored.
    #[must_use]
    pub const fn damaged_blocks(&self) -> u64 {
        self.departures.of(Left::Damaged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_place_and_its_word() {
        let mut departures = Departures::default();
        for (count, why) in (1..).zip(Left::ALL) {
            departures.count(why, count);
        }
        for (count, (why, left)) in (1..).zip(departures.iter()) {
            assert_eq!((left, departures.of(why)), (count, count), "{why:?}");
        }
        let words: std::collections::BTreeSet<_> = Left::ALL.into_iter().map(Left::word).collect();
        assert_eq!(words.len(), Left::ALL.len());
    }
}
