//! A plain, slow reading of layouts: one address for each element, from the definition of the orders alone.

use std::sync::Arc;

use kvferry_core::layout::{AxisOrder, GroupLayout, LayerSpan, Layout};
use kvferry_core::plan::{Cursor, GroupBlocks, Plan, Side, Slice};
use proptest::prelude::*;

/// Element (layer, block, head, token) of a span, and how many of each there are, by the letter of the order.
pub(crate) fn addresses(layout: &Layout, group: usize, block: u32) -> Vec<(u64, u64)> {
    let spans = &layout.groups()[group].spans;
    spans.iter().flat_map(|span| span_addresses(layout, span, block)).collect()
}

/// First byte and length of every element of one block of a span; layers outermost, then heads, then tokens.
pub(crate) fn span_addresses(layout: &Layout, span: &LayerSpan, block: u32) -> Vec<(u64, u64)> {
    let mut strides = [0_u64; 5];
    let mut inner = 1;
    for letter in layout.order().name().bytes().rev() {
        let (index, count, fixed) = match letter {
            b'L' => (0, span.layer_count, Some(span.layer_stride)),
            b'B' => (1, layout.block_count(), Some(span.block_stride)),
            b'H' => (2, span.head_count, None),
            b'N' => (3, span.token_count, None),
            _ => (4, span.content_bytes, None),
        };
        strides[index] = fixed.unwrap_or(inner);
        inner = strides[index].saturating_mul(u64::from(count));
    }
    let mut found = Vec::new();
    for layer in 0..u64::from(span.layer_count) {
        for head in 0..u64::from(span.head_count) {
            for token in 0..u64::from(span.token_count) {
                // The stride of an axis of one may be anything; its index is zero.
                let indices = [layer, u64::from(block), head, token];
                let start = indices.iter().zip(strides).fold(span.offset, |sum, (index, stride)| sum + index * stride);
                found.push((start, u64::from(span.content_bytes)));
            }
        }
    }
    found
}

/// What the target must hold afterwards, byte by byte.
pub(crate) fn reference(
    source: &Layout,
    target: &Layout,
    blocks: &[GroupBlocks],
    source_bytes: &[u8],
    target_bytes: &[u8],
) -> Vec<u8> {
    let mut expected = target_bytes.to_vec();
    for lists in blocks {
        let group = lists.group as usize;
        for (from, to) in lists.source.iter().zip(&lists.target) {
            let elements = addresses(source, group, from.0).into_iter().zip(addresses(target, group, to.0));
            for ((source_start, length), (target_start, _)) in elements {
                for byte in 0..length {
                    expected[(target_start + byte) as usize] = source_bytes[(source_start + byte) as usize];
                }
            }
        }
    }
    expected
}

/// Most bytes and most slices of one take.
pub(crate) type Step = (u64, usize);

/// Every slice of one side, taken in steps of these sizes over and over.
pub(crate) fn slices(plan: &Arc<Plan>, side: Side, steps: &[Step]) -> Vec<Slice> {
    let mut cursor = Cursor::new(Arc::clone(plan), side);
    let mut all = Vec::new();
    for (bytes_max, slices_max) in steps.iter().cycle() {
        if cursor.remaining() == 0 {
            break;
        }
        let (before, left) = (all.len(), cursor.remaining());
        let taken = cursor.take(*bytes_max, *slices_max, &mut all);
        let fresh = &all[before..];
        assert_eq!(taken, fresh.iter().map(|slice| slice.length).sum::<u64>());
        assert_eq!(left - taken, cursor.remaining());
        assert!(
            taken > 0 && taken <= *bytes_max && fresh.len() <= *slices_max,
            "{taken} bytes, {} slices",
            fresh.len()
        );
        assert!(fresh.windows(2).all(|pair| pair[0].offset + pair[0].length != pair[1].offset), "neighbours unmerged");
        assert!(taken == left.min(*bytes_max) || fresh.len() == *slices_max, "stopped early");
    }
    assert_eq!(cursor.take(1, 1, &mut all), 0);
    all
}

/// Moves the bytes of a plan the way two ends of a wire do.
pub(crate) fn execute(
    plan: &Arc<Plan>,
    (source_steps, target_steps): (&[Step], &[Step]),
    source_bytes: &[u8],
    target_bytes: &mut [u8],
    written: &mut [u8],
) {
    let mut wire = Vec::new();
    for slice in slices(plan, Side::Source, source_steps) {
        wire.extend_from_slice(&source_bytes[slice.offset as usize..][..slice.length as usize]);
    }
    assert_eq!(wire.len() as u64, plan.bytes());
    let mut rest = wire.as_slice();
    for slice in slices(plan, Side::Target, target_steps) {
        let (now, later) = rest.split_at(slice.length as usize);
        target_bytes[slice.offset as usize..][..now.len()].copy_from_slice(now);
        for count in &mut written[slice.offset as usize..][..now.len()] {
            *count += 1;
        }
        rest = later;
    }
    assert!(rest.is_empty());
}

pub(crate) fn order() -> impl Strategy<Value = AxisOrder> {
    prop::sample::select(AxisOrder::ALL.to_vec())
}

/// Shape of a layer: heads, tokens, content bytes.
pub(crate) type Shape = (u32, u32, u32);

/// How one side lays out what both sides agree on.
#[derive(Clone, Debug)]
pub(crate) struct Manner {
    pub(crate) order: AxisOrder,
    pub(crate) block_count: u32,
    /// Where the layers of equal shape are cut into spans: a cut after each layer whose number's bit is set.
    pub(crate) cuts: u64,
    /// Bytes between blocks, layers and spans, picked in turn; mostly none.
    pub(crate) paddings: Vec<u64>,
    /// Whether groups lie over each other where the order permits.
    pub(crate) overlay: bool,
}

pub(crate) fn manner() -> impl Strategy<Value = Manner> {
    let padding = prop_oneof![5 => Just(0), 1 => 1..40_u64];
    let cuts = prop_oneof![3 => Just(0), 1 => any::<u64>()];
    (order(), 1..9_u32, cuts, prop::collection::vec(padding, 1..8), any::<bool>()).prop_map(
        |(order, block_count, cuts, paddings, overlay)| Manner { order, block_count, cuts, paddings, overlay },
    )
}

/// Lays out groups of layers in that manner. Spans of one group follow each other; with overlay, groups start together.
pub(crate) fn lay_out(manner: &Manner, groups: &[Vec<Shape>]) -> Layout {
    let mut paddings = manner.paddings.iter().copied().cycle();
    let mut padding = || paddings.next().unwrap_or(0);
    let blocks = u64::from(manner.block_count);
    let block_outermost = manner.order.name().starts_with('B');
    let heads_outside = matches!(manner.order, AxisOrder::Bhlnc | AxisOrder::Lhbnc);
    let mut laid = Vec::new();
    let (mut start, mut block_bytes, mut end) = (padding(), 0, 0);
    let first = start;
    for shapes in groups {
        let mut spans = Vec::new();
        if manner.overlay && block_outermost {
            start = first;
        }
        for (shape, layer_count) in cut(shapes, manner.cuts) {
            let (heads, tokens, content) = (u64::from(shape.0), u64::from(shape.1), u64::from(shape.2));
            let inner = if heads_outside { tokens * content } else { heads * tokens * content };
            let outer_heads = if heads_outside { heads } else { 1 };
            let layers = u64::from(layer_count);
            // In block-outermost orders the span's part of a block, in others all of the span.
            let (layer_stride, block_stride, bytes) = if block_outermost {
                let layer_stride = inner + padding();
                (layer_stride, 0, layer_stride * layers * outer_heads)
            } else {
                let block_stride = inner + padding();
                let layer_stride = block_stride * blocks * outer_heads + padding();
                (layer_stride, block_stride, layer_stride * layers)
            };
            spans.push(LayerSpan {
                layer_count,
                offset: start,
                layer_stride,
                block_stride,
                head_count: shape.0,
                token_count: shape.1,
                content_bytes: shape.2,
            });
            start += bytes + padding();
            end = end.max(start);
        }
        block_bytes = block_bytes.max(end - first);
        laid.push(GroupLayout { spans });
    }
    if block_outermost {
        block_bytes += padding();
        for span in laid.iter_mut().flat_map(|group| &mut group.spans) {
            span.block_stride = block_bytes;
        }
        end = first + block_bytes * blocks;
    }
    Layout::new(manner.order, manner.block_count, end, laid).expect("a well-made layout")
}

/// Neighbouring layers of equal shape, cut where told.
fn cut(shapes: &[Shape], cuts: u64) -> Vec<(Shape, u32)> {
    let mut spans: Vec<(Shape, u32)> = Vec::new();
    for (number, shape) in shapes.iter().enumerate() {
        match spans.last_mut() {
            Some((last, count)) if last == shape && cuts >> number & 1 == 0 => *count += 1,
            _ => spans.push((*shape, 1)),
        }
    }
    spans
}

/// What vLLM makes of groups of layers of one shape: no gaps, every group from byte zero over the same bytes.
pub(crate) fn engine_layout(order: AxisOrder, block_count: u32, shape: Shape, depths: &[u32]) -> Layout {
    let (heads, tokens, content) = (u64::from(shape.0), u64::from(shape.1), u64::from(shape.2));
    let (page, row, blocks) = (heads * tokens * content, tokens * content, u64::from(block_count));
    let block_bytes = page * u64::from(depths.iter().copied().max().unwrap_or(0));
    let (layer_stride, block_stride) = match order {
        AxisOrder::Lbhnc | AxisOrder::Lbnhc => (page * blocks, page),
        AxisOrder::Lhbnc => (page * blocks, row),
        AxisOrder::Blhnc | AxisOrder::Blnhc => (page, block_bytes),
        AxisOrder::Bhlnc => (row, block_bytes),
    };
    let group = |layer_count: &u32| LayerSpan {
        layer_count: *layer_count,
        offset: 0,
        layer_stride,
        block_stride,
        head_count: shape.0,
        token_count: shape.1,
        content_bytes: shape.2,
    };
    let groups = depths.iter().map(|depth| GroupLayout { spans: vec![group(depth)] }).collect();
    Layout::new(order, block_count, block_bytes * blocks, groups).expect("a layout of the engine")
}
