//! How long plans take to compile, split and walk, and how many runs and slices they have.
//!
//! `cargo bench -p kvferry-core --bench plan`. Layouts are those of a 70 B model on one worker: 80 layers, 8 KV heads,
//! 16 tokens a block, 512 bytes a token and head, 4,096 blocks (65,536 tokens) out of 8,192. Times are the fastest of
//! many rounds, to keep out what else the machine does.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvferry_core::BlockIndex;
use kvferry_core::layout::{AxisOrder, GroupLayout, LayerSpan, Layout};
use kvferry_core::plan::{Cursor, GroupBlocks, Plan, Side, Slice};

const LAYERS: u32 = 80;
const HEADS: u32 = 8;
const TOKENS: u32 = 16;
const CONTENT_BYTES: u32 = 512;
const CACHE_BLOCKS: u32 = 8192;
const MOVED_BLOCKS: u32 = 4096;

fn main() {
    use AxisOrder::{Bhlnc, Blhnc, Lbhnc, Lbnhc, Lhbnc};
    println!("from  to    blocks      runs  source slices  target slices  compile us  split us  walk us");
    for (from, to) in [(Lbhnc, Lbhnc), (Blhnc, Blhnc), (Blhnc, Lbhnc), (Lbhnc, Blhnc), (Lhbnc, Lbhnc), (Bhlnc, Lbhnc)] {
        for pattern in [Pattern::Scattered, Pattern::Threes, Pattern::Contiguous] {
            report(from, to, pattern, MOVED_BLOCKS);
        }
    }
    // Element by element: a plan of as many blocks as a prompt of 2,048 tokens has, and one at the limit.
    report(Lbhnc, Lbnhc, Pattern::Scattered, 128);
    report(Lbhnc, Lbnhc, Pattern::Scattered, MOVED_BLOCKS);
}

#[derive(Clone, Copy)]
enum Pattern {
    Contiguous,
    Scattered,
    /// Neighbours in threes.
    Threes,
}

impl Pattern {
    const fn name(self) -> &'static str {
        match self {
            Self::Contiguous => "contiguous",
            Self::Scattered => "scattered",
            Self::Threes => "threes",
        }
    }

    /// Distinct blocks in the pattern's order.
    fn blocks(self, count: u32, seed: u32) -> Vec<BlockIndex> {
        let pick: Vec<u32> = match self {
            Self::Contiguous => (0..count).collect(),
            Self::Scattered => shuffled(CACHE_BLOCKS, seed),
            Self::Threes => {
                shuffled(CACHE_BLOCKS / 4, seed).into_iter().flat_map(|four| four * 4..four * 4 + 3).collect()
            }
        };
        pick.into_iter().take(count as usize).map(BlockIndex).collect()
    }
}

/// Numbers below `count` in an order that looks random and is the same each time.
fn shuffled(count: u32, seed: u32) -> Vec<u32> {
    let mut numbers: Vec<u32> = (0..count).collect();
    let mut state = seed;
    for last in (1..numbers.len()).rev() {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        numbers.swap(last, (state >> 8) as usize % (last + 1));
    }
    numbers
}

fn layout(order: AxisOrder) -> Layout {
    let (layers, heads, blocks) = (u64::from(LAYERS), u64::from(HEADS), u64::from(CACHE_BLOCKS));
    let row = u64::from(TOKENS * CONTENT_BYTES);
    let page = row * heads;
    let (layer_stride, block_stride) = match order {
        AxisOrder::Lbhnc | AxisOrder::Lbnhc => (page * blocks, page),
        AxisOrder::Lhbnc => (page * blocks, row),
        AxisOrder::Blhnc | AxisOrder::Blnhc => (page, page * layers),
        AxisOrder::Bhlnc => (row, page * layers),
    };
    let span = LayerSpan {
        layer_count: LAYERS,
        offset: 0,
        layer_stride,
        block_stride,
        head_count: HEADS,
        token_count: TOKENS,
        content_bytes: CONTENT_BYTES,
    };
    Layout::new(order, CACHE_BLOCKS, page * layers * blocks, vec![GroupLayout { spans: vec![span] }])
        .expect("a dense layout")
}

fn report(from: AxisOrder, to: AxisOrder, pattern: Pattern, count: u32) {
    let (source, target) = (layout(from), layout(to));
    let blocks = [GroupBlocks { group: 0, source: pattern.blocks(count, 7), target: pattern.blocks(count, 4000) }];
    let compile = || Plan::compile(black_box(&source), black_box(&target), black_box(&blocks));
    let plan = Arc::new(compile().expect("a plan"));
    let compiled = fastest(compile);
    let split = fastest(|| plan.split(black_box(4)));
    let mut slices = Vec::with_capacity(1024);
    let walked = fastest(|| walk(&plan, Side::Source, &mut slices) + walk(&plan, Side::Target, &mut slices));
    println!(
        "{from} {to} {:10} {:>6} {:>14} {:>14} {:>11.1} {:>9.1} {:>8.1}",
        pattern.name(),
        plan.runs().len(),
        walk(&plan, Side::Source, &mut slices),
        walk(&plan, Side::Target, &mut slices),
        micros(compiled),
        micros(split),
        micros(walked),
    );
}

/// Walks one side as a transport does, 1 MiB or 1,024 slices at a time, and counts the slices.
fn walk(plan: &Arc<Plan>, side: Side, slices: &mut Vec<Slice>) -> usize {
    let mut cursor = Cursor::new(Arc::clone(plan), side);
    let mut count = 0;
    while cursor.remaining() > 0 {
        slices.clear();
        cursor.take(1 << 20, 1024, slices);
        count += black_box(&slices).len();
    }
    count
}

#[expect(clippy::disallowed_methods, reason = "a benchmark is about the real clock")]
fn fastest<T>(mut work: impl FnMut() -> T) -> Duration {
    let budget = Instant::now();
    let mut best = Duration::MAX;
    let mut rounds = 0;
    while rounds < 5 || (rounds < 500 && budget.elapsed() < Duration::from_millis(300)) {
        let start = Instant::now();
        let made = black_box(work());
        best = best.min(start.elapsed());
        drop(made);
        rounds += 1;
    }
    best
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}
