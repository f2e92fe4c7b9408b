//! What the bytes are: filled in at the source, wiped at the target, checked after the last round.
//!
//! ```text
//! source: fill --transfers--> target (wiped before each round) -> check: every byte against what its source must hold
//! ```
//!
//! Every aligned 8-byte word of a source is a different number, made from its offset alone. So the end that checks
//! needs no copy of the source, and a block at the wrong place, an old one or a missing one is found.
//!
//! Why not random bytes: a check would need them again, from the other end or from a generator slower than memory.

use std::ops::Range;

use anyhow::{Result, bail};
use kvferry_core::plan::{Plan, Run};
use kvferry_memory::Region;

/// Bytes written or read at a time; stays in the second-level cache.
const WINDOW_BYTES: usize = 256 << 10;
/// Threads that fill or wipe together, at most.
const THREADS_MAX: usize = 8;
/// Odd, so that different offsets have different words; the golden ratio in 64 bits.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// The word at `offset`, a multiple of 8, of every source region. Never 0, which is what a wiped target holds.
const fn word(offset: u64) -> u64 {
    // Offsets below 2^63, so the factor's multiple is not that of 0.
    (offset / 8 + 1).wrapping_mul(FACTOR)
}

/// Fills `into` with what a source holds from `offset` on.
fn pattern(offset: u64, into: &mut [u8]) {
    let head = usize::try_from(offset.wrapping_neg() % 8).unwrap_or(0).min(into.len());
    let (before, words) = into.split_at_mut(head);
    if head > 0 {
        let start = usize::try_from(offset % 8).unwrap_or(0);
        before.copy_from_slice(&word(offset - offset % 8).to_le_bytes()[start..start + head]);
    }
    let first = offset + head as u64;
    let mut chunks = words.chunks_exact_mut(8);
    let mut value = word(first);
    for chunk in &mut chunks {
        chunk.copy_from_slice(&value.to_le_bytes());
        value = value.wrapping_add(FACTOR);
    }
    let rest = chunks.into_remainder();
    rest.copy_from_slice(&value.to_le_bytes()[..rest.len()]);
}

/// Makes a region a source.
pub(super) fn fill(region: &Region) -> Result<()> {
    shared(region, |share, window| {
        for_each_window(share.end - share.start, |within, length| {
            let offset = share.start + within;
            pattern(offset, &mut window[..length]);
            Ok(region.write(offset, &window[..length])?)
        })
    })
}

/// Makes every byte of a region 0.
pub(super) fn wipe(region: &Region) -> Result<()> {
    shared(region, |share, zeros| {
        for_each_window(share.end - share.start, |within, length| {
            Ok(region.write(share.start + within, &zeros[..length])?)
        })
    })
}

/// Lets every core do a share of a region, with a window of zeros of its own: new pages cost more than what is put
/// into them.
fn shared(region: &Region, work: impl Fn(Range<u64>, &mut [u8]) -> Result<()> + Sync) -> Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get().min(THREADS_MAX)) as u64;
    let share = region.len().div_ceil(threads).next_multiple_of(WINDOW_BYTES as u64);
    std::thread::scope(|scope| {
        let shares = (0..region.len()).step_by(usize::try_from(share)?).map(|start| {
            let work = &work;
            scope.spawn(move || work(start..(start + share).min(region.len()), &mut vec![0; WINDOW_BYTES]))
        });
        let shares: Vec<_> = shares.collect();
        shares.into_iter().try_for_each(|share| share.join().unwrap_or_else(|_| bail!("a thread that fills panicked")))
    })
}

fn for_each_window(bytes: u64, mut visit: impl FnMut(u64, usize) -> Result<()>) -> Result<()> {
    for offset in (0..bytes).step_by(WINDOW_BYTES) {
        let length = usize::try_from(bytes - offset).unwrap_or(usize::MAX).min(WINDOW_BYTES);
        visit(offset, length)?;
    }
    Ok(())
}

/// Compares every byte that the plan wrote with what its source holds, and says how many there were.
pub(super) fn check(plan: &Plan, target: &Region) -> Result<u64> {
    let mut landed = vec![0; WINDOW_BYTES];
    let mut wanted = vec![0; WINDOW_BYTES];
    for run in plan.runs() {
        for piece in 0..u64::from(run.count) {
            let source_at = run.source + piece * run.source_stride;
            let target_at = run.target + piece * run.target_stride;
            for_each_window(run.length, |within, length| {
                target.read(target_at + within, &mut landed[..length])?;
                pattern(source_at + within, &mut wanted[..length]);
                if landed[..length] == wanted[..length] {
                    return Ok(());
                }
                let differs = landed[..length].iter().zip(&wanted[..length]).position(|(is, must)| is != must);
                bail!(describe(run, target_at + within, differs.unwrap_or(0), &landed, &wanted))
            })?;
        }
    }
    Ok(plan.bytes())
}

fn describe(run: &Run, at: u64, differs: usize, landed: &[u8], wanted: &[u8]) -> String {
    let (is, must) = (landed[differs], wanted[differs]);
    let wiped = if is == 0 { "; it was wiped before the round and never written" } else { "" };
    format!(
        "the content is wrong: byte {} of the target is {is:#04x} and must be {must:#04x}, in a run of {} pieces of {} \
         bytes{wiped}",
        at + differs as u64,
        run.count,
        run.length
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kvferry_memory::Meter;

    use super::*;
    use crate::commands::bench::cell::{Cell, example};
    use crate::commands::bench::placement::Placement;

    struct Moved {
        plan: Arc<Plan>,
        source: Arc<Region>,
        target: Arc<Region>,
    }

    /// A transfer that went well, by plain copies.
    fn moved(block_bytes: u32) -> Moved {
        let cell = Cell { block_bytes, layers: 3, ..example() };
        let plan = Arc::clone(Placement::of(&cell).expect("a placement").plan(0));
        let region = || {
            let fd = kvferry_memory::create("content", 1 << 20).expect("a memfd");
            Region::map(fd, 1 << 20, &Meter::new()).expect("a region")
        };
        let (source, target) = (region(), region());
        fill(&source).expect("fill");
        wipe(&target).expect("wipe");
        for run in plan.runs() {
            for piece in 0..u64::from(run.count) {
                let (to, from) = (run.target + piece * run.target_stride, run.source + piece * run.source_stride);
                target.copy_from(to, &source, from, run.length).expect("copy");
            }
        }
        Moved { plan, source, target }
    }

    #[test]
    fn right_content_passes() {
        for block_bytes in [1, 7, 64, 1000, 4096] {
            let moved = moved(block_bytes);
            let bytes = check(&moved.plan, &moved.target).expect("right content");
            assert_eq!(bytes, u64::from(block_bytes) * 16 * 3);
        }
    }

    #[test]
    fn one_wrong_byte_is_found() {
        let moved = moved(1000);
        let run = *moved.plan.runs().last().expect("runs");
        let at = run.target + run.length - 1 + u64::from(run.count - 1) * run.target_stride;
        let mut byte = [0];
        moved.target.read(at, &mut byte).expect("read");
        moved.target.write(at, &[byte[0] ^ 1]).expect("write");
        let said = check(&moved.plan, &moved.target).expect_err("a wrong byte").to_string();
        assert!(said.contains(&format!("byte {at} ")), "{said}");
    }

    #[test]
    fn a_block_that_never_came_is_found() {
        let moved = moved(4096);
        wipe(&moved.target).expect("wipe");
        let said = check(&moved.plan, &moved.target).expect_err("nothing came").to_string();
        assert!(said.contains("never written"), "{said}");
    }

    #[test]
    fn a_block_at_another_ones_place_is_found() {
        let moved = moved(4096);
        let run = moved.plan.runs()[0];
        let elsewhere = if run.source >= 4096 { run.source - 4096 } else { run.source + run.length };
        moved.target.copy_from(run.target, &moved.source, elsewhere, 4096).expect("copy");
        check(&moved.plan, &moved.target).expect_err("the wrong block");
    }

    #[test]
    fn the_pattern_is_the_same_from_every_offset() {
        let mut whole = [0; 100];
        pattern(0, &mut whole);
        for start in 0..50_usize {
            for end in start..100 {
                let mut part = vec![0; end - start];
                pattern(start as u64, &mut part);
                assert_eq!(part, whole[start..end], "{start}..{end}");
            }
        }
        assert!(whole.chunks(8).all(|word| *word != [0; 8][..word.len()]));
    }
}
