//! Layouts that lie: numbers at every extreme, and well-made layouts with one number changed.

use std::collections::BTreeSet;

use kvferry_core::BlockIndex;
use kvferry_core::layout::{GroupLayout, LayerSpan, Layout, REGION_BYTES_MAX};
use kvferry_core::plan::{GroupBlocks, Plan, Run, Side};
use proptest::prelude::*;

use crate::model::{self, Shape};

fn long() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => 0..200_u64,
        6 => (0..50_u32).prop_map(|bit| 1 << bit),
        1 => (0..64_u32, 0..3_u64).prop_map(|(bit, more)| (1_u64 << bit).wrapping_add(more).wrapping_sub(1)),
        1 => any::<u64>(),
        1 => Just(u64::MAX),
    ]
}

fn region() -> impl Strategy<Value = u64> {
    prop_oneof![2 => Just(REGION_BYTES_MAX), 1 => long()]
}

fn short() -> impl Strategy<Value = u32> {
    prop_oneof![60 => 1..4_u32, 1 => Just(0), 1 => any::<u32>(), 1 => Just(u32::MAX), 3 => 1..2000_u32]
}

fn span() -> impl Strategy<Value = LayerSpan> {
    (short(), long(), long(), long(), short(), short(), short()).prop_map(
        |(layer_count, offset, layer_stride, block_stride, head_count, token_count, content_bytes)| LayerSpan {
            layer_count,
            offset,
            layer_stride,
            block_stride,
            head_count,
            token_count,
            content_bytes,
        },
    )
}

fn groups() -> impl Strategy<Value = Vec<GroupLayout>> {
    let spans = prop_oneof![4 => prop::collection::vec(span(), 1), 1 => prop::collection::vec(span(), 0..4)];
    let group = spans.prop_map(|spans| GroupLayout { spans });
    prop_oneof![4 => prop::collection::vec(group.clone(), 1), 1 => prop::collection::vec(group, 0..4)]
}

fn blocks() -> impl Strategy<Value = Vec<GroupBlocks>> {
    let index = prop_oneof![8 => 0..6_u32, 1 => any::<u32>()].prop_map(BlockIndex);
    let list = prop::collection::vec(index, 0..5);
    let lists = (0..3_u32, list.clone(), list, 0..4_u32).prop_map(|(group, source, mut target, even)| {
        if even > 0 {
            target = (0..).map(BlockIndex).take(source.len()).collect();
        }
        GroupBlocks { group, source, target }
    });
    prop::collection::vec(lists, 0..4)
}

/// The last byte of a run on one side, found without trusting any sum to fit.
fn end(run: &Run, side: Side) -> u128 {
    let (start, stride) = match side {
        Side::Source => (run.source, run.source_stride),
        Side::Target => (run.target, run.target_stride),
    };
    u128::from(start) + u128::from(run.count - 1) * u128::from(stride) + u128::from(run.length)
}

/// No two elements of one group share a byte, and all are in the region.
fn check_by_counting(layout: &Layout) -> Result<(), TestCaseError> {
    for group in 0..layout.groups().len() {
        let mut owned = vec![false; layout.region_bytes() as usize];
        let elements = (0..layout.block_count()).flat_map(|block| model::addresses(layout, group, block));
        for (start, length) in elements {
            for byte in start..start + length {
                prop_assert!(byte < layout.region_bytes(), "byte {} is outside", byte);
                prop_assert!(!std::mem::replace(&mut owned[byte as usize], true), "byte {} belongs to two", byte);
            }
        }
    }
    Ok(())
}

/// How often each target byte would be written.
fn writes(layout: &Layout, blocks: &[GroupBlocks]) -> Vec<u32> {
    let mut written = vec![0; layout.region_bytes() as usize];
    for lists in blocks {
        for block in &lists.target {
            for (start, length) in model::addresses(layout, lists.group as usize, block.0) {
                written[start as usize..][..length as usize].iter_mut().for_each(|count| *count += 1);
            }
        }
    }
    written
}

#[derive(Clone, Copy, Debug)]
enum Change {
    BlockStride(i64),
    LayerStride(i64),
    Offset(i64),
}

fn change() -> impl Strategy<Value = Change> {
    let by = -40..41_i64;
    prop_oneof![
        by.clone().prop_map(Change::BlockStride),
        by.clone().prop_map(Change::LayerStride),
        by.prop_map(Change::Offset),
    ]
}

fn apply(span: &mut LayerSpan, change: Change) {
    let (field, by) = match change {
        Change::BlockStride(by) => (&mut span.block_stride, by),
        Change::LayerStride(by) => (&mut span.layer_stride, by),
        Change::Offset(by) => (&mut span.offset, by),
    };
    *field = field.saturating_add_signed(by);
}

fn small_shapes() -> impl Strategy<Value = Vec<Vec<Shape>>> {
    let shape = (1..3_u32, 1..3_u32, 1..5_u32);
    prop::collection::vec((shape, 1..4_usize).prop_map(|(shape, count)| vec![shape; count]), 1..4)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_numbers_panic(
        orders in (model::order(), model::order()),
        counts in (short(), short()),
        regions in (region(), region()),
        groups in groups(),
        others in groups(),
        alike in any::<bool>(),
        mut blocks in blocks(),
    ) {
        let source = Layout::new(orders.0, counts.0, regions.0, groups.clone());
        let target = if alike { source.clone() } else { Layout::new(orders.1, counts.1, regions.1, others) };
        if alike {
            // Else few plans would come of it.
            for lists in &mut blocks {
                lists.group %= groups.len().max(1) as u32;
                let (sources, targets) = (lists.source.iter_mut(), lists.target.iter_mut());
                sources.chain(targets).for_each(|block| block.0 %= counts.0.max(1));
            }
        }
        if let (Ok(source), Ok(target)) = (source, target)
            && let Ok(plan) = Plan::compile(&source, &target, &blocks)
        {
            for run in plan.runs() {
                prop_assert!(run.length > 0 && run.count > 0);
                prop_assert!(end(run, Side::Source) <= u128::from(source.region_bytes()));
                prop_assert!(end(run, Side::Target) <= u128::from(target.region_bytes()));
            }
            prop_assert_eq!(plan.split(3).iter().map(Plan::bytes).sum::<u64>(), plan.bytes());
        }
    }

    #[test]
    fn what_is_accepted_shares_no_byte(
        manner in model::manner(),
        shapes in small_shapes(),
        changes in prop::collection::vec((0..4_usize, 0..4_usize, change()), 1..3),
        wishes in prop::collection::btree_set((0..3_u32, 0..9_u32), 0..12),
    ) {
        let made = model::lay_out(&manner, &shapes);
        let mut groups = made.groups().to_vec();
        for (group, span, change) in changes {
            let group_count = groups.len();
            let spans = &mut groups[group % group_count].spans;
            let span_count = spans.len();
            apply(&mut spans[span % span_count], change);
        }
        let Ok(layout) = Layout::new(manner.order, manner.block_count, made.region_bytes() + 80, groups) else {
            return Ok(());
        };
        check_by_counting(&layout)?;

        let wishes: BTreeSet<(u32, u32)> =
            wishes.iter().map(|(group, block)| (group % shapes.len() as u32, block % manner.block_count)).collect();
        let blocks: Vec<GroupBlocks> = wishes
            .iter()
            .map(|(group, block)| (*group, vec![BlockIndex(*block)]))
            .map(|(group, list)| GroupBlocks { group, source: list.clone(), target: list })
            .collect();
        if Plan::compile(&layout, &layout, &blocks).is_ok() {
            prop_assert!(writes(&layout, &blocks).iter().all(|count| *count <= 1), "a byte would be written twice");
        }
    }
}
