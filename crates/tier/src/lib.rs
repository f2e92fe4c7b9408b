//! Where blocks rest between requests.
//!
//! ```text
//! requests (chains of blocks) -> Eviction: which stored block is worth least -> its room
//! blocks -> Store: reserve -> fill -> seal -> find
//!             host::Arena in memory, disk::Shelf on a disk: both survive the daemon; twin::Twin in a map, for tests
//!           Cache: a store in which Eviction decides what stays
//! ```
//!
//! Today `kvferry cache replay` judges the first on traces, and tests and a benchmark drive the second: no daemon stores
//! blocks yet.
#![deny(unsafe_code)]

mod cache;
pub mod disk;
pub mod eviction;
pub mod host;
pub mod store;
#[cfg(test)]
mod suite;
mod tenants;
pub mod twin;

pub use cache::{Cache, CacheLimits, NotAdmitted};
pub use store::{BlockHash, CLASSES_MAX, ClassId, Found, Held, NotKept, Refused, Reserved, Store, Tenant};
