//! Host memory is full, and another model's engine comes.

use super::*;
use crate::store::Store as _;

/// Of a chunk of the tests' memory.
const SLOTS: u8 = 248;
const CHUNKS: u8 = 3;

fn name(chain: u8, place: u8) -> BlockHash {
    let mut hash = [7; 32];
    (hash[0], hash[1]) = (chain, place);
    hash
}

#[test]
fn what_leaves_for_another_model_is_found_no_more_and_loaded_by_who_has_found_it() {
    let mut node = Node::new();
    // Another rank's blocks are of another class.
    let (old, new) = (device(0, 1), device(1, 1));
    for chain in 0..CHUNKS {
        let work = node.work();
        let blocks = (0..SLOTS).map(|place| (name(chain, place), BlockIndex(u32::from(place) % BLOCKS))).collect();
        let groups = vec![(None, blocks)];
        node.tiers.store(work, &StoreRequest { device: Arc::clone(&old), groups, tenant: Tenant(0) });
        assert_eq!(node.run(at(0)), [TierEvent::Copied { work, failure: None }]);
        node.tiers.commit(at(0), work);
        assert_eq!(node.run(at(0)), [TierEvent::Stored { work, blocks: SLOTS.into() }], "a chunk of its own");
    }
    let claims: Vec<_> = (0..CHUNKS).map(|chain| node.lookup(at(1), &[&old], &[name(chain, 0)])).collect();
    assert!(claims.iter().all(|&(_, held)| held == 1));
    assert_eq!(node.keep(at(1), &new, None, &[(1, 0)]), 0, "in every chunk something is held");
    let there: Vec<_> = (0..CHUNKS)
        .map(|chain| {
            let (claim, held) = node.lookup(at(1), &[&old], &[name(chain, 0), name(chain, 1)]);
            node.tiers.forget(claim);
            node.run(at(1));
            held
        })
        .collect();
    let leaving = there.iter().position(|&held| held == 0).expect("one of them makes room");
    assert_eq!(there.iter().sum::<u32>(), 4, "the others do not: {there:?}");
    let (claim, chain) = (claims[leaving].0, u8::try_from(leaving).expect("small"));
    let class = node.tiers.kind(&old, 0).expect("a class").host;
    assert!(node.tiers.host().store().is_leaving(class, &name(chain, 0)));
    let work = node.work();
    let groups = vec![vec![(name(chain, 0), BlockIndex(9))]];
    let deadline = at(1000);
    node.tiers.load(work, &LoadRequest { claim, device: Arc::clone(&old), groups, deadline });
    assert_eq!(node.loaded(at(2)), Ok(BLOCK_BYTES));
    assert_eq!(node.keep(at(3), &new, None, &[(1, 0)]), 1, "nothing in it is held any more");
}
