//! How fast regions are summed, beside the crate `crc32c`, in cache and from memory.
//!
//! `cargo bench -p kvferry-memory --bench sum`. Each line continues one sum over pieces of one size: the same piece
//! again and again (first- or second-level cache), then pieces in random order all over 512 MiB. GB/s, the fastest of
//! five rounds, to keep out what else the machine does.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use kvferry_core::plan::Slice;
use kvferry_memory::{Meter, Region};

const REGION: usize = 512 << 20;
const LIST: usize = 512 << 10;
const ROUNDS: usize = 5;

fn main() {
    let fd = kvferry_memory::create("kvferry-sum", REGION as u64).expect("make memory");
    let region = Region::map(fd, REGION as u64, &Meter::new()).expect("map memory");
    let mut state = 7_u64;
    let page: Vec<u8> = (0..4096).map(|_| random(&mut state, 256)).map(|value| value.to_le_bytes()[0]).collect();
    (0..REGION / page.len()).for_each(|place| region.write((place * page.len()) as u64, &page).expect("inside"));
    // The crate needs a slice, and memory of our own is as good as a region for it.
    let own = vec![0x5a_u8; REGION];

    println!(
        "bytes of a piece   in cache: region  crate crc32c   from memory: region  as a list  crate crc32c   (GB/s)"
    );
    for size in [512, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20] {
        let [cached, cached_crate] = speeds(&region, &own, size, size);
        let [far, far_crate] = speeds(&region, &own, size, REGION);
        let list = listed(&region, size);
        println!("{size:>16} {cached:>18.1} {cached_crate:>13.1} {far:>21.1} {list:>10.1} {far_crate:>13.1}");
    }
}

/// Of the region's sum and of the crate's, over pieces of `size` inside the first `reach` bytes.
fn speeds(region: &Arc<Region>, own: &[u8], size: usize, reach: usize) -> [f64; 2] {
    [
        fastest(size, reach, |crc, place| region.crc32c(crc, place as u64, size as u64).expect("inside")),
        fastest(size, reach, |crc, place| crc32c::crc32c_append(crc, &own[place..place + size])),
    ]
}

/// Of the region's sum over lists of pieces, 512 KiB or one piece each, all over the region.
fn listed(region: &Arc<Region>, size: usize) -> f64 {
    let mut best = 0_f64;
    let lists = REGION / 2 / size.max(LIST);
    for _ in 0..ROUNDS {
        let mut state = 12_345;
        let mut list = || -> Vec<Slice> {
            let place = |_| Slice { offset: (random(&mut state, REGION / size) * size) as u64, length: size as u64 };
            (0..(LIST / size).max(1)).map(place).collect()
        };
        let lists: Vec<_> = (0..lists).map(|_| list()).collect();
        let start = Instant::now();
        let sum = |crc, list: &Vec<Slice>| region.crc32c_of(crc, black_box(list)).expect("inside");
        black_box(lists.iter().fold(0, sum));
        best = best.max((REGION / 2) as f64 / 1e9 / start.elapsed().as_secs_f64());
    }
    best
}

fn fastest(size: usize, reach: usize, mut sum: impl FnMut(u32, usize) -> u32) -> f64 {
    let bytes = if reach == size { 64 << 20 } else { 256 << 20 };
    let mut best = 0_f64;
    for _ in 0..ROUNDS {
        let mut state = 12_345;
        let mut crc = 0;
        let start = Instant::now();
        for _ in 0..bytes / size {
            crc = sum(crc, black_box(random(&mut state, reach / size) * size));
        }
        black_box(crc);
        best = best.max(f64::from(u32::try_from(bytes).expect("small")) / 1e9 / start.elapsed().as_secs_f64());
    }
    best
}

/// A number below `below`, the same ones each time.
fn random(state: &mut u64, below: usize) -> usize {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    usize::try_from(*state >> 33).expect("31 bits") % below
}
