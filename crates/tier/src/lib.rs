//! Where blocks rest between requests.
//!
//! ```text
//! requests (chains of blocks) -> Eviction: which stored block is worth least -> its room
//! ```
//!
//! Today this room holds the decision alone, which `kvferry cache replay` judges on traces; no tier stores bytes yet.
#![forbid(unsafe_code)]

pub mod eviction;
