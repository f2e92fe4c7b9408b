//! Blocks that go or are read because a person asks for it.

use super::verifying::CHECK_BYTES;
use super::*;
use crate::cache::{Holding, Left};

pub(super) fn everything() -> SweepFilter {
    SweepFilter::default()
}

impl Node {
    /// Begins a sweep, and carries it to its end.
    pub(super) fn sweep(&mut self, sweep: Sweep, filter: SweepFilter) -> SweepProgress {
        let work = self.begin(sweep, filter);
        self.carry_on();
        let progress = self.tiers.sweeps(sweep).expect("begun");
        assert!(progress.is_over && progress.work == work, "{progress:?}");
        progress
    }

    pub(super) fn begin(&mut self, sweep: Sweep, filter: SweepFilter) -> WorkId {
        let work = self.work();
        self.tiers.sweep(work, sweep, filter);
        work
    }

    /// What the daemon's threads do until there is nothing left.
    pub(super) fn carry_on(&mut self) {
        loop {
            self.tiers.slice();
            let job = self.tiers.poll_check();
            let was_checked = job.map(|job| self.tiers.handle_checked(&job.run())).is_some();
            if !self.run_disk(at(500)) && !was_checked && !self.tiers.has_slice() {
                return;
            }
        }
    }

    /// Has the disk read this, and nothing else.
    pub(super) fn read(&mut self, job: DiskJob) {
        let DiskJob::Read { tag, block, span } = job else { panic!("a write") };
        self.mover.read(tag, block, &span).expect("room");
        let mut done = Vec::new();
        while done.is_empty() {
            self.mover.wait(Duration::from_secs(1));
            self.mover.turn(&mut done);
        }
        done.into_iter().for_each(|done| self.tiers.handle_disk(done));
    }

    /// Looks blocks up while nothing else happens.
    fn look(&mut self, now: Time, engine: &Arc<Device>, chain: &[BlockHash]) -> (WorkId, u32) {
        let claim = self.work();
        self.tiers.lookup(now, claim, &Lookup { devices: vec![Arc::clone(engine)], groups: vec![chain.to_vec()] });
        let events = std::iter::from_fn(|| self.tiers.poll_event());
        let found = events.filter_map(|event| match event {
            TierEvent::Found { claim: of, held, .. } if of == claim => Some(held[0]),
            _ => None,
        });
        (claim, found.last().expect("an answer"))
    }

    /// Where these bytes are in the arena.
    fn place(&self, wanted: &[u8]) -> u64 {
        let arena = self.tiers.host().store().region();
        let mut all = vec![0; usize::try_from(arena.len()).expect("small")];
        arena.read(0, &mut all).expect("inside");
        all.windows(wanted.len()).position(|bytes| bytes == wanted).expect("it is there") as u64
    }

    fn left(&self, why: Left) -> (u64, u64) {
        let disk = self.tiers.disk().map_or(0, |disk| disk.departures().of(why));
        (self.tiers.host().departures().of(why), disk)
    }
}

/// What a list tells, and after how many slices.
fn list(node: &mut Node) -> (Vec<(Tier, Holding)>, usize) {
    let work = node.work();
    node.tiers.list(work);
    let mut slices = 0;
    loop {
        match node.tiers.poll_event() {
            Some(TierEvent::Listed { work: of, holdings }) if of == work => return (by_fingerprint(&holdings), slices),
            Some(event) => node.changes.push(event),
            None => {
                assert!(node.tiers.has_slice(), "nothing else that happens would end it");
                node.tiers.slice();
                slices += 1;
            }
        }
    }
}

/// In which tier, and blocks, bytes and hits of it.
fn held(node: &mut Node) -> Vec<(Tier, u64, u64, u64)> {
    let row = |(tier, of): (Tier, Holding)| (tier, of.blocks, of.bytes, of.hits);
    list(node).0.into_iter().map(row).collect()
}

/// Blocks 1 and 2 in both tiers, and 3 in host memory.
pub(super) fn full() -> (Node, Arc<Device>) {
    let mut node = Node::with_disk();
    let engine = device(0, 1);
    node.keep(at(0), &engine, None, &[(1, 10), (2, 3), (3, 60)]);
    let (claim, _) = node.lookup(at(1), &[&engine], &[hash(1), hash(2)]);
    node.tiers.forget(claim);
    assert_eq!(node.run(at(1)), [TierEvent::Released { claim }]);
    assert_eq!((node.tiers.host().blocks(), node.on_disk()), (3, 2));
    (node, engine)
}

#[test]
fn it_is_known_whose_blocks_are_where_also_after_a_restart() {
    let (mut node, engine) = full();
    assert_eq!(held(&mut node), [(Tier::Host, 3, 3 * BLOCK_BYTES, 2), (Tier::Disk, 2, 2 * BLOCK_BYTES, 0)]);
    let used = list(&mut node).0.iter().map(|(_, of)| of.used).collect::<Vec<_>>();
    assert_eq!(used, [Some(at(1)), None]);
    node.restart_without_memory();
    assert_eq!(held(&mut node), [(Tier::Disk, 2, 2 * BLOCK_BYTES, 0)]);
    let (holdings, _) = list(&mut node);
    assert_eq!((holdings[0].1.fingerprint, holdings[0].1.tenant), (engine.fingerprint(), Tenant(0)));
    node.tiers.clear(at(2), &[engine]);
    node.run(at(2));
    assert_eq!((held(&mut node), node.left(Left::Cleared)), (Vec::new(), (0, 2)));
}

#[test]
fn many_tenants_are_told_a_few_at_a_time() {
    let mut node = Node::new();
    let classes = [0, 1].map(|part| node.tiers.host.class(Fingerprint([9; 32]), part, 1 << 10).expect("a class"));
    let mut keep = |number: u64, tenant| {
        for class in classes {
            let mut hash = [0; 32];
            hash[..8].copy_from_slice(&number.to_le_bytes());
            let filling = node.tiers.host.admit(at(0), class, hash, None, Tenant(tenant)).expect("room");
            node.tiers.host.seal(filling, 0, None);
        }
    };
    (0..100).for_each(|number| keep(number, number));
    keep(100, 7);
    let (holdings, slices) = list(&mut node);
    assert!(slices >= 10, "{slices}");
    assert_eq!(holdings.len(), 100, "both classes are of one fingerprint");
    assert_eq!(holdings.iter().map(|(_, of)| of.blocks).sum::<u64>(), 202);
    assert!(holdings.iter().all(|(_, of)| of.blocks == if of.tenant == Tenant(7) { 4 } else { 2 }));
    // A second one waits for its turn.
    let works = [node.work(), node.work()];
    works.into_iter().for_each(|work| node.tiers.list(work));
    let told: Vec<_> = std::iter::from_fn(|| {
        while node.tiers.has_slice() {
            node.tiers.slice();
        }
        node.tiers.poll_event()
    })
    .filter_map(|event| match event {
        TierEvent::Listed { work, holdings } => Some((work, holdings.len())),
        _ => None,
    })
    .collect();
    assert_eq!(told, works.map(|work| (work, 200)));
    for (tenant, blocks) in [(None, 202), (Some(7), 4), (Some(9999), 0)] {
        let filter = SweepFilter { tenant: tenant.map(Tenant), ..Default::default() };
        node.begin(Sweep::Verify, filter);
        let host = node.tiers.sweeps(Sweep::Verify).expect("begun").host;
        assert_eq!((host.blocks_total, host.bytes_total), (blocks, blocks << 10));
    }
    node.sweep(Sweep::Evict, everything());
    assert_eq!(list(&mut node), (Vec::new(), 0));
}

#[test]
fn what_is_to_go_goes_from_both_tiers_and_nothing_else_does() {
    let (mut node, engine) = full();
    let none = SweepFilter { fingerprints: vec![Fingerprint([1; 32])], ..Default::default() };
    let other = SweepFilter { tenant: Some(Tenant(5)), ..Default::default() };
    for filter in [none, other] {
        let progress = node.sweep(Sweep::Evict, filter);
        assert_eq!((progress.host, progress.disk), (SweepCount::default(), SweepCount::default()));
    }
    let progress = node.sweep(Sweep::Evict, SweepFilter { tier: Some(Tier::Disk), ..Default::default() });
    assert_eq!((progress.host.blocks, progress.disk.blocks, progress.disk.bytes), (0, 2, 2 * BLOCK_BYTES));
    assert_eq!((node.tiers.host().blocks(), node.on_disk()), (3, 0));
    let filter = SweepFilter { fingerprints: vec![engine.fingerprint()], tenant: Some(Tenant(0)), tier: None };
    let progress = node.sweep(Sweep::Evict, filter);
    assert_eq!((progress.host.blocks_total, progress.host.blocks, progress.host.bytes), (3, 3, 3 * BLOCK_BYTES));
    assert_eq!((held(&mut node), node.left(Left::Asked)), (Vec::new(), (3, 2)));
    assert_eq!(node.lookup(at(2), &[&engine], &[hash(1)]).1, 0);
    assert_eq!(node.keep(at(3), &engine, None, &[(1, 10)]), 1, "and begins anew");
}

#[test]
fn what_is_held_is_loaded_first_and_nobody_else_finds_it() {
    let (mut node, engine) = full();
    let chain = [hash(1), hash(2), hash(3)];
    let (claim, found) = node.lookup(at(2), &[&engine], &chain);
    assert_eq!(found, 3);
    node.begin(Sweep::Evict, everything());
    assert_eq!(node.look(at(2), &engine, &chain).1, 0, "from the beginning on");
    node.carry_on();
    let progress = node.tiers.sweeps(Sweep::Evict).expect("begun");
    assert!(progress.is_over, "{progress:?}");
    assert_eq!((progress.host.blocks, progress.host.held_blocks, progress.host.held_bytes), (0, 3, 3 * BLOCK_BYTES));
    assert_eq!((progress.disk.blocks, progress.disk.held_blocks), (3, 0), "the third was used a second time");
    let (late, found) = node.lookup(at(3), &[&engine], &chain);
    assert_eq!((found, node.tiers.host().blocks()), (0, 3));
    node.tiers.forget(late);
    node.load(at(4), &engine, claim, &[(1, 20), (2, 21), (3, 22)]);
    assert_eq!(node.loaded(at(4)), Ok(3 * BLOCK_BYTES));
    assert_eq!(content(&engine, 20), content(&engine, 10));
    node.run(at(5));
    assert_eq!((node.tiers.host().blocks(), node.on_disk(), node.left(Left::Asked)), (0, 0, (3, 3)));
}

#[test]
fn nothing_comes_back_from_the_other_tier() {
    let (mut node, engine) = full();
    // The disk has all three, and the first two are on their way from it.
    let (claim, _) = node.lookup(at(2), &[&engine], &[hash(1), hash(2), hash(3)]);
    node.tiers.forget(claim);
    node.restart_without_memory();
    assert_eq!(node.on_disk(), 3);
    let (claim, _) = node.look(at(3), &engine, &[hash(1), hash(2)]);
    let job = node.tiers.poll_disk(at(3)).expect("a read");
    let DiskJob::Read { tag, block, span } = job else { panic!("a write") };
    let work = node.begin(Sweep::Evict, everything());
    for _ in 0..10 {
        node.tiers.slice();
    }
    assert!(!node.tiers.sweeps(Sweep::Evict).expect("begun").is_over, "one is on its way");
    node.mover.read(tag, block, &span).expect("room");
    node.carry_on();
    assert_eq!(node.tiers.sweeps(Sweep::Evict).map(|of| (of.work, of.is_over)), Some((work, true)));
    node.load(at(4), &engine, claim, &[(1, 20), (2, 21)]);
    assert_eq!(node.loaded(at(4)), Ok(2 * BLOCK_BYTES), "who was there before gets them");
    node.run(at(5));
    assert_eq!((node.tiers.host().blocks(), node.on_disk()), (0, 0));
}

#[test]
fn a_write_that_is_under_way_leaves_nothing_on_the_disk() {
    let mut node = Node::with_disk();
    let engine = device(0, 1);
    // So that the disk has a file for what comes.
    node.keep(at(0), &engine, None, &[(9, 1)]);
    node.lookup(at(0), &[&engine], &[hash(9)]);
    node.keep(at(0), &engine, None, &[(1, 10), (2, 3)]);
    node.look(at(1), &engine, &[hash(1), hash(2)]);
    let DiskJob::Write { tag, filling, span } = node.tiers.poll_disk(at(1)).expect("a write") else { panic!("a read") };
    node.begin(Sweep::Evict, SweepFilter { tier: Some(Tier::Disk), ..Default::default() });
    // Who comes meanwhile finds them in host memory, which is not meant, and sends them to the disk once more.
    assert_eq!(node.look(at(1), &engine, &[hash(1), hash(2)]).1, 2);
    node.tiers.slice();
    assert!(node.tiers.poll_disk(at(1)).is_none(), "the second is not begun");
    assert!(!node.tiers.sweeps(Sweep::Evict).expect("begun").is_over);
    node.mover.write(tag, filling, &span).expect("room");
    node.carry_on();
    assert!(node.tiers.sweeps(Sweep::Evict).expect("begun").is_over);
    assert_eq!((node.tiers.host().blocks(), node.on_disk()), (3, 0));
}

#[test]
fn what_is_to_go_from_the_disk_is_not_found_there() {
    let (mut node, engine) = full();
    node.restart_without_memory();
    node.begin(Sweep::Evict, SweepFilter { tier: Some(Tier::Disk), ..Default::default() });
    assert_eq!((node.look(at(1), &engine, &[hash(1), hash(2)]).1, node.on_disk()), (0, 2));
    node.carry_on();
    assert_eq!((node.tiers.host().blocks(), node.on_disk()), (0, 0));
}

#[test]
fn every_block_is_read_and_what_is_damaged_goes() {
    let (mut node, engine) = full();
    let whole = node.sweep(Sweep::Verify, everything());
    let count = |blocks: u64| SweepCount {
        blocks_total: blocks,
        bytes_total: blocks * BLOCK_BYTES,
        blocks,
        bytes: blocks * BLOCK_BYTES,
        ..Default::default()
    };
    assert_eq!((whole.host, whole.disk), (count(3), count(2)));
    let place = node.place(&content(&engine, 3));
    let arena = Arc::clone(node.tiers.host().store().region());
    arena.write(place + 700, &[content(&engine, 3)[700] ^ 2]).expect("inside");
    let found = node.sweep(Sweep::Verify, SweepFilter { tier: Some(Tier::Host), ..Default::default() });
    assert_eq!((found.host.blocks, found.host.damaged, found.disk), (2, 1, SweepCount::default()));
    assert_eq!((node.left(Left::Damaged), node.tiers.host().blocks()), ((1, 0), 2));
    let again = node.sweep(Sweep::Verify, everything());
    assert_eq!((again.host, again.disk), (count(2), count(2)), "it is gone, and read no more");
    node.damage_on_disk(&content(&engine, 10));
    let found = node.sweep(Sweep::Verify, everything());
    assert_eq!((found.host, found.disk.blocks, found.disk.damaged), (count(2), 1, 1));
    assert_eq!((node.left(Left::Damaged), node.on_disk()), ((1, 1), 1));
}

#[test]
fn a_tier_that_is_not_there_is_swept_at_once() {
    let mut node = Node::new();
    node.keep(at(0), &device(0, 1), None, &[(1, 10)]);
    for sweep in [Sweep::Evict, Sweep::Verify] {
        node.begin(sweep, SweepFilter { tier: Some(Tier::Disk), ..Default::default() });
        assert!(node.tiers.has_slice(), "{sweep:?}: nothing else that happens would end it");
        node.carry_on();
        let progress = node.tiers.sweeps(sweep).expect("begun");
        assert!(progress.is_over && progress.disk == SweepCount::default(), "{progress:?}");
        assert!(!node.tiers.has_slice());
    }
    assert_eq!(node.tiers.host().blocks(), 1);
}

#[test]
fn a_record_that_is_damaged_is_found_too() {
    let (mut node, engine) = full();
    let class = node.tiers.kind(&engine, 0).expect("a class").host;
    let block = node.tiers.host.pin(class, &hash(3)).expect("there");
    node.tiers.host.unpin(&block);
    let at = node.tiers.host().store().record_at(&block) + 20;
    let arena = Arc::clone(node.tiers.host().store().region());
    let mut byte = [0];
    arena.read(at, &mut byte).expect("inside");
    arena.write(at, &[byte[0] ^ 1]).expect("inside");
    let found = node.sweep(Sweep::Verify, everything());
    assert_eq!((found.host.blocks, found.host.damaged, node.left(Left::Damaged)), (2, 1, (1, 0)));
}

#[test]
fn a_damaged_block_that_is_held_goes_when_it_is_let_go() {
    let (mut node, engine) = full();
    let (claim, _) = node.lookup(at(2), &[&engine], &[hash(1), hash(2), hash(3)]);
    let place = node.place(&content(&engine, 60));
    node.tiers.host().store().region().write(place, &[content(&engine, 60)[0] ^ 8]).expect("inside");
    for damaged in [1, 0] {
        assert_eq!(node.sweep(Sweep::Verify, everything()).host.damaged, damaged, "counted once");
    }
    let (late, found) = node.lookup(at(3), &[&engine], &[hash(1), hash(2), hash(3)]);
    assert_eq!((found, node.tiers.host().blocks(), node.left(Left::Damaged)), (2, 3, (0, 0)));
    node.tiers.forget(late);
    node.tiers.forget(claim);
    assert_eq!((node.tiers.host().blocks(), node.left(Left::Damaged)), (2, (1, 0)));
}

#[test]
fn a_damaged_block_that_is_held_on_the_disk_goes_when_it_is_let_go() {
    let (mut node, engine) = full();
    node.restart_without_memory();
    node.damage_on_disk(&content(&engine, 3));
    node.begin(Sweep::Verify, SweepFilter { tier: Some(Tier::Disk), ..Default::default() });
    let jobs: Vec<_> = std::iter::from_fn(|| node.tiers.poll_disk(at(1))).collect();
    let (claim, found) = node.look(at(1), &engine, &[hash(1), hash(2)]);
    assert_eq!((jobs.len(), found), (2, 2));
    jobs.into_iter().for_each(|job| node.read(job));
    assert_eq!(node.tiers.sweeps(Sweep::Verify).map(|of| of.disk.damaged), Some(1));
    let (late, found) = node.look(at(2), &engine, &[hash(1), hash(2)]);
    assert_eq!((found, node.on_disk(), node.left(Left::Damaged)), (1, 2, (0, 0)));
    node.tiers.forget(late);
    node.tiers.forget(claim);
    assert_eq!((node.on_disk(), node.left(Left::Damaged)), (1, (0, 1)));
}

/// Twenty blocks in host memory, each of which takes more than one job to sum.
pub(super) fn with_large_blocks() -> Node {
    let mut node = Node::new();
    let class = node.tiers.host.class(Fingerprint([9; 32]), 0, 1 << 16).expect("a class");
    for number in 1..=20_u8 {
        let filling = node.tiers.host.admit(at(0), class, hash(number), None, Tenant(0)).expect("room");
        let region = node.tiers.host.store().region();
        // No part of it is as another.
        let content: Vec<u8> = (0..1_u32 << 16).map(|at| number.wrapping_add((at / 257).to_le_bytes()[0])).collect();
        region.write(filling.offset, &content).expect("inside");
        let sum = region.crc32c(0, filling.offset, 1 << 16).expect("inside");
        node.tiers.host.seal(filling, sum, None);
    }
    node
}

#[test]
fn a_large_block_is_summed_in_parts() {
    let mut node = with_large_blocks();
    node.begin(Sweep::Verify, everything());
    let mut jobs = 0;
    while let Some(job) = node.tiers.poll_check() {
        assert!(node.tiers.poll_check().is_none(), "one at a time");
        node.tiers.handle_checked(&job.run());
        jobs += 1;
    }
    assert_eq!(jobs, (20 * (1_u64 << 16)).div_ceil(CHECK_BYTES));
    let progress = node.sweep(Sweep::Verify, everything());
    assert_eq!((progress.host.blocks, progress.host.damaged, progress.host.bytes), (20, 0, 20 << 16));
}

#[test]
fn one_that_is_ended_lets_go_of_everything_and_another_begins() {
    let (mut node, engine) = full();
    let class = node.tiers.kind(&engine, 0).expect("a class").host;
    let may_go = |node: &Node| crate::store::Store::may_go(node.tiers.host().store(), class, &hash(1));
    let first = node.begin(Sweep::Verify, everything());
    let job = node.tiers.poll_check().expect("a job");
    assert!(!may_go(&node));
    node.tiers.end_sweep(first);
    assert!(node.tiers.sweeps(Sweep::Verify).is_some_and(|of| of.is_over && of.host.blocks == 0));
    let second = node.begin(Sweep::Verify, everything());
    node.tiers.handle_checked(&job.run());
    assert!(may_go(&node), "nothing is counted twice: {:?}", node.tiers.sweeps(Sweep::Verify));
    assert_eq!(node.tiers.sweeps(Sweep::Verify).map(|of| (of.work, of.host.blocks)), Some((second, 0)));
    node.carry_on();
    assert_eq!(node.tiers.sweeps(Sweep::Verify).map(|of| (of.host.blocks, of.disk.blocks)), Some((3, 2)));
}

#[test]
fn one_that_is_ended_lets_go_of_a_block_that_is_summed_in_part() {
    for is_followed in [false, true] {
        let mut node = with_large_blocks();
        let class = node.tiers.host.class(Fingerprint([9; 32]), 0, 1 << 16).expect("a class");
        let may_go = |node: &Node| crate::store::Store::may_go(node.tiers.host().store(), class, &hash(1));
        let first = node.begin(Sweep::Verify, everything());
        let job = node.tiers.poll_check().expect("a job");
        node.tiers.handle_checked(&job.run());
        assert!(!may_go(&node));
        if is_followed {
            node.begin(Sweep::Verify, everything());
        } else {
            node.tiers.end_sweep(first);
        }
        assert!(may_go(&node), "another begins: {is_followed}");
    }
}

#[test]
fn clearing_reaches_what_is_being_read() {
    let (mut node, engine) = full();
    node.begin(Sweep::Verify, everything());
    let job = node.tiers.poll_check().expect("a job");
    node.tiers.clear(at(2), &[Arc::clone(&engine)]);
    while node.tiers.tidy(at(2)) {}
    assert_eq!(node.lookup_failure(at(2), &engine), Some(TierFailure::Cleared), "it is still read");
    node.tiers.handle_checked(&job.run());
    node.run(at(2));
    assert_eq!((node.tiers.host().blocks(), node.on_disk()), (0, 0));
    node.carry_on();
    node.run(at(2));
    assert_eq!(node.lookup(at(3), &[&engine], &[hash(1)]).1, 0);
}
