//! Why a plan was refused.

use std::fmt;

use thiserror::Error;

use super::{PAIRS_MAX, RUNS_MAX};
use crate::ids::BlockIndex;

/// What one block of one layer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageShape {
    /// KV heads.
    pub head_count: u32,
    /// Tokens of a block.
    pub token_count: u32,
    /// Bytes of one token of one head.
    pub content_bytes: u64,
}

impl fmt::Display for PageShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} heads x {} tokens x {} bytes", self.head_count, self.token_count, self.content_bytes)
    }
}

/// Why a plan was refused. None of it goes away by trying again with the same layouts and blocks.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum PlanError {
    /// A block index is not below the layout's block count.
    #[error("{side} block {block} of group {group} is out of range: the layout has {block_count} blocks")]
    BlockOutOfRange {
        /// Which layout.
        side: super::Side,
        /// The group.
        group: u32,
        /// The block.
        block: BlockIndex,
        /// Blocks of that layout.
        block_count: u32,
    },
    /// The layouts differ in the number of groups.
    #[error("the source has {source_count} groups, the target {target_count}")]
    GroupCount {
        /// Groups of the source.
        source_count: usize,
        /// Groups of the target.
        target_count: usize,
    },
    /// Two target groups overlay such that different block indices share bytes.
    #[error("target groups {group} and {other} overlay the same bytes at different block indices")]
    GroupsOutOfStep {
        /// One group.
        group: u32,
        /// The other group.
        other: u32,
    },
    /// A group has more layers on one side.
    #[error("group {group} has {source_count} layers in the source, {target_count} in the target")]
    LayerCount {
        /// The group.
        group: u32,
        /// Its layers in the source.
        source_count: usize,
        /// Its layers in the target.
        target_count: usize,
    },
    /// The lists of a group differ in length.
    #[error("group {group} lists {source_count} source blocks but {target_count} target blocks")]
    ListLength {
        /// The group.
        group: u32,
        /// Length of the source list.
        source_count: usize,
        /// Length of the target list.
        target_count: usize,
    },
    /// A layer's page differs in shape.
    #[error("layer {layer} of group {group} is {source_shape} in the source, {target_shape} in the target")]
    PageShape {
        /// The group.
        group: u32,
        /// The layer, counted in the group's order.
        layer: usize,
        /// Shape in the source.
        source_shape: PageShape,
        /// Shape in the target.
        target_shape: PageShape,
    },
    /// A block would be written twice, by one group or by two that overlay.
    #[error("target block {block} is written by group {group} and again by group {other}")]
    TargetTwice {
        /// The group.
        group: u32,
        /// The other group, or the same.
        other: u32,
        /// The block.
        block: BlockIndex,
    },
    /// More than [`PAIRS_MAX`] pairs of blocks.
    #[error("more than {PAIRS_MAX} pairs of blocks in one plan")]
    TooManyPairs,
    /// More than [`RUNS_MAX`] runs.
    #[error("more than {RUNS_MAX} runs in one plan; move fewer blocks at a time")]
    TooManyRuns,
    /// A group that the layouts do not have.
    #[error("group {group} is unknown: the layouts have {group_count}")]
    UnknownGroup {
        /// The group.
        group: u32,
        /// Groups of the layouts.
        group_count: usize,
    },
}
