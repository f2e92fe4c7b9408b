//! Whose blocks a store has: by class and tenant, kept as blocks come and go, so that nobody has to count them.
//!
//! Limits: a row for each class and tenant that has a block. What was counted of a row goes with its last block.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use foldhash::fast::RandomState;
use kvferry_core::{Fingerprint, Time};

use super::Cache;
use crate::store::{ClassId, Store, Tenant};

/// What one tenant has of one fingerprint in one store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holding {
    /// Whose engines' blocks.
    pub fingerprint: Fingerprint,
    /// Whose quota they count against.
    pub tenant: Tenant,
    /// How many: of each rank and cache group its own.
    pub blocks: u64,
    /// Of all blocks.
    pub bytes: u64,
    /// Blocks that requests found here, since this daemon began or the first block came.
    pub hits: u64,
    /// When a request last found one here.
    pub used: Option<Time>,
}

#[derive(Clone, Copy, Default)]
struct Row {
    blocks: u64,
    bytes: u64,
    hits: u64,
    used: Option<Time>,
}

/// See the module.
#[derive(Default)]
pub(super) struct Census {
    rows: HashMap<(ClassId, Tenant), Row, RandomState>,
}

impl Census {
    pub(super) fn came(&mut self, class: ClassId, tenant: Tenant, bytes: u64) {
        let row = self.rows.entry((class, tenant)).or_default();
        row.blocks += 1;
        row.bytes += bytes;
    }

    pub(super) fn went(&mut self, class: ClassId, tenant: Tenant, bytes: u64) {
        let Entry::Occupied(mut row) = self.rows.entry((class, tenant)) else {
            debug_assert!(false, "what goes has come");
            return;
        };
        row.get_mut().blocks -= 1;
        row.get_mut().bytes -= bytes;
        if row.get().blocks == 0 {
            row.remove();
        }
    }

    pub(super) fn used(&mut self, class: ClassId, tenant: Tenant, blocks: u64, now: Time) {
        if let Some(row) = self.rows.get_mut(&(class, tenant)) {
            row.hits += blocks;
            row.used = Some(now);
        }
    }
}

impl<S: Store> Cache<S> {
    /// What is there, by fingerprint and tenant.
    #[must_use]
    pub fn holdings(&self) -> Vec<Holding> {
        let mut all: HashMap<(Fingerprint, Tenant), Row, RandomState> = HashMap::default();
        for (&(class, tenant), row) in &self.census.rows {
            let sum = all.entry((self.store.fingerprint(class), tenant)).or_default();
            sum.blocks += row.blocks;
            sum.bytes += row.bytes;
            sum.hits += row.hits;
            sum.used = sum.used.max(row.used);
        }
        let holding = |((fingerprint, tenant), Row { blocks, bytes, hits, used })| Holding {
            fingerprint,
            tenant,
            blocks,
            bytes,
            hits,
            used,
        };
        all.into_iter().map(holding).collect()
    }
}
