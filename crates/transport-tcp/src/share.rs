//! Which stream carries which part of a work. Both ends compute the same, so this belongs to the protocol's version.
//!
//! ```text
//! plan -> part_count -> Plan::split -> part 0 on stream 0, part 1 on stream 1, ...
//! ```
//!
//! A small plan is one part, so that it costs one stream's system calls; it goes over the first stream, which the
//! thread that posts works drives itself: nobody else need be woken for it.

use std::sync::Arc;

use kvferry_core::plan::Plan;

/// The part of the plan that each stream carries, if it carries one.
pub(crate) type Shares = Vec<Option<Arc<Plan>>>;

/// A plan is spread over one more stream for each full part of this size. Chosen: half a piece.
pub(crate) const PART_BYTES_MIN: u64 = 256 << 10;

/// How a plan is spread over an endpoint's streams.
pub(crate) fn shares(plan: &Arc<Plan>, stream_count: usize) -> Shares {
    let part_count = part_count(plan.bytes(), stream_count);
    let mut parts: Shares = if part_count == 1 {
        vec![Some(Arc::clone(plan))]
    } else {
        plan.split(part_count).into_iter().map(|part| Some(Arc::new(part))).collect()
    };
    parts.resize(stream_count, None);
    parts
}

/// How many parts a plan of this many bytes is cut into on an endpoint of this many streams.
fn part_count(plan_bytes: u64, stream_count: usize) -> usize {
    usize::try_from(plan_bytes / PART_BYTES_MIN).unwrap_or(usize::MAX).clamp(1, stream_count.max(1))
}
