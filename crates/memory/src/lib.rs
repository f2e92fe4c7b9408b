//! Memory that KVFerry maps: memfd regions shared with engines, and files in memory that outlive the daemon.
//!
//! ```text
//! engine: create -> fd -- SCM_RIGHTS --> daemon: Region::map (seals, size) -> Arc<Region> -> transports -> last drop: unmap
//!                                                             |                                                |
//!                                                             +------------------- Meter ----------------------+
//! ```
//!
//! An engine writes to its region whenever it likes, from another process. So this room hands out no references to
//! the bytes: it copies them, sums them, or names them by address for `readv` and `writev`. What is read while an
//! engine writes is some mixture of old and new bytes; checksums and leases turn that into a miss.
//!
//! Limits: one region is at most [`REGION_BYTES_MAX`] long. Failure: a file that could shrink, and so kill the daemon
//! by SIGBUS, is refused before it is mapped. Shutdown: the last [`Arc`](std::sync::Arc) unmaps.
//!
//! Why not `memmap2`: its maps are slices, and a slice over bytes that another process writes is a promise we cannot
//! keep.

mod copy;
mod create;
mod error;
#[cfg(target_arch = "x86_64")]
mod fold;
mod keep;
mod meter;
mod region;
#[cfg(target_arch = "x86_64")]
mod stream;
mod sum;

pub use copy::{CopyError, Piece, Stores};
pub use create::create;
pub use error::{CreateError, KeepError, MapError, OutOfBounds};
pub use keep::Kept;
pub use meter::Meter;
pub use region::{REGION_BYTES_MAX, RawSlice, Region};
