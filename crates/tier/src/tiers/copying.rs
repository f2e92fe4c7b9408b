//! Blocks on their way between an engine and host memory: what a copying thread is handed, and what it says.

use std::sync::Arc;

use kvferry_core::BlockIndex;
use kvferry_core::layout::Layout;
use kvferry_core::plan::{GroupBlocks, Plan};
use kvferry_memory::{Piece, Region, Stores};

use super::Device;
use crate::host::Slot;

/// Which job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct JobId(pub(super) u64);

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// Out of host memory into the engine.
    Load,
    /// Out of the engine into host memory.
    Store,
}

/// Blocks to be copied, all of one cache group.
#[derive(Debug)]
pub struct CopyJob {
    /// To be said with the result.
    pub id: JobId,
    pub(super) direction: Direction,
    pub(super) device: Arc<Device>,
    pub(super) group: usize,
    pub(super) host: Arc<Region>,
    pub(super) blocks: Vec<BlockCopy>,
}

/// One block's two places.
#[derive(Debug)]
pub(super) struct BlockCopy {
    pub(super) block: BlockIndex,
    pub(super) slot: Slot,
    /// How the slot's chunk is laid out.
    pub(super) chunk: Arc<Layout>,
}

/// What became of a job: for each block the CRC-32C of the bytes that its target holds now, up to the first that could not
/// be copied.
#[derive(Debug)]
pub struct Copied {
    /// The job's.
    pub id: JobId,
    pub(super) sums: Vec<u32>,
}

impl CopyJob {
    /// Whether an engine waits for it.
    #[must_use]
    pub fn is_load(&self) -> bool {
        self.direction == Direction::Load
    }

    /// Copies, on the caller's thread. Regions stay mapped meanwhile, whatever becomes of their engine.
    #[must_use]
    pub fn run(self) -> Copied {
        let mut sums = Vec::with_capacity(self.blocks.len());
        let mut pieces = Vec::new();
        for copy in &self.blocks {
            let Some(sum) = self.copy(copy, &mut pieces) else { break };
            sums.push(sum);
        }
        Copied { id: self.id, sums }
    }

    fn copy(&self, copy: &BlockCopy, pieces: &mut Vec<Piece>) -> Option<u32> {
        let device = self.device.group(self.group)?;
        let blocks = |source, target| [GroupBlocks { group: 0, source: vec![source], target: vec![target] }];
        let (plan, source, target) = match self.direction {
            Direction::Load => {
                let plan = Plan::compile(&copy.chunk, device, &blocks(copy.slot.index, copy.block)).ok()?;
                (plan, &self.host, self.device.region())
            }
            Direction::Store => {
                let plan = Plan::compile(device, &copy.chunk, &blocks(copy.block, copy.slot.index)).ok()?;
                (plan, self.device.region(), &self.host)
            }
        };
        pieces.clear();
        for run in plan.runs() {
            pieces.extend((0..u64::from(run.count)).map(|piece| Piece {
                source: run.source + piece * run.source_stride,
                target: run.target + piece * run.target_stride,
                length: run.length,
            }));
        }
        // The slot holds a block's bytes in one piece, so the sum of a plan's pieces is the slot's if they are in its order.
        pieces.sort_unstable_by_key(|piece| match self.direction {
            Direction::Load => piece.source,
            Direction::Store => piece.target,
        });
        target.copy_summed(source, pieces, Stores::Streamed).ok()
    }
}
