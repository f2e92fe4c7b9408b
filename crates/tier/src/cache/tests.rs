use std::collections::HashSet;
use std::path::Path;

use kvferry_core::Fingerprint;
use kvferry_memory::Meter;

use super::*;
use crate::host::Arena;

mod sharing;
mod together;

const BLOCK_BYTES: u64 = 4000;
const BYTES: u64 = 8 << 20;

fn at(seconds: u64) -> Time {
    Time::from_nanos(seconds * 1_000_000_000)
}

fn hash(number: u64) -> BlockHash {
    let mut hash = [3; 32];
    hash[..8].copy_from_slice(&number.to_le_bytes());
    hash
}

fn body(hash: &BlockHash) -> Vec<u8> {
    hash.iter().copied().cycle().take(usize::try_from(BLOCK_BYTES).expect("small")).collect()
}

const LIMITS: CacheLimits = CacheLimits { known_min: 20_000, tenant_bytes_max: u64::MAX, seed: 1 };

fn open(folder: &Path, now: Time) -> Cache<Arena> {
    open_with(folder, now, LIMITS)
}

fn open_with(folder: &Path, now: Time, limits: CacheLimits) -> Cache<Arena> {
    let (arena, recovery) =
        Arena::open(&folder.join("arena"), BYTES, BLOCK_BYTES, &Meter::new()).expect("an arena in memory");
    assert_eq!(recovery.damaged, 0);
    Cache::new(arena, limits, now)
}

fn class(cache: &mut Cache<Arena>, number: u8) -> ClassId {
    cache.class(Fingerprint([number; 32]), 0, BLOCK_BYTES).expect("a class")
}

/// What an engine does: uses what is there, computes the rest and stores it. How many blocks it did not compute.
fn serve(cache: &mut Cache<Arena>, now: Time, class: ClassId, chain: &[BlockHash]) -> usize {
    serve_to(cache, now, class, chain, Tenant(0))
}

fn serve_to(cache: &mut Cache<Arena>, now: Time, class: ClassId, chain: &[BlockHash], tenant: Tenant) -> usize {
    let there = cache.request(now, class, chain);
    for hash in &chain[..there] {
        let block = cache.pin(class, hash).expect("it was there");
        let mut bytes = vec![0; usize::try_from(block.bytes).expect("small")];
        cache.store().region().read(block.offset, &mut bytes).expect("inside");
        assert_eq!(bytes, body(hash));
        assert_eq!(crc32c::crc32c(&bytes), block.checksum);
        cache.unpin(&block);
    }
    let mut parent = there.checked_sub(1).map(|last| chain[last]);
    for hash in &chain[there..] {
        match cache.admit(now, class, *hash, parent, tenant) {
            Ok(filling) => {
                let bytes = body(hash);
                cache.store().region().write(filling.offset, &bytes).expect("inside");
                cache.seal(filling, crc32c::crc32c(&bytes), parent);
            }
            Err(NotAdmitted::There) => {}
            Err(_) => break,
        }
        parent = Some(*hash);
    }
    there
}

#[test]
fn what_was_stored_is_used_again_and_outlives_the_cache() {
    let folder = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
    let chain: Vec<BlockHash> = (0..20).map(hash).collect();
    let mut cache = open(folder.path(), at(0));
    let model = class(&mut cache, 1);
    assert_eq!(serve(&mut cache, at(0), model, &chain), 0);
    assert_eq!(serve(&mut cache, at(9), model, &chain), 20);
    let other = class(&mut cache, 2);
    assert_eq!(serve(&mut cache, at(9), other, &chain), 0, "another fingerprint");
    drop(cache);
    let mut cache = open(folder.path(), at(0));
    let model = class(&mut cache, 1);
    assert_eq!((serve(&mut cache, at(1), model, &chain), cache.blocks()), (20, 40));
}

#[test]
fn a_block_that_did_not_come_leaves_no_hole() {
    let folder = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
    let mut cache = open(folder.path(), at(0));
    let model = class(&mut cache, 1);
    let chain: Vec<BlockHash> = (0..3).map(hash).collect();
    assert_eq!(
        cache.admit(at(0), model, chain[1], Some(chain[0]), Tenant(0)).expect_err("nobody knows its parent"),
        NotAdmitted::WithoutParent
    );
    cache.request(at(0), model, &chain);
    let first = cache.admit(at(0), model, chain[0], None, Tenant(0)).expect("room");
    let second = cache.admit(at(0), model, chain[1], Some(chain[0]), Tenant(0)).expect("room");
    cache.abandon(first);
    cache.seal(second, 0, Some(chain[0]));
    assert_eq!(cache.blocks(), 0, "nobody could use the second");
    assert_eq!(
        cache.admit(at(0), model, chain[2], Some(chain[1]), Tenant(0)).expect_err("its parent is gone"),
        NotAdmitted::WithoutParent
    );
    assert_eq!(serve(&mut cache, at(1), model, &chain), 0);
    assert_eq!(serve(&mut cache, at(2), model, &chain), 3);
}

#[test]
fn two_who_bring_the_same_block_store_it_once() {
    let folder = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
    let mut cache = open(folder.path(), at(0));
    let model = class(&mut cache, 1);
    for second_comes in [true, false] {
        let block = hash(u64::from(second_comes));
        cache.request(at(0), model, &[block]);
        let one = cache.admit(at(0), model, block, None, Tenant(0)).expect("room");
        let two = cache.admit(at(0), model, block, None, Tenant(0)).expect("room");
        cache.seal(one, crc32c::crc32c(b""), None);
        if second_comes {
            cache.seal(two, crc32c::crc32c(b""), None);
        } else {
            cache.abandon(two);
        }
        assert!(cache.store.contains(model, &block));
        assert_eq!(cache.eviction.stored(), cache.blocks());
    }
}

#[test]
fn what_is_damaged_is_a_miss_counted_once_and_comes_back() {
    let folder = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
    let mut cache = open(folder.path(), at(0));
    let model = class(&mut cache, 1);
    let chain: Vec<BlockHash> = (0..6).map(hash).collect();
    serve(&mut cache, at(0), model, &chain);
    // A record: nobody who asks gets the block.
    let block = cache.pin(model, &chain[4]).expect("there");
    assert!(cache.unpin(&block));
    let record = cache.store.record_at(&block);
    cache.store().region().write(record + 20, b"another hash").expect("inside");
    assert!(cache.pin(model, &chain[4]).is_none());
    assert_eq!((cache.damaged_blocks(), cache.blocks()), (1, 5));
    assert_eq!(serve(&mut cache, at(1), model, &chain), 4);
    // Bytes: who reads them says so.
    let (one, two) = (cache.pin(model, &chain[2]).expect("there"), cache.pin(model, &chain[2]).expect("there"));
    cache.discard(model, &chain[2], &one);
    assert_eq!((cache.damaged_blocks(), cache.blocks()), (1, 6), "somebody still reads it");
    cache.discard(model, &chain[2], &two);
    assert_eq!((cache.damaged_blocks(), cache.blocks()), (2, 5));
    assert_eq!(serve(&mut cache, at(2), model, &chain), 2);
    assert_eq!(
        serve(&mut cache, at(3), model, &chain),
        6,
        "it was stored anew, and what stood behind it is of use again"
    );
    assert_eq!(cache.eviction.stored(), cache.blocks());
}

#[test]
fn a_new_model_gets_room_from_an_old_one_that_has_it_all() {
    let folder = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
    let mut cache = open(folder.path(), at(0));
    let (old, new) = (class(&mut cache, 1), class(&mut cache, 2));
    for request in 0..300 {
        let chain: Vec<BlockHash> = (0..10).map(|block| hash(request * 10 + block)).collect();
        serve(&mut cache, at(request), old, &chain);
    }
    let full = cache.blocks();
    assert!(cache.evicted() > 0 && full > 1000, "{full}");
    let chain: Vec<BlockHash> = (0..10).map(hash).collect();
    serve(&mut cache, at(400), new, &chain);
    assert_eq!(serve(&mut cache, at(401), new, &chain), 10);
    assert_eq!(cache.eviction.stored(), cache.blocks());
}

/// Conversations of two models for a day, through the real store: every block that hits is compared, and nothing grows.
#[test]
fn a_day_leaves_nothing_behind() {
    let folder = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
    let mut random = fastrand::Rng::with_seed(9);
    let mut cache = open(folder.path(), at(0));
    let (mut next, mut open_chains, mut hits, mut asked, mut most) = (0, Vec::<(u8, Vec<BlockHash>)>::new(), 0, 0, 0);
    for step in 0..12_000_u64 {
        let now = at(step * 7);
        let (model, mut chain) = if random.u32(0..100) < 40 && !open_chains.is_empty() {
            open_chains.swap_remove(random.usize(..open_chains.len()))
        } else {
            (random.u8(1..3), (0..2).map(hash).collect())
        };
        chain.extend((0..random.u64(1..12)).map(|_| {
            next += 1;
            hash(1000 + next)
        }));
        let model_class = class(&mut cache, model);
        hits += serve(&mut cache, now, model_class, &chain);
        asked += chain.len();
        if chain.len() < 60 {
            open_chains.push((model, chain));
        }
        if open_chains.len() > 60 {
            open_chains.swap_remove(random.usize(..60));
        }
        if step % 1500 == 1499 {
            let blocks = cache.blocks();
            drop(cache);
            cache = open(folder.path(), now);
            assert_eq!(cache.blocks(), blocks, "all of them are there again");
        }
        assert_eq!(cache.eviction.stored(), cache.blocks());
        assert_eq!(cache.held_by(Tenant(0)), cache.blocks() as u64 * BLOCK_BYTES);
        most = most.max(cache.blocks());
        assert!(cache.known() <= 20_000 && cache.names.len() <= 20_000 + 60);
    }
    assert!(hits * 4 > asked, "{hits} of {asked} hit");
    assert!(u64::try_from(most).expect("small") * BLOCK_BYTES <= BYTES);
    let files: HashSet<_> =
        std::fs::read_dir(folder.path()).expect("the folder").map(|file| file.expect("a file").file_name()).collect();
    assert_eq!(files.len(), 1);
}

#[test]
fn a_tenant_has_no_more_than_its_quota_and_costs_the_others_nothing() {
    let folder = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
    let (small, other, none) = (Tenant(1), Tenant(2), Tenant(3));
    let chain = |tenant: u64, request: u64| -> Vec<BlockHash> {
        (0..10).map(|block| hash(tenant << 40 | request << 8 | block)).collect()
    };
    let mut cache = open(folder.path(), at(0));
    cache.set_quotas(at(0), [(small, 50 * BLOCK_BYTES), (none, BLOCK_BYTES - 1)]);
    let model = class(&mut cache, 1);
    for request in 0..40 {
        serve_to(&mut cache, at(request), model, &chain(2, request), other);
    }
    for request in 0..200 {
        serve_to(&mut cache, at(40 + request), model, &chain(1, request), small);
        assert!(cache.held_by(small) <= 50 * BLOCK_BYTES);
    }
    assert_eq!((cache.held_by(small), cache.held_by(other)), (50 * BLOCK_BYTES, 400 * BLOCK_BYTES));
    cache.request(at(240), model, &chain(3, 0));
    assert_eq!(cache.admit(at(240), model, chain(3, 0)[0], None, none).expect_err("no room"), NotAdmitted::Quota);
    assert_eq!(cache.held_by(none), 0);
    // The quota outlives the daemon, as far as it is configured again; who holds what is known anyway.
    drop(cache);
    let mut cache = open(folder.path(), at(0));
    assert_eq!((cache.held_by(small), cache.held_by(other)), (50 * BLOCK_BYTES, 400 * BLOCK_BYTES));
    cache.set_quotas(at(0), [(small, 20 * BLOCK_BYTES)]);
    assert_eq!(cache.held_by(small), 20 * BLOCK_BYTES);
    let model = class(&mut cache, 1);
    serve_to(&mut cache, at(1), model, &chain(1, 1000), small);
    assert!(cache.held_by(small) <= 20 * BLOCK_BYTES);
    for request in 0..40 {
        assert_eq!(serve_to(&mut cache, at(2), model, &chain(2, request), other), 10);
    }
    // The one quota for all who have none of their own is smaller from the next start on.
    drop(cache);
    let limits = CacheLimits { tenant_bytes_max: 100 * BLOCK_BYTES, ..LIMITS };
    let mut cache = open_with(folder.path(), at(0), limits);
    cache.set_quotas(at(0), [(small, 50 * BLOCK_BYTES)]);
    assert_eq!((cache.held_by(small), cache.held_by(other)), (20 * BLOCK_BYTES, 100 * BLOCK_BYTES));
    let whole = (0..40).filter(|&request| cache.request(at(1), model, &chain(2, request)) == 10).count();
    assert_eq!(whole, 10, "what stays is whole");
}

#[test]
fn a_lowered_quota_holds_also_in_chains_that_several_tenants_have_stored() {
    let folder = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
    let mut cache = open(folder.path(), at(0));
    let model = class(&mut cache, 1);
    // Each block of a chain is another tenant's, which engines with a namespace each come to; the last one may stay.
    for request in 0..20 {
        let chain: Vec<_> = (0..9).map(|block| hash(request * 10 + block)).collect();
        for (tenant, length) in (1..=chain.len()).enumerate() {
            serve_to(&mut cache, at(request), model, &chain[..length], Tenant(tenant as u64));
        }
    }
    assert!((0..9).all(|tenant| cache.held_by(Tenant(tenant)) == 20 * BLOCK_BYTES));
    cache.set_quotas(at(20), (0..9).map(|tenant| (Tenant(tenant), 3 * BLOCK_BYTES)));
    let held: Vec<_> = (0..9).map(|tenant| cache.held_by(Tenant(tenant)) / BLOCK_BYTES).collect();
    assert_eq!(held, [3; 9]);
}
