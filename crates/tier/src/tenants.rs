//! Who holds how much of a cache, and how much they may.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use foldhash::fast::RandomState;

use crate::eviction::BlockNumber;
use crate::spread::Spread;
use crate::store::Tenant;

/// Owners of stored blocks.
pub(super) struct Tenants {
    /// By block: whose it is, and its bytes.
    owners: Spread<BlockNumber, (Tenant, u64)>,
    held: HashMap<Tenant, u64, RandomState>,
    quotas: HashMap<Tenant, u64>,
    /// Of those without a quota of their own.
    bytes_max: u64,
}

impl Tenants {
    /// Nobody holds anything.
    pub(super) fn new(bytes_max: u64) -> Self {
        Self { owners: Spread::default(), held: HashMap::default(), quotas: HashMap::new(), bytes_max }
    }

    pub(super) fn set_quota(&mut self, tenant: Tenant, bytes: u64) {
        self.quotas.insert(tenant, bytes);
    }

    pub(super) fn quota(&self, tenant: Tenant) -> u64 {
        self.quotas.get(&tenant).copied().unwrap_or(self.bytes_max)
    }

    /// Those who hold more than they may.
    pub(super) fn over(&self) -> Vec<Tenant> {
        self.held.iter().filter(|&(tenant, held)| *held > self.quota(*tenant)).map(|(tenant, _)| *tenant).collect()
    }

    pub(super) fn held_by(&self, tenant: Tenant) -> u64 {
        self.held.get(&tenant).copied().unwrap_or(0)
    }

    pub(super) fn owner(&self, block: BlockNumber) -> Option<Tenant> {
        self.owners.get(&block).map(|&(tenant, _)| tenant)
    }

    /// The block takes room of this tenant's from now on; once, however often it is said.
    pub(super) fn count(&mut self, block: BlockNumber, tenant: Tenant, bytes: u64) {
        if self.owners.insert(block, (tenant, bytes)) {
            *self.held.entry(tenant).or_default() += bytes;
        }
    }

    /// The block takes no room any more.
    pub(super) fn uncount(&mut self, block: BlockNumber) {
        if let Some((tenant, bytes)) = self.owners.remove(&block)
            && let Entry::Occupied(mut held) = self.held.entry(tenant)
        {
            *held.get_mut() -= bytes;
            if *held.get() == 0 {
                held.remove();
            }
        }
    }
}
