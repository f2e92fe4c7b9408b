//! Whose blocks a store has: by class and tenant, kept as blocks come and go, so that nobody has to count them.
//!
//! Limits: a row for each class and tenant that has a block. What was counted of a row goes with its last block. Tenants
//! are named by whoever sends requests, so rows may be nearly as many as blocks: nothing in here looks at all of them.

use kvferry_core::{Fingerprint, Time};

use super::Cache;
use crate::spread::Spread;
use crate::store::{ClassId, Store, Tenant};

/// Rows that are told at once. Chosen: as many as a slice of a sweep looks at.
const ROWS_AT_ONCE: usize = if cfg!(test) { 8 } else { 4096 };

/// What one tenant has of one fingerprint in one store, or in one class of it.
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
    rows: Spread<(ClassId, Tenant), Row>,
    /// Blocks and bytes of each class.
    classes: Vec<(u64, u64)>,
}

impl Census {
    pub(super) fn came(&mut self, class: ClassId, tenant: Tenant, bytes: u64) {
        let place = usize::from(class.0);
        self.classes.resize(self.classes.len().max(place + 1), (0, 0));
        self.classes[place].0 += 1;
        self.classes[place].1 += bytes;
        match self.rows.get_mut(&(class, tenant)) {
            Some(row) => {
                row.blocks += 1;
                row.bytes += bytes;
            }
            None => {
                self.rows.insert((class, tenant), Row { blocks: 1, bytes, ..Row::default() });
            }
        }
    }

    pub(super) fn went(&mut self, class: ClassId, tenant: Tenant, bytes: u64) {
        let place = usize::from(class.0);
        let (Some(row), Some(sum)) = (self.rows.get_mut(&(class, tenant)), self.classes.get_mut(place)) else {
            debug_assert!(false, "what goes has come");
            return;
        };
        *sum = (sum.0 - 1, sum.1 - bytes);
        row.blocks -= 1;
        row.bytes -= bytes;
        if row.blocks == 0 {
            self.rows.remove(&(class, tenant));
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
    /// Rows of [`holdings_piece`](Self::holdings_piece).
    pub(crate) const fn holdings(&self) -> usize {
        self.census.rows.len()
    }

    /// Tells what is there from this part on, each class by itself: some thousand rows at most. Where to go on; none at the
    /// end. What comes and goes between two pieces is told or not.
    pub(crate) fn holdings_piece(&self, from: usize, mut tell: impl FnMut(Holding)) -> Option<usize> {
        let (mut part, mut told) = (from, 0);
        while told < ROWS_AT_ONCE {
            for &((class, tenant), Row { blocks, bytes, hits, used }) in self.census.rows.part(part)? {
                let fingerprint = self.store.fingerprint(class);
                tell(Holding { fingerprint, tenant, blocks, bytes, hits, used });
                told += 1;
            }
            part += 1;
        }
        Some(part)
    }

    /// Blocks of such fingerprints, and their bytes: of one tenant, or of all.
    pub(crate) fn total(&self, fits: impl Fn(Fingerprint) -> bool, tenant: Option<Tenant>) -> (u64, u64) {
        let classes = (0..).map(ClassId).zip(&self.census.classes);
        let of_class = |(class, &all): (ClassId, &(u64, u64))| match tenant {
            Some(tenant) => self.census.rows.get(&(class, tenant)).map_or((0, 0), |row| (row.blocks, row.bytes)),
            None => all,
        };
        let that_fit = classes.filter(|&(class, _)| fits(self.store.fingerprint(class))).map(of_class);
        that_fit.fold((0, 0), |sum, of| (sum.0 + of.0, sum.1 + of.1))
    }
}
