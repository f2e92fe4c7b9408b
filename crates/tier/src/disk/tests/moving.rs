//! The mover: spans of every kind, and operations that do not wait for each other.

use super::*;

#[test]
fn any_span_that_holds_the_block_will_do() {
    for io in [Io::Auto, Io::Threads] {
        let mut world = World::new(LIMITS, Settings { io, ..SETTINGS });
        // Bytes of the block; where its span begins; how much room there is; whether it goes the straight way.
        let spans = [
            (8192, 0, 8192, true),
            (8192, 4096, 9000, true),
            (5000, 4096, 8192, true),
            (5000, 8192, 5000, false),
            (5000, 4097, 9000, false),
            (1, 33, 1, false),
        ];
        for (number, (bytes, offset, room, is_straight)) in (0..).zip(spans) {
            let class = world.class(1 + u8::try_from(number).expect("small"), bytes);
            let wanted = body(number, bytes);
            let around = |world: &World| world.memory.write(0, &[0xee; 40_000]).expect("inside");
            let span = Span { region: Arc::clone(&world.memory), offset, room };
            around(&world);
            world.memory.write(offset, &wanted).expect("inside");
            let filling = world.shelf().reserve(class, hash(number), Default::default()).expect("room");
            let before = world.mover.counts().bounced;
            world.mover.write(5, filling, &span).expect("room");
            let Done::Written { filling, outcome: Ok(()), tag: 5 } = world.finish() else { panic!("not written") };
            world.shelf().seal(filling, crc32c::crc32c(&wanted), None).expect("kept");
            around(&world);
            let block = world.shelf().pin(class, &hash(number)).expect("there");
            world.mover.read(6, block, &span).expect("room");
            let Done::Read { block, outcome: Ok(()), tag: 6 } = world.finish() else { panic!("not read") };
            assert!(world.shelf().unpin(&block));
            let mut found = vec![0; 40_000];
            world.memory.read(0, &mut found).expect("inside");
            let (first, end) =
                (usize::try_from(offset).expect("small"), usize::try_from(offset + room).expect("small"));
            assert_eq!(found[first..][..wanted.len()], wanted);
            let is_untouched = |part: &[u8]| part.iter().all(|&byte| byte == 0xee);
            assert!(is_untouched(&found[..first]) && is_untouched(&found[end..]), "{bytes} at {offset}");
            assert_eq!(world.mover.counts().bounced - before, if is_straight { 0 } else { 2 }, "{bytes} at {offset}");
        }
    }
}

#[test]
fn a_span_that_does_not_hold_the_block_is_refused() {
    let mut world = World::new(LIMITS, SETTINGS);
    let class = world.class(1, 5000);
    world.put(class, 1).expect("room");
    for (offset, room) in [(0, 4999), (REGION_BYTES - 4999, 5000), (REGION_BYTES - 4096, 8192), (u64::MAX, 5000)] {
        let span = Span { region: Arc::clone(&world.memory), offset, room };
        let filling = world.shelf().reserve(class, hash(2), Default::default()).expect("room");
        world.mover.write(1, filling, &span).expect("an answer");
        let Done::Written { filling, outcome, .. } = world.finish() else { panic!("a write") };
        assert_eq!(outcome, Err(DiskError::Outside));
        assert!(world.shelf().seal(filling, 0, None).is_err() && !world.shelf().contains(class, &hash(2)));
        let block = world.shelf().pin(class, &hash(1)).expect("there");
        world.mover.read(1, block, &span).expect("an answer");
        let Done::Read { block, outcome, .. } = world.finish() else { panic!("a read") };
        assert_eq!(outcome, Err(DiskError::Outside));
        assert!(world.shelf().unpin(&block));
    }
    assert_eq!((world.shelf().counts().lost_places, world.shelf().read_only()), (0, None), "the disk is not to blame");
    assert!(world.holds(class, 1));
}

#[test]
fn a_block_that_was_not_written_cannot_be_sealed() {
    let mut world = World::new(LIMITS, SETTINGS);
    let class = world.class(1, 5000);
    let filling = world.shelf().reserve(class, hash(1), Default::default()).expect("room");
    assert!(world.shelf().seal(filling, 0, None).is_err());
    assert_eq!((world.shelf().blocks(), world.shelf().counts().failed_writes), (0, 0));
}

#[test]
fn many_at_once_and_no_more_than_there_may_be() {
    for io in [Io::Auto, Io::Threads] {
        let mut world = World::new(LIMITS, Settings { io, ..SETTINGS });
        let class = world.class(1, 8192);
        let span = |world: &World, number: u64| Span { offset: number * 8192, ..world.span(8192) };
        let mut done = Vec::new();
        for number in 0..9 {
            world.memory.write(number * 8192, &body(number, 8192)).expect("inside");
            let (filling, span) =
                (world.shelf().reserve(class, hash(number), Default::default()), span(&world, number));
            let refused = world.mover.write(number, filling.expect("room"), &span).err();
            assert_eq!(refused.is_some(), number == 8, "8 at once");
            if let Some(filling) = refused {
                world.shelf().abandon(filling);
            }
        }
        while world.mover.in_flight() > 0 {
            world.mover.wait(Duration::from_secs(1));
            world.mover.turn(&mut done);
        }
        let mut tags = Vec::new();
        for done in done.drain(..) {
            let Done::Written { tag, filling, outcome: Ok(()) } = done else { panic!("{done:?}") };
            tags.push(tag);
            world.shelf().seal(filling, crc32c::crc32c(&body(tag, 8192)), None).expect("kept");
        }
        tags.sort_unstable();
        assert_eq!(tags, (0..8).collect::<Vec<u64>>(), "each once");
        assert!((0..8).all(|number| world.holds(class, number)));
        // A mover that goes waits for the disk, and lets everything go.
        for number in 0..8 {
            let (block, span) = (world.shelf().pin(class, &hash(number)).expect("there"), span(&world, number));
            world.mover.read(number, block, &span).expect("room");
        }
        world.mover.turn(&mut done);
        done.clear();
        world.mover = Mover::open(SETTINGS).expect("another");
        assert_eq!(Arc::strong_count(&world.memory), 1);
    }
}

#[test]
fn bounced_operations_wait_for_memory() {
    let mut world = World::new(LIMITS, Settings { bounce_bytes_max: 8192, ..SETTINGS });
    let class = world.class(1, 5000);
    let span = Span { region: Arc::clone(&world.memory), offset: 1, room: 5000 };
    let mut fillings: Vec<Filling> =
        (0..2).map(|number| world.shelf().reserve(class, hash(number), Default::default()).expect("room")).collect();
    let second = fillings.pop().expect("two");
    world.mover.write(0, fillings.pop().expect("two"), &span).expect("room");
    let second = world.mover.write(1, second, &span).expect_err("the first has the memory");
    let Done::Written { filling, outcome: Ok(()), .. } = world.finish() else { panic!("not written") };
    world.shelf().abandon(filling);
    world.mover.write(1, second, &span).expect("now it goes");
    let Done::Written { filling, outcome: Ok(()), .. } = world.finish() else { panic!("not written") };
    world.shelf().abandon(filling);
    let large = world.class(2, 9000);
    let filling = world.shelf().reserve(large, hash(1), Default::default()).expect("room");
    let span = Span { room: 9000, ..span };
    world.mover.write(2, filling, &span).expect("an answer");
    let Done::Written { filling, outcome, .. } = world.finish() else { panic!("a write") };
    assert_eq!(outcome, Err(DiskError::Io(rustix::io::Errno::NOMEM)), "it would never go");
    world.shelf().abandon(filling);
}
