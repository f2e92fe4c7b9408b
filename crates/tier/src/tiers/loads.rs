//! Blocks out of a tier into an engine.

use std::collections::VecDeque;
use std::sync::Arc;

use kvferry_core::{BlockIndex, Time, WorkId};

use super::copying::BlockCopy;
use super::promotions::Wants;
use super::{
    Chunks, CopyJob, Device, Direction, JOB_BLOCKS, JOB_BYTES, Job, Kind, LoadRequest, Loaded, Tier, TierEvent,
    TierFailure, Tiers,
};
use crate::cache::Left;
use crate::host::{Block, Slot};
use crate::store::BlockHash;

/// A block that is to be brought.
#[derive(Clone, Copy, Debug)]
pub(super) struct Loading {
    kind: Kind,
    group: usize,
    hash: BlockHash,
    /// The block before it, where that is loaded too.
    parent: Option<BlockHash>,
    target: BlockIndex,
    /// Host memory did not have it when it was looked up.
    from_disk: bool,
}

/// One rank's load.
pub(super) struct Load {
    pub(super) device: Arc<Device>,
    claim: WorkId,
    left: VecDeque<Loading>,
    /// Blocks that the disk has yet to bring.
    waits: usize,
    /// Blocks that it has brought, held.
    ready: VecDeque<(Loading, Block)>,
    jobs: usize,
    loaded: Loaded,
    failure: Option<TierFailure>,
    deadline: Time,
}

enum Next {
    Held(Loading, Block),
    Named(Loading),
}

impl Load {
    pub(super) fn fail(&mut self, failure: TierFailure) {
        self.failure.get_or_insert(failure);
        self.left.clear();
        self.waits = 0;
    }

    /// The disk has brought a block, or not; none for a load that has failed anyway.
    pub(super) fn brought(&mut self, loading: Loading, block: Option<Block>, failure: TierFailure) {
        match block {
            Some(block) => {
                self.ready.push_back((Loading { from_disk: true, ..loading }, block));
                self.waits = self.waits.saturating_sub(1);
            }
            None => self.fail(failure),
        }
    }

    /// Of the group whose turn it is: a block that is held, or one that is to be found.
    fn next(&mut self, group: usize) -> Option<Next> {
        if let Some((loading, block)) = self.ready.pop_front_if(|(loading, _)| loading.group == group) {
            return Some(Next::Held(loading, block));
        }
        self.left.pop_front_if(|loading| loading.group == group).map(Next::Named)
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
        let promoted = self.claims.get(&request.claim).map(|claim| claim.promoting.clone());
        let promoted = promoted.as_ref();
        let mut left = VecDeque::new();
        for (group, blocks) in request.groups.iter().enumerate().filter(|(_, blocks)| !blocks.is_empty()) {
            let kind = self.kind(device, group).ok_or(TierFailure::Request)?;
            let block_count = device.group(group).map_or(0, kvferry_core::layout::Layout::block_count);
            if blocks.iter().any(|(_, target)| target.0 >= block_count) {
                return Err(TierFailure::Request);
            }
            let parents = std::iter::once(None).chain(blocks.iter().map(|(hash, _)| Some(*hash)));
            left.extend(blocks.iter().zip(parents).map(|(&(hash, target), parent)| Loading {
                kind,
                group,
                hash,
                parent,
                target,
                from_disk: promoted.is_some_and(|of| of.contains(&(kind, hash))),
            }));
        }
        let (device, claim, deadline) = (Arc::clone(device), request.claim, request.deadline);
        let (ready, loaded) = (VecDeque::new(), Loaded::default());
        Ok(Load { device, claim, left, waits: 0, ready, jobs: 0, loaded, failure: None, deadline })
    }

    /// The next blocks of a load; none when there are no more, or when one is not there.
    pub(super) fn next_load_job(&mut self, work: WorkId) -> Option<CopyJob> {
        let load = self.loads.get_mut(&work)?;
        let &Loading { kind, group, .. } =
            load.ready.front().map(|(loading, _)| loading).or_else(|| load.left.front())?;
        let device = Arc::clone(&load.device);
        let layout = device.group(group)?;
        let mut chunks = Chunks::new(kind.host, layout);
        let (mut blocks, mut copies) = (Vec::new(), Vec::new());
        let mut bytes = 0;
        while bytes < JOB_BYTES && blocks.len() < JOB_BLOCKS {
            let (next, block) = match load.next(group) {
                None => break,
                Some(Next::Held(next, block)) => (next, block),
                Some(Next::Named(next)) => {
                    let name = (kind, next.hash);
                    if let Some(block) = self.host.pin(kind.host, &next.hash) {
                        (next, block)
                    } else if self.promotions.want(self.disk.as_mut(), (name, next.parent), Wants::Load(work, next)) {
                        load.waits += 1;
                        continue;
                    } else {
                        load.fail(TierFailure::Evicted);
                        break;
                    }
                }
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
        let mut moved = Loaded::default();
        for (place, (of, block)) in blocks.into_iter().enumerate() {
            match sums.get(place) {
                Some(&sum) if sum == block.checksum => {
                    moved.bytes += block.bytes;
                    moved.disk_bytes += if of.from_disk { block.bytes } else { 0 };
                    self.host.unpin(&block);
                }
                Some(_) => {
                    if !self.host.discard(of.kind.host, &of.hash, &block) {
                        self.doomed.insert(Tier::Host, of.kind.host, of.hash, Left::Damaged);
                    }
                    failure = Some(TierFailure::Checksum);
                }
                None => {
                    self.host.unpin(&block);
                    failure.get_or_insert(TierFailure::Request);
                }
            }
        }
        self.drop_doomed();
        let Some(load) = self.loads.get_mut(&work) else { return };
        load.jobs -= 1;
        load.loaded.bytes += moved.bytes;
        load.loaded.disk_bytes += moved.disk_bytes;
        if let Some(failure) = failure {
            load.fail(failure);
        }
        self.settle_load(work);
    }

    /// Ends a load of which nothing is left to do.
    pub(super) fn settle_load(&mut self, work: WorkId) {
        let Some(load) = self.loads.get_mut(&work) else { return };
        if load.failure.is_some() {
            for (_, block) in load.ready.drain(..) {
                self.host.unpin(&block);
            }
            self.drop_doomed();
        }
        let Some(load) = self.loads.get(&work) else { return };
        if !load.left.is_empty() || !load.ready.is_empty() || load.waits + load.jobs > 0 {
            return;
        }
        let Some(load) = self.loads.remove(&work) else { return };
        self.deadlines.remove(&(load.deadline, work));
        self.rank_loaded(load.claim, load.device.rank());
        let result = load.failure.map_or(Ok(load.loaded), Err);
        self.events.push_back(TierEvent::Loaded { work, result });
    }
}
