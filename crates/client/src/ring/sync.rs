//! What the queue is made of: atomics, fences, and the bytes of one direction. `model.rs` puts loom's in the
//! place of these.

pub(crate) use std::sync::atomic::{Ordering, fence};

pub(crate) use super::mapping::Lane;
