//! What no policy can beat by much: a cache that knows the future (Belady, 1966).

use std::collections::BTreeSet;

use super::trace::Trace;

/// Blocks that hit, of requests whose order is known in advance: of what does not fit, the block that is asked for
/// again last goes first, the newest included. A hit counts where the whole prefix before it hit.
pub(super) fn hits(trace: &Trace, capacity: usize) -> u64 {
    let next_uses = next_uses(trace);
    let mut due = BTreeSet::new();
    let mut kept = vec![usize::MAX; trace.unique];
    let (mut hits, mut place) = (0, 0);
    for request in &trace.requests {
        let mut whole = true;
        for &block in &request.blocks {
            let next = next_uses[place];
            place += 1;
            let known = std::mem::replace(&mut kept[block as usize], usize::MAX);
            let hit = known != usize::MAX;
            if hit {
                due.remove(&(known, block));
            }
            whole &= hit;
            hits += u64::from(whole);
            if next == usize::MAX {
                continue;
            }
            due.insert((next, block));
            kept[block as usize] = next;
            if due.len() > capacity
                && let Some((_, last)) = due.pop_last()
            {
                kept[last as usize] = usize::MAX;
            }
        }
    }
    hits
}

/// For each access, the place of the next one to the same block; `usize::MAX` if there is none.
fn next_uses(trace: &Trace) -> Vec<usize> {
    let mut place = trace.accesses;
    let mut seen = vec![usize::MAX; trace.unique];
    let mut next = vec![usize::MAX; place];
    for &block in trace.requests.iter().rev().flat_map(|request| request.blocks.iter().rev()) {
        place -= 1;
        next[place] = std::mem::replace(&mut seen[block as usize], place);
    }
    next
}

#[cfg(test)]
mod tests {
    use super::super::trace::Request;
    use super::*;

    fn trace(requests: &[&[u32]]) -> Trace {
        let requests: Vec<Request> =
            requests.iter().map(|blocks| Request { at_ms: 0, blocks: blocks.to_vec() }).collect();
        let accesses = requests.iter().map(|request| request.blocks.len()).sum();
        Trace { requests, unique: 10, accesses }
    }

    #[test]
    fn what_is_needed_soonest_stays() {
        // Room for one: 1 is needed sooner than 0 whenever one of them must go.
        assert_eq!(hits(&trace(&[&[0], &[1], &[1], &[1], &[0]]), 1), 2);
        assert_eq!(hits(&trace(&[&[0], &[1], &[1], &[1], &[0]]), 2), 3);
    }

    #[test]
    fn behind_a_gap_nothing_hits() {
        assert_eq!(hits(&trace(&[&[0, 1, 2], &[0, 1, 2]]), 3), 3);
        assert_eq!(hits(&trace(&[&[1, 2], &[0, 1, 2]]), 3), 0, "0 was never there");
    }
}
