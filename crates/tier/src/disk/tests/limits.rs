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
        assert!(files as u32 == used.1 && used.1 <= limits.files_max, "{files} {used:?}");
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
