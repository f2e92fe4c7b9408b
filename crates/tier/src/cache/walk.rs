//! A look at every block, a few at a time.

use super::Cache;
use crate::store::{BlockHash, ClassId, Store, Tenant};

/// How far a walk has come. Blocks may come and go meanwhile: of those that come, some are met.
#[derive(Clone, Copy, Debug)]
pub struct Walk {
    next: usize,
    end: usize,
}

/// A block that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Of the block.
    pub class: ClassId,
    /// Of the block.
    pub hash: BlockHash,
    /// Whose quota it counts against.
    pub tenant: Tenant,
}

impl Walk {
    /// Whether every place has been looked at.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        self.next >= self.end
    }
}

impl<S: Store> Cache<S> {
    /// Begins before the first block.
    #[must_use]
    pub const fn walk(&self) -> Walk {
        Walk { next: 0, end: self.names.len() }
    }

    /// The next block that is there. `None`: the walk is over, or `looks` places, which are counted down, were looked at.
    pub fn step(&self, walk: &mut Walk, looks: &mut usize) -> Option<Stored> {
        while !walk.is_over() && *looks > 0 {
            let number = walk.next;
            walk.next += 1;
            *looks -= 1;
            let Some((class, hash)) = self.names[number] else { continue };
            let tenant = u32::try_from(number).ok().and_then(|number| self.tenants.owner(number));
            if let Some(tenant) = tenant.filter(|_| self.store.contains(class, &hash)) {
                return Some(Stored { class, hash, tenant });
            }
        }
        None
    }
}
