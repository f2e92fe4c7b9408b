use std::sync::Arc;

use super::*;
use crate::Meter;

const BYTES: u64 = 256 << 10;
/// Two parts and a bit, so that a part has one before and one after it.
const LENGTH: u64 = 2 * PART as u64 + 1024;

fn region(seed: u32) -> Arc<Region> {
    let fd = crate::create("kvferry-copy", BYTES).expect("make memory");
    let region = Region::map(fd, BYTES, &Meter::new()).expect("map memory");
    region.write(0, &bytes(seed)).expect("inside");
    region
}

fn bytes(seed: u32) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..BYTES).map(|_| next()).collect()
}

fn all(region: &Region) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(BYTES).expect("small")];
    region.read(0, &mut bytes).expect("inside");
    bytes
}

#[test]
fn pieces_of_every_size_and_place_land_and_nothing_else() {
    for stores in [Stores::Cached, Stores::Streamed] {
        for length in [1, 7, 8, 255, 256, 1000, 1024, 1280, 4096, 16_384, 16_640, 65_536, 70_001] {
            for (source, target) in [(0, 0), (1, 0), (0, 64), (3, 5), (64, 8), (8, 4096)] {
                let (from, to) = (region(1), region(2));
                let pieces = [
                    Piece { source, target, length },
                    Piece { source: source + length, target: target + length + 128, length: 512 },
                ];
                to.copy_verified(&from, &pieces, stores).expect("nobody else writes");
                let (was, mut wanted) = (bytes(1), bytes(2));
                for piece in pieces {
                    let [source, target, length] =
                        [piece.source, piece.target, piece.length].map(|n| usize::try_from(n).expect("small"));
                    wanted[target..target + length].copy_from_slice(&was[source..source + length]);
                }
                assert!(all(&to) == wanted, "{stores:?}, {length} bytes from {source} to {target}");

                let summed = region(2);
                let sum = summed.copy_summed(&from, &pieces, stores).expect("inside");
                assert!(all(&summed) == wanted, "summed, {stores:?}, {length} bytes from {source} to {target}");
                let must =
                    pieces.iter().fold(0, |sum, piece| summed.crc32c(sum, piece.target, piece.length).expect("inside"));
                assert_eq!(sum, must, "{stores:?}, {length} bytes from {source} to {target}");
            }
        }
    }
}

#[test]
fn a_piece_outside_is_an_error() {
    let (from, to) = (region(1), region(2));
    for piece in [
        Piece { source: BYTES - 7, target: 0, length: 8 },
        Piece { source: 0, target: BYTES - 7, length: 8 },
        Piece { source: u64::MAX, target: 0, length: 8 },
    ] {
        let refused = to.copy_verified(&from, &[piece], Stores::Streamed);
        assert!(matches!(refused, Err(CopyError::OutOfBounds(_))), "{piece:?}: {refused:?}");
        to.copy_summed(&from, &[piece], Stores::Streamed).expect_err("outside");
    }
    assert!(all(&to) == bytes(2));
}

/// Copies one piece, changing one byte of `victim` between the two looks at part number `part`.
fn disturbed(stores: Stores, part: u32, victim: fn(&Region, &Region) -> RawSlice) -> bool {
    let (from, to) = (region(1), region(2));
    let (target, source) = (to.io_slice(0, LENGTH).expect("inside"), from.io_slice(0, LENGTH).expect("inside"));
    let mut seen = 0;
    let between = || {
        if seen == part {
            let place = victim(&to, &from).as_mut_ptr().wrapping_add(PART * part as usize + 777);
            // SAFETY: inside the region, which lives; nobody else writes.
            unsafe { place.write(!place.read()) };
        }
        seen += 1;
    };
    // SAFETY: both regions live to the end of this function.
    unsafe { copy_piece(target, source, ptr::null(), stores, between) }
}

fn the_target(to: &Region, _: &Region) -> RawSlice {
    to.io_slice(0, LENGTH).expect("inside")
}

fn the_source(_: &Region, from: &Region) -> RawSlice {
    from.io_slice(0, LENGTH).expect("inside")
}

#[test]
fn a_source_that_changes_is_seen() {
    for stores in [Stores::Cached, Stores::Streamed] {
        for part in 0..3 {
            assert!(!disturbed(stores, part, the_source), "{stores:?}, part {part}");
        }
        assert!(disturbed(stores, 3, the_source), "{stores:?}: nothing changes where no part is");
    }
}

#[test]
fn a_target_that_changes_is_seen_through_the_cache() {
    for part in 0..3 {
        assert!(!disturbed(Stores::Cached, part, the_target), "part {part}");
    }
}

#[test]
fn one_memfd_mapped_twice_is_one_memory() {
    let fd = crate::create("kvferry-copy", BYTES).expect("make memory");
    let twin = fd.try_clone().expect("a second fd");
    let one = Region::map(fd, BYTES, &Meter::new()).expect("map memory");
    let two = Region::map(twin, BYTES, &Meter::new()).expect("map it again");
    assert!(one.shares_memory_with(&two) && one.shares_memory_with(&one));
    assert!(!one.shares_memory_with(&region(1)));
}
