//! Copies of the very blocks that a cell moves, on one core and on two.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use kvferry_memory::Region;

use crate::commands::bench::arena::Arena;
use crate::commands::bench::cell::Cell;
use crate::commands::bench::placement::Placement;

/// Bytes or runs between two looks at the clock, which costs as much as copying a small block.
const LOOK_BYTES: u64 = 1 << 20;
const LOOK_RUNS: u64 = 64;

/// GB/s of `threads` threads together, for about `time`.
pub(super) fn measure(cell: &Cell, arena: &mut Arena, threads: u64, time: Duration) -> Result<f64> {
    let placement = Placement::of(cell)?;
    let (source, target) = (arena.source(cell.region_bytes)?, arena.target(cell.region_bytes)?);
    let begun = Instant::now();
    let rates = std::thread::scope(|scope| {
        let copiers: Vec<_> = (0..threads)
            .map(|thread| {
                scope.spawn({
                    let (placement, source, target) = (&placement, &source, &target);
                    move || copy(placement, source, target, thread, threads, begun, time)
                })
            })
            .collect();
        let join = |copier: std::thread::ScopedJoinHandle<'_, Result<u64>>| {
            copier.join().map_err(|_| anyhow!("a copying thread panicked"))?
        };
        copiers.into_iter().map(join).sum::<Result<u64>>()
    });
    Ok(rates? as f64 / begun.elapsed().as_secs_f64() / 1e9)
}

/// Every `threads`-th run, until the time is up.
fn copy(
    placement: &Placement,
    source: &Region,
    target: &Region,
    thread: u64,
    threads: u64,
    begun: Instant,
    time: Duration,
) -> Result<u64> {
    let (mut bytes, mut runs, mut looked_at) = (0, 0, 0);
    for number in 0.. {
        for run in placement.plan(number).runs() {
            runs += 1;
            if runs % threads != thread {
                continue;
            }
            for piece in 0..u64::from(run.count) {
                let (to, from) = (run.target + piece * run.target_stride, run.source + piece * run.source_stride);
                target.copy_from(to, source, from, run.length)?;
            }
            bytes += run.bytes();
            if bytes - looked_at >= LOOK_BYTES || runs % LOOK_RUNS == thread {
                looked_at = bytes;
                if begun.elapsed() >= time {
                    return Ok(bytes);
                }
            }
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::bench::cell::example;
    use crate::commands::bench::content;

    #[test]
    fn threads_copy_all_blocks_between_them() {
        let cell = Cell { layers: 3, ..example() };
        let mut arena = Arena::default();
        let rate = measure(&cell, &mut arena, 2, Duration::from_millis(100)).expect("a rate");
        assert!(rate > 0.0);
        let target = arena.target(cell.region_bytes).expect("the same");
        assert_eq!(
            content::check(Placement::of(&cell).expect("a placement").plan(0), &target).expect("right"),
            16 * 3 * 4096
        );
    }
}
