//! What every store must do, whatever it keeps blocks in.

use kvferry_core::Fingerprint;

use crate::host::Arena;
use crate::store::{BlockHash, ClassId, Found, Held, Refused, Reserved as _, Store, Tenant};
use crate::twin::Twin;

/// A store, and what moves bytes into and out of it.
pub(crate) trait Bench {
    type Store: Store;

    fn store(&mut self) -> &mut Self::Store;

    /// Moves a block's bytes into its place.
    fn fill(&mut self, filling: &mut <Self::Store as Store>::Filling, bytes: &[u8]);

    /// The bytes of a block that is held.
    fn body(&mut self, block: &<Self::Store as Store>::Block) -> Vec<u8>;

    /// Ends the store and opens what it has left. False: it leaves nothing.
    fn reopen(&mut self) -> bool;
}

/// Classes of the suite: bytes of a block, which every store must take.
const SIZES: [u64; 3] = [5000, 4096, 60_000];
/// No store has room for more blocks of the smallest class.
const BLOCKS_MAX: u64 = 4000;

pub(crate) fn hash(number: u64) -> BlockHash {
    let mut hash = [0xa5; 32];
    hash[..8].copy_from_slice(&number.to_le_bytes());
    hash
}

pub(crate) fn body(number: u64, bytes: u64) -> Vec<u8> {
    (0..bytes).map(|place| (number.wrapping_mul(31).wrapping_add(place * 7) >> 3).to_le_bytes()[0]).collect()
}

fn class(bench: &mut impl Bench, kind: u8) -> ClassId {
    let bytes = SIZES[usize::from(kind)];
    bench.store().class(Fingerprint([kind; 32]), u32::from(kind), bytes).expect("a class")
}

pub(crate) fn put(bench: &mut impl Bench, class: ClassId, number: u64, parent: Option<u64>) -> Result<(), Refused> {
    let mut filling = bench.store().reserve(class, hash(number), Tenant(number % 3))?;
    let bytes = body(number, filling.bytes());
    bench.fill(&mut filling, &bytes);
    bench.store().seal(filling, crc32c::crc32c(&bytes), parent.map(hash)).expect("it can be written down");
    Ok(())
}

/// Whether the block is there, with every byte that it must have.
pub(crate) fn holds(bench: &mut impl Bench, class: ClassId, number: u64) -> bool {
    let Some(block) = bench.store().pin(class, &hash(number)) else { return false };
    let bytes = bench.body(&block);
    assert_eq!(bytes, body(number, block.bytes()), "block {number}");
    assert_eq!(block.checksum(), crc32c::crc32c(&bytes));
    assert!(bench.store().unpin(&block));
    true
}

/// All of it, of a store that is empty and has room for 20 blocks of each size at least.
pub(crate) fn hold_all(bench: &mut impl Bench) {
    what_is_sealed_is_found(bench);
    what_is_abandoned_is_room(bench);
    what_is_held_stays(bench);
    what_is_erased_is_not_found_again(bench);
    of_two_of_one_name_the_first_stays(bench);
    full_is_an_answer_and_room_goes_from_class_to_class(bench);
    parents_come_first(bench);
    any_order_of_steps_is_what_a_map_would_do(bench);
}

fn what_is_sealed_is_found(bench: &mut impl Bench) {
    let (one, other) = (class(bench, 0), class(bench, 2));
    assert_ne!(one, other);
    assert_eq!((class(bench, 0), bench.store().block_bytes(one)), (one, SIZES[0]), "a class is known again");
    assert_eq!(bench.store().class(Fingerprint([0; 32]), 0, 0), Err(Refused::Class), "blocks of no bytes");
    assert_eq!(bench.store().class(Fingerprint([0; 32]), 0, u64::MAX - 7), Err(Refused::Class));
    let mut filling = bench.store().reserve(one, hash(7), Tenant(5)).expect("a place");
    assert_eq!(
        (filling.class(), filling.hash(), filling.tenant(), filling.bytes()),
        (one, hash(7), Tenant(5), SIZES[0])
    );
    let bytes = body(7, SIZES[0]);
    bench.fill(&mut filling, &bytes);
    assert!(!bench.store().contains(one, &hash(7)) && bench.store().pin(one, &hash(7)).is_none(), "not sealed yet");
    assert!(!bench.store().remove(one, &hash(7)) && !bench.store().may_go(one, &hash(7)));
    bench.store().seal(filling, crc32c::crc32c(&bytes), None).expect("it can be written down");
    assert!(holds(bench, one, 7) && !holds(bench, one, 8));
    assert_eq!(put(bench, one, 7, None), Err(Refused::There));
    assert!(!bench.store().contains(other, &hash(7)), "another class");
    assert_eq!(bench.store().blocks(), 1);
    assert!(bench.store().remove(one, &hash(7)) && !bench.store().remove(one, &hash(7)));
    assert_eq!((bench.store().blocks(), bench.store().contains(one, &hash(7))), (0, false));
}

fn what_is_abandoned_is_room(bench: &mut impl Bench) {
    let class = class(bench, 2);
    // More often than there are places.
    for number in 0..BLOCKS_MAX {
        let filling = bench.store().reserve(class, hash(number), Tenant(0)).expect("a place");
        bench.store().abandon(filling);
        assert!(!bench.store().contains(class, &hash(number)));
    }
    assert_eq!(bench.store().blocks(), 0);
}

fn what_is_held_stays(bench: &mut impl Bench) {
    let class = class(bench, 0);
    put(bench, class, 1, None).expect("a place");
    let (once, twice) = (bench.store().pin(class, &hash(1)), bench.store().pin(class, &hash(1)));
    let (once, twice) = (once.expect("there"), twice.expect("there"));
    assert!(!bench.store().may_go(class, &hash(1)) && !bench.store().remove(class, &hash(1)));
    assert!(!bench.store().unpin(&once) && !bench.store().remove(class, &hash(1)));
    assert!(bench.store().unpin(&twice) && bench.store().may_go(class, &hash(1)));
    assert!(bench.store().remove(class, &hash(1)));
}

fn what_is_erased_is_not_found_again(bench: &mut impl Bench) {
    let one = class(bench, 0);
    put(bench, one, 1, None).expect("a place");
    put(bench, one, 2, Some(1)).expect("a place");
    let held = bench.store().pin(one, &hash(1)).expect("there");
    assert!(bench.store().erase(one, &hash(2)) && !bench.store().erase(one, &hash(2)));
    assert!(!bench.store().erase(one, &hash(1)) && !bench.store().erase(one, &hash(1)), "it is held");
    // This daemon has it until it goes.
    let again = bench.store().pin(one, &hash(1)).expect("there");
    assert_eq!(bench.body(&again), body(1, SIZES[0]));
    assert_eq!((again.checksum(), bench.store().blocks()), (held.checksum(), 1));
    assert!(!bench.store().unpin(&again));
    drop((held, again));
    bench.reopen();
    let one = class(bench, 0);
    assert_eq!((bench.store().blocks(), bench.store().contains(one, &hash(1))), (0, false));
    put(bench, one, 1, None).expect("a place");
    let held = bench.store().pin(one, &hash(1)).expect("there");
    assert!(!bench.store().erase(one, &hash(1)) && bench.store().unpin(&held));
    assert!(bench.store().remove(one, &hash(1)) && bench.store().blocks() == 0);
    put(bench, one, 1, None).expect("a place");
    assert!(holds(bench, one, 1) && bench.store().erase(one, &hash(1)), "a place as every other");
    assert_eq!(bench.store().blocks(), 0);
}

fn of_two_of_one_name_the_first_stays(bench: &mut impl Bench) {
    let class = class(bench, 0);
    let one = bench.store().reserve(class, hash(1), Tenant(0));
    let two = bench.store().reserve(class, hash(1), Tenant(0));
    let (mut one, mut two) = (one.expect("a place"), two.expect("nobody has sealed it"));
    let (first, second) = (body(1, SIZES[0]), body(2, SIZES[0]));
    bench.fill(&mut one, &first);
    bench.fill(&mut two, &second);
    bench.store().seal(one, crc32c::crc32c(&first), None).expect("it can be written down");
    bench.store().seal(two, crc32c::crc32c(&second), None).expect("there already is as good");
    assert!(holds(bench, class, 1));
    assert!(bench.store().blocks() == 1 && bench.store().remove(class, &hash(1)));
    assert!(!bench.store().contains(class, &hash(1)), "the second did not stay anywhere");
}

fn full_is_an_answer_and_room_goes_from_class_to_class(bench: &mut impl Bench) {
    let fill = |bench: &mut _, class: ClassId| {
        let mut count = 0;
        while put(bench, class, count, None).is_ok() {
            count += 1;
        }
        assert_eq!(put(bench, class, count, None), Err(Refused::Full));
        count
    };
    let (small, large) = (class(bench, 0), class(bench, 2));
    let mut counts = Vec::new();
    for _ in 0..3 {
        let count = fill(bench, small);
        assert!((20..BLOCKS_MAX).contains(&count), "{count}");
        assert_eq!(put(bench, large, 0, None), Err(Refused::Full));
        // Part by part the small ones go.
        let mut gone = 0;
        while put(bench, large, 0, None).is_err() {
            let names = bench.store().part_for(large);
            assert!(!names.is_empty() && names.iter().all(|&(class, _)| class == small));
            gone += names.len() as u64;
            assert!(names.iter().all(|(class, hash)| bench.store().remove(*class, hash)));
        }
        assert!(gone <= count && bench.store().part_for(large).len() as u64 <= count - gone);
        // What is held keeps its part.
        let held = (0..count).find_map(|number| bench.store().pin(small, &hash(number)));
        let names: Vec<_> = std::iter::from_fn(|| {
            let names = bench.store().part_for(large);
            names.iter().for_each(|(class, hash)| assert!(bench.store().remove(*class, hash)));
            (!names.is_empty()).then_some(names)
        })
        .flatten()
        .collect();
        assert!(names.len() as u64 <= count - gone - u64::from(held.is_some()));
        if let Some(held) = held {
            assert!(bench.store().unpin(&held));
        }
        (0..count).for_each(|number| {
            bench.store().remove(small, &hash(number));
        });
        assert!(bench.store().remove(large, &hash(0)));
        let most = fill(bench, large);
        (0..most).for_each(|number| {
            bench.store().remove(large, &hash(number));
        });
        assert_eq!(bench.store().blocks(), 0);
        counts.push((count, most));
    }
    assert!(counts.iter().all(|pair| *pair == counts[0]), "room is lost: {counts:?}");
}

fn parents_come_first(bench: &mut impl Bench) {
    let (one, other) = (class(bench, 0), class(bench, 1));
    // A chain stored from its end, whose first block's parent never came; the same in another class, without its third.
    for number in (1..12).rev() {
        put(bench, one, number, Some(number - 1)).expect("a place");
        put(bench, other, number, Some(number - 1)).expect("a place");
    }
    assert!(bench.store().remove(other, &hash(3)));
    let is_there_again = bench.reopen();
    let (one, other) = (class(bench, 0), class(bench, 1));
    if is_there_again {
        let found = bench.store().parents_first();
        assert_eq!((found.len(), bench.store().blocks()), (21, 21));
        for (place, Found { class, hash: of, parent, tenant }) in found.iter().enumerate() {
            let number = u64::from_le_bytes(*of.first_chunk().expect("long enough"));
            let is_first = number == 1 || (*class == other && number == 4);
            assert_eq!(*parent, (!is_first).then(|| hash(number - 1)), "{number}");
            let before = |found: &Found| (found.class, Some(found.hash)) == (*class, *parent);
            assert!(is_first || found[..place].iter().any(before), "{number} comes before its parent");
            assert_eq!(*tenant, Tenant(number % 3));
        }
        assert!((1..12).all(|number| holds(bench, one, number)));
    }
    for number in 0..12 {
        bench.store().remove(one, &hash(number));
        bench.store().remove(other, &hash(number));
    }
    assert_eq!(bench.store().blocks(), 0);
}

fn any_order_of_steps_is_what_a_map_would_do(bench: &mut impl Bench) {
    let mut random = fastrand::Rng::with_seed(3);
    let mut model = std::collections::HashSet::new();
    for _ in 0..3000 {
        let (kind, number) = (random.u8(0..3), random.u64(0..60));
        let class = class(bench, kind);
        match random.u32(0..100) {
            0..50 => match put(bench, class, number, number.checked_sub(1)) {
                Ok(()) => assert!(model.insert((kind, number))),
                Err(Refused::There) => assert!(model.contains(&(kind, number))),
                Err(refused) => assert_eq!(refused, Refused::Full),
            },
            50..90 => assert_eq!(bench.store().remove(class, &hash(number)), model.remove(&(kind, number))),
            90..99 => assert_eq!(holds(bench, class, number), model.contains(&(kind, number))),
            _ => {
                if !bench.reopen() {
                    model.clear();
                }
            }
        }
        assert_eq!(bench.store().blocks(), model.len());
    }
}

struct OfTwin(Twin);

const TWIN_BYTES: u64 = 2 << 20;

impl Bench for OfTwin {
    type Store = Twin;

    fn store(&mut self) -> &mut Twin {
        &mut self.0
    }

    fn fill(&mut self, filling: &mut crate::twin::Filling, bytes: &[u8]) {
        filling.body.copy_from_slice(bytes);
    }

    fn body(&mut self, block: &crate::twin::Block) -> Vec<u8> {
        self.0.body(block).to_vec()
    }

    fn reopen(&mut self) -> bool {
        self.0 = Twin::new(TWIN_BYTES);
        false
    }
}

struct OfArena {
    /// The option is for the moment of opening it again.
    arena: Option<Arena>,
    folder: tempfile::TempDir,
}

impl OfArena {
    fn open(folder: &tempfile::TempDir) -> Arena {
        let meter = kvferry_memory::Meter::new();
        Arena::open(&folder.path().join("arena"), 4 << 20, 60_000, &meter).expect("an arena").0
    }

    fn arena(&self) -> &Arena {
        self.arena.as_ref().expect("open")
    }
}

impl Bench for OfArena {
    type Store = Arena;

    fn store(&mut self) -> &mut Arena {
        self.arena.as_mut().expect("open")
    }

    fn fill(&mut self, filling: &mut crate::host::Filling, bytes: &[u8]) {
        self.arena().region().write(filling.offset, bytes).expect("inside");
    }

    fn body(&mut self, block: &crate::host::Block) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(block.bytes).expect("small")];
        self.arena().region().read(block.offset, &mut bytes).expect("inside");
        bytes
    }

    fn reopen(&mut self) -> bool {
        self.arena = None;
        self.arena = Some(Self::open(&self.folder));
        true
    }
}

#[test]
fn the_twin_is_a_store() {
    hold_all(&mut OfTwin(Twin::new(TWIN_BYTES)));
}

#[test]
fn the_arena_is_a_store() {
    let folder = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
    hold_all(&mut OfArena { arena: Some(OfArena::open(&folder)), folder });
}
