//! A daemon that is replaced under load, and an engine that is: what is lost, and for how long nobody answers.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::offload::{self, CHAIN, FILLED, Kept, MODEL, Offload};
use super::{Daemon, DaemonOptions, StandInEngine, wait};

/// What came of one replacement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Replaced {
    /// From the last answer of the old daemon to the first of the new one, as an engine's client has them.
    pub(crate) gap: Duration,
    /// From when another engine begins to connect until it has heard that all its blocks are there.
    pub(crate) engine: Duration,
    /// Blocks that the old daemon had acknowledged; those that were found, and those that were loaded as they were stored.
    pub(crate) kept: usize,
    pub(crate) found: usize,
    pub(crate) whole: usize,
    /// Bytes that were loaded before and after it.
    pub(crate) loaded: [u64; 2],
}

/// Replaces a daemon whose host memory has `host_mib`, once it has acknowledged `chains` chains of [`CHAIN`] blocks, while
/// the engine goes on.
pub(crate) fn replace(signal: Signal, host_mib: u64, chains: usize) -> Replaced {
    let memory = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
    let tables =
        format!("[tier.host]\nmib = {host_mib}\nblock_mib_max = 2\npath = {:?}\n", memory.path().join("arena"));
    let mut daemon = Daemon::start_with(&DaemonOptions { tables, log: "info", ..Default::default() });
    // A quarter more is stored while the daemon is replaced; all of it has room.
    let chains_max = u64::try_from(chains + chains / 4 + 1).expect("fits");
    let load = Offload::start(daemon.socket(), "E0", chains_max);
    load.run();
    wait(|| format!("{} of {chains} chains", load.kept().len()), || (load.kept().len() >= chains).then_some(()));
    load.longest_pause();
    let (kept, answers, before) = (load.kept(), load.answers(), load.counts().read()[1]);
    daemon.replace(signal);
    // The lowest of numbers that is not reached by answers that were on their way.
    let after = answers.max(load.answers()) + 1;
    wait(|| "an answer of the next daemon".to_owned(), || (load.answers() > after).then_some(()));
    let gap = load.longest_pause();
    load.rest();
    let loaded = [before, load.counts().read()[1] - before];
    drop(load);
    let (engine, found, whole) = look(&daemon, &kept);
    Replaced { gap, engine, kept: kept.len() * usize::try_from(CHAIN).expect("few"), found, whole, loaded }
}

/// Another engine's first lookup, and all of what it finds, compared with what was stored.
fn look(daemon: &Daemon, kept: &[Kept]) -> (Duration, usize, usize) {
    let begun = Instant::now();
    let mut engine = StandInEngine::attach_at(daemon.socket(), "E1", offload::options());
    engine.lookup(&kept[0].hashes);
    let attached = begun.elapsed();
    engine.fill(FILLED);
    let wanted: Vec<Vec<u8>> = (0..MODEL.blocks).map(|block| engine.block(block)).collect();
    let targets: Vec<u32> = (0..CHAIN).collect();
    let (mut found, mut whole) = (0, 0);
    for Kept { hashes, blocks } in kept {
        engine.scribble(&targets);
        let (claim, held) = engine.lookup(hashes);
        let held = usize::try_from(held).expect("few");
        found += held;
        if engine.load(claim, &hashes[..held], &targets[..held]).is_none() {
            let stored = blocks.iter().map(|block| &wanted[usize::try_from(*block).expect("few")]);
            whole += stored.zip(&targets[..held]).filter(|(stored, target)| **stored == engine.block(**target)).count();
        }
    }
    (attached, found, whole)
}
