//! A part of a read, ready to be copied by any thread.

use std::sync::Arc;

use kvferry_core::WorkId;
use kvferry_memory::{CopyError, Piece, Region, Stores};

use super::job::SLICES_MAX;
use crate::Fault;

/// Pieces to copy, and the regions they lie in for as long as they are to be copied. Used again and again.
#[derive(Debug)]
pub(super) struct Chunk {
    /// Whose pieces these are; `None` while the chunk is free.
    pub(super) of: Option<Owner>,
    pub(super) pieces: Vec<Piece>,
    /// Of all pieces together.
    pub(super) bytes: u64,
    /// What came of it, once it ran.
    pub(super) result: Result<(), Fault>,
}

/// What a chunk needs of its job.
#[derive(Clone, Debug)]
pub(super) struct Owner {
    pub(super) id: WorkId,
    pub(super) source: Arc<Region>,
    pub(super) target: Arc<Region>,
    pub(super) stores: Stores,
}

impl Chunk {
    /// A free one, with room for what a job cuts at once.
    pub(super) fn new() -> Self {
        Self { of: None, pieces: Vec::with_capacity(2 * SLICES_MAX), bytes: 0, result: Ok(()) }
    }

    /// Copies, and keeps what came of it.
    pub(super) fn run(&mut self) {
        let Some(of) = &self.of else { return };
        self.result = of.target.copy_verified(&of.source, &self.pieces, of.stores).map_err(|error| match error {
            CopyError::Changed => Fault::ChecksumMismatch,
            CopyError::OutOfBounds(_) => Fault::OutOfBounds,
        });
    }

    /// Lets go of the regions.
    pub(super) fn clear(&mut self) {
        self.of = None;
        self.pieces.clear();
        self.bytes = 0;
        self.result = Ok(());
    }

    pub(super) fn is_of(&self, id: WorkId) -> bool {
        self.of.as_ref().is_some_and(|of| of.id == id)
    }
}
