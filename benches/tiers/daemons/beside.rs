//! Transfers from one daemon to another, with and without saturating offload in the same daemons, in turns.
//!
//! ```text
//! for each shape: idle, offload, floor, idle, offload, floor ... -> the times of all turns of a kind -> p50, p99
//! ```
//!
//! *Floor* is what no care of the daemon's could avoid: as many bytes a second copied by threads of the idle class outside
//! of it. A transfer's time is the reader's daemon's, from the order to the delivery; the engine's own, from the order until
//! it has heard, stands beside it. Between transfers there are pauses, so that they meet offload at any point.

use std::time::{Duration, Instant};

use kvferry_client::Event;
use serde_json::{Value, json};

use crate::floor::Floor;
use crate::support::engine::EngineOptions;
use crate::support::offload::Offload;
use crate::support::{Daemon, DaemonOptions, Dice, Shape, StandInEngine, wait};

/// As SmolLM2-135M has them: 32 tokens over all layers, 720 KiB.
const MODEL: Shape = Shape { blocks: 257, layers: 30, heads: 3, tokens: 32, content: 256 };
/// Blocks of one transfer: 8 KiB; one block of the model; 1,504 tokens of it; 8,192 of it.
const TRANSFERS: [(Shape, u32); 4] = [(Shape::SMALL, 1), (MODEL, 1), (MODEL, 47), (MODEL, 256)];
const HOST_MIB: u64 = 512;
const DISK_MIB: u64 = 4096;
/// The longest pause between two transfers.
const PAUSE_US_MAX: u32 = 8_000;
/// Offload that has just begun is not saturating yet.
const WARM_UP: Duration = Duration::from_millis(500);
const REST: Duration = Duration::from_millis(200);

/// What is asked for.
pub(crate) struct Asked {
    pub(crate) as_json: bool,
    /// Of one turn.
    pub(crate) seconds: f64,
    /// How often each kind comes.
    pub(crate) turns: usize,
    /// Which daemon has the offload.
    pub(crate) at: String,
    /// Which of the transfers.
    pub(crate) shapes: Vec<usize>,
    /// Of the daemons.
    pub(crate) limits: String,
}

/// Microseconds of each transfer, by the daemon and by the engine.
#[derive(Default)]
struct Times {
    daemon: Vec<u64>,
    engine: Vec<u64>,
}

impl Times {
    fn json(&mut self) -> Value {
        let at = |times: &mut Vec<u64>, per_mille: usize| {
            times.sort_unstable();
            times.get(times.len() * per_mille / 1000).copied().unwrap_or_default()
        };
        let Self { daemon, engine } = self;
        json!({
            "transfers": daemon.len(), "p50_us": at(daemon, 500), "p99_us": at(daemon, 990),
            "engine_p50_us": at(engine, 500), "engine_p99_us": at(engine, 990),
        })
    }
}

struct Node {
    daemon: Daemon,
    _memory: tempfile::TempDir,
    _disk: tempfile::TempDir,
}

impl Node {
    fn start(limits: &str) -> Self {
        let memory = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
        let disk = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder on a disk");
        let tables = format!(
            "[tier.host]\nmib = {HOST_MIB}\nblock_mib_max = 2\npath = {:?}\n[tier.disk]\nmib = {DISK_MIB}\nfile_mib = 256\npath = {:?}\n",
            memory.path().join("arena"),
            disk.path().join("store")
        );
        let options = DaemonOptions { tables, limits: limits.to_owned(), log: "info", ..Default::default() };
        Self { daemon: Daemon::start_with(&options), _memory: memory, _disk: disk }
    }

    /// Waits until no block comes to the disk any more.
    fn wait_written(&self) {
        let blocks = || {
            let disk = &self.daemon.status()["tiers"]["disk"];
            (disk["blocks"].as_u64(), disk["evicted_total"].as_u64())
        };
        wait(
            || "a disk that rests".to_owned(),
            || {
                let before = blocks();
                // Writes follow each other within milliseconds.
                std::thread::sleep(REST);
                (blocks() == before).then_some(())
            },
        );
    }
}

/// Measures every shape and prints what came of it.
pub(crate) fn measure(asked: &Asked) {
    let mut told = Vec::new();
    for (shape, blocks) in asked.shapes.iter().map(|place| TRANSFERS[*place]) {
        let found = one(shape, blocks, asked);
        if asked.as_json {
            told.push(found);
        } else {
            println!("{found:#}");
        }
    }
    if asked.as_json {
        println!("{}", json!({ "beside": told }));
    }
}

fn one(shape: Shape, blocks: u32, asked: &Asked) -> Value {
    let (holder, reader) = (Node::start(&asked.limits), Node::start(&asked.limits));
    let options = EngineOptions { shape, ..Default::default() };
    let prefill = StandInEngine::attach_with(&holder.daemon, "P0", options);
    let mut decode = StandInEngine::attach_with(&reader.daemon, "D0", options);
    prefill.fill(1);
    let at: Vec<_> = [("holder", &holder), ("reader", &reader)]
        .into_iter()
        .filter(|(name, _)| asked.at == *name || asked.at == "both")
        .map(|(name, node)| (node, Offload::start(node.daemon.socket(), &format!("O-{name}"), u64::MAX)))
        .collect();
    let turn = Duration::from_secs_f64(asked.seconds);
    let mut dice = Dice::throw("beside");
    // Pages are touched and the link stands.
    transfers(&prefill, &mut decode, blocks, turn / 4, &mut dice, &mut Times::default());
    let [mut idle, mut loaded, mut floor] = [(); 3].map(|()| Times::default());
    let (mut moved, mut spent, mut by_floor) = ([0_u64; 3], 0.0, 0);
    for _ in 0..asked.turns {
        transfers(&prefill, &mut decode, blocks, turn, &mut dice, &mut idle);
        at.iter().for_each(|(_, offload)| offload.run());
        std::thread::sleep(WARM_UP);
        let counts = || at.iter().map(|(_, offload)| offload.counts().read()).fold([0; 3], added);
        let (before, begun) = (counts(), Instant::now());
        transfers(&prefill, &mut decode, blocks, turn, &mut dice, &mut loaded);
        spent += begun.elapsed().as_secs_f64();
        moved = added(
            moved,
            counts()
                .iter()
                .zip(before)
                .map(|(now, before)| now - before)
                .collect::<Vec<_>>()
                .try_into()
                .expect("three"),
        );
        for (node, offload) in &at {
            offload.rest();
            node.wait_written();
        }
        let memcpy = Floor::start((moved[0] + moved[1]) as f64 / spent);
        let before = memcpy.bytes();
        transfers(&prefill, &mut decode, blocks, turn, &mut dice, &mut floor);
        by_floor += memcpy.bytes() - before;
    }
    assert_eq!(prefill.block(1), decode.block(1), "what was delivered last");
    let gbps = |bytes: u64| bytes as f64 / spent / 1e9;
    json!({
        "blocks": blocks, "block_bytes": shape.block_bytes(),
        "idle": idle.json(), "offload": loaded.json(), "floor": floor.json(), "floor_gbps": gbps(by_floor),
        "stored_gbps": gbps(moved[0]), "loaded_gbps": gbps(moved[1]), "from_disk_gbps": gbps(moved[2]),
    })
}

fn added(one: [u64; 3], other: [u64; 3]) -> [u64; 3] {
    std::array::from_fn(|place| one[place] + other[place])
}

/// One transfer after another for so long.
fn transfers(
    prefill: &StandInEngine,
    decode: &mut StandInEngine,
    count: u32,
    long: Duration,
    dice: &mut Dice,
    times: &mut Times,
) {
    // Block 0 is vLLM's, and never moves.
    let blocks: Vec<u32> = (1..=count).collect();
    let until = Instant::now() + long;
    while Instant::now() < until {
        let ticket = prefill.grant("r1", &blocks, 10_000).ticket;
        let begun = Instant::now();
        let key = decode.redeem(&ticket, &blocks);
        let micros = loop {
            let done = decode.rest().into_iter().find_map(|event| match event {
                Event::TransferDone { key: done, failure, micros, .. } if done == key => {
                    assert_eq!(failure, None);
                    Some(micros)
                }
                _ => None,
            });
            match done {
                Some(micros) => break micros,
                // An engine looks now and then.
                None => std::thread::sleep(Duration::from_micros(50)),
            }
            assert!(begun.elapsed() < crate::support::PATIENCE, "no outcome");
        };
        times.daemon.push(micros);
        times.engine.push(u64::try_from(begun.elapsed().as_micros()).expect("short"));
        std::thread::sleep(Duration::from_micros(u64::from(dice.below(PAUSE_US_MAX))));
    }
}
