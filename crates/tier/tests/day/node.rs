//! One engine and the tiers of its node, on one thread and on the trace's clock.

use std::fmt;
use std::ops::AddAssign;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kvferry_core::layout::{AxisOrder, GroupLayout, LayerSpan, Layout};
use kvferry_core::{BlockIndex, Fingerprint, Rank, Time, WorkId};
use kvferry_memory::{Meter, Region};
use kvferry_tier::disk::{Io, Limits, Mover, Settings, Shelf};
use kvferry_tier::host::Arena;
use kvferry_tier::tiers::{
    Device, DiskJob, LoadRequest, Lookup, StoreRequest, TierEvent, TierFailure, TierLimits, Tiers,
};
use kvferry_tier::{BlockHash, Cache, CacheLimits, Tenant};

/// Blocks of the engine's cache: the longest prompt.
const BLOCKS: u32 = 1024;
const LAYERS: u32 = 2;
/// Of one layer of one block.
const PAGE: u64 = 1024;
const BLOCK_BYTES: u64 = LAYERS as u64 * PAGE;
/// What a slot takes at least, in host memory and on the disk.
const SLOT_BYTES: u64 = 4096;
/// Blocks that are remembered in any case, as the daemon has it; and those for each that is stored.
const KNOWN_MIN: u64 = 1 << 18;
const KNOWN_PER_STORED: u64 = 2;
const CLAIM_MAX: Duration = Duration::from_secs(30);

/// What became of requests.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Read {
    pub(crate) asked: u64,
    /// Loaded and compared.
    pub(crate) from_host: u64,
    pub(crate) from_disk: u64,
    /// Found, and gone before they were loaded.
    pub(crate) failed: u64,
    pub(crate) damaged: u64,
    pub(crate) stored: u64,
}

/// See the module.
pub(crate) struct Node {
    tiers: Tiers,
    mover: Mover,
    device: Arc<Device>,
    next: u64,
    folders: (tempfile::TempDir, tempfile::TempDir),
}

impl Node {
    pub(crate) fn new(host_bytes: u64, disk: Limits) -> Self {
        let prefix = format!("kvferry-test-{}-", std::process::id());
        let folder = |parent: &Path| tempfile::Builder::new().prefix(&prefix).tempdir_in(parent).expect("a folder");
        // The second on the file system of the build, which takes O_DIRECT.
        let program = std::env::current_exe().expect("this program");
        let folders = (folder(Path::new("/dev/shm")), folder(program.parent().expect("in a folder")));
        let now = Time::from_nanos(0);
        let cache = |bytes: u64| {
            let known_min = usize::try_from(KNOWN_MIN.min(bytes / SLOT_BYTES)).expect("fits");
            CacheLimits { known_min, tenant_bytes_max: u64::MAX, seed: 1 }
        };
        let arena = folders.0.path().join("arena");
        let (arena, _) = Arena::open(&arena, host_bytes, BLOCK_BYTES, &Meter::new()).expect("an arena");
        let (shelf, _) = Shelf::open(&folders.1.path().join("store"), disk).expect("a store");
        let limits = TierLimits {
            claims_max: 16,
            works_max: 16,
            blocks_max: BLOCKS as usize,
            claim_max: CLAIM_MAX,
            commit_max: CLAIM_MAX,
        };
        let host = Cache::new(arena, cache(host_bytes), now);
        let tiers = Tiers::new(host, Some(Cache::new(shelf, cache(disk.bytes_max), now)), limits);
        let settings = Settings { io: Io::Auto, depth_max: 64, threads: 4, bounce_bytes_max: 1 << 20 };
        let mover = Mover::open(settings).expect("a way to the disk");
        Self { tiers, mover, device: device(), next: 0, folders }
    }

    /// Where the disk's files are.
    pub(crate) fn store(&self) -> PathBuf {
        self.folders.1.path().join("store")
    }

    /// One request: what is there is loaded and compared, the rest is computed and stored.
    pub(crate) fn serve(&mut self, now: Time, names: &[u64]) -> Read {
        self.tiers.handle_timeout(now);
        while self.tiers.tidy(now) {}
        let hashes: Vec<BlockHash> = names.iter().map(|name| hash(*name)).collect();
        let mut read = Read { asked: names.len() as u64, ..Read::default() };
        let there = self.load(now, names, &hashes, &mut read);
        if there < names.len() {
            read.stored = self.store_from(now, names, &hashes, there);
        }
        read
    }

    /// Until nothing is to be written, and nothing is under way.
    pub(crate) fn wait_for_disk(&mut self, now: Time) {
        let mut done = Vec::new();
        loop {
            let mut is_busy = self.hand_out(now);
            is_busy |= self.mover.in_flight() > 0;
            if !is_busy {
                return;
            }
            self.mover.turn(&mut done);
            if done.is_empty() && self.mover.in_flight() > 0 {
                self.mover.wait(Duration::from_secs(1));
            }
            done.drain(..).for_each(|done| self.tiers.handle_disk(done));
            while self.tiers.poll_event().is_some() {}
        }
    }

    /// What others than the engine have to do: whether there was anything.
    fn hand_out(&mut self, now: Time) -> bool {
        let mut is_busy = false;
        while let Some(chore) = self.tiers.poll_chore() {
            self.tiers.handle_chore(chore.run());
            is_busy = true;
        }
        while let Some(job) = self.tiers.poll_disk(now) {
            match job {
                DiskJob::Read { tag, block, span } => self.mover.read(tag, block, &span).expect("room"),
                DiskJob::Write { tag, filling, span } => self.mover.write(tag, filling, &span).expect("room"),
            }
            is_busy = true;
        }
        is_busy
    }

    /// How many blocks need not be computed.
    fn load(&mut self, now: Time, names: &[u64], hashes: &[BlockHash], read: &mut Read) -> usize {
        let claim = self.work();
        let lookup = Lookup { devices: vec![Arc::clone(&self.device)], groups: vec![hashes.to_vec()] };
        self.tiers.lookup(now, claim, &lookup);
        let held = self.until(now, |event| match event {
            TierEvent::Found { claim: of, held, failure: None, .. } if *of == claim => Some(held[0]),
            TierEvent::Found { failure, .. } => panic!("{failure:?}"),
            _ => None,
        });
        if held == 0 {
            return 0;
        }
        let work = self.work();
        let held = held as usize;
        let blocks = hashes[..held].iter().copied().zip((0..).map(BlockIndex)).collect();
        let deadline = now.after(CLAIM_MAX);
        self.fill(&vec![0; held], 0);
        self.tiers.load(work, &LoadRequest { claim, device: Arc::clone(&self.device), groups: vec![blocks], deadline });
        let loaded = self.until(now, |event| match event {
            TierEvent::Loaded { work: of, result } if *of == work => Some(*result),
            _ => None,
        });
        match loaded {
            Ok(loaded) => {
                for (place, name) in (0..).zip(&names[..held]) {
                    assert!(self.block(place) == content(*name), "block {name:#x} is not what was stored");
                }
                assert_eq!(loaded.bytes, held as u64 * BLOCK_BYTES);
                read.from_disk = loaded.disk_bytes / BLOCK_BYTES;
                read.from_host = held as u64 - read.from_disk;
                held
            }
            Err(failure) => {
                read.failed = held as u64;
                read.damaged += u64::from(failure == TierFailure::Checksum);
                0
            }
        }
    }

    fn store_from(&mut self, now: Time, names: &[u64], hashes: &[BlockHash], there: usize) -> u64 {
        let work = self.work();
        self.fill(&names[there..], there as u64);
        let blocks = hashes.iter().copied().zip((0..).map(BlockIndex)).skip(there).collect();
        let parent = there.checked_sub(1).map(|last| hashes[last]);
        let request =
            StoreRequest { device: Arc::clone(&self.device), groups: vec![(parent, blocks)], tenant: Tenant(0) };
        self.tiers.store(work, &request);
        self.until(now, |event| match event {
            TierEvent::Copied { work: of, failure } if *of == work => {
                assert_eq!(*failure, None);
                Some(())
            }
            _ => None,
        });
        self.tiers.commit(now, work);
        self.until(now, |event| match event {
            TierEvent::Stored { work: of, blocks } if *of == work => Some(*blocks),
            _ => None,
        })
    }

    /// Moves what is to be moved, until this has happened. Writes to the disk go on behind it.
    fn until<T>(&mut self, now: Time, wanted: impl Fn(&TierEvent) -> Option<T>) -> T {
        let mut done = Vec::new();
        loop {
            while let Some(job) = self.tiers.poll_load().or_else(|| self.tiers.poll_store(now)) {
                let copied = job.run();
                self.tiers.handle_copied(now, &copied);
            }
            self.hand_out(now);
            self.mover.turn(&mut done);
            let mut found = None;
            while let Some(event) = self.tiers.poll_event() {
                found = found.or_else(|| wanted(&event));
            }
            if let Some(found) = found {
                done.drain(..).for_each(|done| self.tiers.handle_disk(done));
                return found;
            }
            if done.is_empty() {
                assert!(self.mover.in_flight() > 0, "nothing moves, and it has not happened");
                self.mover.wait(Duration::from_secs(1));
            }
            done.drain(..).for_each(|done| self.tiers.handle_disk(done));
        }
    }

    /// Nothing was damaged, refused or left open.
    pub(crate) fn check(&self) {
        let disk = self.tiers.disk().expect("a disk");
        assert_eq!((self.tiers.host().damaged_blocks(), disk.damaged_blocks()), (0, 0));
        assert_eq!(disk.store().counts(), kvferry_tier::disk::Counts::default());
        assert_eq!(self.tiers.open(), (0, 0, 0));
    }

    fn work(&mut self) -> WorkId {
        self.next += 1;
        WorkId(self.next)
    }

    /// Writes blocks of the engine, from one place on.
    fn fill(&self, names: &[u64], first: u64) {
        for (place, name) in (first..).zip(names) {
            let content = content(*name);
            for (layer, page) in (0..).zip(content.chunks(usize::try_from(PAGE).expect("small"))) {
                self.device.region().write(offset(layer, place), page).expect("inside");
            }
        }
    }

    fn block(&self, place: u64) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(BLOCK_BYTES).expect("small")];
        for (layer, page) in (0..).zip(bytes.chunks_mut(usize::try_from(PAGE).expect("small"))) {
            self.device.region().read(offset(layer, place), page).expect("inside");
        }
        bytes
    }
}

/// Blocks that a tier of so many bytes has room for.
pub(crate) const fn stored_max(bytes: u64) -> u64 {
    bytes / SLOT_BYTES
}

/// Blocks that it remembers when it is full.
pub(crate) const fn known_max(bytes: u64) -> u64 {
    stored_max(bytes) * KNOWN_PER_STORED
}

fn offset(layer: u64, block: u64) -> u64 {
    (layer * u64::from(BLOCKS) + block) * PAGE
}

fn device() -> Arc<Device> {
    let span = LayerSpan {
        layer_count: LAYERS,
        offset: 0,
        layer_stride: u64::from(BLOCKS) * PAGE,
        block_stride: PAGE,
        head_count: 2,
        token_count: 8,
        content_bytes: 64,
    };
    let bytes = u64::from(BLOCKS) * BLOCK_BYTES;
    let groups = vec![GroupLayout { spans: vec![span] }];
    let layout = Layout::new(AxisOrder::Lbhnc, BLOCKS, bytes, groups).expect("a layout");
    let memory = kvferry_memory::create("kvferry-day", bytes).expect("memory");
    let region = Region::map(memory, bytes, &Meter::new()).expect("a region");
    Arc::new(Device::new(Fingerprint([9; 32]), Rank(0), region, &layout).expect("a device"))
}

fn hash(name: u64) -> BlockHash {
    let mut hash = [5; 32];
    hash[..8].copy_from_slice(&name.to_le_bytes());
    hash
}

/// The bytes of a block: words that count on from one that follows from its name.
fn content(name: u64) -> Vec<u8> {
    let first = (name + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (0..BLOCK_BYTES / 8).flat_map(|word| first.wrapping_add(word).to_le_bytes()).collect()
}

impl AddAssign for Read {
    fn add_assign(&mut self, other: Self) {
        let Self { asked, from_host, from_disk, failed, damaged, stored } = other;
        self.asked += asked;
        self.from_host += from_host;
        self.from_disk += from_disk;
        self.failed += failed;
        self.damaged += damaged;
        self.stored += stored;
    }
}

impl fmt::Display for Read {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = |blocks: u64| blocks as f64 / self.asked.max(1) as f64;
        write!(
            f,
            "{} blocks, {:.3} read from host memory, {:.3} from the disk; {} found and gone, {} stored",
            self.asked,
            share(self.from_host),
            share(self.from_disk),
            self.failed,
            self.stored
        )
    }
}
