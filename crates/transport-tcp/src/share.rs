//! Which stream carries which part of a work. Both ends compute the same, so this belongs to the protocol's version.
//!
//! ```text
//! plan -> part_count -> Plan::split -> part 0 on stream (work mod streams), part 1 on the next, ...
//! ```
//!
//! A small plan is one part, so that it costs one stream's system calls; works start on different streams, so that
//! small ones spread over all of them.

use std::sync::Arc;

use kvferry_core::WorkId;
use kvferry_core::plan::Plan;

/// A plan is spread over one more stream for each full part of this size. Chosen: half a piece.
pub(crate) const PART_BYTES_MIN: u64 = 256 << 10;

/// The part of the plan that each stream carries, if it carries one.
pub(crate) fn shares(plan: &Arc<Plan>, work: WorkId, stream_count: usize) -> Vec<Option<Arc<Plan>>> {
    let part_count = part_count(plan.bytes(), stream_count);
    let mut parts = if part_count == 1 {
        vec![Some(Arc::clone(plan))]
    } else {
        plan.split(part_count).into_iter().map(|part| Some(Arc::new(part))).collect()
    };
    (0..stream_count)
        .map(|stream| part_of(work, stream, stream_count, part_count).and_then(|part| parts.get_mut(part)?.take()))
        .collect()
}

/// How many parts a plan of this many bytes is cut into on an endpoint of this many streams.
fn part_count(plan_bytes: u64, stream_count: usize) -> usize {
    usize::try_from(plan_bytes / PART_BYTES_MIN).unwrap_or(usize::MAX).clamp(1, stream_count.max(1))
}

/// Which part a stream carries of a work, if it carries one.
fn part_of(work: WorkId, stream: usize, stream_count: usize, part_count: usize) -> Option<usize> {
    let first = usize::try_from(work.0 % stream_count as u64).unwrap_or(0);
    let part = (stream + stream_count - first) % stream_count;
    (part < part_count).then_some(part)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_part_has_one_stream(work in any::<u64>(), bytes in any::<u64>(), streams in 1_usize..65) {
            let parts = part_count(bytes, streams);
            let mut seen = vec![0; parts];
            for stream in 0..streams {
                if let Some(part) = part_of(WorkId(work), stream, streams, parts) {
                    seen[part] += 1;
                }
            }
            prop_assert!(seen.iter().all(|&count| count == 1));
        }
    }
}
