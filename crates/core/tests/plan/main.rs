//! Plans against a plain copy, byte by byte: any two orders, spans, groups, paddings and block lists.
#![expect(clippy::cast_possible_truncation, reason = "the regions of these tests have a few thousand bytes")]

mod hostile;
mod model;

use std::collections::BTreeSet;
use std::sync::Arc;

use kvferry_core::BlockIndex;
use kvferry_core::layout::Layout;
use kvferry_core::plan::{GroupBlocks, Plan, Side};
use proptest::prelude::*;

use self::model::{Manner, Shape, Step};

/// Two layouts of equal shape, and blocks to move between them.
#[derive(Clone, Debug)]
struct Case {
    source: Layout,
    target: Layout,
    blocks: Vec<GroupBlocks>,
    source_steps: Vec<Step>,
    target_steps: Vec<Step>,
}

fn shapes() -> impl Strategy<Value = Vec<Vec<Shape>>> {
    let content = prop_oneof![3 => 1..6_u32, 1 => Just(700)];
    let shape = (1..4_u32, 1..4_u32, content);
    // Mostly layers of one shape, as most models have them.
    let layers = prop_oneof![
        2 => (shape.clone(), 1..6_usize).prop_map(|(shape, count)| vec![shape; count]),
        1 => prop::collection::vec(shape, 1..5),
    ];
    prop::collection::vec(layers, 1..4)
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let bytes = prop_oneof![2 => 1..50_u64, 1 => 1..5000_u64, 1 => Just(u64::MAX)];
    let slices = prop_oneof![2 => 1..6_usize, 1 => Just(usize::MAX)];
    prop::collection::vec((bytes, slices), 1..6)
}

fn case() -> impl Strategy<Value = Case> {
    let wish = (0..3_u32, 0..9_u32, 0..9_u32, 1..5_u32, any::<bool>());
    let wishes = prop::collection::vec(wish, 0..10);
    (shapes(), model::manner(), model::manner(), wishes, steps(), steps()).prop_map(
        |(shapes, source, target, wishes, source_steps, target_steps)| {
            let blocks = choose(&shapes, &source, &target, &wishes);
            let (source, target) = (model::lay_out(&source, &shapes), model::lay_out(&target, &shapes));
            Case { source, target, blocks, source_steps, target_steps }
        },
    )
}

/// Turns wishes (group, source, target, neighbours, shared list) into lists whose targets are distinct: within a group,
/// and between groups that overlay.
fn choose(
    shapes: &[Vec<Shape>],
    source: &Manner,
    target: &Manner,
    wishes: &[(u32, u32, u32, u32, bool)],
) -> Vec<GroupBlocks> {
    let mut used = BTreeSet::new();
    let mut blocks: Vec<GroupBlocks> = Vec::new();
    for &(group, from, to, count, share) in wishes {
        let group = group % shapes.len() as u32;
        if !share || blocks.last().is_none_or(|lists| lists.group != group) {
            blocks.push(GroupBlocks { group, ..GroupBlocks::default() });
        }
        for step in 0..count {
            let (from, to) = ((from + step) % source.block_count, (to + step) % target.block_count);
            if used.insert((if target.overlay { 0 } else { group }, to))
                && let Some(lists) = blocks.last_mut()
            {
                lists.source.push(BlockIndex(from));
                lists.target.push(BlockIndex(to));
            }
        }
    }
    blocks
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn moves_what_a_plain_copy_moves(case in case(), part_count in 1..6_usize, seed in any::<u8>()) {
        let Case { source, target, blocks, source_steps, target_steps } = case;
        let source_bytes: Vec<u8> = (0..source.region_bytes()).map(|at| (at * 37 + at / 251) as u8 ^ seed).collect();
        let target_bytes: Vec<u8> = (0..target.region_bytes()).map(|at| (at * 11 + at / 13) as u8).collect();
        let expected = model::reference(&source, &target, &blocks, &source_bytes, &target_bytes);

        let plan = Arc::new(Plan::compile(&source, &target, &blocks).expect("a plan"));
        let bytes: u64 = blocks
            .iter()
            .map(|lists| lists.target.len() as u64 * target.bytes_per_block(lists.group).expect("a known group"))
            .sum();
        prop_assert_eq!(plan.bytes(), bytes);

        let (mut moved, mut written) = (target_bytes.clone(), vec![0_u8; target_bytes.len()]);
        model::execute(&plan, (&source_steps, &target_steps), &source_bytes, &mut moved, &mut written);
        prop_assert!(moved == expected, "the plan moves other bytes");
        prop_assert!(written.iter().all(|count| *count <= 1), "a byte is written twice");
        prop_assert_eq!(written.iter().map(|count| u64::from(*count)).sum::<u64>(), bytes);

        let parts = plan.split(part_count);
        prop_assert_eq!(parts.len(), part_count);
        let (mut moved, mut written) = (target_bytes.clone(), vec![0_u8; target_bytes.len()]);
        let mut wire = Vec::new();
        let mut end = 0;
        for (number, part) in parts.into_iter().enumerate() {
            prop_assert!(number == 0 || end % 4096 == 0 || end == bytes, "cut at {}", end);
            prop_assert!(part.bytes() <= bytes / part_count as u64 + 4096);
            let part = Arc::new(part);
            end += part.bytes();
            wire.extend(model::slices(&part, Side::Source, &[(1, 1)]));
            model::execute(&part, (&target_steps, &source_steps), &source_bytes, &mut moved, &mut written);
        }
        prop_assert_eq!(end, bytes);
        prop_assert!(moved == expected, "the parts move other bytes");
        prop_assert!(written.iter().all(|count| *count <= 1), "two parts write one byte");
        // The parts one after another are the plan, in its order.
        prop_assert_eq!(wire, model::slices(&plan, Side::Source, &[(1, 1)]));
    }

    #[test]
    fn layouts_as_the_engine_makes_them_are_accepted(
        orders in (model::order(), model::order()),
        block_counts in (1..9_u32, 1..9_u32),
        shape in (1..4_u32, 1..4_u32, 1..6_u32),
        depths in prop::collection::vec(1..5_u32, 1..4),
        pairs in prop::collection::btree_map(0..9_u32, (0..4_usize, 0..9_u32), 1..9),
    ) {
        let source = model::engine_layout(orders.0, block_counts.0, shape, &depths);
        let target = model::engine_layout(orders.1, block_counts.1, shape, &depths);
        // Every block belongs to one group at a time, so targets are distinct over all groups.
        let pairs = pairs.into_iter().filter(|(to, _)| *to < block_counts.1);
        let blocks: Vec<GroupBlocks> = pairs
            .map(|(to, (group, from))| GroupBlocks {
                group: (group % depths.len()) as u32,
                source: vec![BlockIndex(from % block_counts.0)],
                target: vec![BlockIndex(to)],
            })
            .collect();
        let plan = Arc::new(Plan::compile(&source, &target, &blocks).expect("a plan"));
        let source_bytes: Vec<u8> = (0..source.region_bytes()).map(|at| (at * 37 + at / 251) as u8).collect();
        let mut moved = vec![0_u8; target.region_bytes() as usize];
        let expected = model::reference(&source, &target, &blocks, &source_bytes, &moved);
        let mut written = moved.clone();
        let steps = [(u64::MAX, usize::MAX)];
        model::execute(&plan, (&steps, &steps), &source_bytes, &mut moved, &mut written);
        prop_assert!(moved == expected, "the plan moves other bytes");
        prop_assert!(written.iter().all(|count| *count <= 1), "a byte is written twice");
    }

    #[test]
    fn order_of_pairs_does_not_matter(case in case()) {
        let Case { source, target, mut blocks, .. } = case;
        let plan = Plan::compile(&source, &target, &blocks).expect("a plan");
        blocks.reverse();
        for lists in &mut blocks {
            lists.source.reverse();
            lists.target.reverse();
        }
        let other = Plan::compile(&source, &target, &blocks).expect("a plan");
        prop_assert_eq!(plan.digest(), other.digest());
        prop_assert_eq!(plan, other);
    }
}
