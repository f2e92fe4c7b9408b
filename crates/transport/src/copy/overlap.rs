//! Whether a plan within one memory reads bytes that it writes.

use std::sync::Arc;

use kvferry_core::plan::{Cursor, Plan, Side, Slice};

/// Slices taken from a cursor at once.
const STRIDE: usize = 4096;

/// Whether any byte of the plan's source side is also one of its target side. O(slices log slices), and a list of all
/// slices: for the rare read whose source and target are one memory.
pub(super) fn overlaps(plan: &Arc<Plan>) -> bool {
    let (sources, targets) = (sorted(plan, Side::Source), sorted(plan, Side::Target));
    let mut targets = targets.iter().peekable();
    sources.iter().any(|source| {
        // Targets are disjoint, so that one which ends before this source ends before all later ones.
        while targets.next_if(|target| target.offset + target.length <= source.offset).is_some() {}
        targets.peek().is_some_and(|target| target.offset < source.offset + source.length)
    })
}

fn sorted(plan: &Arc<Plan>, side: Side) -> Vec<Slice> {
    let mut cursor = Cursor::new(Arc::clone(plan), side);
    let mut slices = Vec::new();
    while cursor.remaining() > 0 && cursor.take(u64::MAX, STRIDE, &mut slices) > 0 {}
    slices.sort_unstable_by_key(|slice| slice.offset);
    slices
}
