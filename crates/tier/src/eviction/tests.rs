//! What holds for every policy: chains, limits, numbers; and that it learns.

use std::collections::HashSet;

use super::*;

fn at(seconds: u64) -> Time {
    Time::from_nanos(seconds * 1_000_000_000)
}

fn eviction(known_min: usize) -> Eviction {
    Eviction::new(Settings { known_min, seed: 1 })
}

/// Uses a request's blocks and stores what is missing, as far as there is room: how many hit.
fn serve(eviction: &mut Eviction, capacity: usize, now: Time, blocks: &[BlockNumber]) -> usize {
    let hits = eviction.stored_prefix(blocks);
    eviction.request(now, blocks);
    if let Some(fit) = eviction.poll_fit() {
        eviction.handle_fit(fit.run());
    }
    let mut parent = hits.checked_sub(1).map(|last| blocks[last]);
    for &block in &blocks[hits..] {
        if !eviction.store(block, parent) {
            break;
        }
        while eviction.stored() > capacity {
            eviction.victim(now, block, |_| true).expect("somebody may go");
        }
        parent = Some(block);
    }
    hits
}

#[test]
fn a_child_goes_before_its_parent() {
    let mut eviction = eviction(100);
    assert_eq!(serve(&mut eviction, 10, at(0), &[0, 1, 2]), 0);
    assert_eq!(serve(&mut eviction, 10, at(1), &[0, 1, 3]), 2);
    let mut gone = Vec::new();
    while let Some(victim) = eviction.victim(at(2), 3, |_| true) {
        gone.push(victim);
    }
    assert_eq!(gone.len(), 4);
    let place = |block| gone.iter().position(|&other| other == block);
    assert!(place(2) < place(1) && place(3) < place(1) && place(1) < place(0), "{gone:?}");
    assert_eq!(eviction.stored(), 0);
}

#[test]
fn a_block_without_its_parent_is_not_stored() {
    let mut eviction = eviction(100);
    eviction.request(at(0), &[0, 1]);
    assert!(!eviction.store(1, Some(0)), "its parent is missing");
    assert!(!eviction.store(7, None), "nobody asked for it");
    assert!(eviction.store(0, None) && eviction.store(1, Some(0)) && eviction.store(1, Some(0)));
    assert_eq!(eviction.stored(), 2);
}

#[test]
fn what_is_in_use_stays() {
    let mut eviction = eviction(100);
    serve(&mut eviction, 10, at(0), &[0, 1]);
    serve(&mut eviction, 10, at(0), &[5]);
    assert_eq!(eviction.victim(at(1), 5, |block| block == 5), Some(5));
    assert_eq!(eviction.victim(at(1), 1, |block| block != 1), None, "the parent has a child");
    assert_eq!(eviction.stored(), 2);
}

#[test]
fn what_is_known_has_a_limit_and_stored_blocks_are_never_forgotten() {
    let mut eviction = eviction(50);
    let mut free: Vec<BlockNumber> = (0..100).rev().collect();
    let mut in_use: HashSet<BlockNumber> = HashSet::new();
    for second in 0..1000 {
        let blocks: Vec<BlockNumber> = (0..3).map(|_| free.pop().expect("a number that is not in use")).collect();
        in_use.extend(&blocks);
        serve(&mut eviction, 20, at(second), &blocks);
        while let Some(block) = eviction.next_forgotten() {
            assert!(in_use.remove(&block), "{block} was not known");
            assert!(!eviction.chains.is_stored(block));
            free.push(block);
        }
        assert!(in_use.len() <= 50 && eviction.stored() <= 20);
    }
}

#[test]
fn what_is_remembered_follows_what_is_stored() {
    let mut eviction = eviction(100);
    let (mut next, mut stored) = (0, HashSet::new());
    let mut fresh = || {
        next += 10;
        (next - 10..next).collect::<Vec<BlockNumber>>()
    };
    for second in 0..2000 {
        let blocks = fresh();
        serve(&mut eviction, 4000, at(second), &blocks);
        stored.extend(blocks);
        stored.retain(|&block| eviction.chains.is_stored(block));
        let known = eviction.chains.known();
        assert!(known <= 100.max(2 * stored.len()) + FADING_LOOKS, "{known} for {}", stored.len());
    }
    assert!(eviction.stored() == 4000 && eviction.chains.known() >= 8000, "{}", eviction.chains.known());
    // All of them go at once: what was remembered beside them goes little by little.
    stored.drain().for_each(|block| eviction.lose(block));
    for second in 2000..2100 {
        let before = eviction.chains.known();
        eviction.request(at(second), &fresh());
        assert!(before.saturating_sub(eviction.chains.known()) <= FADING_LOOKS + 40);
    }
    assert_eq!(eviction.chains.known(), 100);
}

/// Two kinds of conversation, told apart by their length: the long ones go on after a minute, the short ones never.
/// The room is enough for the long ones of that minute alone.
#[test]
fn it_learns_who_comes_back() {
    let mut eviction = eviction(100_000);
    let (mut next, mut waiting, mut hits, mut possible) = (0, VecDeque::new(), 0, 0);
    for second in 0..3000_u64 {
        let mut fresh = |length: u32| {
            next += length;
            (next - length..next).collect::<Vec<_>>()
        };
        serve(&mut eviction, 1000, at(second), &fresh(8));
        serve(&mut eviction, 1000, at(second), &fresh(8));
        let mut long = fresh(12);
        serve(&mut eviction, 1000, at(second), &long);
        long.extend(fresh(2));
        waiting.push_back(long);
        if waiting.len() > 60 {
            let back = waiting.pop_front().expect("more than 60");
            let hit = serve(&mut eviction, 1000, at(second), &back);
            if second >= 2000 {
                hits += hit;
                possible += 12;
            }
        }
    }
    // LRU, which keeps 1000 of 30 blocks a second for 33 seconds, hits none at all.
    assert!(hits * 10 >= possible * 8, "{hits} of {possible}");
}

#[test]
fn any_requests_are_served() {
    let mut random = fastrand::Rng::with_seed(7);
    let mut eviction = eviction(300);
    for step in 0..20_000 {
        let length = random.usize(0..40);
        let root = random.u32(0..20);
        let blocks: Vec<BlockNumber> =
            (0..length).map(|depth| root * 40 + u32::try_from(depth).expect("small")).collect();
        serve(&mut eviction, 1 + step % 64, at(step as u64 / 3), &blocks);
        while eviction.next_forgotten().is_some() {}
    }
}

#[test]
fn a_request_after_a_long_silence_leaves_the_rest_for_later() {
    let mut eviction = eviction(1 << 20);
    for request in 0..3000_u32 {
        serve(&mut eviction, 100, at(u64::from(request / 10)), &[2 * request, 2 * request + 1]);
    }
    assert!(!eviction.catch_up(at(300)), "a busy time leaves nothing");
    serve(&mut eviction, 100, at(90_000), &[9_999_999]);
    let mut pieces = 0;
    while eviction.catch_up(at(90_000)) {
        pieces += 1;
    }
    // 6,000 lives, in some 30 bins that they have reached meanwhile.
    assert!((10..200).contains(&pieces), "{pieces}");
}
