//! KVFerry's own policy, as its tiers use it.

use kvferry_core::Time;
use kvferry_tier::eviction::{Eviction, Settings};

use super::trace::Trace;

/// Blocks that are remembered, at least, as in the daemon: what 8 MiB hold.
const KNOWN_MIN: usize = 1 << 18;

/// Blocks that hit.
pub(super) fn hits(trace: &Trace, capacity: usize) -> u64 {
    let mut eviction = Eviction::new(Settings { known_min: KNOWN_MIN, seed: 1 });
    let mut hits = 0;
    for request in &trace.requests {
        let now = Time::from_nanos(request.at_ms.saturating_mul(1_000_000));
        let stored = eviction.stored_prefix(&request.blocks);
        hits += stored as u64;
        eviction.request(now, &request.blocks);
        if let Some(fit) = eviction.poll_fit() {
            eviction.handle_fit(fit.run());
        }
        let mut parent = stored.checked_sub(1).map(|last| request.blocks[last]);
        for &block in &request.blocks[stored..] {
            if !eviction.store(block, parent) {
                break;
            }
            while eviction.stored() > capacity {
                eviction.victim(now, block, |_| true);
            }
            parent = Some(block);
        }
        // The trace names each block for good.
        while eviction.next_forgotten().is_some() {}
    }
    hits
}
