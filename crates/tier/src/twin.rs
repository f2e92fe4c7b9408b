//! The simplest store: a map. Tests hold the others against it, and use it where the kind of store does not matter.
//!
//! Limits: a cap on the bytes of all blocks, those that are being filled included. Nothing outlives it.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use kvferry_core::Fingerprint;

use crate::store::{
    BlockHash, CLASSES_MAX, ClassId, Found, Held, NotKept, Refused, Reserved, Store, Tenant, parents_first,
};

/// See the head of this file.
#[derive(Debug)]
pub struct Twin {
    bytes_max: u64,
    /// Of blocks that are there or being filled.
    bytes: u64,
    classes: Vec<(Fingerprint, u32, u64)>,
    stored: HashMap<(ClassId, BlockHash), Kept, RandomState>,
}

#[derive(Debug)]
struct Kept {
    bytes: Vec<u8>,
    checksum: u32,
    parent: Option<BlockHash>,
    tenant: Tenant,
    pins: u32,
}

/// A place that waits for a block's bytes.
#[derive(Debug)]
#[must_use]
pub struct Filling {
    class: ClassId,
    hash: BlockHash,
    tenant: Tenant,
    /// The block's bytes.
    pub body: Vec<u8>,
}

/// A block that is held.
#[derive(Debug)]
pub struct Block {
    name: (ClassId, BlockHash),
    bytes: u64,
    checksum: u32,
}

impl Twin {
    /// With room for so many bytes.
    #[must_use]
    pub fn new(bytes_max: u64) -> Self {
        Self { bytes_max, bytes: 0, classes: Vec::new(), stored: HashMap::default() }
    }

    /// The bytes of a block that is held.
    #[must_use]
    pub fn body(&self, block: &Block) -> &[u8] {
        self.stored.get(&block.name).map_or(&[], |kept| &kept.bytes)
    }
}

impl Store for Twin {
    type Filling = Filling;
    type Block = Block;

    fn class(&mut self, fingerprint: Fingerprint, group: u32, block_bytes: u64) -> Result<ClassId, Refused> {
        let key = (fingerprint, group, block_bytes);
        let place = self.classes.iter().position(|class| *class == key).unwrap_or(self.classes.len());
        if place == self.classes.len() {
            if block_bytes == 0 || block_bytes > self.bytes_max || place >= CLASSES_MAX {
                return Err(Refused::Class);
            }
            self.classes.push(key);
        }
        u16::try_from(place).map(ClassId).map_err(|_| Refused::Class)
    }

    fn fingerprint(&self, class: ClassId) -> Fingerprint {
        self.classes[usize::from(class.0)].0
    }

    fn block_bytes(&self, class: ClassId) -> u64 {
        self.classes[usize::from(class.0)].2
    }

    fn blocks(&self) -> usize {
        self.stored.len()
    }

    fn reserve(&mut self, class: ClassId, hash: BlockHash, tenant: Tenant) -> Result<Filling, Refused> {
        if self.contains(class, &hash) {
            return Err(Refused::There);
        }
        let bytes = self.block_bytes(class);
        if self.bytes + bytes > self.bytes_max {
            return Err(Refused::Full);
        }
        self.bytes += bytes;
        let body = vec![0; usize::try_from(bytes).map_err(|_| Refused::Class)?];
        Ok(Filling { class, hash, tenant, body })
    }

    fn seal(&mut self, filling: Filling, checksum: u32, parent: Option<BlockHash>) -> Result<(), NotKept> {
        if self.contains(filling.class, &filling.hash) {
            self.abandon(filling);
            return Ok(());
        }
        let Filling { class, hash, tenant, body } = filling;
        self.stored.insert((class, hash), Kept { bytes: body, checksum, parent, tenant, pins: 0 });
        Ok(())
    }

    fn abandon(&mut self, filling: Filling) {
        self.bytes -= filling.bytes();
    }

    fn contains(&self, class: ClassId, hash: &BlockHash) -> bool {
        self.stored.contains_key(&(class, *hash))
    }

    fn may_go(&self, class: ClassId, hash: &BlockHash) -> bool {
        self.stored.get(&(class, *hash)).is_some_and(|kept| kept.pins == 0)
    }

    fn pin(&mut self, class: ClassId, hash: &BlockHash) -> Option<Block> {
        let name = (class, *hash);
        let kept = self.stored.get_mut(&name)?;
        kept.pins += 1;
        Some(Block { name, bytes: kept.bytes.len() as u64, checksum: kept.checksum })
    }

    fn unpin(&mut self, block: &Block) -> bool {
        self.stored.get_mut(&block.name).is_none_or(|kept| {
            kept.pins = kept.pins.saturating_sub(1);
            kept.pins == 0
        })
    }

    fn remove(&mut self, class: ClassId, hash: &BlockHash) -> bool {
        let may_go = self.may_go(class, hash);
        if may_go && let Some(kept) = self.stored.remove(&(class, *hash)) {
            self.bytes -= kept.bytes.len() as u64;
        }
        may_go
    }

    fn part_for(&mut self, class: ClassId) -> Vec<(ClassId, BlockHash)> {
        // Every block is a part of its own.
        let other = self.stored.iter().find(|((of, _), kept)| *of != class && kept.pins == 0);
        other.map(|(&name, _)| name).into_iter().collect()
    }

    fn parents_first(&self) -> Vec<Found> {
        let found = |(&(class, hash), kept): (&(ClassId, BlockHash), &Kept)| Found {
            class,
            hash,
            parent: kept.parent,
            tenant: kept.tenant,
        };
        parents_first(&self.stored.iter().map(found).collect::<Vec<_>>())
    }
}

impl Reserved for Filling {
    fn class(&self) -> ClassId {
        self.class
    }

    fn hash(&self) -> BlockHash {
        self.hash
    }

    fn tenant(&self) -> Tenant {
        self.tenant
    }

    fn bytes(&self) -> u64 {
        self.body.len() as u64
    }
}

impl Held for Block {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn checksum(&self) -> u32 {
        self.checksum
    }
}
