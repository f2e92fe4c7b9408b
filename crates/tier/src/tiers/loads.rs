//! Blocks out of a tier into an engine.

use std::collections::VecDeque;
use std::sync::Arc;

use kvferry_core::{BlockIndex, Time, WorkId};

use super::copying::BlockCopy;
use super::{
    Chunks, CopyJob, Device, Direction, JOB_BLOCKS, JOB_BYTES, Job, LoadRequest, TierEvent, TierFailure, Tiers,
};
use crate::host::{Block, Slot};
use crate::store::{BlockHash, ClassId};

/// A block that is to be brought.
#[derive(Clone, Copy, Debug)]
pub(super) struct Loading {
    class: ClassId,
    group: usize,
    hash: BlockHash,
    target: BlockIndex,
}

/// One rank's load.
pub(super) struct Load {
    pub(super) device: Arc<Device>,
    claim: WorkId,
    left: VecDeque<Loading>,
    jobs: usize,
    bytes: u64,
    failure: Option<TierFailure>,
    deadline: Time,
}

impl Load {
    pub(super) fn fail(&mut self, failure: TierFailure) {
        self.failure.get_or_insert(failure);
        self.left.clear();
    }
}

impl Tiers {
    /// Brings blocks into an engine's memory. [`TierEvent::Loaded`] follows, once.
    pub fn load(&mut self, work: WorkId, request: &LoadRequest) {
        match self.accept_load(work, request) {
            Ok(load) => {
                self.deadlines.insert((load.deadline, work));
                self.loads.insert(work, load);
                self.load_turns.push_back(work);
            }
            Err(failure) => {
                self.rank_loaded(request.claim, request.device.rank());
                self.events.push_back(TierEvent::Loaded { work, result: Err(failure) });
            }
        }
    }

    fn accept_load(&mut self, work: WorkId, request: &LoadRequest) -> Result<Load, TierFailure> {
        let device = &request.device;
        if self.is_clearing(device) {
            return Err(TierFailure::Cleared);
        }
        if self.is_full() || request.groups.iter().map(Vec::len).sum::<usize>() > self.limits.blocks_max {
            return Err(TierFailure::Limit);
        }
        if self.loads.contains_key(&work) || request.groups.len() > device.group_count() {
            return Err(TierFailure::Request);
        }
        let mut left = VecDeque::new();
        for (group, blocks) in request.groups.iter().enumerate().filter(|(_, blocks)| !blocks.is_empty()) {
            let class = self.class(device, group).ok_or(TierFailure::Request)?;
            let block_count = device.group(group).map_or(0, kvferry_core::layout::Layout::block_count);
            if blocks.iter().any(|(_, target)| target.0 >= block_count) {
                return Err(TierFailure::Request);
            }
            left.extend(blocks.iter().map(|&(hash, target)| Loading { class, group, hash, target }));
        }
        let (device, claim, deadline) = (Arc::clone(device), request.claim, request.deadline);
        Ok(Load { device, claim, left, jobs: 0, bytes: 0, failure: None, deadline })
    }

    /// The next blocks of a load; none when there are no more, or when one is not there.
    pub(super) fn next_load_job(&mut self, work: WorkId) -> Option<CopyJob> {
        let load = self.loads.get_mut(&work)?;
        let Loading { class, group, .. } = *load.left.front()?;
        let device = Arc::clone(&load.device);
        let layout = device.group(group)?;
        let mut chunks = Chunks::new(class, layout);
        let (mut blocks, mut copies) = (Vec::new(), Vec::new());
        let mut bytes = 0;
        while bytes < JOB_BYTES && blocks.len() < JOB_BLOCKS {
            let Some(next) = load.left.pop_front_if(|next| next.group == group) else { break };
            let Some(block) = self.host.pin(class, &next.hash) else {
                load.fail(TierFailure::Evicted);
                break;
            };
            let slot = Slot::from(&block);
            let Some(chunk) = chunks.layout(&self.host, slot) else {
                self.host.unpin(&block);
                load.fail(TierFailure::Request);
                break;
            };
            bytes += block.bytes;
            copies.push(BlockCopy { block: next.target, slot, chunk });
            blocks.push((next, block));
        }
        if blocks.is_empty() {
            return None;
        }
        load.jobs += 1;
        let id = self.draw_job();
        self.jobs.insert(id, Job::Load(work, blocks));
        let host = Arc::clone(self.host.store().region());
        Some(CopyJob { id, direction: Direction::Load, device, group, host, blocks: copies })
    }

    pub(super) fn handle_loaded(&mut self, work: WorkId, blocks: Vec<(Loading, Block)>, sums: &[u32]) {
        let mut failure = None;
        let mut bytes = 0;
        for (place, (of, block)) in blocks.into_iter().enumerate() {
            match sums.get(place) {
                Some(&sum) if sum == block.checksum => {
                    bytes += block.bytes;
                    self.host.unpin(&block);
                }
                Some(_) => {
                    if !self.host.discard(of.class, &of.hash, &block) {
                        self.damaged.insert((of.class, of.hash));
                    }
                    failure = Some(TierFailure::Checksum);
                }
                None => {
                    self.host.unpin(&block);
                    failure.get_or_insert(TierFailure::Request);
                }
            }
        }
        self.drop_damaged();
        let Some(load) = self.loads.get_mut(&work) else { return };
        load.jobs -= 1;
        load.bytes += bytes;
        if let Some(failure) = failure {
            load.fail(failure);
        }
        self.settle_load(work);
    }

    /// Ends a load of which nothing is left to do.
    pub(super) fn settle_load(&mut self, work: WorkId) {
        let is_over = self.loads.get(&work).is_some_and(|load| load.left.is_empty() && load.jobs == 0);
        if !is_over {
            return;
        }
        let Some(load) = self.loads.remove(&work) else { return };
        self.deadlines.remove(&(load.deadline, work));
        self.rank_loaded(load.claim, load.device.rank());
        let result = load.failure.map_or(Ok(load.bytes), Err);
        self.events.push_back(TierEvent::Loaded { work, result });
    }
}
