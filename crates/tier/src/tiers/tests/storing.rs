//! Several stores at once.

use super::*;

/// A job's worth, and a little more.
const LONG: u8 = 70;

fn blocks(numbers: std::ops::RangeInclusive<u8>) -> Vec<(u8, u32)> {
    numbers.map(|number| (number, u32::from(number) % BLOCKS)).collect()
}

/// Carries out all jobs: whose they were, in order.
fn run_all(node: &mut Node) -> Vec<WorkId> {
    let next = || {
        let job = node.tiers.poll_store(at(0))?;
        let Job::Store(work, _) = &node.tiers.jobs[&job.id] else { panic!("a load") };
        let work = *work;
        let copied = job.run();
        node.tiers.handle_copied(at(0), &copied);
        Some(work)
    };
    std::iter::from_fn(next).collect()
}

#[test]
fn a_store_behind_another_s_last_block_waits_until_that_one_has_its_place() {
    let mut node = Node::new();
    let engine = device(0, 1);
    let prompt = node.store(&engine, None, &blocks(1..=LONG));
    let answer = node.store(&engine, Some(LONG), &blocks(LONG + 1..=LONG + 12));
    assert_eq!(run_all(&mut node), [prompt, prompt, answer]);
    for work in [prompt, answer] {
        node.tiers.commit(at(0), work);
    }
    node.run(at(0));
    let chain: Vec<_> = (1..=LONG + 12).map(hash).collect();
    assert_eq!(node.lookup(at(1), &[&engine], &chain).1, u32::from(LONG) + 12);
}

#[test]
fn engines_take_turns() {
    let mut node = Node::new();
    let (first, second) = (device(0, 1), device(1, 1));
    let long = node.store(&first, None, &blocks(1..=2 * LONG));
    let next = node.store(&first, None, &blocks(201..=202));
    let short = node.store(&second, None, &blocks(1..=2));
    assert_eq!(run_all(&mut node), [long, short, long, long, next]);
}

#[test]
fn what_is_given_up_has_no_turn() {
    let mut node = Node::new();
    let engine = device(0, 1);
    let long = node.store(&engine, None, &blocks(1..=LONG));
    let job = node.tiers.poll_store(at(0)).expect("a copy");
    for _ in 0..100 {
        let work = node.store(&engine, None, &blocks(100..=101));
        node.tiers.abort(at(0), work);
    }
    assert_eq!(node.tiers.store_turns.waiting(), 1);
    node.tiers.abort(at(0), long);
    assert_eq!(node.tiers.store_turns.waiting(), 0);
    let copied = job.run();
    node.tiers.handle_copied(at(0), &copied);
    assert_eq!(node.tiers.open(), (0, 0, 0));
}
