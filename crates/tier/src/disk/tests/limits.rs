//! How much is on the disk, at any moment.

use super::*;

/// Fills the store with blocks of a class; how many.
fn fill(world: &mut World, class: ClassId) -> u64 {
    let mut count = 0;
    while world.put(class, count).is_ok() {
        count += 1;
    }
    assert_eq!(world.put(class, count), Err(Refused::Full));
    count
}

#[test]
fn the_limits_are_never_exceeded_by_a_byte_or_a_file() {
    let limits = Limits { files_max: 7, ..LIMITS };
    let mut world = World::new(limits, SETTINGS);
    let mut random = fastrand::Rng::with_seed(5);
    let (mut most, mut refused) = ((0, 0), 0);
    for _ in 0..1500 {
        let kind = random.u8(0..3);
        let class = world.class(kind, [3000, 20_000, 70_000][usize::from(kind)]);
        let number = random.u64(0..300);
        if random.u32(0..100) < 75 {
            refused += u32::from(world.put(class, number) == Err(Refused::Full));
        } else {
            world.shelf().remove(class, &hash(number));
        }
        let (bytes, files) = taken(&world.path());
        let used = world.shelf().used();
        assert!(bytes <= used.0 && used.0 <= limits.bytes_max, "{bytes} {used:?}");
        assert!(files == used.1 as usize && used.1 <= limits.files_max, "{files} {used:?}");
        most = (most.0.max(bytes), most.1.max(files));
        if random.u32(0..200) == 0 {
            world.reopen();
        }
    }
    assert!(refused > 50 && most.1 == 7, "the limits were never in the way: {refused} {most:?}");
}

#[test]
fn what_was_there_before_counts() {
    let mut world = World::new(LIMITS, SETTINGS);
    let class = world.class(1, 5000);
    let before = fill(&mut world, class);
    world.shelf = None;
    // Somebody else's file takes half of the room.
    std::fs::write(world.path().join("letters"), vec![1; 1 << 20]).expect("write");
    world.reopen();
    let (recovery, class) = (world.recovery.clone(), world.class(1, 5000));
    assert_eq!(recovery.foreign_files, 1);
    assert!(recovery.over_limits > 0 && recovery.blocks + recovery.over_limits == before, "{recovery:?}");
    assert!(taken(&world.path()).0 <= LIMITS.bytes_max);
    assert_eq!((0..before).filter(|&number| world.holds(class, number)).count() as u64, recovery.blocks);
    let free = (0..before).filter(|&number| world.put(class, number).is_ok()).count() as u64;
    assert!(free < recovery.over_limits && taken(&world.path()).0 <= LIMITS.bytes_max);
}

#[test]
fn a_lower_limit_takes_the_emptiest_files_away() {
    let mut world = World::new(LIMITS, SETTINGS);
    let (few, many) = (world.class(1, 5000), world.class(2, 5000));
    world.put(few, 1).expect("room");
    let count = fill(&mut world, many);
    world.limits = Limits { files_max: world.shelf().used().1 - 1, ..LIMITS };
    world.reopen();
    assert_eq!((world.recovery.blocks, world.recovery.over_limits), (count, 1));
    world.limits = Limits { files_max: 2, ..LIMITS };
    world.reopen();
    assert_eq!((world.recovery.blocks, world.recovery.over_limits, extents(&world.path()).len()), (0, count, 0));
    let many = world.class(2, 5000);
    assert_eq!(world.put(many, 1), Err(Refused::Full), "room for its own two files and no other");
}

#[test]
fn what_others_need_of_the_disk_is_left_to_them() {
    let mut world = World::new(Limits { free_bytes_min: 1 << 60, ..LIMITS }, SETTINGS);
    let class = world.class(1, 5000);
    assert_eq!(world.put(class, 1), Err(Refused::Full));
    assert_eq!(world.shelf().read_only(), None);
    world.limits = LIMITS;
    world.reopen();
    let class = world.class(1, 5000);
    assert_eq!(world.put(class, 10_000), Ok(()));
    // What is there can be filled, whatever the disk has left.
    world.limits = Limits { free_bytes_min: 1 << 60, ..LIMITS };
    world.reopen();
    let class = world.class(1, 5000);
    assert!(fill(&mut world, class) > 10 && extents(&world.path()).len() == 1);
}

#[test]
fn the_index_takes_at_most_64_bytes_a_block() {
    let mut world = World::new(LIMITS, SETTINGS);
    let class = world.class(1, 1);
    let count = usize::try_from(fill(&mut world, class)).expect("small");
    assert!(count > 500 && world.shelf().index_bytes() <= 64 * count, "{} for {count}", world.shelf().index_bytes());
    world.reopen();
    assert!(world.shelf().blocks() == count && world.shelf().index_bytes() <= 64 * count);
    // The table by itself, just after it has grown.
    let mut table = hashbrown::HashTable::<u32>::new();
    for number in 0..917_505_u32 {
        let sum = |number: &u32| u64::from(*number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        table.insert_unique(sum(&number), number, sum);
    }
    assert!(table.allocation_size() + 41 * table.len() <= 64 * table.len(), "{}", table.allocation_size());
}

#[test]
fn shorter_files_leave_longer_ones_as_they_are() {
    let mut world = World::new(LIMITS, SETTINGS);
    let class = world.class(1, 60_000);
    (0..3).for_each(|number| world.put(class, number).expect("room"));
    world.limits = Limits { extent_bytes: 40 << 10, ..LIMITS };
    world.reopen();
    assert_eq!((world.recovery.blocks, world.recovery.damaged_files.len()), (3, 0));
    let class = world.class(1, 60_000);
    assert!((0..3).all(|number| world.holds(class, number)));
    let refused = world.shelf().class(Fingerprint([2; 32]), 0, 60_000);
    assert_eq!(refused, Err(Refused::Class), "another class has none of them");
}

#[test]
fn blocks_larger_than_an_extent_are_refused() {
    let mut world = World::new(LIMITS, SETTINGS);
    let class = |world: &mut World, bytes| world.shelf().class(Fingerprint([1; 32]), 0, bytes);
    assert_eq!(class(&mut world, LIMITS.extent_bytes), Err(Refused::Class));
    assert!(class(&mut world, LIMITS.extent_bytes - 3 * 4096).is_ok());
    for kind in 1..=u8::MAX {
        world.class(kind, 4096);
    }
    assert_eq!(class(&mut world, 8192), Err(Refused::Class), "one more than there may be");
}

/// Makes what is to be made, as the thread for that does.
fn make(world: &mut World) {
    let making = world.shelf().poll_making().expect("a file to be made");
    let made = making.run();
    world.shelf().handle_made(made);
}

#[test]
fn a_block_waits_for_a_file_that_is_made_elsewhere_and_nothing_goes_for_it() {
    let mut world = World::new(LIMITS, SETTINGS);
    world.shelf().hand_out_making();
    let class = world.class(1, 60_000);
    assert_eq!(world.put(class, 0), Err(Refused::NotYet));
    assert_eq!(world.put(class, 0), Err(Refused::NotYet), "it has not been begun");
    let making = world.shelf().poll_making().expect("a file to be made");
    assert_eq!((world.put(class, 0), extents(&world.path()).len()), (Err(Refused::NotYet), 0), "nobody has the time");
    assert!(world.shelf().poll_making().is_none(), "one at a time");
    let made = making.run();
    world.shelf().handle_made(made);
    assert_eq!((world.put(class, 0), extents(&world.path()).len()), (Ok(()), 1));
    let mut count = 1;
    let full = loop {
        match world.put(class, count) {
            Ok(()) => count += 1,
            Err(Refused::NotYet) => make(&mut world),
            Err(full) => break full,
        }
        let used = world.shelf().used();
        assert!(taken(&world.path()).0 <= used.0 && used.0 <= LIMITS.bytes_max);
    };
    assert_eq!(full, Refused::Full);
    // Files that are empty go for another class's, in the same turn.
    (0..count).for_each(|number| assert!(world.shelf().remove(class, &hash(number))));
    let (before, other) = (extents(&world.path()).len(), world.class(2, 5000));
    assert_eq!((world.put(other, 0), extents(&world.path()).len()), (Err(Refused::NotYet), before));
    make(&mut world);
    assert!(world.put(other, 0).is_ok() && extents(&world.path()).len() <= before);
    let used = world.shelf().used();
    world.reopen();
    assert_eq!((world.shelf().used(), world.recovery.blocks), (used, 1));
}

#[test]
fn a_file_that_cannot_be_made_is_told_of_and_tried_again() {
    let mut world = World::new(LIMITS, SETTINGS);
    world.shelf().hand_out_making();
    let (class, used) = (world.class(1, 60_000), world.shelf().used());
    let in_the_way = world.path().join("extent-0000000001.new");
    std::fs::create_dir(&in_the_way).expect("a folder in its place");
    assert_eq!(world.put(class, 0), Err(Refused::NotYet));
    make(&mut world);
    assert_eq!((world.shelf().used(), world.shelf().counts().failed_files), (used, 1));
    assert_eq!(world.put(class, 0), Err(Refused::Full), "something else may go for it");
    assert_eq!(world.put(class, 0), Err(Refused::NotYet));
    std::fs::remove_dir(&in_the_way).expect("it is empty");
    make(&mut world);
    assert_eq!(world.put(class, 0), Ok(()));
}
