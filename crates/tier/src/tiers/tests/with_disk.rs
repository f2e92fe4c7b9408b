//! Host memory and a disk together.

use super::*;

impl Node {
    /// Changes one bit of the block with this content.
    pub(super) fn damage_on_disk(&self, wanted: &[u8]) {
        let folder = self.disk.as_ref().expect("a disk").path().join("store");
        let mut flipped = 0;
        for entry in std::fs::read_dir(folder).expect("readable").flatten() {
            let mut bytes = std::fs::read(entry.path()).expect("readable");
            if let Some(at) = bytes.windows(wanted.len()).position(|bytes| bytes == wanted) {
                bytes[at + 100] ^= 16;
                let file = std::fs::OpenOptions::new().write(true).open(entry.path()).expect("ours");
                std::os::unix::fs::FileExt::write_all_at(&file, &bytes[at..at + 128], at as u64).expect("written");
                file.sync_all().expect("synced");
                flipped += 1;
            }
        }
        assert_eq!(flipped, 1);
    }
}

#[test]
fn what_is_used_again_goes_to_the_disk_and_comes_back_from_it() {
    let mut node = Node::with_disk();
    let (first, second) = (device(0, 1), device(0, 77));
    node.keep(at(0), &first, None, &[(1, 10), (2, 3), (3, 60)]);
    node.run(at(0));
    assert_eq!(node.on_disk(), 0, "nobody has used them");
    assert_eq!(node.lookup(at(1), &[&first], &[hash(1), hash(2)]).1, 2);
    node.run(at(1));
    assert_eq!(node.on_disk(), 2);
    node.restart_without_memory();
    let claim = node.work();
    let devices = vec![Arc::clone(&second)];
    node.tiers.lookup(at(0), claim, &Lookup { devices, groups: vec![vec![hash(1), hash(2), hash(3)]] });
    let found = TierEvent::Found { claim, held: vec![2], on_disk: vec![2], failure: None };
    assert_eq!(node.tiers.poll_event(), Some(found));
    // The load comes before the disk has brought anything.
    node.load(at(0), &second, claim, &[(1, 0), (2, 1)]);
    assert_eq!(node.loaded_from(at(0)), Ok(Loaded { bytes: 2 * BLOCK_BYTES, disk_bytes: 2 * BLOCK_BYTES }));
    assert_eq!((content(&second, 0), content(&second, 1)), (content(&first, 10), content(&first, 3)));
    // They are in host memory now.
    let (claim, held) = node.lookup(at(1), &[&second], &[hash(1), hash(2)]);
    assert_eq!((held, node.tiers.host().blocks()), (2, 2));
    node.load(at(1), &second, claim, &[(1, 5)]);
    assert_eq!(node.loaded_from(at(1)), Ok(Loaded { bytes: BLOCK_BYTES, disk_bytes: 0 }));
    assert_eq!(node.tiers.open(), (0, 0, 0));
    assert!(node.disk.is_some());
}

#[test]
fn a_lookup_brings_what_is_on_the_disk_before_it_is_loaded() {
    let mut node = Node::with_disk();
    let engine = device(0, 1);
    node.keep(at(0), &engine, None, &[(1, 10), (2, 3)]);
    node.lookup(at(1), &[&engine], &[hash(1), hash(2)]);
    node.run(at(1));
    node.restart_without_memory();
    // Given up before anything was read: nothing is.
    let early = node.work();
    let lookup = |chain: Vec<BlockHash>| Lookup { devices: vec![Arc::clone(&engine)], groups: vec![chain] };
    node.tiers.lookup(at(0), early, &lookup(vec![hash(1), hash(2)]));
    node.tiers.forget(early);
    assert!(node.tiers.poll_disk(at(0)).is_none());
    let (claim, held) = node.lookup(at(0), &[&engine], &[hash(1), hash(2)]);
    assert_eq!((held, node.tiers.host().blocks()), (2, 2));
    let kind = node.tiers.kind(&engine, 0).expect("a class");
    let may_go = |node: &Node| crate::store::Store::may_go(node.tiers.host().store(), kind.host, &hash(1));
    assert!(!may_go(&node), "the claim holds it");
    node.tiers.forget(claim);
    assert!(may_go(&node));
}

#[test]
fn a_block_that_the_disk_has_damaged_fails_its_load_and_is_a_miss_from_then_on() {
    let mut node = Node::with_disk();
    let engine = device(0, 1);
    node.keep(at(0), &engine, None, &[(1, 10), (2, 3)]);
    node.lookup(at(1), &[&engine], &[hash(1), hash(2)]);
    node.run(at(1));
    node.restart_without_memory();
    node.damage_on_disk(&content(&engine, 3));
    let claim = node.work();
    let devices = vec![Arc::clone(&engine)];
    node.tiers.lookup(at(0), claim, &Lookup { devices, groups: vec![vec![hash(1), hash(2)]] });
    node.load(at(0), &engine, claim, &[(1, 20), (2, 21)]);
    assert_eq!(node.loaded(at(0)), Err(TierFailure::Checksum));
    assert_eq!(node.lookup(at(1), &[&engine], &[hash(1), hash(2)]).1, 1);
    assert_eq!(node.on_disk(), 1);
}

#[test]
fn clearing_reaches_the_disk_and_what_is_on_its_way() {
    let mut node = Node::with_disk();
    let engine = device(0, 1);
    node.keep(at(0), &engine, None, &[(1, 10), (2, 3)]);
    node.lookup(at(1), &[&engine], &[hash(1)]);
    node.run(at(1));
    assert_eq!(node.on_disk(), 1);
    // The second is at the disk while everything is to be forgotten.
    let claim = node.work();
    let devices = vec![Arc::clone(&engine)];
    node.tiers.lookup(at(2), claim, &Lookup { devices: devices.clone(), groups: vec![vec![hash(1), hash(2)]] });
    let job = node.tiers.poll_disk(at(2)).expect("a write");
    let DiskJob::Write { tag, filling, span } = job else { panic!("a read") };
    node.tiers.clear(at(2), &devices);
    assert_eq!(node.lookup_failure(at(2), &engine), Some(TierFailure::Cleared));
    node.mover.write(tag, filling, &span).expect("room");
    assert_eq!(node.lookup_failure(at(2), &engine), Some(TierFailure::Cleared), "the disk still writes");
    node.run(at(2));
    assert_eq!((node.on_disk(), node.tiers.host().blocks()), (0, 0));
    assert_eq!(node.lookup(at(3), &[&engine], &[hash(1), hash(2)]).1, 0);
}

#[test]
fn what_is_cleared_goes_in_pieces_and_nobody_finds_it_meanwhile() {
    let mut node = Node::with_disk();
    let (engine, other) = (device(0, 1), device(0, 1));
    let many: Vec<(u8, u32)> = (1..=200).map(|number| (number, u32::from(number) % BLOCKS)).collect();
    assert_eq!(node.keep(at(0), &engine, None, &many), 200);
    let chain: Vec<_> = (1..=200).map(hash).collect();
    assert_eq!(node.lookup(at(1), &[&engine], &chain).1, 200);
    node.run(at(1));
    assert_eq!(node.on_disk(), 200);
    node.tiers.clear(at(200), &[Arc::clone(&engine)]);
    let mut pieces = 0;
    while node.tiers.tidy(at(200)) {
        pieces += 1;
        let left = node.tiers.host().blocks() + node.on_disk();
        assert!(left + 64 * pieces >= 400, "{left} after {pieces}");
        if left > 0 {
            assert_eq!(node.lookup_failure(at(200), &other), Some(TierFailure::Cleared));
        }
    }
    assert_eq!((node.on_disk(), node.tiers.host().blocks()), (0, 0));
    node.run(at(200));
    assert_eq!(node.lookup(at(201), &[&other], &chain).1, 0, "and is asked for again");
}

#[test]
fn who_wants_little_from_the_disk_does_not_wait_behind_who_wants_much() {
    let mut node = Node::with_disk();
    let engine = device(0, 1);
    let large: Vec<(u8, u32)> = (1..=50).map(|number| (number, u32::from(number))).collect();
    let small = [(101, 61), (102, 62), (103, 63)];
    for chain in [&large[..], &small] {
        node.keep(at(0), &engine, None, chain);
        let hashes: Vec<_> = chain.iter().map(|&(number, _)| hash(number)).collect();
        let (claim, _) = node.lookup(at(1), &[&engine], &hashes);
        node.tiers.forget(claim);
        node.run(at(1));
    }
    assert_eq!(node.on_disk(), 53);
    for has_looked in [true, false] {
        node.restart_without_memory();
        let mut works = Vec::new();
        for chain in [&large[..], &small] {
            let claim = node.work();
            let hashes: Vec<_> = chain.iter().map(|&(number, _)| hash(number)).collect();
            if has_looked {
                let devices = vec![Arc::clone(&engine)];
                node.tiers.lookup(at(0), claim, &Lookup { devices, groups: vec![hashes] });
            }
            works.push(node.load(at(0), &engine, claim, chain));
        }
        let (mut reads, mut ended) = (0, Vec::new());
        while ended.len() < 2 {
            while let Some(job) = node.tiers.poll_load() {
                let copied = job.run();
                node.tiers.handle_copied(at(0), &copied);
            }
            ended.extend(std::iter::from_fn(|| node.tiers.poll_event()).filter_map(|event| match event {
                TierEvent::Loaded { work, result } => Some((work, result.map(|loaded| loaded.bytes), reads)),
                _ => None,
            }));
            // One at a time, so that their order is that of the decisions.
            if let Some(DiskJob::Read { tag, block, span }) = node.tiers.poll_disk(at(0)) {
                node.mover.read(tag, block, &span).expect("room");
                let mut done = Vec::new();
                while done.is_empty() {
                    node.mover.wait(Duration::from_secs(1));
                    node.mover.turn(&mut done);
                }
                done.into_iter().for_each(|done| node.tiers.handle_disk(done));
                reads += 1;
            }
        }
        assert_eq!(
            ended,
            [(works[1], Ok(3 * BLOCK_BYTES), 6), (works[0], Ok(50 * BLOCK_BYTES), 53)],
            "one of each in turn"
        );
    }
}

#[test]
fn a_block_of_the_disk_is_judged_by_its_own_tenant_while_a_tenants_blocks_leave_host_memory() {
    let mut node = Node::with_disk();
    let engine = device(0, 1);
    for (tenant, block) in [(0, 1), (5, 2)] {
        let work = node.work();
        let groups = vec![(None, vec![(hash(block), BlockIndex(block.into()))])];
        node.tiers.store(work, &StoreRequest { device: Arc::clone(&engine), groups, tenant: Tenant(tenant) });
        node.run(at(0));
        node.tiers.commit(at(0), work);
        node.run(at(0));
        node.lookup(at(1), &[&engine], &[hash(block)]);
    }
    node.run(at(1));
    assert_eq!(node.on_disk(), 2);
    for (tenant, found) in [(5, [1, 0]), (0, [0, 1])] {
        node.restart_without_memory();
        let work = node.work();
        let filter = SweepFilter { tenant: Some(Tenant(tenant)), tier: Some(Tier::Host), ..Default::default() };
        node.tiers.sweep(work, Sweep::Evict, filter);
        let held = [1, 2].map(|block| node.lookup(at(2), &[&engine], &[hash(block)]).1);
        assert_eq!((held, node.tiers.host().blocks()), (found, 1), "tenant {tenant} leaves");
    }
}

#[test]
fn clearing_reaches_all_ranks_whoever_of_them_is_attached() {
    let mut node = Node::with_disk();
    let (zero, one) = (device(0, 1), device(1, 2));
    for (now, is_restarted) in [(1, false), (2, true)] {
        node.keep(at(now), &zero, None, &[(1, 0)]);
        assert_eq!(node.keep(at(now), &one, None, &[(1, 0)]), 1, "what new weights made is not taken for the old");
        let (claim, held) = node.lookup(at(now), &[&zero, &one], &[hash(1)]);
        node.tiers.forget(claim);
        node.run(at(now));
        assert_eq!((held, node.on_disk()), (1, 2));
        if is_restarted {
            // Nobody has asked the next daemon for these yet.
            node.restart_without_memory();
        }
        node.tiers.clear(at(now), &[Arc::clone(&zero)]);
        node.run(at(now));
        assert_eq!((node.tiers.host().blocks(), node.on_disk()), (0, 0));
    }
}

#[test]
fn clearing_again_what_is_being_cleared_is_no_more_work() {
    let (zero, one) = (device(0, 1), device(1, 2));
    let many: Vec<(u8, u32)> = (1..=200).map(|number| (number, u32::from(number) % BLOCKS)).collect();
    let pieces = |times: usize, devices: &[Arc<Device>]| {
        let mut node = Node::with_disk();
        node.keep(at(0), &zero, None, &many);
        node.keep(at(0), &one, None, &many);
        (0..times).for_each(|_| node.tiers.clear(at(1), devices));
        let pieces = std::iter::from_fn(|| node.tiers.tidy(at(1)).then_some(())).count();
        assert_eq!(node.tiers.host().blocks(), 0);
        let events = node.run(at(1));
        assert_eq!(events, vec![TierEvent::Cleared { fingerprint: zero.fingerprint() }; times], "each has its answer");
        pieces
    };
    let ranks = [Arc::clone(&zero), Arc::clone(&one)];
    let once = pieces(1, &ranks[..1]);
    assert!(once > 6, "64 at a time: {once}");
    assert_eq!((pieces(1, &ranks), pieces(20, &ranks)), (once, once));
}
