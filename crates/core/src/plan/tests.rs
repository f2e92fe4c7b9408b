//! Literal runs of small layouts, and what is refused.

use std::sync::Arc;

use super::{Cursor, GroupBlocks, PAIRS_MAX, PageShape, Plan, PlanError, RUNS_MAX, Run, Side, Slice};
use crate::ids::BlockIndex;
use crate::layout::{AxisOrder, GroupLayout, LayerSpan, Layout};

/// Heads, tokens and content bytes of most layouts below: pages of 24 bytes, rows of one head of 12.
const SHAPE: (u32, u32, u32) = (2, 3, 4);

/// A layout without gaps, starting at zero.
fn dense(order: AxisOrder, block_count: u32, layer_count: u32, (heads, tokens, content): (u32, u32, u32)) -> Layout {
    let (blocks, layers, row) = (u64::from(block_count), u64::from(layer_count), u64::from(tokens * content));
    let page = row * u64::from(heads);
    let (layer_stride, block_stride) = match order {
        AxisOrder::Lbhnc | AxisOrder::Lbnhc => (page * blocks, page),
        AxisOrder::Lhbnc => (page * blocks, row),
        AxisOrder::Blhnc | AxisOrder::Blnhc => (page, page * layers),
        AxisOrder::Bhlnc => (row, page * layers),
    };
    let span = LayerSpan {
        layer_count,
        offset: 0,
        layer_stride,
        block_stride,
        head_count: heads,
        token_count: tokens,
        content_bytes: content,
    };
    Layout::new(order, block_count, page * blocks * layers, vec![GroupLayout { spans: vec![span] }]).unwrap()
}

/// Spans of opaque pages: (layers, offset, layer stride, block stride, page bytes).
fn opaque(spans: &[(u32, u64, u64, u64, u32)]) -> GroupLayout {
    let span = |&(layer_count, offset, layer_stride, block_stride, content_bytes)| LayerSpan {
        layer_count,
        offset,
        layer_stride,
        block_stride,
        head_count: 1,
        token_count: 1,
        content_bytes,
    };
    GroupLayout { spans: spans.iter().map(span).collect() }
}

fn pairs(group: u32, pairs: &[(u32, u32)]) -> GroupBlocks {
    GroupBlocks {
        group,
        source: pairs.iter().map(|pair| BlockIndex(pair.0)).collect(),
        target: pairs.iter().map(|pair| BlockIndex(pair.1)).collect(),
    }
}

/// `count` pieces of `length` bytes from `source` to `target`, with these strides.
fn run(source: u64, target: u64, length: u64, (count, source_stride, target_stride): (u32, u64, u64)) -> Run {
    Run { source, target, length, count, source_stride, target_stride }
}

const ONCE: (u32, u64, u64) = (1, 0, 0);

fn runs_of(from: AxisOrder, to: AxisOrder, blocks: &[(u32, u32)]) -> Vec<Run> {
    let (source, target) = (dense(from, 10, 3, SHAPE), dense(to, 8, 3, SHAPE));
    Plan::compile(&source, &target, &[pairs(0, blocks)]).unwrap().runs().to_vec()
}

#[test]
fn scattered_blocks_are_one_run_each_over_all_layers() {
    let runs = runs_of(AxisOrder::Lbhnc, AxisOrder::Lbhnc, &[(7, 5), (1, 2), (9, 0)]);
    assert_eq!(
        runs,
        [run(9 * 24, 0, 24, (3, 240, 192)), run(24, 2 * 24, 24, (3, 240, 192)), run(7 * 24, 5 * 24, 24, (3, 240, 192))]
    );
}

#[test]
fn neighbouring_blocks_merge_whatever_the_order_of_the_lists() {
    let runs = runs_of(AxisOrder::Lbhnc, AxisOrder::Lbhnc, &[(6, 4), (4, 2), (5, 3)]);
    assert_eq!(runs, [run(4 * 24, 2 * 24, 72, (3, 240, 192))]);
    let runs = runs_of(AxisOrder::Blhnc, AxisOrder::Blhnc, &[(6, 4), (4, 2), (5, 3)]);
    assert_eq!(runs, [run(4 * 72, 2 * 72, 216, ONCE)]);
}

#[test]
fn a_whole_cache_is_one_piece() {
    let layout = dense(AxisOrder::Lhbnc, 4, 3, SHAPE);
    let plan = Plan::compile(&layout, &layout, &[pairs(0, &[(0, 0), (1, 1), (2, 2), (3, 3)])]).unwrap();
    assert_eq!(plan.runs(), [run(0, 0, 4 * 72, ONCE)]);
    assert_eq!(plan.bytes(), 4 * 72);
}

#[test]
fn a_block_in_one_range_meets_layers_apart() {
    assert_eq!(runs_of(AxisOrder::Blhnc, AxisOrder::Lbhnc, &[(2, 3)]), [run(144, 72, 24, (3, 24, 192))]);
    assert_eq!(runs_of(AxisOrder::Lbhnc, AxisOrder::Blhnc, &[(2, 3)]), [run(48, 216, 24, (3, 240, 24))]);
    // Many neighbours: along the blocks the layer-outermost side is dense, and that axis is the longer one.
    assert_eq!(
        runs_of(AxisOrder::Blhnc, AxisOrder::Lbhnc, &[(2, 3), (3, 4), (4, 5), (5, 6)]),
        [run(144, 72, 24, (4, 72, 24)), run(168, 264, 24, (4, 72, 24)), run(192, 456, 24, (4, 72, 24))]
    );
}

#[test]
fn heads_outside_make_rows() {
    // Source heads are 3 layers x 12 bytes apart in a block; the target's page is dense. The layers are the longer axis.
    assert_eq!(
        runs_of(AxisOrder::Bhlnc, AxisOrder::Lbhnc, &[(1, 1)]),
        [run(72, 24, 12, (3, 12, 192)), run(108, 36, 12, (3, 12, 192))]
    );
    // Neither side is dense along the layers, the target is along the heads.
    assert_eq!(
        runs_of(AxisOrder::Lhbnc, AxisOrder::Lbhnc, &[(1, 1)]),
        [run(12, 24, 12, (2, 120, 12)), run(252, 216, 12, (2, 120, 12)), run(492, 408, 12, (2, 120, 12))]
    );
}

#[test]
fn heads_and_tokens_swapped_make_a_run_of_each_row() {
    let runs = runs_of(AxisOrder::Lbhnc, AxisOrder::Lbnhc, &[(0, 0)]);
    // Tokens are the longer axis, dense in the source; its rows follow each other upwards.
    let expected: Vec<Run> = [(0, 0), (12, 4), (240, 192), (252, 196), (480, 384), (492, 388)]
        .map(|(source, target)| run(source, target, 4, (3, 4, 8)))
        .to_vec();
    assert_eq!(runs, expected);
}

#[test]
fn layers_cut_differently_make_one_run() {
    let group = opaque(&[(4, 0, 100, 10, 10)]);
    let source = Layout::new(AxisOrder::Lbhnc, 10, 400, vec![group]).unwrap();
    let group = opaque(&[(1, 5, 0, 12, 10), (2, 125, 120, 12, 10), (1, 365, 7, 12, 10)]);
    let target = Layout::new(AxisOrder::Lbhnc, 10, 485, vec![group]).unwrap();
    let plan = Plan::compile(&source, &target, &[pairs(0, &[(3, 4), (8, 1)])]).unwrap();
    assert_eq!(plan.runs(), [run(80, 17, 10, (4, 100, 120)), run(30, 53, 10, (4, 100, 120))]);
    // Padded on one side, neighbouring blocks cannot merge; the longer axis is the run all the same.
    let six: Vec<(u32, u32)> = (0..6).map(|block| (block, block + 1)).collect();
    let plan = Plan::compile(&source, &target, &[pairs(0, &six)]).unwrap();
    assert_eq!(plan.runs()[..2], [run(0, 17, 10, (6, 10, 12)), run(100, 137, 10, (6, 10, 12))]);
    assert_eq!(plan.runs().len(), 4);
}

#[test]
fn pages_of_different_size_in_one_block_join() {
    let group = opaque(&[(2, 0, 8, 64, 8), (3, 16, 16, 64, 16)]);
    let layout = Layout::new(AxisOrder::Blhnc, 6, 384, vec![group.clone()]).unwrap();
    let plan = Plan::compile(&layout, &layout, &[pairs(0, &[(1, 4)])]).unwrap();
    assert_eq!(plan.runs(), [run(64, 256, 64, ONCE)]);
    let padded = Layout::new(AxisOrder::Blhnc, 5, 384, vec![opaque(&[(2, 1, 8, 70, 8), (3, 18, 16, 70, 16)])]).unwrap();
    let plan = Plan::compile(&layout, &padded, &[pairs(0, &[(1, 0), (2, 1)])]).unwrap();
    // One byte lies between the sizes in the target, so they stay apart.
    assert_eq!(plan.runs(), [run(64, 1, 16, (2, 64, 70)), run(80, 18, 48, (2, 64, 70))]);
}

#[test]
fn groups_come_in_their_order_and_may_be_named_twice() {
    let groups = vec![opaque(&[(1, 0, 0, 8, 8)]), opaque(&[(1, 80, 0, 4, 4)])];
    let layout = Layout::new(AxisOrder::Lbhnc, 10, 120, groups).unwrap();
    let blocks = [pairs(1, &[(0, 1)]), pairs(0, &[(5, 2)]), pairs(1, &[(1, 2)]), pairs(0, &[])];
    let plan = Plan::compile(&layout, &layout, &blocks).unwrap();
    assert_eq!(plan.runs(), [run(40, 16, 8, ONCE), run(80, 84, 8, ONCE)]);
    assert_eq!(Plan::compile(&layout, &layout, &[]).unwrap(), Plan::compile(&layout, &layout, &blocks[3..]).unwrap());
}

#[test]
fn cuts_fall_inside_runs_and_pieces() {
    let source = Layout::new(AxisOrder::Lbhnc, 2, 60_000, vec![opaque(&[(5, 0, 12_000, 6_000, 6_000)])]).unwrap();
    let plan = Plan::compile(&source, &source, &[pairs(0, &[(0, 1)])]).unwrap();
    assert_eq!(plan.runs(), [run(0, 6_000, 6_000, (5, 12_000, 12_000))]);
    let parts = plan.split(2);
    // 30,000 bytes in two: the cut goes down from 15,000 to 12,288, 288 bytes into the third piece.
    assert_eq!(parts[0].runs(), [run(0, 6_000, 6_000, (2, 12_000, 12_000)), run(24_000, 30_000, 288, ONCE)]);
    assert_eq!(parts[1].runs(), [run(24_288, 30_288, 5_712, ONCE), run(36_000, 42_000, 6_000, (2, 12_000, 12_000))]);
    for whole in [plan.split(0), plan.split(1)] {
        assert_eq!(whole, std::slice::from_ref(&plan));
    }
    assert_eq!(Plan::default().split(3), vec![Plan::default(); 3]);
}

#[test]
fn a_cursor_merges_neighbours_on_its_side() {
    let (source, target) = (dense(AxisOrder::Blhnc, 10, 3, SHAPE), dense(AxisOrder::Lbhnc, 8, 3, SHAPE));
    let plan = Arc::new(Plan::compile(&source, &target, &[pairs(0, &[(2, 3), (3, 0)])]).unwrap());
    // Wire order goes by target block: source block 3, then 2.
    let mut cursor = Cursor::new(Arc::clone(&plan), Side::Source);
    let mut slices = Vec::new();
    assert_eq!(cursor.take(100, 9, &mut slices), 100);
    assert_eq!(slices, [Slice { offset: 216, length: 72 }, Slice { offset: 144, length: 28 }]);
    assert_eq!(cursor.remaining(), 44);
    assert_eq!(cursor.take(u64::MAX, 1, &mut slices), 44);
    assert_eq!(slices[2..], [Slice { offset: 172, length: 44 }]);

    let mut cursor = Cursor::new(plan, Side::Target);
    slices.clear();
    assert_eq!(cursor.take(u64::MAX, 2, &mut slices), 48);
    assert_eq!(cursor.take(0, 2, &mut slices) + cursor.take(9, 0, &mut slices), 0);
    assert_eq!(cursor.take(30, 9, &mut slices), 30);
    let expected = [(0, 24), (192, 24), (384, 24), (72, 6)].map(|(offset, length)| Slice { offset, length });
    assert_eq!(slices, expected);
}

#[test]
fn digests_are_the_same_on_every_machine() {
    let digest = |blocks| {
        let layout = dense(AxisOrder::Lbhnc, 10, 3, SHAPE);
        Plan::compile(&layout, &layout, &[pairs(0, blocks)]).unwrap().digest()
    };
    // Part of the wire format: a change here is a change of its version.
    assert_eq!(digest(&[]), 0x6a09_e667_f3bc_c909);
    assert_eq!(digest(&[(1, 2), (5, 4)]), 0xf25a_4f34_a6dc_b705);
    assert_ne!(digest(&[(1, 2), (5, 4)]), digest(&[(1, 4), (5, 2)]));
}

fn refusal(source: &Layout, target: &Layout, blocks: &[GroupBlocks]) -> PlanError {
    Plan::compile(source, target, blocks).unwrap_err()
}

#[test]
fn bad_block_lists_are_refused() {
    let layout = dense(AxisOrder::Lbhnc, 10, 3, SHAPE);
    let refused = |blocks: &[GroupBlocks]| refusal(&layout, &layout, blocks);
    assert_eq!(refused(&[pairs(1, &[])]), PlanError::UnknownGroup { group: 1, group_count: 1 });
    assert_eq!(
        refused(&[GroupBlocks { group: 0, source: vec![BlockIndex(1)], target: Vec::new() }]),
        PlanError::ListLength { group: 0, source_count: 1, target_count: 0 }
    );
    let out_of_range = |side, block| PlanError::BlockOutOfRange { side, group: 0, block, block_count: 10 };
    assert_eq!(refused(&[pairs(0, &[(10, 1)])]), out_of_range(Side::Source, BlockIndex(10)));
    assert_eq!(refused(&[pairs(0, &[(1, u32::MAX)])]), out_of_range(Side::Target, BlockIndex(u32::MAX)));
    let twice = PlanError::TargetTwice { group: 0, other: 0, block: BlockIndex(7) };
    assert_eq!(refused(&[pairs(0, &[(1, 7), (2, 3), (4, 7)])]), twice);
    assert_eq!(refused(&[pairs(0, &[(1, 7)]), pairs(0, &[(1, 7)])]), twice);
    // A source may be read twice.
    assert_eq!(Plan::compile(&layout, &layout, &[pairs(0, &[(1, 7), (1, 3)])]).unwrap().bytes(), 144);
    let many = vec![(1, 1); PAIRS_MAX / 2 + 1];
    assert_eq!(refused(&[pairs(0, &many), pairs(0, &many)]), PlanError::TooManyPairs);
}

#[test]
fn different_shapes_are_refused() {
    let layout = dense(AxisOrder::Lbhnc, 10, 3, SHAPE);
    let refused = |other: &Layout| refusal(&layout, other, &[]);
    assert_eq!(
        refused(&dense(AxisOrder::Lbhnc, 10, 2, SHAPE)),
        PlanError::LayerCount { group: 0, source_count: 3, target_count: 2 }
    );
    let shape = |head_count, token_count, content_bytes| PageShape { head_count, token_count, content_bytes };
    assert_eq!(
        refused(&dense(AxisOrder::Lbhnc, 10, 3, (3, 2, 4))),
        PlanError::PageShape { group: 0, layer: 0, source_shape: shape(2, 3, 4), target_shape: shape(3, 2, 4) }
    );
    let two =
        Layout::new(AxisOrder::Lbhnc, 1, 2, vec![opaque(&[(1, 0, 1, 1, 1)]), opaque(&[(1, 1, 1, 1, 1)])]).unwrap();
    assert_eq!(refused(&two), PlanError::GroupCount { source_count: 1, target_count: 2 });
}

#[test]
fn groups_over_the_same_bytes_must_not_share_targets() {
    let group = |offset| opaque(&[(2, offset, 8, 16, 8)]);
    let overlaid = Layout::new(AxisOrder::Blhnc, 4, 64, vec![group(0), group(0)]).unwrap();
    let apart = Layout::new(AxisOrder::Blhnc, 4, 128, vec![group(0), group(64)]).unwrap();
    let blocks = [pairs(0, &[(0, 1), (1, 3)]), pairs(1, &[(2, 0), (3, 3)])];
    let twice = PlanError::TargetTwice { group: 0, other: 1, block: BlockIndex(3) };
    assert_eq!(refusal(&overlaid, &overlaid, &blocks), twice);
    assert_eq!(Plan::compile(&overlaid, &apart, &blocks).unwrap().bytes(), 64);
    assert_eq!(Plan::compile(&apart, &overlaid, &[pairs(0, &[(0, 1)]), pairs(1, &[(0, 2)])]).unwrap().bytes(), 32);

    // Half a block out of step: block 1 of one group reaches into block 2 of the other.
    let skewed = Layout::new(AxisOrder::Blhnc, 4, 72, vec![group(0), group(8)]).unwrap();
    assert_eq!(refusal(&apart, &skewed, &blocks), PlanError::GroupsOutOfStep { group: 0, other: 1 });
    assert_eq!(Plan::compile(&skewed, &apart, &blocks).unwrap().bytes(), 64);
    assert_eq!(Plan::compile(&apart, &skewed, &blocks[..1]).unwrap().bytes(), 32);
}

#[test]
fn too_many_runs_take_the_longest_axis_and_then_are_refused() {
    // 60 layers of 4 heads x 32 tokens: along the tokens (dense in the source) 240 runs a block, along the layers 128.
    let (source, target) =
        (dense(AxisOrder::Lbhnc, 16_384, 60, (4, 32, 1)), dense(AxisOrder::Lbnhc, 16_384, 60, (4, 32, 1)));
    // Every other block, so that no two are neighbours.
    let compile = |count: u32| {
        let blocks: Vec<(u32, u32)> = (0..count).map(|block| (block * 2, block * 2)).collect();
        Plan::compile(&source, &target, &[pairs(0, &blocks)])
    };
    assert_eq!(compile(4_000).unwrap().runs().len(), 4_000 * 240);
    assert_eq!(compile(8_000).unwrap().runs().len(), 8_000 * 128);
    assert_eq!(compile(8_192).unwrap().runs().len(), RUNS_MAX);
    let target = dense(AxisOrder::Lbnhc, 32_768, 60, (4, 32, 1));
    let source = dense(AxisOrder::Lbhnc, 32_768, 60, (4, 32, 1));
    let blocks: Vec<(u32, u32)> = (0..8_193).map(|block| (block * 2, block * 2)).collect();
    assert_eq!(refusal(&source, &target, &[pairs(0, &blocks)]), PlanError::TooManyRuns);
}

#[test]
fn the_blocks_of_a_long_prompt_take_one_run_each() {
    let layout = dense(AxisOrder::Lbhnc, 16_384, 80, (8, 16, 512));
    // An odd factor scatters over all blocks without repeating.
    let blocks: Vec<(u32, u32)> = (0..4_096).map(|block| (block * 5_077 % 16_384, block * 9_733 % 16_384)).collect();
    let plan = Plan::compile(&layout, &layout, &[pairs(0, &blocks)]).unwrap();
    assert_eq!(plan.runs().len(), 4_096);
    let blocks: Vec<(u32, u32)> = (0..4_096).map(|block| (block + 100, block + 9)).collect();
    assert_eq!(Plan::compile(&layout, &layout, &[pairs(0, &blocks)]).unwrap().runs().len(), 1);
}

#[test]
fn the_largest_numbers_are_carried_or_refused() {
    let layout = |order, block_stride, (head_count, token_count, content_bytes)| {
        let span = LayerSpan {
            layer_count: 1,
            offset: 0,
            layer_stride: 0,
            block_stride,
            head_count,
            token_count,
            content_bytes,
        };
        Layout::new(order, 4, 1 << 56, vec![GroupLayout { spans: vec![span] }]).unwrap()
    };
    let all = [pairs(0, &[(0, 0), (1, 1), (2, 2), (3, 3)])];
    let huge = (1 << 31, 1 << 20, 8);
    let source = layout(AxisOrder::Lbhnc, 1 << 54, huge);
    let plan = Plan::compile(&source, &source, &all).unwrap();
    assert_eq!(plan.runs(), [run(0, 0, 1 << 56, ONCE)]);
    assert_eq!(plan.split(3).iter().map(Plan::bytes).sum::<u64>(), 1 << 56);
    let target = layout(AxisOrder::Lbnhc, 1 << 54, huge);
    assert_eq!(refusal(&source, &target, &all), PlanError::TooManyRuns);
    // Heads continue the blocks on both sides, but together they are more than a run can count.
    let rows = layout(AxisOrder::Lhbnc, 24, (1 << 31, 2, 8));
    let plan = Plan::compile(&rows, &rows, &all).unwrap();
    assert_eq!(plan.runs()[..2], [run(0, 0, 16, (1 << 31, 96, 96)), run(24, 24, 16, (1 << 31, 96, 96))]);
    assert_eq!(plan.bytes(), 1 << 37);
}
