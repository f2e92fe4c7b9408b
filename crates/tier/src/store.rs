//! What a tier is to whoever decides what it holds.
//!
//! ```text
//! reserve(class, hash) -> Filling: bytes are moved into its place -> seal(checksum) -> pin(class, hash) -> Block -> unpin
//!                                                                \-> abandon
//! ```
//!
//! [`host::Arena`](crate::host::Arena) keeps blocks in memory that outlives the daemon, `disk::Shelf` on a disk, and
//! [`Twin`](crate::twin::Twin) in a map, for tests. One suite holds for all of them.
//!
//! A store moves no bytes and waits for nobody: whoever holds a filling or a pinned block moves them, and is the only one
//! who may. Failure: full is an answer, and so is a store that takes nothing any more; what it has can still be read.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use foldhash::fast::RandomState;
use kvferry_core::Fingerprint;
use thiserror::Error;

/// Classes of one store: models times cache groups that a node has served.
pub const CLASSES_MAX: usize = 256;

/// The name of a block's content, the same on every node.
pub type BlockHash = [u8; 32];

/// Blocks of one fingerprint, group and size, in one store. Another store numbers its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClassId(pub(crate) u16);

/// Whose quota blocks count against: a number made of the cache salt, or of a configured namespace. Blocks of two salts
/// have two hashes, so a tenant never finds another's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tenant(pub u64);

impl Tenant {
    /// The same number for the same name, also in another daemon's life, whose blocks carry it; nobody in particular has no
    /// name.
    #[must_use]
    pub fn named(name: &[u8]) -> Self {
        // FNV-1a: quotas need no secrecy, and two tenants of one number share a quota, not blocks.
        let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        Self(if name.is_empty() { 0 } else { name.iter().fold(0xcbf2_9ce4_8422_2325, step) })
    }
}

/// Blocks, found by what is in them.
pub trait Store {
    /// A place that waits for a block's bytes. Whoever drops it leaves the place unused until the next start: seal it, or
    /// abandon it.
    type Filling: Reserved;
    /// A sealed block that is held.
    type Block: Held;

    /// Blocks of one engine's shape: those of another never stand for them.
    ///
    /// # Errors
    ///
    /// [`Refused::Class`].
    fn class(&mut self, fingerprint: Fingerprint, group: u32, block_bytes: u64) -> Result<ClassId, Refused>;

    /// Whose blocks a class holds.
    fn fingerprint(&self, class: ClassId) -> Fingerprint;

    /// Bytes of each block of a class.
    fn block_bytes(&self, class: ClassId) -> u64;

    /// Sealed blocks.
    fn blocks(&self) -> usize;

    /// A place for a block, which nobody finds before it is sealed.
    ///
    /// # Errors
    ///
    /// [`Refused`], and nothing has changed.
    fn reserve(&mut self, class: ClassId, hash: BlockHash, tenant: Tenant) -> Result<Self::Filling, Refused>;

    /// All bytes of the block are in its place, and this is their CRC-32C: it is found from now on, also by the next
    /// daemon where the store outlives this one. Where it was stored a second time meanwhile, the first one stays.
    ///
    /// # Errors
    ///
    /// [`NotKept`]: the block is not there, and its place is given back.
    fn seal(&mut self, filling: Self::Filling, checksum: u32, parent: Option<BlockHash>) -> Result<(), NotKept>;

    /// The block does not come after all. Nothing may write to its place any more.
    fn abandon(&mut self, filling: Self::Filling);

    /// Whether the block is stored.
    fn contains(&self, class: ClassId, hash: &BlockHash) -> bool;

    /// Whether the block is stored, and held by nobody.
    fn may_go(&self, class: ClassId, hash: &BlockHash) -> bool;

    /// A stored block, held until [`unpin`](Self::unpin): its bytes stay as they are.
    fn pin(&mut self, class: ClassId, hash: &BlockHash) -> Option<Self::Block>;

    /// The block is held once less. True: nobody else holds it.
    fn unpin(&mut self, block: &Self::Block) -> bool;

    /// The block goes, and leaves its place to others. False: it is not stored, or held.
    fn remove(&mut self, class: ClassId, hash: &BlockHash) -> bool;

    /// As [`remove`](Self::remove); and from now on the next daemon does not find it either, whatever becomes of this one: nor
    /// one that is held, which this one keeps until it is removed. A store that keeps nothing for the next daemon has no more
    /// to do than to remove.
    fn erase(&mut self, class: ClassId, hash: &BlockHash) -> bool {
        self.remove(class, hash)
    }

    /// From now on the next daemon finds nothing of this fingerprint, whatever becomes of this one, which keeps it until it is
    /// removed. Nothing of it is to be sealed before all of it is: the next daemon may not find that either.
    fn disown(&mut self, _fingerprint: Fingerprint) {}

    /// Blocks whose going gives a part of the store to this class: of those in which nothing is held or being filled, the
    /// least full. The last part of a class is left to it, unless this one has none and no other two. Where a class has none,
    /// and in every part something is held, a store may keep one for it: then these are the blocks of that part that may go,
    /// and the class is to ask again when others have let go of the rest.
    fn part_for(&mut self, class: ClassId) -> Vec<(ClassId, BlockHash)>;

    /// Whether the block is in a part that is kept for another class: nobody should begin to hold it.
    fn is_leaving(&self, _class: ClassId, _hash: &BlockHash) -> bool {
        false
    }

    /// All sealed blocks, each behind its parent if that is there.
    fn parents_first(&self) -> Vec<Found>;
}

/// What every place that waits for a block knows.
pub trait Reserved {
    /// Of the block.
    fn class(&self) -> ClassId;
    /// Of the block.
    fn hash(&self) -> BlockHash;
    /// Of the block.
    fn tenant(&self) -> Tenant;
    /// How many bytes the block has.
    fn bytes(&self) -> u64;
}

/// What every block that is held knows.
pub trait Held {
    /// How many bytes it has.
    fn bytes(&self) -> u64;
    /// CRC-32C of the bytes, as they must be.
    fn checksum(&self) -> u32;
}

/// A block that a store has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Of the block.
    pub class: ClassId,
    /// Of the block.
    pub hash: BlockHash,
    /// The block before it in its chain, if that is there too.
    pub parent: Option<BlockHash>,
    /// Whose quota it counts against.
    pub tenant: Tenant,
}

/// Why there is no place for a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refused {
    /// Too many classes, or blocks larger than the store was made for.
    #[error("the store has no room for another class, or for blocks of this size")]
    Class,
    /// No place of this class is free, and no room for all classes: blocks must go first.
    #[error("the store is full")]
    Full,
    /// There will be a place soon, and nothing has to go for it: ask again when what the store has handed out is done.
    #[error("a place is being made")]
    NotYet,
    /// The store takes nothing any more, and says why itself; what it has can be read.
    #[error("the store can only be read")]
    ReadOnly,
    /// It is stored already.
    #[error("the block is there")]
    There,
}

/// A block could not be written down: it is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the block could not be written down: it is not there")]
pub struct NotKept;

/// Puts each block behind its parent; a parent that is not among them, or behind its own child, counts for nobody.
pub(crate) fn parents_first(blocks: &[Found]) -> Vec<Found> {
    let mut places: HashMap<(ClassId, BlockHash), u32, RandomState> = HashMap::default();
    for (place, found) in (0..).zip(blocks) {
        places.insert((found.class, found.hash), place);
    }
    // Of each block: the last child that was seen, and of each child the one before it.
    let mut last_child: HashMap<u32, u32, RandomState> = HashMap::default();
    let mut child_before = vec![u32::MAX; blocks.len()];
    let mut order: Vec<u32> = Vec::with_capacity(blocks.len());
    for (place, found) in (0..).zip(blocks) {
        let parent = found.parent.and_then(|parent| places.get(&(found.class, parent)).copied());
        match parent.filter(|&parent| parent != place) {
            None => order.push(place),
            Some(parent) => match last_child.entry(parent) {
                Entry::Occupied(mut last) => child_before[place as usize] = last.insert(place),
                Entry::Vacant(vacant) => {
                    vacant.insert(place);
                }
            },
        }
    }
    drop(places);
    let first_ones = order.len();
    let mut next = 0;
    while let Some(&parent) = order.get(next) {
        next += 1;
        let mut child = last_child.remove(&parent);
        while let Some(place) = child.filter(|&place| place != u32::MAX) {
            order.push(place);
            child = Some(child_before[place as usize]);
        }
    }
    let mut ordered: Vec<Found> = order.iter().map(|&place| blocks[place as usize]).collect();
    ordered[..first_ones].iter_mut().for_each(|found| found.parent = None);
    // Who stands behind itself, by way of others, stands behind nobody.
    for (_, last) in last_child {
        let mut place = last;
        while place != u32::MAX {
            ordered.push(Found { parent: None, ..blocks[place as usize] });
            place = child_before[place as usize];
        }
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(number: u8, parent: Option<u8>) -> Found {
        Found { class: ClassId(0), hash: [number; 32], parent: parent.map(|parent| [parent; 32]), tenant: Tenant(0) }
    }

    #[test]
    fn who_has_a_parent_comes_behind_it() {
        // A chain from its end, two children of one, one whose parent is missing, a circle, and one behind itself.
        let blocks = [
            (4, Some(3)),
            (3, Some(2)),
            (2, Some(1)),
            (1, None),
            (5, Some(3)),
            (9, Some(8)),
            (6, Some(7)),
            (7, Some(6)),
            (10, Some(10)),
        ];
        let ordered = parents_first(&blocks.map(|(number, parent)| found(number, parent)));
        assert_eq!(ordered.len(), blocks.len());
        for (place, block) in ordered.iter().enumerate() {
            let before = &ordered[..place];
            assert!(block.parent.is_none_or(|parent| before.iter().any(|other| other.hash == parent)), "{block:?}");
            assert!(before.iter().all(|other| other.hash != block.hash));
        }
        let alone: Vec<u8> = ordered.iter().filter(|block| block.parent.is_none()).map(|block| block.hash[0]).collect();
        assert_eq!(alone.len(), 5, "{alone:?}");
    }
}
