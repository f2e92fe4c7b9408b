//! Where blocks rest between requests.
//!
//! ```text
//! requests (chains of blocks) -> Eviction: which stored block is worth least -> its room
//! blocks -> host::Arena: reserve -> fill -> seal -> find; survives the daemon
//!           host::Cache: an arena in which Eviction decides what stays
//! ```
//!
//! Today `kvferry cache replay` judges the first on traces, and tests and a benchmark drive the second: no daemon stores
//! blocks yet.
#![forbid(unsafe_code)]

pub mod eviction;
pub mod host;
