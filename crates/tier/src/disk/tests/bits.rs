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
