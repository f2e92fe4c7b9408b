//! A cache of blocks on a disk.

use kvferry_core::Time;

use super::*;
use crate::store::{BlockHash, Tenant};
use crate::{Cache, CacheLimits};

const BYTES: u64 = 20_000;

fn at(seconds: u64) -> Time {
    Time::from_nanos(seconds * 1_000_000_000)
}

fn cache(path: &Path) -> (Cache<Shelf>, ClassId) {
    let (shelf, _) = Shelf::open(path, LIMITS).expect("a store");
    let mut cache = Cache::new(shelf, CacheLimits { known_min: 2000, tenant_bytes_max: u64::MAX, seed: 1 }, at(0));
    let class = cache.class(Fingerprint([1; 32]), 0, BYTES).expect("a class");
    (cache, class)
}

fn serve(cache: &mut Cache<Shelf>, mover: &mut Mover, when: (u64, ClassId), chain: &[u64]) -> usize {
    serve_to(cache, mover, when, chain, Tenant(0))
}

/// What a daemon does for an engine: reads what is there, as far as it is whole, and stores the rest.
fn serve_to(
    cache: &mut Cache<Shelf>,
    mover: &mut Mover,
    (now, class): (u64, ClassId),
    chain: &[u64],
    tenant: Tenant,
) -> usize {
    let region = memory(BYTES.next_multiple_of(4096));
    let span = Span { region: Arc::clone(&region), offset: 0, room: region.len() };
    let names: Vec<BlockHash> = chain.iter().copied().map(hash).collect();
    let mut there = cache.request(at(now), class, &names);
    for place in 0..there {
        let block = cache.pin(class, &names[place]).expect("it was there");
        mover.read(0, block, &span).expect("room");
        let Done::Read { block, outcome, .. } = finish(mover) else { panic!("a read") };
        if outcome.is_err() {
            cache.discard(class, &names[place], &block);
            there = place;
            break;
        }
        assert_eq!(region.crc32c(0, 0, BYTES).expect("inside"), crc32c::crc32c(&body(chain[place], BYTES)));
        cache.unpin(&block);
    }
    let mut parent = there.checked_sub(1).map(|last| names[last]);
    for place in there..chain.len() {
        if let Ok(filling) = cache.admit(at(now), class, names[place], parent, tenant) {
            let bytes = body(chain[place], BYTES);
            region.write(0, &bytes).expect("inside");
            mover.write(0, filling, &span).expect("room");
            let Done::Written { filling, outcome: Ok(()), .. } = finish(mover) else { panic!("not written") };
            assert!(cache.seal(filling, crc32c::crc32c(&bytes), parent));
        }
        parent = Some(names[place]);
    }
    there
}

#[test]
fn what_was_stored_is_used_again_and_what_is_damaged_is_stored_anew() {
    let folder = folder();
    let path = folder.path().join("shelf");
    let mut mover = Mover::open(SETTINGS).expect("a way to the disk");
    let chain: Vec<u64> = (0..6).collect();
    let (mut one, class) = cache(&path);
    assert_eq!(serve(&mut one, &mut mover, (0, class), &chain), 0);
    assert_eq!(serve(&mut one, &mut mover, (9, class), &chain), 6);
    drop(one);
    let (mut one, class) = cache(&path);
    assert_eq!(serve(&mut one, &mut mover, (1, class), &chain), 6, "it outlives the daemon");
    // More chains than there is room for: some go, none is another.
    for request in 0..60 {
        let chain: Vec<u64> = (0..6).map(|block| 100 * (request + 1) + block).collect();
        serve(&mut one, &mut mover, (10 + request, class), &chain);
    }
    assert!(one.evicted() > 20 && taken(&path).0 <= LIMITS.bytes_max);
    serve(&mut one, &mut mover, (100, class), &chain);
    assert_eq!(serve(&mut one, &mut mover, (101, class), &chain), 6);
    // All bytes of all blocks are lost; records stay.
    for path in extents(&path) {
        let file = std::fs::OpenOptions::new().write(true).open(path).expect("an extent");
        std::os::unix::fs::FileExt::write_all_at(&file, &vec![0; 300 << 10], 8192).expect("inside");
        file.sync_all().expect("synced");
    }
    assert_eq!(serve(&mut one, &mut mover, (102, class), &chain), 0);
    assert!(one.damaged_blocks() >= 1);
    while serve(&mut one, &mut mover, (103, class), &chain) < 6 {}
}

#[test]
fn a_tenant_has_no_more_of_the_disk_than_its_quota_and_costs_the_others_nothing() {
    let folder = folder();
    let path = folder.path().join("shelf");
    let mut mover = Mover::open(SETTINGS).expect("a way to the disk");
    let (small, other) = (Tenant(1), Tenant(2));
    let chain =
        |tenant: u64, request: u64| (0..4).map(|block| 10_000 * tenant + 10 * request + block).collect::<Vec<_>>();
    let (mut one, class) = cache(&path);
    one.set_quotas(at(0), [(small, 12 * BYTES)]);
    for request in 0..4 {
        serve_to(&mut one, &mut mover, (request, class), &chain(2, request), other);
    }
    for request in 0..20 {
        serve_to(&mut one, &mut mover, (10 + request, class), &chain(1, request), small);
        assert!(one.held_by(small) <= 12 * BYTES);
    }
    assert_eq!((one.held_by(small), one.held_by(other)), (12 * BYTES, 16 * BYTES));
    drop(one);
    let (mut one, class) = cache(&path);
    one.set_quotas(at(0), [(small, 5 * BYTES)]);
    assert_eq!((one.held_by(small), one.held_by(other)), (5 * BYTES, 16 * BYTES));
    for request in 0..4 {
        assert_eq!(serve_to(&mut one, &mut mover, (1, class), &chain(2, request), other), 4);
    }
    serve_to(&mut one, &mut mover, (2, class), &chain(1, 100), small);
    assert!(one.held_by(small) <= 5 * BYTES);
}
