//! A store with somebody who decides what stays in it: a cache of blocks.
//!
//! ```text
//! request(chain) -> how many of its first blocks are there, and Eviction learns
//! admit(block)   -> room for it, taken from what is worth less -> Filling -> seal
//! ```
//!
//! What takes long is done in pieces, or handed out ([`Cache::clear_piece`], [`Cache::catch_up`], [`Cache::poll_fit`]).
//!
//! Limits: the store's; twice as many blocks are remembered as are stored, or [`CacheLimits::known_min`]; a tenant has its
//! quota. A class takes room from its own blocks; where none of them is among those looked at, because they are few or held,
//! it takes a part of another's ([`Store::part_for`]). What is held stays ([`Store::pin`]). Failure: a block whose record or
//! bytes are not what they were is a miss, counted, and gone.

use kvferry_core::{Fingerprint, Time};
use thiserror::Error;

use crate::eviction::{BlockNumber, Eviction, Settings};
use crate::spread::Spread;
use crate::store::{BlockHash, ClassId, Found, Refused, Reserved as _, Store, Tenant};
use crate::tenants::Tenants;

mod census;
mod fillings;
mod leaving;
mod pieces;
mod room;
mod walk;

use self::census::Census;
pub use self::census::Holding;
use self::fillings::Fillings;
pub use self::leaving::{Departures, Left};
use self::room::Newest;
pub use self::walk::{Stored, Walk};

/// Changes that are kept for who asks: who does so seldom misses some.
const CHANGES_MAX: usize = 1 << 16;

/// Victims for one place: a part's worth of blocks may have to go before one is free.
const VICTIMS_MAX: usize = 1 << 16;

/// Blocks of a store, the most useful ones.
pub struct Cache<S> {
    store: S,
    eviction: Eviction,
    numbers: Spread<Name, BlockNumber>,
    /// By number.
    names: Vec<Option<Name>>,
    free: Vec<BlockNumber>,
    fillings: Fillings,
    tenants: Tenants,
    census: Census,
    departures: Departures,
    changes: Vec<Change>,
}

type Name = (ClassId, BlockHash);

/// A block that came, or went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Of the block.
    pub class: ClassId,
    /// Of the block.
    pub hash: BlockHash,
    /// It is found from now on; else it is not there any more.
    pub is_there: bool,
}

/// Limits of a [`Cache`].
#[derive(Clone, Copy, Debug)]
pub struct CacheLimits {
    /// Blocks that are remembered in any case; beyond them, one that went for each that is stored.
    pub known_min: usize,
    /// Bytes of blocks of one tenant, unless [`Cache::set_quotas`] says otherwise.
    pub tenant_bytes_max: u64,
    /// Of the random choice of blocks that are looked at.
    pub seed: u64,
}

/// Why a block is not taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NotAdmitted {
    /// It is there already.
    #[error("the block is there")]
    There,
    /// A place for it is being made: ask again soon.
    #[error("a place is being made")]
    NotYet,
    /// The block before it is not: nobody could use it.
    #[error("the block before it is not there")]
    WithoutParent,
    /// Its tenant has as much as it may, and nothing of it that could go is worth less.
    #[error("the tenant's quota is used up by what is worth more, or is held")]
    Quota,
    /// The store takes nothing any more.
    #[error("the store can only be read")]
    ReadOnly,
    /// Everything that could go is worth more, or is held.
    #[error("what is stored is worth more, or is held")]
    WorthLess,
}

impl<S: Store> Cache<S> {
    /// Of a store, with the blocks that it has.
    #[must_use]
    pub fn new(store: S, limits: CacheLimits, now: Time) -> Self {
        let settings = Settings { known_min: limits.known_min, seed: limits.seed };
        let found = store.parents_first();
        let mut cache = Self {
            store,
            eviction: Eviction::new(settings),
            numbers: Spread::default(),
            names: Vec::new(),
            free: Vec::new(),
            fillings: Fillings::default(),
            tenants: Tenants::new(limits.tenant_bytes_max),
            census: Census::default(),
            departures: Departures::default(),
            changes: Vec::new(),
        };
        for Found { class, hash, parent, tenant } in found {
            let number = cache.number((class, hash));
            let parent = parent.and_then(|parent| cache.numbers.get(&(class, parent)).copied());
            let stored = cache.eviction.found(now, number, parent);
            debug_assert!(stored, "parents come first");
            let bytes = cache.store.block_bytes(class);
            cache.tenants.count(number, tenant, bytes);
            cache.census.came(class, tenant, bytes);
        }
        cache
    }

    /// What the blocks are in.
    #[must_use]
    pub const fn store(&self) -> &S {
        &self.store
    }

    /// What the blocks are in, for what is not a block's coming and going: those go by way of the cache alone.
    pub const fn store_mut(&mut self) -> &mut S {
        &mut self.store
    }

    /// See [`Store::class`].
    ///
    /// # Errors
    ///
    /// [`Refused::Class`].
    pub fn class(&mut self, fingerprint: Fingerprint, group: u32, block_bytes: u64) -> Result<ClassId, Refused> {
        self.store.class(fingerprint, group, block_bytes)
    }

    /// See [`Store::pin`].
    pub fn pin(&mut self, class: ClassId, hash: &BlockHash) -> Option<S::Block> {
        let block = self.store.pin(class, hash);
        if block.is_none() && self.store.contains(class, hash) {
            self.remove(class, hash, Left::Damaged);
        }
        block
    }

    /// Whether the block is there.
    #[must_use]
    pub fn contains(&self, class: ClassId, hash: &BlockHash) -> bool {
        self.store.contains(class, hash)
    }

    /// Whose quota the block counts against, if it is stored.
    #[must_use]
    pub fn owner(&self, class: ClassId, hash: &BlockHash) -> Option<Tenant> {
        self.tenants.owner(*self.numbers.get(&(class, *hash))?)
    }

    /// The block that a stored one was stored behind, if there was one.
    #[must_use]
    pub fn parent(&self, class: ClassId, hash: &BlockHash) -> Option<BlockHash> {
        let parent = self.eviction.parent(*self.numbers.get(&(class, *hash))?)?;
        self.names[parent as usize].map(|(_, hash)| hash)
    }

    /// Whether the block is more likely to be used again than not.
    #[must_use]
    pub fn is_likely(&self, class: ClassId, hash: &BlockHash) -> bool {
        self.numbers.get(&(class, *hash)).is_some_and(|&number| self.eviction.is_likely(number))
    }

    /// See [`Store::unpin`].
    pub fn unpin(&mut self, block: &S::Block) -> bool {
        self.store.unpin(block)
    }

    /// Blocks that are there.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.store.blocks()
    }

    /// Bytes of a tenant's blocks, those that are being filled included.
    #[must_use]
    pub fn held_by(&self, tenant: Tenant) -> u64 {
        self.tenants.held_by(tenant)
    }

    /// Blocks that are remembered.
    #[must_use]
    pub fn known(&self) -> usize {
        self.numbers.len()
    }

    /// A request came for this chain: how many of its first blocks are there. `now` never goes back.
    pub fn request(&mut self, now: Time, class: ClassId, chain: &[BlockHash]) -> usize {
        let there = chain.iter().take_while(|hash| self.store.contains(class, hash)).count();
        let numbers: Vec<BlockNumber> = chain.iter().map(|hash| self.number((class, *hash))).collect();
        // A chain is of one tenant, whose salt is in its first hash.
        if let Some(tenant) = numbers.first().filter(|_| there > 0).and_then(|&first| self.tenants.owner(first)) {
            self.census.used(class, tenant, there as u64, now);
        }
        self.eviction.request(now, &numbers);
        self.take_forgotten();
        there
    }

    fn take_forgotten(&mut self) {
        while let Some(number) = self.eviction.next_forgotten() {
            if let Some(name) = self.names[number as usize].take() {
                self.numbers.remove(&name);
                self.free.push(number);
            }
        }
    }

    /// As [`admit`](Self::admit), for a block that somebody waits for: whatever it is worth, others go for it.
    ///
    /// # Errors
    ///
    /// [`NotAdmitted`].
    pub fn admit_wanted(
        &mut self,
        now: Time,
        class: ClassId,
        hash: BlockHash,
        parent: Option<BlockHash>,
        tenant: Tenant,
    ) -> Result<S::Filling, NotAdmitted> {
        self.admit_as(now, (class, hash), parent, tenant, false)
    }

    /// A place for a block of a request that came, or that was made from one, behind `parent`; what is worth least goes for
    /// it. The place is to be [sealed](Self::seal) or [abandoned](Self::abandon).
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
        tenant: Tenant,
    ) -> Result<S::Filling, NotAdmitted> {
        self.admit_as(now, (class, hash), parent, tenant, true)
    }

    /// `may_go`: the block itself may turn out to be worth least.
    fn admit_as(
        &mut self,
        now: Time,
        (class, hash): Name,
        parent: Option<BlockHash>,
        tenant: Tenant,
        may_go: bool,
    ) -> Result<S::Filling, NotAdmitted> {
        let parent = match parent {
            None => None,
            Some(parent) => Some(*self.numbers.get(&(class, parent)).ok_or(NotAdmitted::WithoutParent)?),
        };
        if self.store.contains(class, &hash) {
            return Err(NotAdmitted::There);
        }
        let number = self.number((class, hash));
        self.eviction.grow(now, number, parent);
        self.take_forgotten();
        if !self.eviction.store(number, parent) {
            return Err(NotAdmitted::WithoutParent);
        }
        // Who brings it too has been found worth it.
        let newest = Newest { number, may_go: may_go && !self.fillings.has(number) };
        let admitted = self.admit_stored(now, (class, hash), newest, parent, tenant);
        if admitted.is_err() {
            self.lose(class, &hash);
        }
        admitted
    }

    /// Takes the room that there must be for a block which Eviction believes to be stored.
    fn admit_stored(
        &mut self,
        now: Time,
        (class, hash): Name,
        newest: Newest,
        parent: Option<BlockNumber>,
        tenant: Tenant,
    ) -> Result<S::Filling, NotAdmitted> {
        let number = newest.number;
        let bytes = self.store.block_bytes(class);
        let is_new = self.tenants.owner(number).is_none();
        while is_new && self.held_by(tenant).saturating_add(bytes) > self.tenants.quota(tenant) {
            if !self.evict_of(now, tenant, newest) {
                return Err(NotAdmitted::Quota);
            }
        }
        for _ in 0..VICTIMS_MAX {
            match self.store.reserve(class, hash, tenant) {
                Ok(filling) if self.eviction.store(number, parent) => {
                    self.tenants.count(number, tenant, bytes);
                    self.fillings.begin(number);
                    return Ok(filling);
                }
                Ok(filling) => {
                    // Its parent went with a part.
                    self.store.abandon(filling);
                    return Err(NotAdmitted::WithoutParent);
                }
                Err(Refused::There) => return Err(NotAdmitted::There),
                Err(Refused::NotYet) => return Err(NotAdmitted::NotYet),
                Err(Refused::ReadOnly) => return Err(NotAdmitted::ReadOnly),
                Err(Refused::Full | Refused::Class) => {}
            }
            if !self.make_room(now, class, newest) {
                break;
            }
        }
        Err(NotAdmitted::WorthLess)
    }

    /// All bytes of the block are in its place; see [`Store::seal`]. Where the block before it went meanwhile, this one goes
    /// too. Whether the block is there now.
    pub fn seal(&mut self, filling: S::Filling, checksum: u32, parent: Option<BlockHash>) -> bool {
        let (class, hash, tenant) = (filling.class(), filling.hash(), filling.tenant());
        let was_there = self.store.contains(class, &hash);
        self.filled(class, &hash);
        if self.store.seal(filling, checksum, parent).is_err() {
            self.lose(class, &hash);
            return false;
        }
        let parent = parent.map(|parent| self.numbers.get(&(class, parent)).copied());
        let stays = match (self.numbers.get(&(class, hash)), parent) {
            (None, _) | (_, Some(None)) => None,
            (Some(&number), parent) => self.eviction.store(number, parent.flatten()).then_some(number),
        };
        match stays {
            Some(number) => {
                if !was_there {
                    // Of whoever admitted it first.
                    let owner = self.tenants.owner(number);
                    debug_assert!(owner.is_some(), "what is being filled is counted");
                    self.census.came(class, owner.unwrap_or(tenant), self.store.block_bytes(class));
                }
                self.changed(class, hash, true);
                true
            }
            None if was_there => {
                self.remove(class, &hash, Left::Orphaned);
                self.store.contains(class, &hash)
            }
            None => {
                // Nobody has found it yet: it never came.
                if self.store.remove(class, &hash) {
                    self.lose(class, &hash);
                }
                false
            }
        }
    }

    /// The block does not come after all; see [`Store::abandon`].
    pub fn abandon(&mut self, filling: S::Filling) {
        let (class, hash) = (filling.class(), filling.hash());
        self.filled(class, &hash);
        self.store.abandon(filling);
        self.lose(class, &hash);
    }

    /// One place less waits for the block's bytes.
    fn filled(&mut self, class: ClassId, hash: &BlockHash) {
        if let Some(&number) = self.numbers.get(&(class, *hash)) {
            self.fillings.end(number);
        }
    }

    /// What came and went since the last call, in order: whoever takes no interest calls it all the same.
    pub fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    fn changed(&mut self, class: ClassId, hash: BlockHash, is_there: bool) {
        if self.changes.len() < CHANGES_MAX {
            self.changes.push(Change { class, hash, is_there });
        }
    }

    /// A block did not come, or went. It takes no room any more, unless it is there all the same, or on its way once more.
    fn lose(&mut self, class: ClassId, hash: &BlockHash) {
        if let Some(&number) = self.numbers.get(&(class, *hash))
            && !self.fillings.has(number)
            && !self.store.contains(class, hash)
        {
            self.eviction.lose(number);
            self.tenants.uncount(number);
        }
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
