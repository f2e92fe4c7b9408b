//! The arena with somebody who decides what stays in it: a cache of blocks.
//!
//! ```text
//! request(chain) -> how many of its first blocks are there, and Eviction learns
//! admit(block)   -> room for it, taken from what is worth less -> Filling -> seal
//! ```
//!
//! Limits: the arena's; [`CacheLimits::known_max`] blocks are remembered. A class takes room from its own blocks; where
//! none of them is among those looked at, because they are few, it takes the emptiest chunk of another. What is held stays
//! ([`Arena::pin`]). Failure: a block whose record or bytes are not what they were is a miss, counted, and gone.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;
use kvferry_core::{Fingerprint, Time};
use kvferry_memory::Region;
use thiserror::Error;

use super::{Arena, Block, BlockHash, ClassId, Filling, Refused};
use crate::eviction::{BlockNumber, Eviction, Settings};

/// Victims for one place: a chunk's worth of blocks may have to go before one is free.
const VICTIMS_MAX: usize = 1 << 16;

/// Blocks in host memory, the most useful ones.
pub struct Cache {
    arena: Arena,
    eviction: Eviction,
    numbers: HashMap<Name, BlockNumber, RandomState>,
    /// By number.
    names: Vec<Option<Name>>,
    free: Vec<BlockNumber>,
    /// Blocks that went to make room.
    evicted: u64,
    damaged: u64,
}

type Name = (ClassId, BlockHash);

/// Limits of a [`Cache`].
#[derive(Clone, Copy, Debug)]
pub struct CacheLimits {
    /// Blocks that are remembered, stored or not.
    pub known_max: usize,
    /// Of the random choice of blocks that are looked at.
    pub seed: u64,
}

/// Why a block is not taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NotAdmitted {
    /// It is there already.
    #[error("the block is there")]
    There,
    /// The block before it is not: nobody could use it.
    #[error("the block before it is not there")]
    WithoutParent,
    /// Everything that could go is worth more, or is held.
    #[error("what is stored is worth more, or is held")]
    WorthLess,
}

impl Cache {
    /// Of an arena, with the blocks that it has.
    #[must_use]
    pub fn new(arena: Arena, limits: CacheLimits, now: Time) -> Self {
        let settings = Settings { known_max: limits.known_max, seed: limits.seed };
        let found = arena.parents_first();
        let mut cache = Self {
            arena,
            eviction: Eviction::new(settings),
            numbers: HashMap::default(),
            names: Vec::new(),
            free: Vec::new(),
            evicted: 0,
            damaged: 0,
        };
        for (class, hash, parent) in found {
            let number = cache.number((class, hash));
            let parent = parent.and_then(|parent| cache.numbers.get(&(class, parent)).copied());
            let stored = cache.eviction.found(now, number, parent);
            debug_assert!(stored, "parents come first");
        }
        cache
    }

    /// See [`Arena::region`].
    #[must_use]
    pub const fn region(&self) -> &Arc<Region> {
        self.arena.region()
    }

    /// See [`Arena::class`].
    ///
    /// # Errors
    ///
    /// [`Refused::Class`].
    pub fn class(&mut self, fingerprint: Fingerprint, group: u32, block_bytes: u64) -> Result<ClassId, Refused> {
        self.arena.class(fingerprint, group, block_bytes)
    }

    /// See [`Arena::pin`].
    pub fn pin(&mut self, class: ClassId, hash: &BlockHash) -> Option<Block> {
        let block = self.arena.pin(class, hash);
        if block.is_none() && self.arena.contains(class, hash) {
            self.damaged(class, hash);
        }
        block
    }

    /// The bytes of a block that the caller holds do not have the checksum that they must have: it is held once less, and
    /// goes. Where others hold it too, they find the same.
    pub fn discard(&mut self, class: ClassId, hash: &BlockHash, block: &Block) {
        if self.arena.unpin(block) {
            self.damaged(class, hash);
        }
    }

    fn damaged(&mut self, class: ClassId, hash: &BlockHash) {
        if self.arena.remove(class, hash) {
            self.damaged += 1;
            self.lose(class, hash);
        }
    }

    /// Blocks that went because they were not what was stored.
    #[must_use]
    pub const fn damaged_blocks(&self) -> u64 {
        self.damaged
    }

    /// See [`Arena::unpin`].
    pub fn unpin(&mut self, block: &Block) -> bool {
        self.arena.unpin(block)
    }

    /// Blocks that are there.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.arena.blocks()
    }

    /// Blocks that went to make room for others.
    #[must_use]
    pub const fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Blocks that are remembered.
    #[must_use]
    pub fn known(&self) -> usize {
        self.numbers.len()
    }

    /// A request came for this chain: how many of its first blocks are there. `now` never goes back.
    pub fn request(&mut self, now: Time, class: ClassId, chain: &[BlockHash]) -> usize {
        let there = chain.iter().take_while(|hash| self.arena.contains(class, hash)).count();
        let numbers: Vec<BlockNumber> = chain.iter().map(|hash| self.number((class, *hash))).collect();
        self.eviction.request(now, &numbers);
        while let Some(number) = self.eviction.next_forgotten() {
            if let Some(name) = self.names[number as usize].take() {
                self.numbers.remove(&name);
                self.free.push(number);
            }
        }
        there
    }

    /// A place for a block of a request that came, behind `parent`; what is worth least goes for it. The place is to be
    /// [sealed](Self::seal) or [abandoned](Self::abandon).
    ///
    /// # Errors
    ///
    /// [`NotAdmitted`].
    pub fn admit(
        &mut self,
        now: Time,
        class: ClassId,
        hash: BlockHash,
        parent: Option<BlockHash>,
    ) -> Result<Filling, NotAdmitted> {
        let parent = match parent {
            None => None,
            Some(parent) => Some(*self.numbers.get(&(class, parent)).ok_or(NotAdmitted::WithoutParent)?),
        };
        if self.arena.contains(class, &hash) {
            return Err(NotAdmitted::There);
        }
        let number = *self.numbers.get(&(class, hash)).ok_or(NotAdmitted::WorthLess)?;
        if !self.eviction.store(number, parent) {
            return Err(NotAdmitted::WithoutParent);
        }
        for _ in 0..VICTIMS_MAX {
            match self.arena.reserve(class, hash) {
                Ok(filling) if self.eviction.store(number, parent) => return Ok(filling),
                Ok(filling) => {
                    // Its parent went with a chunk.
                    self.arena.abandon(filling);
                    return Err(NotAdmitted::WithoutParent);
                }
                Err(Refused::There) => return Err(NotAdmitted::There),
                Err(Refused::Full | Refused::Class) => {}
            }
            if !self.make_room(now, class, number) {
                break;
            }
        }
        self.eviction.lose(number);
        Err(NotAdmitted::WorthLess)
    }

    /// All bytes of the block are in its place; see [`Arena::seal`]. Where the block before it went meanwhile, this one goes
    /// too.
    pub fn seal(&mut self, filling: Filling, checksum: u32, parent: Option<BlockHash>) {
        let (class, hash) = (filling.class, filling.hash);
        self.arena.seal(filling, checksum, parent);
        let parent = parent.map(|parent| self.numbers.get(&(class, parent)).copied());
        let stays = match (self.numbers.get(&(class, hash)), parent) {
            (None, _) | (_, Some(None)) => false,
            (Some(&number), parent) => self.eviction.store(number, parent.flatten()),
        };
        if !stays && self.arena.remove(class, &hash) {
            self.lose(class, &hash);
        }
    }

    /// The block does not come after all; see [`Arena::abandon`].
    pub fn abandon(&mut self, filling: Filling) {
        let (class, hash) = (filling.class, filling.hash);
        self.arena.abandon(filling);
        // Somebody else may have brought it.
        if !self.arena.contains(class, &hash) {
            self.lose(class, &hash);
        }
    }

    fn lose(&mut self, class: ClassId, hash: &BlockHash) {
        if let Some(&number) = self.numbers.get(&(class, *hash)) {
            self.eviction.lose(number);
        }
    }

    /// One block less, or a chunk's worth of them. False: nobody goes for this one.
    fn make_room(&mut self, now: Time, class: ClassId, newest: BlockNumber) -> bool {
        let (arena, names) = (&self.arena, &self.names);
        let may_go = |block: BlockNumber| {
            block == newest || names[block as usize].is_some_and(|(of, hash)| of == class && arena.may_go(of, &hash))
        };
        match self.eviction.victim(now, newest, may_go) {
            // The first of its class competes with nobody of its kind.
            Some(victim) if victim == newest => !self.arena.has_blocks(class) && self.take_chunk(class),
            Some(victim) => {
                self.evicted += 1;
                self.names[victim as usize].is_some_and(|(class, hash)| self.arena.remove(class, &hash))
            }
            None => self.take_chunk(class),
        }
    }

    /// Empties the chunk of another class that has the fewest blocks.
    fn take_chunk(&mut self, class: ClassId) -> bool {
        let names = self.arena.emptiest_chunk(class);
        let mut room = false;
        for (of, hash) in names {
            if self.arena.remove(of, &hash) {
                (room, self.evicted) = (true, self.evicted + 1);
                self.lose(of, &hash);
            }
        }
        room
    }

    fn number(&mut self, name: Name) -> BlockNumber {
        if let Some(&number) = self.numbers.get(&name) {
            return number;
        }
        let number = self.free.pop().unwrap_or_else(|| {
            self.names.push(None);
            // More blocks than numbers is more memory than there is.
            BlockNumber::try_from(self.names.len() - 1).unwrap_or(BlockNumber::MAX)
        });
        self.names[number as usize] = Some(name);
        self.numbers.insert(name, number);
        number
    }
}

#[cfg(test)]
mod tests;
