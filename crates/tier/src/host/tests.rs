use std::collections::HashMap;
use std::path::PathBuf;

use kvferry_memory::{KeepError, Meter};

use super::*;

const BYTES: u64 = 8 << 20;
const LARGEST: u64 = 64 << 10;

struct Folder {
    folder: tempfile::TempDir,
}

impl Folder {
    fn new() -> Self {
        Self { folder: tempfile::tempdir_in("/dev/shm").expect("a folder in memory") }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("arena")
    }

    fn open(&self) -> (Arena, Recovery) {
        Arena::open(&self.path(), BYTES, LARGEST, &Meter::new()).expect("an arena")
    }
}

fn hash(number: u64) -> BlockHash {
    let mut hash = [0xa5; 32];
    hash[..8].copy_from_slice(&number.to_le_bytes());
    hash
}

fn body(number: u64, bytes: u64) -> Vec<u8> {
    (0..bytes).map(|place| (number.wrapping_mul(31).wrapping_add(place * 7) >> 3).to_le_bytes()[0]).collect()
}

fn fingerprint(number: u8) -> Fingerprint {
    Fingerprint([number; 32])
}

/// Moves a block's bytes in and seals it.
fn put(arena: &mut Arena, class: ClassId, number: u64) -> Result<(), Refused> {
    let filling = arena.reserve(class, hash(number), Tenant(0))?;
    let bytes = body(number, filling.bytes);
    arena.region().write(filling.offset, &bytes).expect("inside");
    arena.seal(filling, crc32c::crc32c(&bytes), number.checked_sub(1).map(hash)).expect("kept");
    Ok(())
}

/// Whether the block is there, with every byte that it must have.
fn holds(arena: &mut Arena, class: ClassId, number: u64) -> bool {
    let Some(block) = arena.pin(class, &hash(number)) else { return false };
    let mut bytes = vec![0; usize::try_from(block.bytes).expect("small")];
    arena.region().read(block.offset, &mut bytes).expect("inside");
    assert_eq!(bytes, body(number, block.bytes), "block {number}");
    assert_eq!(block.checksum, crc32c::crc32c(&bytes));
    assert_eq!(block.parent, number.checked_sub(1).map(hash));
    assert!(arena.unpin(&block));
    true
}

#[test]
fn a_block_is_found_once_it_is_sealed() {
    let folder = Folder::new();
    let (mut arena, recovery) = folder.open();
    assert_eq!(recovery, Recovery { recovered: Recovered::New, blocks: 0, unfinished: 0, damaged: 0 });
    let class = arena.class(fingerprint(1), 0, 5000).expect("a class");
    let filling = arena.reserve(class, hash(7), Tenant(0)).expect("a place");
    assert!(!arena.contains(class, &hash(7)) && arena.pin(class, &hash(7)).is_none());
    arena.abandon(filling);
    put(&mut arena, class, 7).expect("a place");
    assert!(holds(&mut arena, class, 7));
    assert_eq!(put(&mut arena, class, 7), Err(Refused::There));
    let other = arena.class(fingerprint(2), 0, 5000).expect("another class");
    assert!(!arena.contains(other, &hash(7)), "another fingerprint");
    assert!(arena.remove(class, &hash(7)) && !arena.remove(class, &hash(7)));
    assert_eq!(arena.blocks(), 0);
}

#[test]
fn the_next_daemon_has_what_was_sealed_and_nothing_else() {
    let folder = Folder::new();
    let (mut arena, _) = folder.open();
    let small = arena.class(fingerprint(1), 0, 5000).expect("a class");
    let large = arena.class(fingerprint(1), 1, LARGEST).expect("a class");
    for number in 0..20 {
        put(&mut arena, small, number).expect("a place");
        put(&mut arena, large, number).expect("a place");
    }
    assert!(arena.remove(small, &hash(3)));
    let unfinished = arena.reserve(small, hash(99), Tenant(0)).expect("a place");
    arena.region().write(unfinished.offset, b"half of").expect("inside");
    drop((arena, unfinished));

    let (mut arena, recovery) = folder.open();
    assert_eq!(recovery, Recovery { recovered: Recovered::Found, blocks: 39, unfinished: 1, damaged: 0 });
    let small = arena.class(fingerprint(1), 0, 5000).expect("a class");
    let large = arena.class(fingerprint(1), 1, LARGEST).expect("a class");
    for number in 0..20 {
        assert_eq!(holds(&mut arena, small, number), number != 3);
        assert!(holds(&mut arena, large, number));
    }
    assert!(!arena.contains(small, &hash(99)));
}

#[test]
fn what_is_held_stays() {
    let folder = Folder::new();
    let (mut arena, _) = folder.open();
    let class = arena.class(fingerprint(1), 0, 100).expect("a class");
    put(&mut arena, class, 1).expect("a place");
    let (once, twice) = (arena.pin(class, &hash(1)).expect("there"), arena.pin(class, &hash(1)).expect("there"));
    assert!(!arena.remove(class, &hash(1)));
    assert!(!arena.unpin(&once) && !arena.remove(class, &hash(1)));
    assert!(arena.unpin(&twice) && arena.remove(class, &hash(1)));
}

#[test]
fn full_is_an_answer_and_room_goes_from_class_to_class() {
    let folder = Folder::new();
    let (mut arena, _) = folder.open();
    let fill = |arena: &mut Arena, class: ClassId| {
        let mut count = 0;
        while put(arena, class, count).is_ok() {
            count += 1;
        }
        assert_eq!(put(arena, class, count), Err(Refused::Full));
        count
    };
    let small = arena.class(fingerprint(1), 0, 5000).expect("a class");
    let large = arena.class(fingerprint(2), 0, LARGEST).expect("a class");
    for _ in 0..3 {
        let count = fill(&mut arena, small);
        assert!(count * 8192 > BYTES * 8 / 10, "{count} of 8 KiB in {BYTES}");
        assert_eq!(put(&mut arena, large, 0), Err(Refused::Full));
        (0..count).for_each(|number| assert!(arena.remove(small, &hash(number))));
        let count = fill(&mut arena, large);
        assert!(count * LARGEST > BYTES * 7 / 10, "{count} of {LARGEST} in {BYTES}");
        (0..count).for_each(|number| assert!(arena.remove(large, &hash(number))));
    }
    assert_eq!(arena.class(fingerprint(3), 0, BYTES), Err(Refused::Class));
    assert_eq!(arena.class(fingerprint(3), 0, 0), Err(Refused::Class));
}

/// Fills all chunks with blocks of the class: how many.
fn fill(arena: &mut Arena, class: ClassId) -> u64 {
    (0..).find(|&number| put(arena, class, number).is_err()).expect("full at some time")
}

fn remove_all(arena: &mut Arena, names: &[(ClassId, BlockHash)]) {
    names.iter().for_each(|(class, hash)| assert!(arena.remove(*class, hash)));
}

#[test]
fn a_chunk_is_kept_for_a_class_that_has_none() {
    let folder = Folder::new();
    let (mut arena, _) = folder.open();
    let [old, new, late] = [1, 2, 3].map(|number| arena.class(fingerprint(number), 0, 5000).expect("a class"));
    let count = fill(&mut arena, old);
    let held: Vec<_> = (0..count).step_by(10).map(|number| arena.pin(old, &hash(number)).expect("there")).collect();
    let going = arena.part_for(new);
    let slots = u64::from(arena.geometry.cut(5000).expect("it fits").slots);
    assert!((slots * 8 / 10..slots).contains(&(going.len() as u64)), "{} of {slots}", going.len());
    assert!(going.iter().all(|(class, hash)| arena.is_leaving(*class, hash)));
    remove_all(&mut arena, &going);
    assert_eq!(put(&mut arena, old, count), Err(Refused::Full), "its places are nobody's");
    assert_eq!(put(&mut arena, new, 0), Err(Refused::Full), "some of it is held");
    assert!(arena.part_for(new).is_empty() && arena.part_for(old).is_empty());
    let (leaving, staying): (Vec<_>, Vec<_>) =
        held.into_iter().partition(|block| arena.classes.is_closed(block.place.chunk));
    assert!(!leaving.is_empty());
    leaving.iter().for_each(|block| assert!(arena.unpin(block)));
    let going = arena.part_for(new);
    assert_eq!(going.len(), leaving.len());
    remove_all(&mut arena, &going);
    assert_eq!(put(&mut arena, old, count), Err(Refused::Full), "it is kept");
    put(&mut arena, new, 0).expect("it is free");
    // Another one that has none waits while a chunk becomes free in another way: what was closed for it is open again.
    let going = arena.part_for(late);
    assert!(!going.is_empty());
    remove_all(&mut arena, &going);
    staying.iter().for_each(|block| assert!(arena.unpin(block)));
    assert!(arena.remove(new, &hash(0)));
    put(&mut arena, late, 0).expect("the chunk that was left");
    assert!(!arena.classes.has_closed());
    put(&mut arena, old, count).expect("a place in what was closed");
    assert!(arena.chunks_are_counted());
}

#[test]
fn a_damaged_record_does_not_keep_a_chunk() {
    let folder = Folder::new();
    let (mut arena, _) = folder.open();
    let [old, new] = [1, 2].map(|number| arena.class(fingerprint(number), 0, 5000).expect("a class"));
    let count = fill(&mut arena, old);
    for chunk in 0..arena.geometry.chunks {
        arena.region().write(arena.geometry.record(chunk, 3) + 20, b"another hash").expect("inside");
    }
    let going = arena.part_for(new);
    assert_eq!(going.len() as u64, u64::from(arena.geometry.cut(5000).expect("it fits").slots));
    remove_all(&mut arena, &going);
    put(&mut arena, new, 0).expect("an empty chunk");
    assert_eq!(arena.blocks() as u64, count - going.len() as u64 + 1);
}

#[test]
fn what_is_no_arena_of_this_shape_is_replaced() {
    let folder = Folder::new();
    let (mut arena, _) = folder.open();
    let class = arena.class(fingerprint(1), 0, 5000).expect("a class");
    put(&mut arena, class, 1).expect("a place");
    drop(arena);
    // Larger blocks: other chunks.
    let (arena, recovery) = Arena::open(&folder.path(), BYTES, 4 * LARGEST, &Meter::new()).expect("an arena");
    assert_eq!((recovery.recovered, recovery.blocks, arena.blocks()), (Recovered::Replaced, 0, 0));
    drop(arena);
    assert_eq!(folder.open().1.recovered, Recovered::Replaced);
    std::fs::write(folder.path(), vec![0xff; usize::try_from(BYTES).expect("small")]).expect("write");
    let (mut arena, recovery) = folder.open();
    assert_eq!((recovery.recovered, recovery.blocks, recovery.damaged), (Recovered::Replaced, 0, 0));
    let class = arena.class(fingerprint(1), 0, 5000).expect("a class");
    put(&mut arena, class, 1).expect("a place");
    drop(arena);
    assert_eq!(folder.open().1.blocks, 1);
}

#[test]
fn two_daemons_need_an_arena_each() {
    let folder = Folder::new();
    let (_arena, _) = folder.open();
    let said = Arena::open(&folder.path(), BYTES, LARGEST, &Meter::new()).err();
    assert_eq!(said, Some(OpenError::Keep(KeepError::InUse)));
    let small = Arena::open(&folder.folder.path().join("small"), 4096, LARGEST, &Meter::new()).err();
    assert_eq!(small, Some(OpenError::TooSmall { bytes: 4096, block_bytes_max: LARGEST }));
}

/// Flips bits all over what is not a block's own bytes.
#[test]
fn a_changed_bit_makes_a_miss_and_never_another_block() {
    let mut random = fastrand::Rng::with_seed(11);
    for _ in 0..60 {
        let folder = Folder::new();
        let (mut arena, _) = folder.open();
        let class = arena.class(fingerprint(1), 0, 5000).expect("a class");
        (0..50).for_each(|number| put(&mut arena, class, number).expect("a place"));
        let (geometry, region) = (arena.geometry, Arc::clone(arena.region()));
        // A chunk's entry, or a record.
        let at = if random.u32(0..5) == 0 { geometry.entry(0) } else { geometry.record(0, random.u32(0..50)) };
        let (place, mut byte) = (at + random.u64(0..128), [0]);
        region.read(place, &mut byte).expect("inside");
        region.write(place, &[byte[0] ^ 1 << random.u32(0..8)]).expect("inside");
        // Who is running finds it at once...
        let alive = (0..50).filter(|&number| holds(&mut arena, class, number)).count();
        assert!(alive >= 49);
        drop((arena, region));
        // ... and so does the next one.
        let (mut arena, recovery) = folder.open();
        let class = arena.class(fingerprint(1), 0, 5000).expect("a class");
        let there = (0..50).filter(|&number| holds(&mut arena, class, number)).count();
        assert_eq!(there as u64, recovery.blocks);
        assert_eq!(there, arena.blocks());
        assert!(there == 49 || there == 0, "{there}");
    }
}

#[test]
fn any_order_of_steps_is_what_a_map_would_do() {
    let folder = Folder::new();
    let mut random = fastrand::Rng::with_seed(3);
    let (mut arena, _) = folder.open();
    let mut model: HashMap<(u8, u64), ()> = HashMap::new();
    let sizes = [5000, 100, LARGEST];
    for step in 0..30_000 {
        let (kind, number) = (random.u8(0..3), random.u64(0..400));
        let class = arena.class(fingerprint(kind), u32::from(kind), sizes[usize::from(kind)]).expect("a class");
        match random.u32(0..100) {
            0..50 => match put(&mut arena, class, number) {
                Ok(()) => assert!(model.insert((kind, number), ()).is_none()),
                Err(Refused::There) => assert!(model.contains_key(&(kind, number))),
                Err(refused) => assert_eq!(refused, Refused::Full),
            },
            50..90 => assert_eq!(arena.remove(class, &hash(number)), model.remove(&(kind, number)).is_some()),
            90..99 => assert_eq!(holds(&mut arena, class, number), model.contains_key(&(kind, number))),
            _ if step % 7 == 0 => {
                drop(arena);
                let recovery;
                (arena, recovery) = folder.open();
                assert_eq!((recovery.blocks, recovery.damaged), (model.len() as u64, 0));
            }
            _ => {}
        }
        assert_eq!(arena.blocks(), model.len());
        assert!(step % 100 > 0 || arena.chunks_are_counted());
    }
}
