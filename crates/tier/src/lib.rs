//! Where blocks rest between requests.
//!
//! ```text
//! requests (chains of blocks) -> Eviction: which stored block is worth least -> its room
//! blocks -> Store: reserve -> fill -> seal -> find
//!             host::Arena in memory, disk::Shelf on a disk: both survive the daemon; twin::Twin in a map, for tests
//!           Cache: a store in which Eviction decides what stays
//! engines -> tiers::Tiers: look up, load, store -> copies between an engine and host memory
//! ```
#![deny(unsafe_code)]

mod cache;
pub mod disk;
pub mod eviction;
pub mod host;
mod spread;
pub mod store;
#[cfg(test)]
mod suite;
mod tenants;
pub mod tiers;
pub mod twin;

pub use cache::{Cache, CacheLimits, Change, Departures, Holding, Left, NotAdmitted, Stored, Walk};
pub use store::{BlockHash, CLASSES_MAX, ClassId, Found, Held, NotKept, Refused, Reserved, Store, Tenant};
