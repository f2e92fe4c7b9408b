//! Memory is full of one model's blocks, and another one comes.

use super::*;

/// Memory that the model has filled with chains of ten blocks.
fn full(folder: &Path) -> (Cache<Arena>, ClassId) {
    let mut cache = open(folder, at(0));
    let class = class(&mut cache, 1);
    for request in 0..300 {
        serve(&mut cache, at(request), class, &chain(request));
    }
    assert!(cache.evicted() > 0);
    (cache, class)
}

fn chain(request: u64) -> Vec<BlockHash> {
    (0..10).map(|block| hash(request * 10 + block)).collect()
}

/// Holds what is there of every second request's blocks: some of each part of memory.
fn hold(cache: &mut Cache<Arena>, class: ClassId, odd: u64) -> Vec<crate::host::Block> {
    let names: Vec<_> = (0..150).flat_map(|request| chain(2 * request + odd)).collect();
    names.iter().filter_map(|hash| cache.pin(class, hash)).collect()
}

#[test]
fn a_new_model_gets_room_though_something_is_held_everywhere_and_always() {
    let folder = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
    let (mut cache, old) = full(folder.path());
    let new = class(&mut cache, 2);
    let even = hold(&mut cache, old, 0);
    assert!(even.len() > 500);
    let wanted = chain(1000);
    assert_eq!(serve(&mut cache, at(400), new, &wanted), 0);
    assert_eq!(cache.request(at(400), new, &wanted), 0, "everywhere something is held");
    let left = cache.blocks();
    // Who tries again finds out at once that nothing has changed.
    let read = cache.store().records_read.get();
    assert_eq!(serve(&mut cache, at(401), new, &wanted), 0);
    assert_eq!((cache.store().records_read.get(), cache.blocks()), (read, left));
    // No moment without something that is held in every part of memory.
    let odd = hold(&mut cache, old, 1);
    even.iter().for_each(|block| assert!(cache.unpin(block)));
    for request in 2000..2100 {
        serve(&mut cache, at(402), old, &chain(request));
    }
    serve(&mut cache, at(403), new, &wanted);
    assert_eq!(serve(&mut cache, at(404), new, &wanted), 10, "what is kept for it is nobody else's");
    odd.iter().for_each(|block| assert!(cache.unpin(block), "what is held stays"));
    assert_eq!(cache.eviction.stored(), cache.blocks());
}

#[test]
fn nobody_loses_its_last_part_while_another_has_two() {
    let folder = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
    let (mut cache, old) = full(folder.path());
    let small: Vec<_> = (2..5).map(|number| class(&mut cache, number)).collect();
    for &class in &small {
        serve(&mut cache, at(400), class, &chain(1000));
    }
    for &class in &small {
        assert_eq!(cache.request(at(401), class, &chain(1000)), 10, "{class:?}");
    }
    // Nor does a model that has room take the last of it from others, whatever of its own is held.
    let held: Vec<_> = (0..300).flat_map(chain).filter_map(|hash| cache.pin(old, &hash)).collect();
    for request in 2000..2100 {
        serve(&mut cache, at(402), old, &chain(request));
    }
    for &class in &small {
        assert_eq!(cache.request(at(403), class, &chain(1000)), 10, "{class:?}");
    }
    held.iter().for_each(|block| assert!(cache.unpin(block)));
}
