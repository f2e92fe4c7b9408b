//! What came and went, for who keeps a map of it.

use super::*;
use crate::cache::Left;

#[test]
fn who_watches_hears_what_comes_and_goes() {
    let mut node = Node::new();
    let (engine, other_rank) = (device(0, 1), device(1, 1));
    node.keep(at(0), &engine, None, &[(1, 0), (2, 1)]);
    node.keep(at(0), &other_rank, None, &[(1, 0)]);
    node.tiers.clear(at(1), &[Arc::clone(&engine)]);
    node.run(at(1));
    let changed = |stored: &[u8], removed: &[u8]| TierEvent::Changed {
        fingerprint: engine.fingerprint(),
        tier: Tier::Host,
        stored: stored.iter().map(|&number| (0, hash(number))).collect(),
        removed: removed.iter().map(|&number| (0, hash(number))).collect(),
    };
    let mut changes = std::mem::take(&mut node.changes);
    for change in &mut changes {
        if let TierEvent::Changed { removed, .. } = change {
            removed.sort_unstable();
        }
    }
    assert_eq!(changes, [changed(&[1, 2], &[]), changed(&[], &[1, 2])]);
}

#[test]
fn who_watches_hears_the_last_word_on_each_block() {
    let mut node = Node::new();
    let engine = device(0, 1);
    node.keep(at(0), &engine, None, &[(1, 0)]);
    node.changes.clear();
    let class = node.tiers.kind(&engine, 0).expect("a class").host;
    // One goes and comes again, and another comes and goes, before anybody asks.
    assert!(node.tiers.host.remove(class, &hash(1), Left::Room));
    let work = node.store(&engine, None, &[(1, 0), (2, 1)]);
    while let Some(job) = node.tiers.poll_store(at(1)) {
        let copied = job.run();
        node.tiers.handle_copied(at(1), &copied);
    }
    node.tiers.commit(at(1), work);
    assert!(node.tiers.host.remove(class, &hash(2), Left::Room));
    node.run(at(1));
    let (fingerprint, tier) = (engine.fingerprint(), Tier::Host);
    let (stored, removed) = (vec![(0, hash(1))], vec![(0, hash(2))]);
    assert_eq!(node.changes, [TierEvent::Changed { fingerprint, tier, stored, removed }]);
}
