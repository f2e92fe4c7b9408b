use std::path::Path;

use kvferry_core::layout::{AxisOrder, GroupLayout, LayerSpan};
use kvferry_core::{BlockIndex, Rank};
use kvferry_memory::{Meter, Region};

use super::*;
use crate::cache::CacheLimits;
use crate::disk::{self, Mover};
use crate::store::{BlockHash, Tenant};

mod clearing;
mod refused;
mod room;
mod storing;
mod sweeping;
mod watching;
mod with_disk;

const BLOCKS: u32 = 64;
const LAYERS: u32 = 3;
const PAGE: u64 = 2 * 4 * 64;
/// Of a block, all layers.
const BLOCK_BYTES: u64 = LAYERS as u64 * PAGE;

fn at(millis: u64) -> Time {
    Time::from_nanos(millis * 1_000_000)
}

fn hash(number: u8) -> BlockHash {
    [number; 32]
}

/// A node: tiers, and a folder that its host memory outlives it in.
struct Node {
    /// In memory.
    folder: tempfile::TempDir,
    disk: Option<tempfile::TempDir>,
    tiers: Tiers,
    mover: Mover,
    next: u64,
    /// What came and went.
    changes: Vec<TierEvent>,
}

fn open(folder: &Path, disk: Option<&tempfile::TempDir>) -> Tiers {
    let (arena, _) = Arena::open(&folder.join("arena"), 4 << 20, 1 << 16, &Meter::new()).expect("an arena");
    let cache = Cache::new(arena, CacheLimits { known_min: 1 << 16, tenant_bytes_max: u64::MAX, seed: 1 }, at(0));
    let limits = TierLimits {
        claims_max: 4,
        works_max: 8,
        blocks_max: 256,
        claim_max: Duration::from_millis(100),
        commit_max: Duration::from_millis(100),
    };
    let disk = disk.map(|disk| {
        let limits = disk::Limits {
            bytes_max: 8 << 20,
            files_max: 16,
            extent_bytes: 1 << 20,
            free_bytes_min: 0,
            write_errors_max: 3,
        };
        let (shelf, _) = Shelf::open(&disk.path().join("store"), limits).expect("a store on the disk");
        Cache::new(shelf, CacheLimits { known_min: 1 << 16, tenant_bytes_max: u64::MAX, seed: 1 }, at(0))
    });
    Tiers::new(cache, disk, limits)
}

fn mover() -> Mover {
    let settings = disk::Settings { io: disk::Io::Auto, depth_max: 64, threads: 2, bounce_bytes_max: 1 << 20 };
    Mover::open(settings).expect("a way to the disk")
}

impl Node {
    fn new() -> Self {
        let folder = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
        let tiers = open(folder.path(), None);
        Self { folder, disk: None, tiers, mover: mover(), next: 0, changes: Vec::new() }
    }

    fn with_disk() -> Self {
        let folder = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
        // On the file system of the build, which takes O_DIRECT.
        let program = std::env::current_exe().expect("a program");
        let disk = tempfile::tempdir_in(program.parent().expect("in a folder")).expect("a folder on the disk");
        let tiers = open(folder.path(), Some(&disk));
        Self { folder, disk: Some(disk), tiers, mover: mover(), next: 0, changes: Vec::new() }
    }

    /// The daemon ends, and the next one finds no host memory of its.
    fn restart_without_memory(&mut self) {
        let empty = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
        self.tiers = open(empty.path(), None);
        std::fs::remove_file(self.folder.path().join("arena")).expect("it was there");
        self.tiers = open(self.folder.path(), self.disk.as_ref());
    }

    fn on_disk(&self) -> usize {
        self.tiers.disk().expect("a disk").blocks()
    }

    fn work(&mut self) -> WorkId {
        self.next += 1;
        WorkId(self.next)
    }

    /// Copies whatever is to be copied, and takes the events.
    fn run(&mut self, now: Time) -> Vec<TierEvent> {
        loop {
            while let Some(job) = self.tiers.poll_load().or_else(|| self.tiers.poll_store(now)) {
                let copied = job.run();
                self.tiers.handle_copied(now, &copied);
            }
            let mut is_busy = self.run_disk(now);
            while let Some(chore) = self.tiers.poll_chore() {
                self.tiers.handle_chore(chore.run());
                is_busy = true;
            }
            if !self.tiers.tidy(now) && !is_busy {
                break;
            }
        }
        let events = std::iter::from_fn(|| self.tiers.poll_event());
        let (changes, events) = events.partition(|event| matches!(event, TierEvent::Changed { .. }));
        self.changes.extend::<Vec<_>>(changes);
        events
    }

    /// Whether there was anything.
    fn run_disk(&mut self, now: Time) -> bool {
        while let Some(job) = self.tiers.poll_disk(now) {
            match job {
                DiskJob::Read { tag, block, span } => self.mover.read(tag, block, &span).expect("room"),
                DiskJob::Write { tag, filling, span } => self.mover.write(tag, filling, &span).expect("room"),
            }
        }
        let is_busy = self.mover.in_flight() > 0;
        let mut done = Vec::new();
        while self.mover.in_flight() > 0 {
            self.mover.wait(Duration::from_secs(1));
            self.mover.turn(&mut done);
        }
        done.into_iter().for_each(|done| self.tiers.handle_disk(done));
        is_busy
    }

    fn lookup(&mut self, now: Time, devices: &[&Arc<Device>], chain: &[BlockHash]) -> (WorkId, u32) {
        let claim = self.work();
        let devices = devices.iter().map(|device| Arc::clone(device)).collect();
        self.tiers.lookup(now, claim, &Lookup { devices, groups: vec![chain.to_vec()] });
        match &self.run(now)[..] {
            [TierEvent::Found { held, failure: None, .. }, ..] => (claim, held[0]),
            other => panic!("{other:?}"),
        }
    }

    fn lookup_failure(&mut self, now: Time, device: &Arc<Device>) -> Option<TierFailure> {
        let claim = self.work();
        self.tiers.lookup(now, claim, &Lookup { devices: vec![Arc::clone(device)], groups: vec![vec![hash(1)]] });
        std::iter::from_fn(|| self.tiers.poll_event()).find_map(|event| match event {
            TierEvent::Found { claim: of, failure, .. } if of == claim => Some(failure),
            _ => None,
        })?
    }

    fn load(&mut self, now: Time, device: &Arc<Device>, claim: WorkId, blocks: &[(u8, u32)]) -> WorkId {
        let work = self.work();
        let groups = vec![blocks.iter().map(|&(number, block)| (hash(number), BlockIndex(block))).collect()];
        let deadline = now.after(Duration::from_secs(1));
        self.tiers.load(work, &LoadRequest { claim, device: Arc::clone(device), groups, deadline });
        work
    }

    fn store(&mut self, device: &Arc<Device>, parent: Option<u8>, blocks: &[(u8, u32)]) -> WorkId {
        let work = self.work();
        let blocks = blocks.iter().map(|&(number, block)| (hash(number), BlockIndex(block))).collect();
        let groups = vec![(parent.map(hash), blocks)];
        self.tiers.store(work, &StoreRequest { device: Arc::clone(device), groups, tenant: Tenant(0) });
        work
    }

    /// Stores and commits: how many blocks are new.
    fn keep(&mut self, now: Time, device: &Arc<Device>, parent: Option<u8>, blocks: &[(u8, u32)]) -> u64 {
        let work = self.store(device, parent, blocks);
        assert_eq!(self.run(now), [TierEvent::Copied { work, failure: None }]);
        self.tiers.commit(now, work);
        match self.run(now)[..] {
            [TierEvent::Stored { blocks, .. }] => blocks,
            ref other => panic!("{other:?}"),
        }
    }

    fn loaded(&mut self, now: Time) -> Result<u64, TierFailure> {
        self.loaded_from(now).map(|loaded| loaded.bytes)
    }

    fn loaded_from(&mut self, now: Time) -> Result<Loaded, TierFailure> {
        let events = self.run(now);
        let result = events.iter().find_map(|event| match event {
            TierEvent::Loaded { result, .. } => Some(*result),
            _ => None,
        });
        result.unwrap_or_else(|| panic!("{events:?}"))
    }
}

/// An engine's rank, each byte of whose memory is `fill` plus what makes blocks differ.
fn device(rank: u32, fill: u8) -> Arc<Device> {
    let layers = u64::from(LAYERS);
    let span = LayerSpan {
        layer_count: LAYERS,
        offset: 0,
        layer_stride: u64::from(BLOCKS) * PAGE,
        block_stride: PAGE,
        head_count: 2,
        token_count: 4,
        content_bytes: 64,
    };
    let bytes = u64::from(BLOCKS) * layers * PAGE;
    let layout =
        Layout::new(AxisOrder::Lbhnc, BLOCKS, bytes, vec![GroupLayout { spans: vec![span] }]).expect("a layout");
    let region = Region::map(kvferry_memory::create("kvferry-tiers", bytes).expect("memory"), bytes, &Meter::new());
    let region = region.expect("a region");
    let content: Vec<u8> = (0..bytes).map(|at| fill.wrapping_add((at / 61).to_le_bytes()[0])).collect();
    region.write(0, &content).expect("inside");
    Arc::new(Device::new(Fingerprint([9; 32]), Rank(rank), region, &layout).expect("a device"))
}

/// The bytes of one block, layer after layer.
fn content(device: &Device, block: u32) -> Vec<u8> {
    let page = |layer: u64| {
        let mut page = vec![0; usize::try_from(PAGE).expect("small")];
        let offset = layer * u64::from(BLOCKS) * PAGE + u64::from(block) * PAGE;
        device.region().read(offset, &mut page).expect("inside");
        page
    };
    (0..u64::from(LAYERS)).flat_map(page).collect()
}

#[test]
fn what_one_engine_stored_another_loads_also_from_the_next_daemon() {
    let mut node = Node::new();
    let (first, second) = (device(0, 1), device(0, 77));
    assert_eq!(node.keep(at(0), &first, None, &[(1, 10), (2, 3), (3, 60)]), 3);
    assert_eq!(node.keep(at(1), &first, Some(3), &[(3, 60), (4, 5)]), 1, "one is there already");
    let Node { folder, tiers, mover, .. } = node;
    drop(tiers);
    let mut node = Node { tiers: open(folder.path(), None), disk: None, folder, mover, next: 100, changes: Vec::new() };
    let chain: Vec<_> = (1..=6).map(hash).collect();
    let (claim, held) = node.lookup(at(2), &[&second], &chain);
    assert_eq!(held, 4);
    node.load(at(2), &second, claim, &[(1, 0), (2, 1), (3, 2), (4, 3)]);
    assert_eq!(node.loaded(at(2)), Ok(4 * BLOCK_BYTES));
    for (target, source) in [(0, 10), (1, 3), (2, 60), (3, 5)] {
        assert_eq!(content(&second, target), content(&first, source), "block {target}");
    }
    assert_eq!(node.tiers.open(), (0, 0, 0), "the claim ends with the load");
    assert!(node.folder.path().exists());
}

#[test]
fn nobody_finds_what_its_engine_has_not_vouched_for() {
    let mut node = Node::new();
    let engine = device(0, 1);
    let copied = node.store(&engine, None, &[(1, 0)]);
    node.run(at(0));
    assert_eq!(node.lookup(at(0), &[&engine], &[hash(1)]).1, 0, "copied");
    node.tiers.abort(at(0), copied);
    node.tiers.commit(at(0), copied);
    assert_eq!(node.run(at(0)), [TierEvent::Stored { work: copied, blocks: 0 }]);
    assert_eq!(node.lookup(at(0), &[&engine], &[hash(1)]).1, 0, "given up");
    let early = node.store(&engine, None, &[(1, 0)]);
    node.tiers.commit(at(0), early);
    let events = node.run(at(0));
    assert!(events.contains(&TierEvent::Copied { work: early, failure: Some(TierFailure::Request) }), "{events:?}");
    assert_eq!(node.lookup(at(0), &[&engine], &[hash(1)]).1, 0, "vouched for before it was copied");
    let late = node.store(&engine, None, &[(1, 0)]);
    node.run(at(0));
    node.tiers.handle_timeout(at(101));
    node.tiers.commit(at(101), late);
    assert_eq!(node.run(at(101)), [TierEvent::Stored { work: late, blocks: 0 }]);
    assert_eq!(node.lookup(at(101), &[&engine], &[hash(1)]).1, 0, "vouched for too late");
    assert_eq!(node.keep(at(102), &engine, None, &[(1, 0)]), 1, "its room was given back");
}

#[test]
fn a_block_is_found_only_where_every_rank_has_it() {
    let mut node = Node::new();
    let (zero, one) = (device(0, 1), device(1, 2));
    node.keep(at(0), &zero, None, &[(1, 0), (2, 1)]);
    node.keep(at(0), &one, None, &[(1, 0)]);
    let (claim, held) = node.lookup(at(1), &[&zero, &one], &[hash(1), hash(2)]);
    assert_eq!(held, 1);
    node.load(at(1), &zero, claim, &[(1, 7)]);
    node.loaded(at(1)).expect("there");
    assert_eq!(node.tiers.open().0, 1, "the other rank has not loaded");
    node.load(at(1), &one, claim, &[(1, 7)]);
    node.loaded(at(1)).expect("there");
    assert_eq!(node.tiers.open().0, 0);
    assert_eq!(content(&zero, 7), content(&zero, 0));
    assert_eq!(content(&one, 7), content(&one, 0), "each rank gets its own");
}

#[test]
fn a_damaged_block_fails_its_load_and_is_a_miss_from_then_on() {
    let mut node = Node::new();
    let engine = device(0, 1);
    node.keep(at(0), &engine, None, &[(1, 0), (2, 1)]);
    let (claim, held) = node.lookup(at(1), &[&engine], &[hash(1), hash(2)]);
    let (other_claim, _) = node.lookup(at(1), &[&engine], &[hash(1), hash(2)]);
    assert_eq!(held, 2);
    // Of the second block, one bit.
    let arena = node.tiers.host().store().region();
    let mut all = vec![0; usize::try_from(arena.len()).expect("small")];
    arena.read(0, &mut all).expect("inside");
    let wanted = content(&engine, 1);
    let offset = all.windows(wanted.len()).position(|bytes| bytes == wanted).expect("it is there");
    arena.write(offset as u64 + 5, &[wanted[5] ^ 4]).expect("inside");
    node.load(at(1), &engine, claim, &[(1, 8), (2, 9)]);
    assert_eq!(node.loaded(at(1)), Err(TierFailure::Checksum));
    let (_, held) = node.lookup(at(2), &[&engine], &[hash(1), hash(2)]);
    assert_eq!((held, node.tiers.host().damaged_blocks()), (1, 0), "another lookup holds it");
    node.tiers.forget(other_claim);
    assert_eq!(node.tiers.host().damaged_blocks(), 1);
}

#[test]
fn what_was_found_stays_until_it_is_loaded_given_up_or_too_old() {
    let mut node = Node::new();
    let engine = device(0, 1);
    node.keep(at(0), &engine, None, &[(1, 0)]);
    let class = node.tiers.kind(&engine, 0).expect("a class").host;
    let may_go = |node: &Node| crate::store::Store::may_go(node.tiers.host().store(), class, &hash(1));
    for end in ["forget", "deadline", "load"] {
        assert!(may_go(&node));
        let (claim, _) = node.lookup(at(1), &[&engine], &[hash(1)]);
        assert!(!may_go(&node), "{end}");
        match end {
            "forget" => node.tiers.forget(claim),
            "deadline" => node.tiers.handle_timeout(at(101)),
            _ => {
                node.load(at(1), &engine, claim, &[(1, 2)]);
            }
        }
        assert!(node.run(at(101)).contains(&TierEvent::Released { claim }), "{end}");
    }
    assert!(may_go(&node));
    let claims: Vec<_> = (0..4).map(|_| node.lookup(at(200), &[&engine], &[hash(1)]).0).collect();
    let claim = node.work();
    node.tiers.lookup(at(200), claim, &Lookup { devices: vec![engine], groups: vec![vec![hash(1)]] });
    let limit = TierEvent::Found { claim, held: vec![0], on_disk: vec![0], failure: Some(TierFailure::Limit) };
    assert_eq!(node.run(at(200)), [limit, TierEvent::Released { claim }], "beside {claims:?}");
}

#[test]
fn clearing_forgets_what_is_there_and_what_is_on_its_way() {
    let mut node = Node::new();
    let (engine, other) = (device(0, 1), device(0, 1));
    node.keep(at(0), &engine, None, &[(1, 0), (2, 1)]);
    let (claim, _) = node.lookup(at(1), &[&engine], &[hash(1), hash(2)]);
    let load = node.load(at(1), &engine, claim, &[(1, 8)]);
    let job = node.tiers.poll_load().expect("a copy");
    let store = node.store(&engine, Some(2), &[(3, 2)]);
    node.tiers.clear(at(1), &[Arc::clone(&engine)]);
    let late = node.work();
    let devices = vec![Arc::clone(&other)];
    node.tiers.lookup(at(1), late, &Lookup { devices, groups: vec![vec![hash(1)]] });
    let failed = Some(TierFailure::Cleared);
    let events = node.run(at(1));
    assert!(events.contains(&TierEvent::Cleared { fingerprint: engine.fingerprint() }), "{events:?}");
    assert!(
        events.contains(&TierEvent::Found { claim: late, held: vec![0], on_disk: vec![0], failure: failed }),
        "{events:?}"
    );
    assert!(events.contains(&TierEvent::Copied { work: store, failure: failed }), "{events:?}");
    assert!(!events.iter().any(|event| matches!(event, TierEvent::Loaded { .. })), "the copy still writes: {events:?}");
    let copied = job.run();
    node.tiers.handle_copied(at(1), &copied);
    assert_eq!(node.run(at(1)), [TierEvent::Loaded { work: load, result: Err(TierFailure::Cleared) }]);
    assert_eq!(node.lookup(at(2), &[&other], &[hash(1)]).1, 0);
    assert_eq!(node.tiers.host().blocks(), 0);
    assert_eq!(node.keep(at(3), &engine, None, &[(1, 0)]), 1, "and begins anew");
}

#[test]
fn what_does_not_fit_the_engine_is_refused_and_touches_nothing() {
    let mut node = Node::new();
    let engine = device(0, 1);
    let outside = node.store(&engine, None, &[(1, BLOCKS)]);
    assert_eq!(node.run(at(0)), [TierEvent::Copied { work: outside, failure: Some(TierFailure::Request) }]);
    node.keep(at(0), &engine, None, &[(1, 0)]);
    let (claim, _) = node.lookup(at(0), &[&engine], &[hash(1)]);
    node.load(at(0), &engine, claim, &[(1, BLOCKS)]);
    assert_eq!(node.loaded(at(0)), Err(TierFailure::Request));
    let (claim, _) = node.lookup(at(0), &[&engine], &[hash(1)]);
    node.load(at(0), &engine, claim, &[(1, 3), (2, 4)]);
    assert_eq!(node.loaded(at(0)), Err(TierFailure::Evicted), "the second was never stored");
}

#[test]
fn loads_take_turns() {
    let mut node = Node::new();
    let engine = device(0, 1);
    let many: Vec<(u8, u32)> = (1..=200).map(|number| (number, u32::from(number) % BLOCKS)).collect();
    node.keep(at(0), &engine, None, &many);
    let chain: Vec<_> = (1..=200).map(hash).collect();
    let (claim, held) = node.lookup(at(1), &[&engine], &chain);
    assert_eq!(held, 200);
    let long = node.load(at(1), &engine, claim, &many);
    let short = node.load(at(1), &engine, claim, &[(7, 9)]);
    let order: Vec<WorkId> = std::iter::from_fn(|| {
        let job = node.tiers.poll_load()?;
        let Job::Load(work, _) = &node.tiers.jobs[&job.id] else { panic!("a store") };
        let work = *work;
        let copied = job.run();
        node.tiers.handle_copied(at(1), &copied);
        Some(work)
    })
    .collect();
    assert_eq!(order, [long, short, long, long, long]);
}
