//! How one worker lays its blocks out in memory. Arithmetic only: nothing in here touches memory.
//!
//! ```text
//! engine's description -> Layout::new (every number checked) -> Plan::compile (trusts the layout, checks the blocks)
//! ```
//!
//! A layout is a set of groups in one flat region. A group lists its layers as spans: layers of equal shape at equal
//! distance. Groups may overlay the same bytes, because the engine gives a block to one group at a time; how two
//! groups overlay is worked out once, here, so that a plan can refuse targets that would write the same bytes twice.
//!
//! Layouts come from engines and peers and are not trusted: what [`Layout::new`] returns lies within its region, and no
//! two elements of one group share a byte. Limits: [`REGION_BYTES_MAX`], [`BLOCKS_MAX`], [`GROUPS_MAX`], [`SPANS_MAX`],
//! [`LAYERS_MAX`].

mod error;
mod overlay;

use std::fmt;
use std::str::FromStr;

pub use self::error::{Axis, LayoutError, UnknownOrder};
pub(crate) use self::overlay::Overlay;

/// Most bytes of one region, 64 PiB. Leaves room for sums and products of two checked numbers in 64 bits.
pub const REGION_BYTES_MAX: u64 = 1 << 56;
/// Most blocks of one layout; chosen, 16 tokens each make 4 Gi tokens.
pub const BLOCKS_MAX: u32 = 1 << 28;
/// Most groups of one layout; chosen, hybrid models have fewer than ten.
pub const GROUPS_MAX: usize = 64;
/// Most spans of one layout over all its groups; chosen, bounds the pairwise overlap check of [`Layout::new`].
pub const SPANS_MAX: usize = 512;
/// Most layers of one layout over all its groups; chosen, the deepest models have fewer than 200.
pub const LAYERS_MAX: u32 = 1024;

/// Order of the axes in memory, outermost first: layer (L), block (B), head (H), token (N), content (C).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AxisOrder {
    /// A block's heads are apart; each holds all layers.
    Bhlnc,
    /// A block is one range; heads outside tokens.
    Blhnc,
    /// A block is one range; tokens outside heads.
    Blnhc,
    /// A layer is one range, a block's page in it too; heads outside tokens.
    Lbhnc,
    /// A layer is one range, a block's page in it too; tokens outside heads.
    Lbnhc,
    /// A layer's heads are apart; each holds all blocks.
    Lhbnc,
}

impl AxisOrder {
    /// Every order there is.
    pub const ALL: [Self; 6] = [Self::Bhlnc, Self::Blhnc, Self::Blnhc, Self::Lbhnc, Self::Lbnhc, Self::Lhbnc];

    /// The order as the engine writes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bhlnc => "BHLNC",
            Self::Blhnc => "BLHNC",
            Self::Blnhc => "BLNHC",
            Self::Lbhnc => "LBHNC",
            Self::Lbnhc => "LBNHC",
            Self::Lhbnc => "LHBNC",
        }
    }

    /// The four strided axes, outermost first; content is always innermost.
    const fn axes(self) -> [Axis; 4] {
        use Axis::{Block, Head, Layer, Token};
        match self {
            Self::Bhlnc => [Block, Head, Layer, Token],
            Self::Blhnc => [Block, Layer, Head, Token],
            Self::Blnhc => [Block, Layer, Token, Head],
            Self::Lbhnc => [Layer, Block, Head, Token],
            Self::Lbnhc => [Layer, Block, Token, Head],
            Self::Lhbnc => [Layer, Head, Block, Token],
        }
    }
}

impl fmt::Display for AxisOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for AxisOrder {
    type Err = UnknownOrder;

    fn from_str(text: &str) -> Result<Self, UnknownOrder> {
        Self::ALL.into_iter().find(|order| order.name() == text).ok_or_else(|| UnknownOrder::new(text))
    }
}

/// Layers of equal shape at equal distance; one `KVCacheTensor` of vLLM, or a part of one.
///
/// The bytes of layer `l`, block `b`, head `h`, token `n` start at
/// `offset + l * layer_stride + b * block_stride + h * head_stride + n * token_stride` and are `content_bytes` long.
/// Head and token strides follow from the order, as in vLLM: each is the dense size of what lies inside it. So
/// `BHLNC` has heads `layer_count * layer_stride` apart (there a span must not be cut), `LHBNC` has heads
/// `block_count * block_stride` apart. The stride of an axis of length one is not looked at for that axis.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LayerSpan {
    /// How many layers.
    pub layer_count: u32,
    /// First byte of layer 0 of this span in block 0, from the start of the region.
    pub offset: u64,
    /// Bytes from one layer to the next.
    pub layer_stride: u64,
    /// Bytes from one block to the next.
    pub block_stride: u64,
    /// KV heads; 1 where the interior of a page is opaque.
    pub head_count: u32,
    /// Tokens of one block; 1 where the interior of a page is opaque.
    pub token_count: u32,
    /// Bytes of one token of one head.
    pub content_bytes: u32,
}

/// One KV cache group: which layers its blocks hold, in the group's own order. Groups may overlay the same bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct GroupLayout {
    /// The group's layers; both ends of a transfer list them in the same order, but may cut them differently.
    pub spans: Vec<LayerSpan>,
}

/// The checked layout of one worker's region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    order: AxisOrder,
    block_count: u32,
    region_bytes: u64,
    groups: Vec<GroupLayout>,
    /// The resolved spans of each group, in step with `groups`.
    boxes: Vec<Vec<SpanBox>>,
    /// Row by row, how each group overlays each other.
    overlays: Vec<Overlay>,
}

impl Layout {
    /// Checks every number of a layout.
    ///
    /// # Errors
    ///
    /// [`LayoutError`] where a count is zero or over its limit, a byte lies outside the region, the strides contradict
    /// the order, or two elements of one group share a byte.
    pub fn new(
        order: AxisOrder,
        block_count: u32,
        region_bytes: u64,
        groups: Vec<GroupLayout>,
    ) -> Result<Self, LayoutError> {
        if region_bytes > REGION_BYTES_MAX {
            return Err(LayoutError::RegionTooLarge { region_bytes });
        }
        if block_count == 0 || block_count > BLOCKS_MAX {
            return Err(LayoutError::BlockCount { block_count });
        }
        if groups.is_empty() || groups.len() > GROUPS_MAX {
            return Err(LayoutError::GroupCount { group_count: groups.len() });
        }
        let span_count = groups.iter().fold(0_usize, |sum, group| sum.saturating_add(group.spans.len()));
        if span_count > SPANS_MAX {
            return Err(LayoutError::TooManySpans { span_count });
        }
        let layer_count = groups
            .iter()
            .flat_map(|group| &group.spans)
            .fold(0_u64, |sum, span| sum.saturating_add(u64::from(span.layer_count)));
        if layer_count > u64::from(LAYERS_MAX) {
            return Err(LayoutError::TooManyLayers { layer_count });
        }
        let mut boxes = Vec::with_capacity(groups.len());
        for (number, group) in groups.iter().enumerate() {
            boxes.push(resolve_group(order, block_count, region_bytes, number, group)?);
        }
        let overlays = boxes.iter().flat_map(|a| boxes.iter().map(move |b| overlay::of_groups(order, a, b))).collect();
        Ok(Self { order, block_count, region_bytes, groups, boxes, overlays })
    }

    /// The order of the axes.
    #[must_use]
    pub const fn order(&self) -> AxisOrder {
        self.order
    }

    /// Blocks of every group; a block index is below it.
    #[must_use]
    pub const fn block_count(&self) -> u32 {
        self.block_count
    }

    /// Length of the region; no byte of any block lies beyond.
    #[must_use]
    pub const fn region_bytes(&self) -> u64 {
        self.region_bytes
    }

    /// The groups as they were given.
    #[must_use]
    pub fn groups(&self) -> &[GroupLayout] {
        &self.groups
    }

    /// Bytes of one block of a group over all its layers, or `None` for an unknown group.
    #[must_use]
    pub fn bytes_per_block(&self, group: u32) -> Option<u64> {
        let spans = &self.groups.get(usize::try_from(group).ok()?)?.spans;
        // Cannot overflow: the bytes are all different and within the region.
        Some(spans.iter().map(|span| u64::from(span.layer_count) * span.page_bytes()).sum())
    }

    /// The layers of a group, one by one; nothing for an unknown group.
    pub(crate) fn layers(&self, group: usize) -> impl Iterator<Item = Layer> + '_ {
        let boxes = self.boxes.get(group).map_or(&[][..], Vec::as_slice);
        boxes.iter().flat_map(|span| {
            (0..span.layer.count).map(move |layer| Layer {
                // Cannot overflow: every element's address is within the region.
                offset: span.offset + u64::from(layer) * span.layer.stride,
                block_stride: span.block.stride,
                head: span.head,
                token: span.token,
                content_bytes: span.content_bytes,
            })
        })
    }

    /// How two groups of this layout, both known, overlay.
    pub(crate) fn overlay(&self, a: usize, b: usize) -> Overlay {
        self.overlays.get(a * self.groups.len() + b).copied().unwrap_or(Overlay::OutOfStep)
    }
}

impl LayerSpan {
    fn page_bytes(&self) -> u64 {
        u64::from(self.head_count) * u64::from(self.token_count) * u64::from(self.content_bytes)
    }

    /// Gives every axis its stride and checks that the axes nest in the order's way within the region.
    fn resolve(&self, order: AxisOrder, block_count: u32, region_bytes: u64) -> Result<SpanBox, SpanFault> {
        if self.layer_count == 0 || self.head_count == 0 || self.token_count == 0 || self.content_bytes == 0 {
            return Err(SpanFault::Zero);
        }
        // Saturated strides are harmless: on an axis longer than one they fail the checks below, else they are not used.
        let content = u64::from(self.content_bytes);
        let heads = u64::from(self.head_count);
        let (head_stride, token_stride) = match order {
            AxisOrder::Bhlnc => (self.layer_stride.saturating_mul(u64::from(self.layer_count)), content),
            AxisOrder::Blhnc | AxisOrder::Lbhnc => (content.saturating_mul(u64::from(self.token_count)), content),
            AxisOrder::Blnhc | AxisOrder::Lbnhc => (content, content.saturating_mul(heads)),
            AxisOrder::Lhbnc => (self.block_stride.saturating_mul(u64::from(block_count)), content),
        };
        let resolved = SpanBox {
            offset: self.offset,
            layer: Extent::new(self.layer_count, self.layer_stride),
            block: Extent::new(block_count, self.block_stride),
            head: Extent::new(self.head_count, head_stride),
            token: Extent::new(self.token_count, token_stride),
            content_bytes: content,
        };
        let mut inner_bytes = content;
        for axis in order.axes().into_iter().rev() {
            let extent = resolved.extent(axis);
            if extent.count == 1 {
                continue;
            }
            if extent.stride < inner_bytes {
                return Err(SpanFault::AxesOverlap(axis));
            }
            inner_bytes = u64::from(extent.count - 1)
                .checked_mul(extent.stride)
                .and_then(|bytes| bytes.checked_add(inner_bytes))
                .ok_or(SpanFault::OutsideRegion)?;
        }
        match self.offset.checked_add(inner_bytes) {
            Some(end) if end <= region_bytes => Ok(resolved),
            _ => Err(SpanFault::OutsideRegion),
        }
    }
}

enum SpanFault {
    AxesOverlap(Axis),
    OutsideRegion,
    Zero,
}

fn resolve_group(
    order: AxisOrder,
    block_count: u32,
    region_bytes: u64,
    number: usize,
    group: &GroupLayout,
) -> Result<Vec<SpanBox>, LayoutError> {
    if group.spans.is_empty() {
        return Err(LayoutError::EmptyGroup { group: number });
    }
    let mut boxes: Vec<SpanBox> = Vec::with_capacity(group.spans.len());
    for (span, description) in group.spans.iter().enumerate() {
        let resolved = description.resolve(order, block_count, region_bytes).map_err(|fault| match fault {
            SpanFault::AxesOverlap(axis) => LayoutError::AxesOverlap { group: number, span, axis, order },
            SpanFault::OutsideRegion => LayoutError::OutsideRegion { group: number, span, region_bytes },
            SpanFault::Zero => LayoutError::ZeroCount { group: number, span },
        })?;
        let meets = |other: &SpanBox| overlay::of_spans(order, other, &resolved) != Overlay::Disjoint;
        if let Some(other) = boxes.iter().position(meets) {
            return Err(LayoutError::SpansOverlap { group: number, span, other });
        }
        boxes.push(resolved);
    }
    Ok(boxes)
}

/// One axis of a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) count: u32,
    /// Bytes from one to the next; zero where `count` is one, so that equal boxes compare equal.
    pub(crate) stride: u64,
}

impl Extent {
    const fn new(count: u32, stride: u64) -> Self {
        Self { count, stride: if count == 1 { 0 } else { stride } }
    }
}

/// A span with every stride known and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
struct SpanBox {
    offset: u64,
    layer: Extent,
    block: Extent,
    head: Extent,
    token: Extent,
    content_bytes: u64,
}

impl SpanBox {
    const fn extent(&self, axis: Axis) -> Extent {
        match axis {
            Axis::Block => self.block,
            Axis::Head => self.head,
            Axis::Layer => self.layer,
            Axis::Token => self.token,
        }
    }
}

/// One layer of a group, for the compiler of plans.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layer {
    /// Where block 0 starts.
    pub(crate) offset: u64,
    pub(crate) block_stride: u64,
    pub(crate) head: Extent,
    pub(crate) token: Extent,
    pub(crate) content_bytes: u64,
}

#[cfg(test)]
mod tests;
