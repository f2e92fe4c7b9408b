//! Bits that change on the disk.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;

use super::*;

/// Flips bits all over the files: whoever is running, and the next one, finds whole blocks, or none.
#[test]
fn a_changed_bit_makes_a_miss_and_never_another_block() {
    let mut random = fastrand::Rng::with_seed(11);
    let mut world = World::new(LIMITS, SETTINGS);
    let (mut missing, mut damaged) = (0, 0);
    for round in 0..25 {
        let class = world.class(1, 5000);
        for number in 0..30 {
            let _ = world.put(class, number);
        }
        assert_eq!(world.shelf().blocks(), 30);
        for _ in 0..3 {
            let file = extents(&world.path()).remove(0);
            let file = OpenOptions::new().read(true).write(true).open(file).expect("an extent");
            // A header, a record, or bytes of a block; the last two are where the 30 blocks are.
            let first_body = 4096 + (48_u64 * 128).next_multiple_of(4096);
            let at = match random.u32(0..7) {
                0 if round % 5 == 0 => random.u64(0..128),
                0..3 => 4096 + random.u64(0..30 * 128),
                _ => first_body + random.u64(0..30 * 8192),
            };
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).expect("inside");
            file.write_all_at(&[byte[0] ^ 1 << random.u32(0..8)], at).expect("inside");
            // What the page cache has must be on the disk before it is read past it.
            file.sync_all().expect("synced");
        }
        if random.bool() {
            world.reopen();
            damaged += world.recovery.damaged_records + world.recovery.damaged_files.len() as u64;
        }
        let class = world.class(1, 5000);
        missing += (0..30).filter(|&number| !world.holds_or_loses(class, number)).count();
        let before = world.shelf().blocks();
        assert_eq!((0..30).filter(|&number| world.holds(class, number)).count(), before, "what was damaged is gone");
        for path in extents(&world.path()).iter().skip(1) {
            // Files that were set aside would fill the store.
            assert!(!world.recovery.damaged_files.is_empty(), "{}", path.display());
        }
        if !world.recovery.damaged_files.is_empty() {
            world.shelf = None;
            extents(&world.path()).into_iter().for_each(|path| std::fs::remove_file(path).expect("removed"));
            world.reopen();
        }
    }
    assert!(missing > 25 && damaged > 5 && world.mover.counts().damaged > 10, "{missing} {damaged}");
}

/// After a loss of power each sector is as it was before or after: whatever the mixture, a block is what was stored, or a
/// miss. (Files are made with a synced header, so that comes first in any order.)
#[test]
fn a_loss_of_power_leaves_blocks_as_they_were_or_misses() {
    const SECTOR: usize = 512;
    let mut random = fastrand::Rng::with_seed(23);
    let mut world = World::new(Limits { files_max: 3, ..LIMITS }, SETTINGS);
    let (mut there, mut expected) = (0, 0);
    for _ in 0..12 {
        let class = world.class(1, 5000);
        let path = |world: &World| extents(&world.path()).remove(0);
        for _ in 0..40 {
            let _ = world.put(class, random.u64(0..60));
        }
        let before = std::fs::read(path(&world)).expect("an extent");
        for _ in 0..60 {
            let number = random.u64(0..60);
            if world.shelf().blocks() < 30 || !world.shelf().remove(class, &hash(number)) {
                let _ = world.put(class, number);
            }
        }
        assert_eq!(extents(&world.path()).len(), 1);
        expected += world.shelf().blocks();
        world.shelf = None;
        let mut mixed = std::fs::read(path(&world)).expect("an extent");
        let old = random.u32(1..100);
        for (now, before) in mixed.chunks_mut(SECTOR).zip(before.chunks(SECTOR)).skip(4096 / SECTOR) {
            if random.u32(0..100) < old {
                now.copy_from_slice(before);
            }
        }
        std::fs::write(path(&world), mixed).expect("write");
        std::fs::File::open(path(&world)).expect("an extent").sync_all().expect("synced");
        world.reopen();
        assert_eq!((world.recovery.damaged_records, world.recovery.damaged_files.len()), (0, 0));
        let class = world.class(1, 5000);
        there += (0..60).filter(|&number| world.holds_or_loses(class, number)).count();
        assert!((0..60).all(|number| !world.shelf().contains(class, &hash(number)) || world.holds(class, number)));
    }
    assert!(there > 60 && there < expected && world.mover.counts().damaged > 20, "{there} of {expected}");
}
