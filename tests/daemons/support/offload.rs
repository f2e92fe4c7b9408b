//! An engine that stores and loads as fast as its daemon lets it, on a thread of its own, while it is told to.
//!
//! Chains of new blocks are stored all the time. Each is loaded soon after, out of host memory, by which it becomes worth
//! the disk; and once more when host memory has long been filled with others. What a daemon that goes away does not answer
//! is a miss, as it is for a real engine.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvferry_client::{BlockHash, Event, LoadedBlocks, StoredBlocks};

use super::engine::EngineOptions;
use super::{Shape, StandInEngine, wait};

/// Blocks of one store or load.
pub(crate) const CHAIN: u32 = 16;
/// Stores, and loads, under way.
const AT_ONCE: u32 = 4;
/// As SmolLM2-135M has them: 32 tokens over all layers, 720 KiB.
pub(crate) const MODEL: Shape = Shape { blocks: 2 * AT_ONCE * CHAIN, layers: 30, heads: 3, tokens: 32, content: 256 };
/// Chains that are stored until one is asked for again: twice what host memory holds, and less than the disk does.
const REMEMBERED: usize = 96;
/// Chains that wait for their first load.
const FRESH_MAX: usize = 8;
/// What such an engine's memory is filled from.
pub(crate) const FILLED: u8 = 1;
/// So that this client takes little of the cores that are measured.
const PAUSE: Duration = Duration::from_micros(200);

/// Bytes so far.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) stored: AtomicU64,
    pub(crate) loaded: AtomicU64,
    pub(crate) from_disk: AtomicU64,
}

impl Counts {
    pub(crate) fn read(&self) -> [u64; 3] {
        [&self.stored, &self.loaded, &self.from_disk].map(|count| count.load(Ordering::Relaxed))
    }
}

#[derive(Default)]
struct Told {
    runs: AtomicBool,
    rests: AtomicBool,
    ends: AtomicBool,
    counts: Counts,
    kept: Mutex<Vec<Kept>>,
    answers: Mutex<Answers>,
}

/// A chain that the daemon has acknowledged, and the engine's blocks that it was stored from; those never change.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    pub(crate) hashes: Vec<BlockHash>,
    pub(crate) blocks: Vec<u32>,
}

/// When answers came that were none of a daemon's going away.
#[derive(Clone, Copy, Default)]
struct Answers {
    count: u64,
    last: Option<Instant>,
    longest_pause: Duration,
}

/// See the module.
pub(crate) struct Offload {
    told: Arc<Told>,
    thread: Option<JoinHandle<()>>,
}

impl Offload {
    /// Stores no more than `chains_max` chains.
    pub(crate) fn start(socket: PathBuf, name: &str, chains_max: u64) -> Self {
        let (told, name) = (Arc::new(Told::default()), name.to_owned());
        let of_thread = Arc::clone(&told);
        let thread = std::thread::spawn(move || {
            let engine = StandInEngine::attach_at(socket, &name, options());
            engine.fill(FILLED);
            Saturating::new(engine, of_thread, chains_max).run();
        });
        Self { told, thread: Some(thread) }
    }

    /// What has been acknowledged so far.
    pub(crate) fn kept(&self) -> Vec<Kept> {
        self.told.kept.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Answers so far.
    pub(crate) fn answers(&self) -> u64 {
        self.told.answers.lock().unwrap_or_else(PoisonError::into_inner).count
    }

    /// The longest time without an answer since this was last asked.
    pub(crate) fn longest_pause(&self) -> Duration {
        let mut answers = self.told.answers.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut answers.longest_pause)
    }

    pub(crate) fn counts(&self) -> &Counts {
        &self.told.counts
    }

    pub(crate) fn run(&self) {
        self.told.rests.store(false, Ordering::SeqCst);
        self.told.runs.store(true, Ordering::SeqCst);
    }

    /// Waits until nothing of it is under way.
    pub(crate) fn rest(&self) {
        self.told.runs.store(false, Ordering::SeqCst);
        wait(|| "offload to rest".to_owned(), || self.told.rests.load(Ordering::SeqCst).then_some(()));
    }
}

impl Drop for Offload {
    fn drop(&mut self) {
        self.told.ends.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            // A panic has been printed.
            drop(thread.join());
        }
    }
}

/// How such an engine attaches.
pub(crate) fn options() -> EngineOptions {
    EngineOptions { shape: MODEL, fingerprint: [9; 32], ..Default::default() }
}

enum Open {
    Storing(u32, Vec<BlockHash>),
    LookingUp(u32, Vec<BlockHash>),
    Loading(u32),
}

struct Saturating {
    engine: StandInEngine,
    told: Arc<Told>,
    open: HashMap<u64, Open>,
    /// Parts of the engine's memory that nothing is under way in: those that are stored, and those that are loaded into.
    sources: Vec<u32>,
    targets: Vec<u32>,
    /// Not loaded yet; and those that were.
    fresh: VecDeque<Vec<BlockHash>>,
    used: VecDeque<Vec<BlockHash>>,
    next: u64,
    chains_max: u64,
}

impl Saturating {
    fn new(engine: StandInEngine, told: Arc<Told>, chains_max: u64) -> Self {
        let (sources, targets) = ((0..AT_ONCE).collect(), (AT_ONCE..2 * AT_ONCE).collect());
        let (open, fresh, used) = (HashMap::new(), VecDeque::new(), VecDeque::new());
        Self { engine, told, open, sources, targets, fresh, used, next: 0, chains_max }
    }

    fn run(&mut self) {
        while !self.told.ends.load(Ordering::SeqCst) {
            let mut events = self.engine.worker.poll();
            events.extend(self.engine.scheduler.poll());
            let was_idle = events.is_empty();
            events.into_iter().for_each(|event| self.handle(event));
            if self.told.runs.load(Ordering::SeqCst) {
                self.begin();
            } else if self.open.is_empty() {
                self.told.rests.store(true, Ordering::SeqCst);
            }
            if was_idle {
                // Offload has no end that could be waited for.
                std::thread::sleep(PAUSE);
            }
        }
    }

    fn begin(&mut self) {
        while self.next < self.chains_max
            && let Some(part) = self.sources.pop()
        {
            self.next += 1;
            let hashes: Vec<_> = (0..CHAIN).map(|place| hash(self.next, place)).collect();
            let group = StoredBlocks { parent: None, hashes: hashes.clone(), blocks: blocks(part) };
            let key = self.engine.worker.store("offload", &[group], b"tenant");
            self.open.insert(key, Open::Storing(part, hashes));
        }
        while !self.targets.is_empty()
            && let Some(hashes) = self.wanted()
            && let Some(part) = self.targets.pop()
        {
            let key = self.engine.scheduler.lookup("offload", std::slice::from_ref(&hashes));
            self.open.insert(key, Open::LookingUp(part, hashes));
        }
    }

    /// What is to be loaded next: of what was stored lately and long ago, in turn.
    fn wanted(&mut self) -> Option<Vec<BlockHash>> {
        if self.next == self.chains_max && self.fresh.is_empty() {
            // The same again and again.
            let used = self.used.pop_front()?;
            self.used.push_back(used.clone());
            return Some(used);
        }
        if self.used.len() > REMEMBERED {
            return self.used.pop_front();
        }
        let fresh = self.fresh.pop_front()?;
        self.used.push_back(fresh.clone());
        Some(fresh)
    }

    fn handle(&mut self, event: Event) {
        if let Event::Copied { failure, .. }
        | Event::Found { failure, .. }
        | Event::Loaded { failure, .. }
        | Event::Stored { failure, .. } = &event
            && failure.is_none()
        {
            let mut answers = self.told.answers.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let pause = answers.last.map_or(Duration::ZERO, |last| now - last);
            answers.longest_pause = answers.longest_pause.max(pause);
            answers.last = Some(now);
            answers.count += 1;
        }
        match event {
            Event::Copied { key, failure: None, .. } => self.engine.worker.commit(key),
            Event::Copied { key, failure: Some(_), .. } => {
                let Some(Open::Storing(part, _)) = self.open.remove(&key) else { return };
                self.sources.push(part);
            }
            Event::Stored { key, blocks: count, failure, .. } => {
                let Some(Open::Storing(part, hashes)) = self.open.remove(&key) else { return };
                self.told.counts.stored.fetch_add(count * MODEL.block_bytes(), Ordering::Relaxed);
                self.sources.push(part);
                if failure.is_some() {
                    return;
                }
                if count == u64::from(CHAIN) {
                    let kept = Kept { hashes: hashes.clone(), blocks: blocks(part) };
                    self.told.kept.lock().unwrap_or_else(PoisonError::into_inner).push(kept);
                }
                self.fresh.push_back(hashes);
                if self.fresh.len() > FRESH_MAX {
                    self.fresh.pop_front();
                }
            }
            Event::Found { key, held, .. } => {
                let Some(Open::LookingUp(part, hashes)) = self.open.remove(&key) else { return };
                let held = held.first().map_or(0, |held| usize::try_from(*held).expect("few"));
                if held == 0 {
                    self.targets.push(part);
                    return;
                }
                let group = LoadedBlocks { hashes: hashes[..held].to_vec(), blocks: blocks(part)[..held].to_vec() };
                let key = self.engine.worker.load("offload", key, &[group], 10_000);
                self.open.insert(key, Open::Loading(part));
            }
            Event::Loaded { key, bytes, disk_bytes, .. } => {
                let Some(Open::Loading(part)) = self.open.remove(&key) else { return };
                self.told.counts.loaded.fetch_add(bytes, Ordering::Relaxed);
                self.told.counts.from_disk.fetch_add(disk_bytes, Ordering::Relaxed);
                self.targets.push(part);
            }
            _ => {}
        }
    }
}

fn blocks(part: u32) -> Vec<u32> {
    (part * CHAIN..(part + 1) * CHAIN).collect()
}

fn hash(chain: u64, place: u32) -> BlockHash {
    let mut hash = [0; 32];
    hash[..8].copy_from_slice(&chain.to_le_bytes());
    hash[8..12].copy_from_slice(&place.to_le_bytes());
    hash
}
