//! The disk store as every other one.

use kvferry_core::Fingerprint;

use super::extent::Extent;
use super::format::{Cut, Said};
use super::shelf::{Block, Filling, Progress, Shelf};
use crate::store::{BlockHash, ClassId, Found, Held, NotKept, Refused, Reserved, Store, Tenant, parents_first};

impl Store for Shelf {
    type Filling = Filling;
    type Block = Block;

    fn class(&mut self, fingerprint: Fingerprint, group: u32, block_bytes: u64) -> Result<ClassId, Refused> {
        let cut = |extent_bytes| Cut::new(block_bytes, extent_bytes);
        self.find_or_add((fingerprint, group, block_bytes), cut).ok_or(Refused::Class)
    }

    fn fingerprint(&self, class: ClassId) -> Fingerprint {
        self.classes[usize::from(class.0)].key.0
    }

    fn block_bytes(&self, class: ClassId) -> u64 {
        self.class_bytes(class)
    }

    fn blocks(&self) -> usize {
        self.index.len()
    }

    fn reserve(&mut self, class: ClassId, hash: BlockHash, tenant: Tenant) -> Result<Filling, Refused> {
        if self.contains(class, &hash) {
            return Err(Refused::There);
        }
        if self.read_only().is_some() {
            return Err(Refused::ReadOnly);
        }
        let place = self.take_place(class)?;
        let generation = self.extent(place).slot(place.slot).generation;
        Ok(Filling { place, generation, class, hash, tenant, at: self.at(place), progress: Progress::Empty })
    }

    /// The place's bytes are on the disk, by [`Mover::write`](super::Mover::write): the block's record is written, and so it
    /// survives this daemon's end in whatever way. After a loss of power it is there as it was, or not there.
    fn seal(&mut self, filling: Filling, checksum: u32, parent: Option<BlockHash>) -> Result<(), NotKept> {
        let Filling { place, generation, class, hash, tenant, .. } = filling;
        let is_there = self.contains(class, &hash);
        if is_there || filling.progress != Progress::Written {
            self.abandon(filling);
            return is_there.then_some(()).ok_or(NotKept);
        }
        let record = self.extent(place).header().sealed(hash, parent, tenant, (checksum, generation));
        self.write_record(place, &record)
    }

    fn abandon(&mut self, filling: Filling) {
        match filling.progress {
            Progress::Empty | Progress::Written => self.release(filling.place),
            Progress::Failed(error) => self.give_up(filling.place, error),
        }
    }

    fn contains(&self, class: ClassId, hash: &BlockHash) -> bool {
        self.find(class, hash).is_some()
    }

    fn may_go(&self, class: ClassId, hash: &BlockHash) -> bool {
        self.find(class, hash).is_some_and(|place| !self.pins.contains_key(&place))
    }

    fn pin(&mut self, class: ClassId, hash: &BlockHash) -> Option<Block> {
        let place = self.find(class, hash)?;
        let pins = self.pins.entry(place).or_default();
        *pins += 1;
        if *pins == 1 {
            self.extent_mut(place).held_count += 1;
        }
        Some(Block { place, checksum: self.extent(place).slot(place.slot).body, at: self.at(place) })
    }

    fn unpin(&mut self, block: &Block) -> bool {
        if let Some(count) = self.pins.get_mut(&block.place) {
            *count -= 1;
            if *count == 0 {
                self.pins.remove(&block.place);
                self.extent_mut(block.place).held_count -= 1;
            }
        }
        !self.pins.contains_key(&block.place)
    }

    fn remove(&mut self, class: ClassId, hash: &BlockHash) -> bool {
        let Some(place) = self.find(class, hash).filter(|place| !self.pins.contains_key(place)) else { return false };
        self.take_out(class, hash);
        self.clear(place);
        true
    }

    fn erase(&mut self, class: ClassId, hash: &BlockHash) -> bool {
        self.erase_block(class, hash)
    }

    fn disown(&mut self, fingerprint: Fingerprint) {
        self.unlink_all(fingerprint);
    }

    fn part_for(&mut self, class: ClassId) -> Vec<(ClassId, BlockHash)> {
        let mut counts = vec![0_u32; self.classes.len()];
        let count_of = |counts: &[u32], class: ClassId| counts[usize::from(class.0)];
        let used = || self.extents.iter().flatten().filter(|extent| extent.taken_count > 0);
        used().for_each(|extent| counts[usize::from(extent.class.0)] += 1);
        let takes_last = count_of(&counts, class) == 0 && counts.iter().all(|&count| count < 2);
        let is_meant = |extent: &&Extent| {
            extent.class != class && extent.is_idle() && (takes_last || count_of(&counts, extent.class) > 1)
        };
        // Whoever reads from a disk holds its blocks for seconds at most: none is kept for a class that has to wait.
        let Some(least) = used().filter(is_meant).min_by_key(|extent| extent.taken_count) else { return Vec::new() };
        least.sealed().map(|slot| (least.class, least.slot(slot).hash)).collect()
    }

    fn parents_first(&self) -> Vec<Found> {
        let mut found = Vec::with_capacity(self.blocks());
        for extent in self.extents.iter().flatten() {
            let class = extent.class;
            // What cannot be read now is there all the same, behind nobody.
            let mut records = vec![None; extent.cut.slots as usize];
            let _ = extent.scan(|slot, record| {
                if let Ok(Said::Sealed(record)) = record {
                    records[slot as usize] = Some((record.parent(), record.tenant()));
                }
            });
            for slot in extent.sealed() {
                let (parent, tenant) = records[slot as usize].unwrap_or_default();
                found.push(Found { class, hash: extent.slot(slot).hash, parent, tenant });
            }
        }
        parents_first(&found)
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
        self.at.bytes
    }
}

impl Held for Block {
    fn bytes(&self) -> u64 {
        self.at.bytes
    }

    fn checksum(&self) -> u32 {
        self.checksum
    }
}
