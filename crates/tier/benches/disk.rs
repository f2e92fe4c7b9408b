//! How fast blocks go to the disk and come back, beside `fio` on the same disk, and how soon a new daemon has them.
//!
//! ```text
//! cargo bench -p kvferry-tier --bench disk           up to 7 GiB in a folder beside the program, for two minutes; wants fio
//! cargo bench -p kvferry-tier --bench disk -- recovery        that part alone
//! cargo bench -p kvferry-tier --bench disk -- --json --rounds=6 1024k 2048k       one JSON document of the medians
//! ```
//!
//! Blocks move between the disk and an engine's region, [`DEPTH`] at once; reads are held against their checksums. fio moves
//! pieces of the same size by the same calls (`io_uring`, `O_DIRECT`), as many at once, over as many bytes, a moment later; what
//! the two get is compared round by round, as a disk that others use has good and bad seconds.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "numbers of a benchmark, which are small and positive"
)]

use std::cell::RefCell;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvferry_core::{Fingerprint, Time};
use kvferry_memory::{Meter, Region};
use kvferry_tier::disk::{Block, Done, Filling, Io, Limits, Mover, Settings, Shelf, Span};
use kvferry_tier::{BlockHash, Cache, CacheLimits, ClassId, Store as _, Tenant};
use serde_json::{Value, json};

/// Operations at once, by size of block: what the disk of the measurements needs to be busy.
const DEPTHS: [(u64, u32); 3] = [(64 << 10, 32), (1 << 20, 8), (2 << 20, 8)];
const STORED_BYTES: u64 = 2 << 30;
const ROUNDS: usize = 10;
/// Short and many: the seconds of a disk that others use differ by more than what is to be told apart.
const ROUND: Duration = Duration::from_millis(750);
const RECOVERED_BLOCKS: u64 = 1_000_000;

fn limits(bytes_max: u64) -> Limits {
    Limits { bytes_max, files_max: 64, extent_bytes: 256 << 20, free_bytes_min: 1 << 30, write_errors_max: 8 }
}

fn hash(number: u64) -> BlockHash {
    let mut hash = [0; 32];
    fastrand::Rng::with_seed(number).fill(&mut hash);
    hash
}

/// What one run has got: GB/s, and microseconds of an operation.
#[derive(Clone, Copy, Debug)]
struct Run {
    rate: f64,
    p50: f64,
    p99: f64,
}

impl Run {
    fn new(bytes: u64, seconds: f64, mut times: Vec<f64>) -> Self {
        times.sort_by(f64::total_cmp);
        let at = |share: f64| times.get((times.len() as f64 * share) as usize).copied().unwrap_or(0.0);
        Self { rate: bytes as f64 / seconds / 1e9, p50: at(0.5), p99: at(0.99) }
    }
}

/// Of an even number the middle between the two in the middle: one of them would be that of who came first.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    f64::midpoint(values[(values.len() - 1) / 2], values[values.len() / 2])
}

/// A store with a class of blocks, and a region that they go to and come from.
struct World {
    shelf: Shelf,
    mover: Mover,
    class: ClassId,
    region: Arc<Region>,
    block_bytes: u64,
    depth: u32,
    blocks: u64,
    checksum: u32,
    /// Numbers of blocks: the last one, those that are stored, and those that are being written.
    next: u64,
    stored: Vec<u64>,
    writing: Vec<u64>,
}

impl World {
    fn new(folder: &Path, block_bytes: u64, depth: u32, io: Io) -> Self {
        let (mut shelf, _) = Shelf::open(folder, limits(STORED_BYTES + STORED_BYTES / 4)).expect("a store");
        let settings = Settings { io, depth_max: depth, threads: depth, bounce_bytes_max: 0 };
        let mover = Mover::open(settings).expect("a way to the disk");
        let class = shelf.class(Fingerprint([1; 32]), 0, block_bytes).expect("a class");
        let bytes = block_bytes * u64::from(depth);
        let fd = kvferry_memory::create("kvferry-bench", bytes).expect("memory");
        let region = Region::map(fd, bytes, &Meter::new()).expect("a region");
        // All blocks have the same bytes: one checksum, and a disk that compresses nothing.
        let mut block = vec![0; usize::try_from(block_bytes).expect("small")];
        fastrand::Rng::with_seed(7).fill(&mut block);
        (0..u64::from(depth)).for_each(|place| region.write(place * block_bytes, &block).expect("inside"));
        let checksum = region.crc32c(0, 0, block_bytes).expect("inside");
        Self {
            shelf,
            mover,
            class,
            region,
            block_bytes,
            depth,
            blocks: STORED_BYTES / block_bytes,
            checksum,
            next: 0,
            stored: Vec::new(),
            writing: vec![0; depth as usize],
        }
    }

    fn span(&self, place: u64) -> Span {
        let offset = place * self.block_bytes;
        Span { region: Arc::clone(&self.region), offset, room: self.block_bytes }
    }

    /// Keeps the disk busy for a round: `next` begins an operation, `end` says what to do with one that is done.
    fn run(&mut self, begin: impl Fn(&mut Self, u64), end: impl Fn(&mut Self, Done)) -> Run {
        let mut begun_at = vec![Instant::now(); self.depth as usize];
        let (begun, mut times, mut done) = (Instant::now(), Vec::with_capacity(1 << 16), Vec::new());
        for place in 0..u64::from(self.depth) {
            begun_at[place as usize] = Instant::now();
            begin(self, place);
        }
        while self.mover.in_flight() > 0 {
            self.mover.turn(&mut done);
            if done.is_empty() {
                self.mover.wait(Duration::from_secs(1));
            }
            for one in done.drain(..) {
                let (Done::Read { tag, .. } | Done::Written { tag, .. }) = one;
                times.push(begun_at[tag as usize].elapsed().as_secs_f64() * 1e6);
                end(self, one);
                if begun.elapsed() < ROUND {
                    begun_at[tag as usize] = Instant::now();
                    begin(self, tag);
                }
            }
        }
        Run::new(times.len() as u64 * self.block_bytes, begun.elapsed().as_secs_f64(), times)
    }

    /// Writes blocks; once there is no room, each in the place of another, whichever that is.
    fn write(&mut self) -> Run {
        let random = RefCell::new(fastrand::Rng::with_seed(4));
        let begin = |world: &mut Self, place: u64| {
            if world.stored.len() as u64 + u64::from(world.depth) > world.blocks {
                let oldest = random.borrow_mut().usize(..world.stored.len());
                let number = world.stored.swap_remove(oldest);
                assert!(world.shelf.remove(world.class, &hash(number)));
            }
            world.next += 1;
            world.writing[place as usize] = world.next;
            let filling: Filling = world.shelf.reserve(world.class, hash(world.next), Tenant(0)).expect("room");
            let span = world.span(place);
            world.mover.write(place, filling, &span).expect("a place for each");
        };
        self.run(begin, |world, done| {
            let Done::Written { tag, filling, outcome: Ok(()) } = done else { panic!("{done:?}") };
            world.shelf.seal(filling, world.checksum, None).expect("kept");
            world.stored.push(world.writing[tag as usize]);
        })
    }

    fn read(&mut self) -> Run {
        let random = RefCell::new(fastrand::Rng::with_seed(3));
        let begin = |world: &mut Self, place: u64| {
            let number = world.stored[random.borrow_mut().usize(..world.stored.len())];
            let block: Block = world.shelf.pin(world.class, &hash(number)).expect("there");
            let span = world.span(place);
            world.mover.read(place, block, &span).expect("a place for each");
        };
        self.run(begin, |world, done| {
            let Done::Read { block, outcome: Ok(()), .. } = done else { panic!("{done:?}") };
            world.shelf.unpin(&block);
        })
    }
}

/// The same by fio, over one file. `None`: there is no fio.
fn fio(file: &Path, way: &str, block_bytes: u64, depth: u32) -> Option<Run> {
    let output = Command::new("fio")
        .args(["--name=peer", "--ioengine=io_uring", "--direct=1", "--time_based", "--output-format=terse"])
        .args(["--fallocate=posix", "--terse-version=3", "--percentile_list=50:99", "--randrepeat=0"])
        .arg(format!("--filename={}", file.display()))
        .args([format!("--rw={way}"), format!("--bs={block_bytes}"), format!("--iodepth={depth}")])
        .args([format!("--size={STORED_BYTES}"), format!("--runtime={}ms", ROUND.as_millis())])
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let fields: Vec<&str> = text.trim().split(';').collect();
    // fio's HOWTO, "Terse output": reads begin at the sixth field, writes 41 further; KiB/s is the second of them, percentiles
    // of completion begin at the thirteenth.
    let first = if way.ends_with("read") { 5 } else { 46 };
    let number = |place: usize| fields.get(first + place)?.parse::<f64>().ok();
    let percentile = |place: usize| fields.get(first + place)?.split('=').nth(1)?.parse::<f64>().ok();
    Some(Run { rate: number(1)? * 1024.0 / 1e9, p50: percentile(12)?, p99: percentile(13)? })
}

/// The medians of some runs; null for none.
fn medians(runs: &[Run]) -> Value {
    let of = |value: fn(&Run) -> f64| median(runs.iter().map(value).collect());
    if runs.is_empty() {
        return Value::Null;
    }
    json!({ "gbps": of(|run| run.rate), "p50_us": of(|run| run.p50), "p99_us": of(|run| run.p99) })
}

fn compare(what: &str, block_bytes: u64, ours: &[Run], peers: &[Run]) {
    let of = |runs: &[Run], value: fn(&Run) -> f64| median(runs.iter().map(value).collect());
    let (rate, p50, p99) = (of(ours, |run| run.rate), of(ours, |run| run.p50 / 1e3), of(ours, |run| run.p99 / 1e3));
    print!("{what} {:>4} KiB: {rate:.2} GB/s, p50 {p50:.2} ms, p99 {p99:.2} ms", block_bytes >> 10);
    if peers.len() == ours.len() {
        let ratio = |value: fn(&Run) -> f64| {
            let mut ratios: Vec<f64> = ours.iter().zip(peers).map(|(ours, peer)| value(ours) / value(peer)).collect();
            ratios.sort_by(f64::total_cmp);
            (ratios[ratios.len() / 2], ratios[0], ratios[ratios.len() - 1])
        };
        let (rate, rates) = (of(peers, |run| run.rate), ratio(|run| run.rate));
        let (p99, p99s) = (of(peers, |run| run.p99 / 1e3), ratio(|run| run.p99));
        print!("; fio {rate:.2} GB/s, p99 {p99:.2} ms: {:.2} [{:.2}-{:.2}] of its rate", rates.0, rates.1, rates.2);
        print!(", {:.2} [{:.2}-{:.2}] of its p99", p99s.0, p99s.1, p99s.2);
    }
    println!();
}

/// How a benchmark is run and told.
#[derive(Clone, Copy)]
struct Asked {
    rounds: usize,
    as_json: bool,
}

fn move_blocks(folder: &Path, block_bytes: u64, depth: u32, io: Io, asked: Asked) -> Vec<Value> {
    let mut world = World::new(&folder.join("shelf"), block_bytes, depth, io);
    if !asked.as_json {
        println!("depth {depth}, {}", world.mover.choice());
    }
    let mut told = Vec::new();
    let file = folder.join("fio");
    // Every place was written once, by both, before anything is measured.
    while world.next < world.blocks {
        world.write();
    }
    let prepared = fio(&file, "write", 1 << 20, 8);
    for (what, op, way) in [("wrote", "write", "randwrite"), ("read ", "read", "randread")] {
        let (mut ours, mut peers) = (Vec::new(), Vec::new());
        for round in 0..asked.rounds {
            // Who goes first changes, as a disk may pay later for what was written.
            for second in [false, true] {
                if second == round.is_multiple_of(2) {
                    peers.extend(prepared.and_then(|_| fio(&file, way, block_bytes, depth)));
                } else if way == "randwrite" {
                    ours.push(world.write());
                } else {
                    ours.push(world.read());
                }
            }
        }
        if asked.as_json {
            let (ours, fio) = (medians(&ours), medians(&peers));
            told.push(json!({ "op": op, "block_bytes": block_bytes, "depth": depth, "ours": ours, "fio": fio }));
        } else {
            compare(what, block_bytes, &ours, &peers);
        }
    }
    drop(world);
    // Where there was no fio there is no file.
    let _ = std::fs::remove_file(file);
    std::fs::remove_dir_all(folder.join("shelf")).expect("removed");
    told
}

/// A million blocks of a page each: their records are real, their bytes are room that was never written, and not looked at.
fn recover(folder: &Path) {
    let limits = limits(6 << 30);
    let (mut shelf, _) = Shelf::open(folder, limits).expect("a store");
    let class = shelf.class(Fingerprint([1; 32]), 0, 4096).expect("a class");
    let mut mover =
        Mover::open(Settings { io: Io::Auto, depth_max: 64, threads: 2, bounce_bytes_max: 0 }).expect("a way");
    let fd = kvferry_memory::create("kvferry-bench", 4096).expect("memory");
    let region = Region::map(fd, 4096, &Meter::new()).expect("a region");
    let span = Span { region, offset: 0, room: 4096 };
    let (mut done, mut begun) = (Vec::new(), 0);
    while shelf.blocks() < RECOVERED_BLOCKS as usize {
        while mover.in_flight() < 64 && begun < RECOVERED_BLOCKS {
            let filling = shelf.reserve(class, hash(begun), Tenant(0)).expect("room");
            mover.write(begun, filling, &span).expect("a place for each");
            begun += 1;
        }
        mover.turn(&mut done);
        if done.is_empty() {
            mover.wait(Duration::from_secs(1));
        }
        for one in done.drain(..) {
            let Done::Written { tag, filling, outcome: Ok(()) } = one else { panic!("{one:?}") };
            // Chains of 64 blocks.
            let parent = (!tag.is_multiple_of(64)).then(|| hash(tag - 1));
            shelf.seal(filling, 0, parent).expect("kept");
        }
    }
    let bytes = shelf.index_bytes() as f64 / RECOVERED_BLOCKS as f64;
    drop(shelf);
    for cold in [false, true] {
        if cold {
            Command::new("sync").status().expect("synced");
            if std::fs::write("/proc/sys/vm/drop_caches", "3").is_err() {
                println!("recovery from a cold cache: not measured, as only root can empty it");
                continue;
            }
        }
        let mut times = Vec::new();
        for _ in 0..if cold { 1 } else { 5 } {
            let begun = Instant::now();
            let (shelf, recovery) = Shelf::open(folder, limits).expect("the same");
            times.push(begun.elapsed().as_secs_f64());
            assert_eq!((recovery.blocks, recovery.damaged_records), (RECOVERED_BLOCKS, 0));
            drop(shelf);
        }
        let state = if cold { "not in the page cache" } else { "in the page cache" };
        println!("{RECOVERED_BLOCKS} blocks there again after {:.3} s, records {state}", median(times));
    }
    let (shelf, _) = Shelf::open(folder, limits).expect("the same");
    println!(
        "index: {bytes:.1} bytes of memory a block, {:.1} after recovery",
        shelf.index_bytes() as f64 / RECOVERED_BLOCKS as f64
    );
    assert!(bytes <= 64.0 && shelf.index_bytes() as f64 <= 64.0 * RECOVERED_BLOCKS as f64);
    let begun = Instant::now();
    let known = CacheLimits { known_min: 2 << 20, tenant_bytes_max: u64::MAX, seed: 1 };
    let cache = Cache::new(shelf, known, Time::from_nanos(0));
    println!(
        "a cache of them, eviction and all, after {:.3} s more: {} blocks",
        begun.elapsed().as_secs_f64(),
        cache.blocks()
    );
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let only: Vec<&String> = words.iter().filter(|word| !word.starts_with('-')).collect();
    let rounds = words.iter().find_map(|word| word.strip_prefix("--rounds=")?.parse().ok()).unwrap_or(ROUNDS);
    let asked = Asked { rounds, as_json: words.iter().any(|word| word == "--json") };
    let is_wanted = |part: &str| only.is_empty() || only.iter().any(|word| *word == part);
    // On the disk that holds this program: not every temporary folder is on one.
    let program = std::env::current_exe().expect("this program");
    let folder = tempfile::tempdir_in(program.parent().expect("in a folder")).expect("a folder on a disk");
    let mut told = Vec::new();
    for (block_bytes, depth) in DEPTHS {
        if is_wanted(&format!("{}k", block_bytes >> 10)) {
            told.extend(move_blocks(folder.path(), block_bytes, depth, Io::Auto, asked));
        }
    }
    if only.iter().any(|word| *word == "threads") {
        told.extend(move_blocks(folder.path(), 1 << 20, 8, Io::Threads, asked));
    }
    if asked.as_json {
        println!("{}", json!({ "disk": told }));
    } else if is_wanted("recovery") {
        recover(&folder.path().join("million"));
    }
}
