//! Where the blocks of each transfer lie: drawn at random from the whole region, alike at both ends.
//!
//! ```text
//! seed, cell -> slots of the region, shuffled once for each side -> sets of `blocks` pairs -> a Plan for each set
//! transfer n moves set n mod count
//! ```
//!
//! Sets share no block, so that transfers in flight write different bytes, and so that one transfer after the other
//! walks through the whole region instead of staying in a cache. Limits: [`SETS_MAX`] sets, [`PAIRS_MAX`] pairs of all
//! sets, which bounds the memory of their plans to about 50 MiB.
//!
//! Why not neighbouring blocks: an engine's blocks come out of a pool that has been in use for hours.

use std::collections::HashSet;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use fastrand::Rng;
use kvferry_core::BlockIndex;
use kvferry_core::layout::{AxisOrder, GroupLayout, LayerSpan, Layout};
use kvferry_core::plan::{GroupBlocks, Plan};
use kvferry_memory::Region;

use super::cell::Cell;
use super::content;

const SETS_MAX: u64 = 4096;
const PAIRS_MAX: u64 = 1 << 20;

/// The plans of a cell, in the order in which transfers use them.
pub(super) struct Placement {
    plans: Vec<Arc<Plan>>,
}

impl Placement {
    /// Both ends compile the same from the same cell.
    pub(super) fn of(cell: &Cell) -> Result<Self> {
        let slot_bytes = u64::from(cell.block_bytes) * u64::from(cell.layers);
        let slots = u32::try_from(cell.region_bytes / slot_bytes)
            .ok()
            .filter(|&slots| slots <= kvferry_core::layout::BLOCKS_MAX)
            .with_context(|| format!("a region of {} bytes has too many blocks", cell.region_bytes))?;
        let layout = layout(cell, slots)?;
        let blocks = u64::from(cell.blocks);
        let sets = (u64::from(slots) / blocks).min(SETS_MAX).min((PAIRS_MAX / blocks).max(1));
        let mut rng = Rng::with_seed(cell.seed);
        let sources = draw(&mut rng, slots, sets * blocks);
        let targets = draw(&mut rng, slots, sets * blocks);
        let length = usize::try_from(cell.blocks)?;
        let plans = sources.chunks(length).zip(targets.chunks(length)).map(|(source, target)| {
            let blocks = GroupBlocks { group: 0, source: source.to_vec(), target: target.to_vec() };
            Plan::compile(&layout, &layout, &[blocks]).map(Arc::new)
        });
        let plans = plans.collect::<Result<Vec<_>, _>>().context("compile the transfers' plans")?;
        Ok(Self { plans })
    }

    /// What transfer `number` moves.
    pub(super) fn plan(&self, number: u64) -> &Arc<Plan> {
        // A cell has at least one set, and the remainder is below their count.
        let place = usize::try_from(number % self.plans.len() as u64).unwrap_or(0);
        &self.plans[place]
    }

    /// Compares every byte that transfers `first..end` wrote with what it must be, and says how many there were.
    pub(super) fn check(&self, first: u64, end: u64, target: &Region) -> Result<u64> {
        self.touched(first, end).map(|plan| content::check(plan, target)).sum()
    }

    /// The plans of transfers `first..end`, each once.
    fn touched(&self, first: u64, end: u64) -> impl Iterator<Item = &Arc<Plan>> {
        (first..end).take(self.plans.len()).map(|number| self.plan(number))
    }
}

/// `count` different slots in random order.
fn draw(rng: &mut Rng, slots: u32, count: u64) -> Vec<BlockIndex> {
    if count < u64::from(slots) / 4 {
        // Few of many: quicker than shuffling millions of slots of 64 bytes.
        let mut drawn = HashSet::new();
        let fresh = std::iter::repeat_with(|| rng.u32(0..slots)).filter(|&slot| drawn.insert(slot));
        return fresh.take(usize::try_from(count).unwrap_or(usize::MAX)).map(BlockIndex).collect();
    }
    let mut order: Vec<_> = (0..slots).map(BlockIndex).collect();
    rng.shuffle(&mut order);
    order.truncate(usize::try_from(count).unwrap_or(usize::MAX));
    order
}

/// Layer after layer, each with all blocks: vLLM's order on CPUs, opaque inside a block.
fn layout(cell: &Cell, slots: u32) -> Result<Layout> {
    let block_stride = u64::from(cell.block_bytes);
    let layer_stride = block_stride * u64::from(slots);
    let span = LayerSpan {
        layer_count: cell.layers,
        offset: 0,
        layer_stride,
        block_stride,
        head_count: 1,
        token_count: 1,
        content_bytes: cell.block_bytes,
    };
    let region_bytes = layer_stride * u64::from(cell.layers);
    let groups = vec![GroupLayout { spans: vec![span] }];
    Layout::new(AxisOrder::Lbnhc, slots, region_bytes, groups).context("lay out the region")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::bench::cell::example;

    /// Every piece's target offset, over all sets.
    fn targets(placement: &Placement) -> Vec<(u64, u64)> {
        let runs = placement.plans.iter().flat_map(|plan| plan.runs().iter());
        runs.flat_map(|run| (0..u64::from(run.count)).map(|piece| (run.target + piece * run.target_stride, run.length)))
            .collect()
    }

    #[test]
    fn sets_cover_the_region_and_never_meet() {
        let cell = Cell { layers: 4, ..example() };
        let placement = Placement::of(&cell).expect("a placement");
        // 1 MiB in slots of 4 x 4 KiB are 64 slots, 4 sets of 16.
        assert_eq!(placement.plans.len(), 4);
        let mut bytes = HashSet::new();
        for (offset, length) in targets(&placement) {
            for page in (offset..offset + length).step_by(4096) {
                assert!(bytes.insert(page), "two pieces at {page}");
            }
        }
        assert_eq!(bytes.len(), 256);
        assert!(placement.plans.iter().all(|plan| plan.bytes() == cell.transfer_bytes()));
    }

    #[test]
    fn both_ends_agree_and_seeds_differ() {
        let digests = |seed| {
            let placement = Placement::of(&Cell { seed, ..example() }).expect("a placement");
            placement.plans.iter().map(|plan| plan.digest()).collect::<Vec<_>>()
        };
        assert_eq!(digests(1), digests(1));
        assert_ne!(digests(1), digests(2));
    }

    #[test]
    fn what_was_touched_is_listed_once() {
        let placement = Placement::of(&example()).expect("a placement");
        let count = placement.plans.len() as u64;
        assert_eq!(placement.touched(5, 7).count(), 2);
        let all: HashSet<_> = placement.touched(3, 3 + 10 * count).map(|plan| plan.digest()).collect();
        assert_eq!(all.len() as u64, count);
    }

    #[test]
    fn small_blocks_do_not_make_endless_plans() {
        let cell = Cell { block_bytes: 64, blocks: 1, region_bytes: 16 << 20, ..example() };
        let placement = Placement::of(&cell).expect("a placement");
        assert_eq!(placement.plans.len() as u64, SETS_MAX);
        let distinct: HashSet<_> = targets(&placement).into_iter().collect();
        assert_eq!(distinct.len() as u64, SETS_MAX);
    }
}
