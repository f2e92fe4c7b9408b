//! The block lists of a plan: checked, sorted, and merged into stretches of neighbours.

use super::{GroupBlocks, PAIRS_MAX, PlanError, Side};
use crate::ids::BlockIndex;
use crate::layout::{Layout, Overlay};

/// The pairs of one group, in ascending order of target blocks, which are all different.
#[derive(Clone, Debug, Default)]
pub(super) struct GroupPairs {
    /// Target block in the upper half, source block in the lower: sorting sorts by target.
    keys: Vec<u64>,
}

/// Neighbouring blocks on both sides: `length` pairs from these first ones, each one up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stretch {
    pub(super) source: BlockIndex,
    pub(super) target: BlockIndex,
    pub(super) length: u32,
}

impl GroupPairs {
    /// The longest stretches, in ascending order of target blocks.
    pub(super) fn stretches(&self) -> impl Iterator<Item = Stretch> + '_ {
        // One up on both sides is one up in both halves of a key. A source block is below its layout's block count,
        // so the lower half never carries.
        const BOTH_UP: u64 = (1 << 32) + 1;
        self.keys.chunk_by(|key, next| key + BOTH_UP == *next).filter_map(|keys| {
            let (target, source) = halves(*keys.first()?);
            Some(Stretch { source, target, length: u32::try_from(keys.len()).ok()? })
        })
    }

    fn targets(&self) -> impl Iterator<Item = BlockIndex> + '_ {
        self.keys.iter().map(|key| halves(*key).0)
    }
}

/// Checks the lists and gathers them by group; a group that is not named gets no pairs.
pub(super) fn gather(source: &Layout, target: &Layout, blocks: &[GroupBlocks]) -> Result<Vec<GroupPairs>, PlanError> {
    let group_count = target.groups().len();
    let mut groups = vec![GroupPairs::default(); group_count];
    let mut pair_count = 0_usize;
    for lists in blocks {
        let group = lists.group;
        let pairs = usize::try_from(group).ok().and_then(|group| groups.get_mut(group));
        let Some(pairs) = pairs else { return Err(PlanError::UnknownGroup { group, group_count }) };
        let (source_count, target_count) = (lists.source.len(), lists.target.len());
        if source_count != target_count {
            return Err(PlanError::ListLength { group, source_count, target_count });
        }
        pair_count = pair_count.saturating_add(target_count);
        if pair_count > PAIRS_MAX {
            return Err(PlanError::TooManyPairs);
        }
        check_range(Side::Source, source, group, &lists.source)?;
        check_range(Side::Target, target, group, &lists.target)?;
        pairs.keys.extend(lists.source.iter().zip(&lists.target).map(|(source, target)| key(*source, *target)));
    }
    for (group, pairs) in groups.iter_mut().enumerate() {
        pairs.keys.sort_unstable();
        if let Some(block) = pairs.targets().zip(pairs.targets().skip(1)).find_map(|(a, b)| (a == b).then_some(a)) {
            let group = number(group);
            return Err(PlanError::TargetTwice { group, other: group, block });
        }
    }
    for (group, pairs) in groups.iter().enumerate() {
        for (other, other_pairs) in groups.iter().enumerate().skip(group + 1) {
            check_overlay(target, (group, pairs), (other, other_pairs))?;
        }
    }
    Ok(groups)
}

/// Refuses two groups that would write the same bytes.
fn check_overlay(
    target: &Layout,
    (group, pairs): (usize, &GroupPairs),
    (other, other_pairs): (usize, &GroupPairs),
) -> Result<(), PlanError> {
    if pairs.keys.is_empty() || other_pairs.keys.is_empty() {
        return Ok(());
    }
    match target.overlay(group, other) {
        Overlay::Disjoint => Ok(()),
        Overlay::OutOfStep => Err(PlanError::GroupsOutOfStep { group: number(group), other: number(other) }),
        Overlay::SameBlock => match first_common(pairs.targets(), other_pairs.targets()) {
            Some(block) => Err(PlanError::TargetTwice { group: number(group), other: number(other), block }),
            None => Ok(()),
        },
    }
}

/// The first block that is in both ascending lists.
fn first_common(
    mut a: impl Iterator<Item = BlockIndex>,
    mut b: impl Iterator<Item = BlockIndex>,
) -> Option<BlockIndex> {
    let (mut left, mut right) = (a.next()?, b.next()?);
    loop {
        match left.cmp(&right) {
            std::cmp::Ordering::Less => left = a.next()?,
            std::cmp::Ordering::Equal => return Some(left),
            std::cmp::Ordering::Greater => right = b.next()?,
        }
    }
}

fn check_range(side: Side, layout: &Layout, group: u32, blocks: &[BlockIndex]) -> Result<(), PlanError> {
    let block_count = layout.block_count();
    match blocks.iter().find(|block| block.0 >= block_count) {
        Some(&block) => Err(PlanError::BlockOutOfRange { side, group, block, block_count }),
        None => Ok(()),
    }
}

fn key(source: BlockIndex, target: BlockIndex) -> u64 {
    u64::from(target.0) << 32 | u64::from(source.0)
}

/// Target and source of a key.
#[expect(clippy::cast_possible_truncation, reason = "the halves of a 64-bit number are 32 bits each")]
const fn halves(key: u64) -> (BlockIndex, BlockIndex) {
    (BlockIndex((key >> 32) as u32), BlockIndex(key as u32))
}

/// A group's number; layouts have few groups.
pub(super) fn number(group: usize) -> u32 {
    u32::try_from(group).unwrap_or(u32::MAX)
}
