//! What can be wrong with a layout, said so that the engine's side can be put right.

use std::fmt;

use thiserror::Error;

use super::{AxisOrder, BLOCKS_MAX, GROUPS_MAX, LAYERS_MAX, REGION_BYTES_MAX, SPANS_MAX};

/// A strided axis of a layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Axis {
    /// Blocks of the cache.
    Block,
    /// KV heads of a layer.
    Head,
    /// Layers of a span.
    Layer,
    /// Tokens of a block.
    Token,
}

impl fmt::Display for Axis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Block => "block",
            Self::Head => "head",
            Self::Layer => "layer",
            Self::Token => "token",
        })
    }
}

/// Why a layout was refused. Groups and spans are counted from zero.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum LayoutError {
    /// An axis steps by less than what lies inside it.
    #[error(
        "group {group}, span {span}: the {axis} stride is smaller than what the order {order} puts inside it; \
         give the strides of the order that the engine resolved"
    )]
    AxesOverlap {
        /// The group.
        group: usize,
        /// The span in it.
        span: usize,
        /// The axis whose stride is too small.
        axis: Axis,
        /// The layout's order.
        order: AxisOrder,
    },
    /// No block, or more than [`BLOCKS_MAX`].
    #[error("{block_count} blocks: must be 1 to {BLOCKS_MAX}")]
    BlockCount {
        /// What was given.
        block_count: u32,
    },
    /// A group without layers.
    #[error("group {group} has no layers; leave out groups whose blocks are not transferred")]
    EmptyGroup {
        /// The group.
        group: usize,
    },
    /// No group, or more than [`GROUPS_MAX`].
    #[error("{group_count} groups: must be 1 to {GROUPS_MAX}")]
    GroupCount {
        /// What was given.
        group_count: usize,
    },
    /// A span reaches beyond the region.
    #[error("group {group}, span {span} reaches beyond the region of {region_bytes} bytes")]
    OutsideRegion {
        /// The group.
        group: usize,
        /// The span in it.
        span: usize,
        /// Length of the region.
        region_bytes: u64,
    },
    /// More than [`REGION_BYTES_MAX`].
    #[error("a region of {region_bytes} bytes: must be at most {REGION_BYTES_MAX}")]
    RegionTooLarge {
        /// What was given.
        region_bytes: u64,
    },
    /// Two spans of one group share a byte, or cannot be shown not to.
    #[error("group {group}: spans {other} and {span} share bytes")]
    SpansOverlap {
        /// The group.
        group: usize,
        /// The later span.
        span: usize,
        /// The earlier span.
        other: usize,
    },
    /// More than [`LAYERS_MAX`] over all groups.
    #[error("{layer_count} layers: must be at most {LAYERS_MAX}")]
    TooManyLayers {
        /// What was given.
        layer_count: u64,
    },
    /// More than [`SPANS_MAX`] over all groups.
    #[error("{span_count} spans: must be at most {SPANS_MAX}; join layers of equal shape and distance")]
    TooManySpans {
        /// What was given.
        span_count: usize,
    },
    /// No layers, heads, tokens or content.
    #[error("group {group}, span {span}: layers, heads, tokens and content bytes must not be zero")]
    ZeroCount {
        /// The group.
        group: usize,
        /// The span in it.
        span: usize,
    },
}

/// An order of the axes that is not one of [`AxisOrder::ALL`].
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("unknown axis order {found:?}: known are BHLNC, BLHNC, BLNHC, LBHNC, LBNHC and LHBNC")]
pub struct UnknownOrder {
    /// What was found, cut to a length that is fit to print.
    pub found: String,
}

impl UnknownOrder {
    /// Most characters kept of a text from outside.
    const FOUND_CHARS_MAX: usize = 16;

    pub(super) fn new(text: &str) -> Self {
        Self { found: text.chars().take(Self::FOUND_CHARS_MAX).collect() }
    }
}
