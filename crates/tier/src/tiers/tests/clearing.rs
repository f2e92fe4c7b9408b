//! What is cleared or evicted stays gone, whatever is under way and whatever the disk does.

use super::sweeping::{everything, full, with_large_blocks};
use super::*;
use crate::cache::Left;

impl Node {
    /// The daemon ends, and the next one finds what it has left.
    fn restart(&mut self) {
        let empty = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
        self.tiers = open(empty.path(), None);
        self.tiers = open(self.folder.path(), self.disk.as_ref());
    }

    fn blocks(&self) -> (usize, usize) {
        (self.tiers.host().blocks(), self.on_disk())
    }
}

#[test]
fn what_is_to_go_while_it_is_held_is_not_found_by_the_next_daemon() {
    let (mut node, engine) = full();
    let (_, found) = node.lookup(at(2), &[&engine], &[hash(1), hash(2), hash(3)]);
    let progress = node.sweep(Sweep::Evict, everything());
    assert_eq!((found, progress.host.held_blocks, node.tiers.host().blocks()), (3, 3, 3));
    node.restart();
    assert_eq!(node.blocks(), (0, 0), "held in host memory");

    let (mut node, engine) = full();
    node.restart_without_memory();
    let claim = node.work();
    node.tiers.lookup(at(3), claim, &Lookup { devices: vec![engine], groups: vec![vec![hash(1), hash(2)]] });
    node.begin(Sweep::Evict, everything());
    (0..10).for_each(|_| node.tiers.slice());
    assert_eq!(node.tiers.sweeps(Sweep::Evict).map(|of| of.disk.held_blocks), Some(2));
    node.restart();
    assert_eq!(node.blocks(), (0, 0), "held on the disk");

    let (mut node, engine) = full();
    let (claim, _) = node.lookup(at(2), &[&engine], &[hash(1), hash(2), hash(3)]);
    node.load(at(2), &engine, claim, &[(1, 20), (2, 21), (3, 22)]);
    let job = node.tiers.poll_load().expect("a copy");
    node.tiers.clear(at(2), &[engine]);
    while node.tiers.tidy(at(2)) {}
    assert_eq!(node.tiers.host().blocks(), 3, "they are being copied");
    drop(job);
    node.restart();
    assert_eq!(node.blocks(), (0, 0), "cleared while it was loaded");
}

#[test]
fn nothing_of_what_is_being_cleared_is_found_by_the_next_daemon() {
    let (mut node, engine) = full();
    node.tiers.clear(at(2), &[Arc::clone(&engine)]);
    assert_eq!(node.blocks(), (3, 2), "not yet");
    node.restart();
    assert_eq!(node.blocks(), (0, 0));
    for _ in 0..2 {
        node.tiers.clear(at(2), &[Arc::clone(&engine)]);
        node.run(at(2));
        assert_eq!(node.keep(at(2), &engine, None, &[(1, 10), (2, 3), (3, 60)]), 3);
        let (claim, _) = node.lookup(at(2), &[&engine], &[hash(1), hash(2)]);
        node.tiers.forget(claim);
        node.run(at(2));
        node.restart();
        assert_eq!(node.blocks(), (3, 2), "what comes after it is");
    }
}

#[test]
fn what_is_to_go_stays_gone_whatever_the_disk_takes() {
    for (is_cleared, is_mended) in [(false, false), (false, true), (true, false), (true, true)] {
        let (mut node, engine) = full();
        let class = node.tiers.kind(&engine, 0).expect("a class").disk.expect("a disk");
        let disk = node.tiers.disk.as_mut().expect("a disk");
        let files = disk.store_mut().write_records_to(Vec::new());
        // Its record stays where it is.
        assert!(disk.remove(class, &hash(2), Left::Room));
        if is_mended {
            disk.store_mut().write_records_to(files);
        }
        if is_cleared {
            node.tiers.clear(at(2), &[engine]);
            node.run(at(2));
        } else {
            node.sweep(Sweep::Evict, everything());
        }
        assert_eq!(node.blocks(), (0, 0));
        node.restart();
        assert_eq!(node.blocks(), (0, 0), "cleared: {is_cleared}, the disk mended: {is_mended}");
    }
}

#[test]
fn nothing_that_is_being_cleared_is_read() {
    let mut node = Node::with_disk();
    let engine = device(0, 1);
    node.keep(at(0), &engine, None, &[(1, 10), (2, 3), (3, 60), (4, 5), (5, 6)]);
    let (claim, _) = node.lookup(at(1), &[&engine], &[1, 2, 3, 4, 5].map(hash));
    node.tiers.forget(claim);
    node.run(at(1));
    node.begin(Sweep::Verify, SweepFilter { tier: Some(Tier::Disk), ..Default::default() });
    let jobs: Vec<_> = std::iter::from_fn(|| node.tiers.poll_disk(at(2))).collect();
    assert_eq!((jobs.len(), node.on_disk()), (2, 5));
    node.tiers.clear(at(2), &[Arc::clone(&engine)]);
    for job in jobs {
        node.read(job);
        assert!(node.tiers.poll_disk(at(2)).is_none(), "another would hold it up again");
    }
    while node.tiers.tidy(at(2)) {}
    assert_eq!(node.blocks(), (0, 0));
    node.carry_on();
    assert_eq!(node.tiers.sweeps(Sweep::Verify).map(|of| (of.is_over, of.disk.blocks)), Some((true, 2)));
}

#[test]
fn a_block_that_is_summed_in_part_goes_when_it_is_cleared() {
    for is_under_way in [false, true] {
        let mut node = with_large_blocks();
        node.begin(Sweep::Verify, everything());
        let first = node.tiers.poll_check().expect("a job").run();
        if !is_under_way {
            node.tiers.handle_checked(&first);
        }
        node.tiers.clear(at(1), &[device(0, 1)]);
        while node.tiers.tidy(at(1)) {}
        if is_under_way {
            assert_eq!(node.tiers.host().blocks(), 20, "one is still read");
            node.tiers.handle_checked(&first);
            while node.tiers.tidy(at(1)) {}
        }
        assert_eq!(node.tiers.host().blocks(), 0);
        assert!(node.tiers.poll_check().is_none());
    }
}
