//! Blocks as a forest: each stands behind its parent, and only what has nothing behind it may go.

use kvferry_core::Time;

use super::forecast::{ClassId, Forecast};

/// A block that is known, as the caller numbers them: small numbers, used again once forgotten.
pub type BlockNumber = u32;

const NONE: u32 = u32::MAX;

/// What is known of blocks, by number.
#[derive(Default)]
pub(super) struct Chains {
    entries: Vec<Entry>,
    /// Stored blocks with no stored block behind them, in no order.
    leaves: Vec<BlockNumber>,
    stored: usize,
    known: usize,
}

#[derive(Clone, Copy)]
struct Entry {
    last: Time,
    parent: u32,
    /// Stored blocks right behind this one.
    children: u32,
    /// Place among the leaves.
    leaf: u32,
    /// Of this life; 0 if nobody learns from it.
    weight: f32,
    class: ClassId,
    /// Changes with each use; a number of 256 is enough to tell a life from the next ones.
    life: u8,
    turn: u8,
    uses: u8,
    state: State,
    /// Was used since it was last looked at to be forgotten.
    is_fresh: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Unknown,
    Known,
    Stored,
}

/// A life that ended because the block was used again.
pub(super) struct Ended {
    pub(super) began: Time,
    pub(super) class: ClassId,
    pub(super) weight: f32,
}

impl Entry {
    const UNKNOWN: Self = Self {
        last: Time::from_nanos(0),
        parent: NONE,
        children: 0,
        leaf: NONE,
        weight: 0.0,
        class: ClassId::ANY,
        life: 0,
        turn: 0,
        uses: 0,
        state: State::Unknown,
        is_fresh: false,
    };
}

impl Chains {
    fn entry(&self, block: BlockNumber) -> &Entry {
        self.entries.get(block as usize).unwrap_or(&Entry::UNKNOWN)
    }

    fn entry_mut(&mut self, block: BlockNumber) -> &mut Entry {
        let place = block as usize;
        if place >= self.entries.len() {
            self.entries.resize(place + 1, Entry::UNKNOWN);
        }
        &mut self.entries[place]
    }

    pub(super) fn is_known(&self, block: BlockNumber) -> bool {
        self.entry(block).state != State::Unknown
    }

    pub(super) fn is_stored(&self, block: BlockNumber) -> bool {
        self.entry(block).state == State::Stored
    }

    pub(super) fn is_leaf(&self, block: BlockNumber) -> bool {
        self.entry(block).leaf != NONE
    }

    pub(super) fn leaves(&self) -> &[BlockNumber] {
        &self.leaves
    }

    pub(super) const fn stored(&self) -> usize {
        self.stored
    }

    pub(super) const fn known(&self) -> usize {
        self.known
    }

    /// Times that the block was used, 255 for more.
    pub(super) fn uses(&self, block: BlockNumber) -> u8 {
        self.entry(block).uses
    }

    /// The turn of the last request that used it, and when that came.
    pub(super) fn last_use(&self, block: BlockNumber) -> (u8, Time) {
        let entry = self.entry(block);
        (entry.turn, entry.last)
    }

    /// Of the last use: its class and the request's turn.
    pub(super) fn kind(&self, block: BlockNumber) -> (ClassId, u8) {
        let entry = self.entry(block);
        (entry.class, entry.turn)
    }

    /// The stored block that this stored one stands behind.
    pub(super) fn parent(&self, block: BlockNumber) -> Option<BlockNumber> {
        let entry = self.entry(block);
        (entry.state == State::Stored && entry.parent != NONE).then_some(entry.parent)
    }

    /// Whether this life of the block goes on.
    pub(super) fn lives_on(&self, block: BlockNumber, life: u8) -> bool {
        let entry = self.entry(block);
        entry.state != State::Unknown && entry.life == life
    }

    pub(super) fn worth(&self, block: BlockNumber, now: Time, forecast: &Forecast) -> f32 {
        let entry = self.entry(block);
        forecast.worth(entry.class, now.until(entry.last))
    }

    /// The block is used: its life until now, if it was known.
    pub(super) fn used(&mut self, block: BlockNumber, now: Time, class: ClassId, turn: u8) -> Option<Ended> {
        let entry = self.entry_mut(block);
        let was_known = entry.state != State::Unknown;
        let ended = Ended { began: entry.last, class: entry.class, weight: entry.weight };
        if !was_known {
            *entry = Entry { state: State::Known, life: entry.life, ..Entry::UNKNOWN };
        }
        entry.last = now;
        entry.class = class;
        entry.turn = turn;
        entry.uses = entry.uses.saturating_add(1);
        entry.life = entry.life.wrapping_add(1);
        entry.weight = 0.0;
        entry.is_fresh = true;
        self.known += usize::from(!was_known);
        was_known.then_some(ended)
    }

    /// This life is learned from, with this weight: its number.
    pub(super) fn learn_from(&mut self, block: BlockNumber, weight: f32) -> u8 {
        let entry = self.entry_mut(block);
        entry.weight = weight;
        entry.life
    }

    /// False where the parent is not stored.
    pub(super) fn store(&mut self, block: BlockNumber, parent: Option<BlockNumber>) -> bool {
        if parent.is_some_and(|parent| !self.is_stored(parent)) || !self.is_known(block) {
            return false;
        }
        if self.is_stored(block) {
            return true;
        }
        if let Some(parent) = parent {
            self.entry_mut(parent).children += 1;
            self.take_leaf(parent);
        }
        let entry = self.entry_mut(block);
        entry.state = State::Stored;
        entry.parent = parent.unwrap_or(NONE);
        let children = entry.children;
        self.stored += 1;
        if children == 0 {
            self.put_leaf(block);
        }
        true
    }

    /// A stored block is stored no more; what stands behind it may stay, for when it comes back.
    pub(super) fn remove(&mut self, block: BlockNumber) {
        if !self.is_stored(block) {
            return;
        }
        self.take_leaf(block);
        let entry = self.entry_mut(block);
        entry.state = State::Known;
        let parent = entry.parent;
        self.stored -= 1;
        if parent != NONE {
            let parent_entry = self.entry_mut(parent);
            parent_entry.children -= 1;
            if parent_entry.children == 0 && parent_entry.state == State::Stored {
                self.put_leaf(parent);
            }
        }
    }

    /// Looked at to be forgotten: whether it is.
    pub(super) fn fades(&mut self, block: BlockNumber) -> bool {
        let entry = self.entry_mut(block);
        // What stands behind a block names it.
        if entry.state == State::Stored || entry.children > 0 || std::mem::take(&mut entry.is_fresh) {
            return false;
        }
        entry.state = State::Unknown;
        self.known -= 1;
        true
    }

    fn put_leaf(&mut self, block: BlockNumber) {
        // Numbers are 32 bits, and each is here once.
        let place = u32::try_from(self.leaves.len()).unwrap_or(NONE);
        self.leaves.push(block);
        self.entry_mut(block).leaf = place;
    }

    fn take_leaf(&mut self, block: BlockNumber) {
        let place = std::mem::replace(&mut self.entry_mut(block).leaf, NONE);
        if place == NONE {
            return;
        }
        self.leaves.swap_remove(place as usize);
        if let Some(&moved) = self.leaves.get(place as usize) {
            self.entry_mut(moved).leaf = place;
        }
    }
}
