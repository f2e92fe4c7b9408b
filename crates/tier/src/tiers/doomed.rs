//! Blocks that go once nobody holds them. Nobody finds them meanwhile, nor the next daemon what is to go for good; who holds
//! them loads them all the same.

use std::collections::HashMap;

use super::{Tier, Tiers};
use crate::cache::{Cache, Left};
use crate::store::{BlockHash, ClassId, Store};

type Names = HashMap<(ClassId, BlockHash), Left>;

/// See the module.
#[derive(Default)]
pub(super) struct Doomed {
    host: Names,
    disk: Names,
}

impl Doomed {
    pub(super) fn contains(&self, tier: Tier, class: ClassId, hash: &BlockHash) -> bool {
        match tier {
            Tier::Host => self.host.contains_key(&(class, *hash)),
            Tier::Disk => self.disk.contains_key(&(class, *hash)),
        }
    }

    pub(super) fn insert(&mut self, tier: Tier, class: ClassId, hash: BlockHash, why: Left) {
        let names = match tier {
            Tier::Host => &mut self.host,
            Tier::Disk => &mut self.disk,
        };
        let said = names.entry((class, hash)).or_insert(why);
        // Whatever it goes for besides.
        if why == Left::Damaged {
            *said = why;
        }
    }
}

impl Tiers {
    /// Lets go of what is doomed and held by nobody any more.
    pub(super) fn drop_doomed(&mut self) {
        fn drop_of<S: Store>(names: &mut Names, cache: &mut Cache<S>) {
            names.retain(|(class, hash), why| cache.contains(*class, hash) && !cache.remove(*class, hash, *why));
        }
        drop_of(&mut self.doomed.host, &mut self.host);
        if let Some(disk) = &mut self.disk {
            drop_of(&mut self.doomed.disk, disk);
        }
    }

    /// The block goes, now or once nobody holds it. True: now. One that is not there is left alone.
    pub(super) fn doom(&mut self, tier: Tier, class: ClassId, hash: BlockHash, why: Left) -> bool {
        let (gone, is_there) = match (tier, &mut self.disk) {
            (Tier::Host, _) => (self.host.remove(class, &hash, why), self.host.contains(class, &hash)),
            (Tier::Disk, Some(disk)) => (disk.remove(class, &hash, why), disk.contains(class, &hash)),
            (Tier::Disk, None) => (false, false),
        };
        if is_there {
            self.doomed.insert(tier, class, hash, why);
        }
        gone
    }

    /// Whether nobody may find this block in this tier, though it is there.
    pub(super) fn is_hidden(&self, tier: Tier, class: ClassId, hash: &BlockHash) -> bool {
        self.doomed.contains(tier, class, hash) || self.is_evicting(tier, class, hash)
    }
}
