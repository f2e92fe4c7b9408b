//! How long one step of the tiers' thread takes: a look-up waits for whatever the thread is at.
//!
//! ```text
//! cargo bench -p kvferry-tier --bench steps                    100,000 blocks stored, found, evicted, on disk and off it;
//!                                                              100,000 tenants listed
//! cargo bench -p kvferry-tier --bench steps -- FOLDER          the disk's part there
//! ```
//!
//! What the daemon's other threads do (copies, the disk) is done here between the steps, and not counted. Requests are
//! conversations, at five a second of a clock of their own.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvferry_core::layout::{AxisOrder, GroupLayout, LayerSpan, Layout};
use kvferry_core::{BlockIndex, Fingerprint, Rank, Time, WorkId};
use kvferry_memory::{Meter, Region};
use kvferry_tier::disk::{self, Mover, Shelf};
use kvferry_tier::host::Arena;
use kvferry_tier::tiers::{Device, DiskJob, Lookup, StoreRequest, TierEvent, TierLimits, Tiers, by_fingerprint};
use kvferry_tier::{BlockHash, Cache, CacheLimits, Tenant};

/// Of a token and head.
const CONTENT_BYTES: u32 = 128;
/// Where there are many tenants.
const LITTLE_CONTENT_BYTES: u32 = 8;
const HEADS: u32 = 8;
const TOKENS: u32 = 16;
const ENGINE_BLOCKS: u32 = 1024;
const HOST_BYTES: u64 = 512 << 20;
const DISK_BYTES: u64 = 1 << 30;
const FILE_BYTES: u64 = 64 << 20;
const STORED: u64 = 100_000;
const TENANTS: u64 = 100_000;
const LISTS: usize = 10;
const BETWEEN_REQUESTS: Duration = Duration::from_millis(200);
/// Conversations that may go on.
const OPEN_MAX: usize = 400;

struct Steps(Vec<(&'static str, Vec<u64>)>);

impl Steps {
    fn time<T>(&mut self, name: &'static str, step: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let result = step();
        self.add(name, begun.elapsed());
        result
    }

    fn add(&mut self, name: &'static str, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        match self.0.iter_mut().find(|(of, _)| *of == name) {
            Some((_, times)) => times.push(nanos),
            None => self.0.push((name, vec![nanos])),
        }
    }

    fn tell(&mut self) {
        println!("{:<34} {:>8} {:>10} {:>10} {:>10}", "step, microseconds", "times", "median", "p99.9", "longest");
        for (name, times) in &mut self.0 {
            times.sort_unstable();
            let at = |of_a_thousand: usize| times[(times.len() - 1) * of_a_thousand / 1000] as f64 / 1e3;
            println!("{name:<34} {:>8} {:>10.1} {:>10.1} {:>10.1}", times.len(), at(500), at(999), at(1000));
        }
    }
}

struct Node {
    tiers: Tiers,
    mover: Mover,
    steps: Steps,
    now: Time,
    next_work: u64,
    next_hash: u64,
    stored: u64,
}

impl Node {
    fn open(memory: &Path, disk: &Path) -> Self {
        let (arena, _) = Arena::open(&memory.join("arena"), HOST_BYTES, 1 << 20, &Meter::new()).expect("an arena");
        let now = Time::from_nanos(0);
        let limits = CacheLimits { known_min: 1 << 19, tenant_bytes_max: u64::MAX, seed: 1 };
        let host = Cache::new(arena, limits, now);
        let on_disk = disk::Limits {
            bytes_max: DISK_BYTES,
            files_max: 1024,
            extent_bytes: FILE_BYTES,
            free_bytes_min: 0,
            write_errors_max: 8,
        };
        let (shelf, _) = Shelf::open(&disk.join("store"), on_disk).expect("a store on the disk");
        let second = Duration::from_secs(1_000_000);
        let of_tiers =
            TierLimits { claims_max: 64, works_max: 64, blocks_max: 1 << 16, claim_max: second, commit_max: second };
        let tiers = Tiers::new(host, Some(Cache::new(shelf, limits, now)), of_tiers);
        let settings = disk::Settings { io: disk::Io::Auto, depth_max: 64, threads: 2, bounce_bytes_max: 8 << 20 };
        let mover = Mover::open(settings).expect("a way to the disk");
        Self { tiers, mover, steps: Steps(Vec::new()), now, next_work: 0, next_hash: 0, stored: 0 }
    }

    fn work(&mut self) -> WorkId {
        self.next_work += 1;
        WorkId(self.next_work)
    }

    fn hash(&mut self) -> BlockHash {
        self.next_hash += 1;
        let mut hash = [0; 32];
        fastrand::Rng::with_seed(self.next_hash).fill(&mut hash);
        hash
    }

    fn request(&mut self, device: &Arc<Device>, chain: &[BlockHash]) {
        self.now = self.now.after(BETWEEN_REQUESTS);
        let (now, claim) = (self.now, self.work());
        let lookup = Lookup { devices: vec![Arc::clone(device)], groups: vec![chain.to_vec()] };
        self.steps.time("look-up", || self.tiers.lookup(now, claim, &lookup));
        let held = self.settle().iter().find_map(|event| match event {
            TierEvent::Found { held, .. } => Some(held[0] as usize),
            _ => None,
        });
        self.steps.time("forget", || self.tiers.forget(claim));
        let held = held.unwrap_or(0);
        let parent = held.checked_sub(1).map(|last| chain[last]);
        let blocks: Vec<_> = chain[held..].iter().zip(0..).map(|(hash, place)| (*hash, BlockIndex(place))).collect();
        if blocks.is_empty() {
            return;
        }
        let work = self.work();
        let store = StoreRequest { device: Arc::clone(device), groups: vec![(parent, blocks)], tenant: Tenant(0) };
        self.steps.time("store", || self.tiers.store(work, &store));
        self.settle();
        self.steps.time("commit", || self.tiers.commit(now, work));
        for event in self.settle() {
            if let TierEvent::Stored { blocks, .. } = event {
                self.stored += blocks;
            }
        }
    }

    /// Does all there is to do.
    fn settle(&mut self) -> Vec<TierEvent> {
        let now = self.now;
        let mut events = Vec::new();
        loop {
            let mut idle = true;
            while let Some(job) = self.steps.time("poll_store", || self.tiers.poll_store(now)) {
                let copied = job.run();
                self.steps.time("handle_copied", || self.tiers.handle_copied(now, &copied));
                idle = false;
            }
            while let Some(job) = self.steps.time("poll_disk", || self.tiers.poll_disk(now)) {
                match job {
                    DiskJob::Read { tag, block, span } => self.mover.read(tag, block, &span).expect("room"),
                    DiskJob::Write { tag, filling, span } => self.mover.write(tag, filling, &span).expect("room"),
                }
            }
            let mut done = Vec::new();
            while self.mover.in_flight() > 0 {
                self.mover.wait(Duration::from_secs(1));
                self.mover.turn(&mut done);
                idle = false;
            }
            for done in done {
                self.steps.time("handle_disk", || self.tiers.handle_disk(done));
            }
            while let Some(chore) = self.steps.time("poll_chore", || self.tiers.poll_chore()) {
                let done = self.steps.time("(a chore, on another thread)", || chore.run());
                self.steps.time("handle_chore", || self.tiers.handle_chore(done));
                idle = false;
            }
            idle &= !self.steps.time("tidy", || self.tiers.tidy(now));
            self.steps.time("handle_timeout", || self.tiers.handle_timeout(now));
            while let Some(event) = self.steps.time("poll_event", || self.tiers.poll_event()) {
                if !matches!(event, TierEvent::Changed { .. }) {
                    events.push(event);
                }
                idle = false;
            }
            if idle {
                return events;
            }
        }
    }

    /// Conversations until so many blocks were stored.
    fn serve(&mut self, device: &Arc<Device>, stored: u64, random: &mut fastrand::Rng) {
        let mut open: Vec<Vec<BlockHash>> = Vec::new();
        let until = self.stored + stored;
        while self.stored < until {
            let goes_on = open.len() >= OPEN_MAX || (!open.is_empty() && random.u8(..10) < 4);
            let mut chain = if goes_on { open.swap_remove(random.usize(..open.len())) } else { Vec::new() };
            let more = 4 + random.usize(..48);
            chain.extend((0..more).map(|_| self.hash()).collect::<Vec<_>>());
            self.request(device, &chain);
            if chain.len() < 400 && random.u8(..10) < 7 {
                open.push(chain);
            }
        }
    }

    /// A block of each of so many tenants.
    fn serve_tenants(&mut self, device: &Arc<Device>, tenants: u64) {
        for tenant in (1..=tenants).map(Tenant) {
            let (work, groups) = (self.work(), vec![(None, vec![(self.hash(), BlockIndex(0))])]);
            self.tiers.store(work, &StoreRequest { device: Arc::clone(device), groups, tenant });
            self.settle();
            self.tiers.commit(self.now, work);
            self.settle();
        }
    }

    /// How many rows a list has.
    fn list(&mut self) -> usize {
        let work = self.work();
        let begun = Instant::now();
        self.steps.time("list", || self.tiers.list(work));
        let holdings = loop {
            match self.tiers.poll_event() {
                Some(TierEvent::Listed { holdings, .. }) => break holdings,
                Some(_) => {}
                None => self.steps.time("slice", || self.tiers.slice()),
            }
        };
        self.steps.add("(the whole list)", begun.elapsed());
        self.steps.time("(its sums, on another thread)", || by_fingerprint(&holdings)).len()
    }
}

fn device(fingerprint: u8, content_bytes: u32) -> Arc<Device> {
    let block_bytes = u64::from(content_bytes * HEADS * TOKENS);
    let span = LayerSpan {
        layer_count: 1,
        offset: 0,
        layer_stride: u64::from(ENGINE_BLOCKS) * block_bytes,
        block_stride: block_bytes,
        head_count: HEADS,
        token_count: TOKENS,
        content_bytes,
    };
    let bytes = u64::from(ENGINE_BLOCKS) * block_bytes;
    let layout = Layout::new(AxisOrder::Lbhnc, ENGINE_BLOCKS, bytes, vec![GroupLayout { spans: vec![span] }]);
    let memory = kvferry_memory::create("kvferry-steps", bytes).expect("memory");
    let region = Region::map(memory, bytes, &Meter::new()).expect("a region");
    let device = Device::new(Fingerprint([fingerprint; 32]), Rank(0), region, &layout.expect("a layout"));
    Arc::new(device.expect("a device"))
}

fn main() {
    let folder = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let program = std::env::current_exe().expect("a program");
    let beside = program.parent().expect("in a folder").to_owned();
    let disk = tempfile::tempdir_in(folder.map_or(beside, Into::into)).expect("a folder on the disk");
    let memory = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
    let mut node = Node::open(memory.path(), disk.path());
    let mut random = fastrand::Rng::with_seed(3);
    let (first, second) = (device(1, CONTENT_BYTES), device(2, CONTENT_BYTES));
    node.serve(&first, STORED, &mut random);
    println!(
        "{} requests' works, {} stored, {} evicted from memory, {} on the disk, {} evicted from it",
        node.next_work,
        node.stored,
        node.tiers.host().evicted(),
        node.tiers.disk().map_or(0, Cache::blocks),
        node.tiers.disk().map_or(0, Cache::evicted)
    );
    node.steps.tell();

    println!("\nanother model comes and takes its room, of blocks as large");
    node.steps = Steps(Vec::new());
    node.serve(&second, STORED / 4, &mut random);
    node.steps.tell();

    println!("\nnothing for an hour, then a request");
    node.steps = Steps(Vec::new());
    node.now = node.now.after(Duration::from_secs(3600));
    node.serve(&second, 1, &mut random);
    node.steps.tell();

    println!("\nthe first model's blocks are forgotten");
    node.steps = Steps(Vec::new());
    let (in_memory, on_disk) = (node.tiers.host().blocks(), node.tiers.disk().map_or(0, Cache::blocks));
    let now = node.now;
    node.steps.time("clear", || node.tiers.clear(now, &[Arc::clone(&first)]));
    node.settle();
    println!(
        "{} blocks in memory, {} on the disk",
        in_memory - node.tiers.host().blocks(),
        on_disk - node.tiers.disk().map_or(0, Cache::blocks)
    );
    node.steps.tell();

    println!("\n{TENANTS} tenants have a block each, and are listed {LISTS} times");
    let memory = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
    let disk = tempfile::tempdir_in(disk.path()).expect("a folder on the disk");
    let mut node = Node::open(memory.path(), disk.path());
    node.serve_tenants(&device(3, LITTLE_CONTENT_BYTES), TENANTS);
    node.steps = Steps(Vec::new());
    let rows: Vec<_> = (0..LISTS).map(|_| node.list()).collect();
    println!("{rows:?} rows");
    node.steps.tell();
}
