//! Whether two spans can meet in memory, and if so, only in blocks of the same index.
//!
//! An element of a span lies at `offset + sum(index * stride)`. Two spans with the same stride on an axis differ there
//! by a multiple of it, and as strides nest (each at least as large as all that lies inside), at most three multiples
//! bring the inner boxes together. So the axes are walked from the outside in, with those few multiples each, and what
//! is left is a comparison of two ranges. From the first axis on that the two do not share, both are taken as solid:
//! that errs on the side of meeting, and never happens to layouts as vLLM makes them outside a page.
//!
//! The block axis is special: spans that meet only where its multiple is zero meet only in blocks of equal index.

use super::{Axis, AxisOrder, Extent, SpanBox};

/// How two spans or groups lie to each other, from harmless to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Overlay {
    /// No byte is shared.
    Disjoint,
    /// Bytes are shared, but only by blocks of the same index.
    SameBlock,
    /// Blocks of different index may share bytes.
    OutOfStep,
}

/// How the spans of two groups lie to each other.
pub(super) fn of_groups(order: AxisOrder, a: &[SpanBox], b: &[SpanBox]) -> Overlay {
    let pairs = a.iter().flat_map(|a| b.iter().map(move |b| of_spans(order, a, b)));
    pairs.max().unwrap_or(Overlay::Disjoint)
}

/// How two spans of one layout lie to each other.
pub(super) fn of_spans(order: AxisOrder, a: &SpanBox, b: &SpanBox) -> Overlay {
    let mut a_sizes = [i128::from(a.content_bytes); 5];
    let mut b_sizes = [i128::from(b.content_bytes); 5];
    let axes = order.axes();
    for (depth, axis) in axes.into_iter().enumerate().rev() {
        a_sizes[depth] = a_sizes[depth + 1] + a.extent(axis).reach();
        b_sizes[depth] = b_sizes[depth + 1] + b.extent(axis).reach();
    }
    let walk = Walk { axes, a, b, a_sizes, b_sizes };
    // With one block only, whatever meets is in blocks of equal index.
    let blocks_apart = (a.block.count == 1).then_some(0);
    walk.meet(0, i128::from(b.offset) - i128::from(a.offset), blocks_apart)
}

impl Extent {
    /// Bytes from the first to the last start.
    fn reach(self) -> i128 {
        i128::from(self.count - 1) * i128::from(self.stride)
    }
}

struct Walk<'a> {
    axes: [Axis; 4],
    a: &'a SpanBox,
    b: &'a SpanBox,
    /// Bytes of `a` from its axis `depth` inwards; the last is the content.
    a_sizes: [i128; 5],
    b_sizes: [i128; 5],
}

impl Walk<'_> {
    /// Meeting of what lies from axis `depth` inwards, `b` starting `distance` bytes after `a`. `blocks_apart` is the
    /// difference of the block indices once the block axis was walked.
    fn meet(&self, depth: usize, distance: i128, blocks_apart: Option<i128>) -> Overlay {
        if distance >= self.a_sizes[depth] || -distance >= self.b_sizes[depth] {
            return Overlay::Disjoint;
        }
        let shared = self.axes.get(depth).and_then(|&axis| Some((axis, self.shared_stride(depth, axis)?)));
        let Some((axis, stride)) = shared else {
            return if blocks_apart == Some(0) { Overlay::SameBlock } else { Overlay::OutOfStep };
        };
        let (a_count, b_count) = (i128::from(self.a.extent(axis).count), i128::from(self.b.extent(axis).count));
        // b's index minus a's must keep the inner boxes in touch: -b_size < distance + step * stride < a_size.
        let step_first = (-(distance + self.b_sizes[depth + 1])).div_euclid(stride) + 1;
        let step_last = (self.a_sizes[depth + 1] - distance - 1).div_euclid(stride);
        let steps = step_first.max(1 - a_count)..=step_last.min(b_count - 1);
        let inner = steps.map(|step| {
            let blocks_apart = if axis == Axis::Block { Some(step) } else { blocks_apart };
            self.meet(depth + 1, distance + step * stride, blocks_apart)
        });
        inner.max().unwrap_or(Overlay::Disjoint)
    }

    /// The stride of an axis if it is one and the same for both, and no smaller than what lies inside either, which
    /// bounds the steps: one span's page could else hold any number of the other's.
    fn shared_stride(&self, depth: usize, axis: Axis) -> Option<i128> {
        let (a, b) = (self.a.extent(axis), self.b.extent(axis));
        let stride = match (a.count, b.count) {
            // One of each: only step zero is walked, whatever the stride.
            (1, 1) => return Some(REGION),
            (1, _) => b.stride,
            (_, 1) => a.stride,
            _ if a.stride == b.stride => a.stride,
            _ => return None,
        };
        let stride = i128::from(stride);
        (stride >= self.a_sizes[depth + 1] && stride >= self.b_sizes[depth + 1]).then_some(stride)
    }
}

/// A stride that no two elements of one region can be apart.
const REGION: i128 = 1 << 64;
