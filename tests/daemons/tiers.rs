//! Blocks in the tiers of a real daemon, from and to stand-in engines.

use std::path::{Path, PathBuf};

use kvferry_client::{BlockHash, Event, Role};

use crate::support::engine::{EngineOptions, client};
use crate::support::{Daemon, DaemonOptions, Shape, StandInEngine, wait};

/// A daemon with host memory that outlives it.
pub(crate) struct Node {
    memory: tempfile::TempDir,
    /// Where its disk tier is, if it has one.
    disk: tempfile::TempDir,
    pub(crate) daemon: Daemon,
}

impl Node {
    pub(crate) fn start() -> Self {
        Self::start_with(false)
    }

    pub(crate) fn start_with(has_disk: bool) -> Self {
        let memory = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
        // On the file system of the build: not every temporary folder is on one that takes O_DIRECT.
        let disk = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder on a disk");
        let mut tables = format!("[tier.host]\nmib = 64\nblock_mib_max = 2\npath = {:?}\n", arena(memory.path()));
        if has_disk {
            tables += &format!("[tier.disk]\nmib = 64\nfile_mib = 8\npath = {:?}\n", disk.path().join("store"));
        }
        let daemon = Daemon::start_with(&DaemonOptions { tables, ..Default::default() });
        Self { memory, disk, daemon }
    }

    /// The file that is its host memory.
    pub(crate) fn arena(&self) -> PathBuf {
        arena(self.memory.path())
    }

    /// The directory of its disk tier.
    pub(crate) fn store(&self) -> PathBuf {
        self.disk.path().join("store")
    }

    pub(crate) fn wait_on_disk(&self, blocks: u64) {
        wait(
            || format!("{blocks} blocks on the disk: {}", self.status()["tiers"]),
            || (self.status()["tiers"]["disk"]["blocks"].as_u64() >= Some(blocks)).then_some(()),
        );
    }

    fn status(&self) -> serde_json::Value {
        let status = self.daemon.operator().status().expect("status");
        serde_json::from_str(&status).expect("JSON")
    }
}

fn arena(folder: &Path) -> PathBuf {
    folder.join("arena")
}

fn hashes(numbers: std::ops::Range<u8>) -> Vec<BlockHash> {
    numbers.map(|number| [number; 32]).collect()
}

#[test]
fn blocks_are_kept_and_found_by_another_engine_after_the_daemon_was_killed() {
    let mut node = Node::start();
    let mut first = StandInEngine::attach(&node.daemon, "E0");
    first.fill(3);
    let names = hashes(1..9);
    let blocks: Vec<u32> = (10..18).rev().collect();
    assert_eq!(first.lookup(&names).1, 0);
    let (key, failure) = first.store(None, &names, &blocks);
    assert_eq!((failure, first.lookup(&names).1), (None, 0), "not vouched for");
    assert_eq!((first.commit(key), first.lookup(&names).1), (8, 8));
    node.daemon.restart();
    let mut second = StandInEngine::attach(&node.daemon, "E1");
    second.fill(9);
    let (claim, held) = second.lookup(&names);
    assert_eq!(held, 8, "acknowledged, so it survives kill -9");
    let targets: Vec<u32> = (0..8).collect();
    assert_eq!(second.load(claim, &names, &targets), None);
    for (target, source) in targets.iter().zip(&blocks) {
        assert_eq!(second.block(*target), first.block(*source), "block {target}");
    }
    // The engine that was there before the restart goes on with the new daemon.
    first.wait_attached_again();
    assert_eq!(first.lookup(&names).1, 8);
    let tiers = &node.status()["tiers"];
    assert_eq!((tiers["host_blocks"].as_u64(), tiers["left_total"]["damaged"].as_u64()), (Some(8), Some(0)), "{tiers}");
    assert!(node.memory.path().exists());
}

#[test]
fn another_fingerprint_finds_nothing() {
    let node = Node::start();
    let mut ours = StandInEngine::attach(&node.daemon, "E0");
    let (key, _) = ours.store(None, &hashes(1..3), &[1, 2]);
    ours.commit(key);
    let options = EngineOptions { fingerprint: [8; 32], ..Default::default() };
    let theirs = StandInEngine::attach_with(&node.daemon, "E1", options);
    assert_eq!((ours.lookup(&hashes(1..3)).1, theirs.lookup(&hashes(1..3)).1), (2, 0));
}

#[test]
fn a_store_that_was_given_up_is_never_found() {
    let node = Node::start();
    let mut engine = StandInEngine::attach(&node.daemon, "E0");
    let (key, failure) = engine.store(None, &hashes(1..3), &[1, 2]);
    assert_eq!(failure, None);
    engine.worker.abort(key);
    assert_eq!((engine.commit(key), engine.lookup(&hashes(1..3)).1), (0, 0));
    // Many of them leave room for others.
    for _ in 0..5_000 {
        let (key, failure) = engine.store(None, &hashes(1..2), &[1]);
        assert_eq!(failure, None);
        engine.worker.abort(key);
    }
    // Nor one whose engine died before it could say anything.
    engine.store(None, &hashes(1..3), &[1, 2]);
    drop(engine);
    let next = StandInEngine::attach(&node.daemon, "E1");
    assert_eq!(next.lookup(&hashes(1..3)).1, 0);
    wait(|| "the store to end".to_owned(), || (node.status()["tiers"]["stores"].as_u64() == Some(0)).then_some(()));
}

#[test]
fn clearing_reaches_everything_that_was_stored() {
    let node = Node::start();
    let mut engine = StandInEngine::attach(&node.daemon, "E0");
    let (key, _) = engine.store(None, &hashes(1..5), &[1, 2, 3, 4]);
    engine.commit(key);
    let (claim, held) = engine.lookup(&hashes(1..5));
    assert_eq!(held, 4);
    for _ in 0..3 {
        engine.scheduler.clear();
    }
    assert_eq!(engine.lookup(&hashes(1..5)).1, 0);
    assert_eq!(engine.load(claim, &hashes(1..5), &[11, 12, 13, 14]).as_deref(), Some("evicted"));
    let (key, _) = engine.store(None, &hashes(1..5), &[1, 2, 3, 4]);
    assert_eq!((engine.commit(key), engine.lookup(&hashes(1..5)).1), (4, 4), "and begins anew");
}

#[test]
fn a_scheduler_that_watches_hears_what_comes_and_goes_also_from_the_next_daemon() {
    let mut node = Node::start();
    let mut engine = StandInEngine::attach(&node.daemon, "E0");
    engine.scheduler.watch();
    for life in 0..2_u8 {
        let names = hashes(10 * life + 1..10 * life + 3);
        let (key, _) = engine.store(None, &names, &[1, 2]);
        engine.commit(key);
        let mut told = Vec::new();
        wait(
            || "the news".to_owned(),
            || {
                for event in engine.scheduler.poll() {
                    if let Event::TierChanged { tier, stored, removed } = event {
                        assert_eq!((tier.as_str(), removed.len()), ("host", 0));
                        told.extend(stored);
                    }
                }
                (told.len() >= 2).then_some(())
            },
        );
        assert_eq!(told, [(0, names[0]), (0, names[1])]);
        if life == 0 {
            node.daemon.restart();
            engine.wait_attached_again();
        }
    }
}

#[test]
fn what_an_engine_asks_wrongly_fails_and_hurts_nobody() {
    let node = Node::start();
    let mut engine = StandInEngine::attach(&node.daemon, "E0");
    let word = |failure: Option<String>| failure.unwrap_or_default();
    assert_eq!(word(engine.store(None, &hashes(1..2), &[64]).1), "request", "a block that it does not have");
    assert_eq!(word(engine.store(None, &hashes(1..3), &[1]).1), "request", "two names for one block");
    let (claim, _) = engine.lookup(&hashes(1..2));
    assert_eq!(word(engine.load(claim, &hashes(1..2), &[1])), "evicted", "never stored");
    assert_eq!(word(engine.load(claim, &hashes(1..2), &[64])), "request");
    assert_eq!(engine.commit(12_345), 0, "a key that was never used");
    engine.scheduler.forget(12_345);
    let scheduler = client(node.daemon.socket(), "nobody", Role::Scheduler);
    assert!(scheduler.wait_connected(crate::support::PATIENCE));
    scheduler.clear();
    let key = scheduler.lookup("request", &[hashes(1..2)]);
    let found = wait(
        || "an answer".to_owned(),
        || scheduler.poll().into_iter().find(|event| matches!(event, Event::Found { key: of, .. } if of == &key)),
    );
    assert!(matches!(&found, Event::Found { failure: Some(word), .. } if word == "engine"), "{found:?}");
    let (key, _) = engine.store(None, &hashes(1..2), &[1]);
    assert_eq!((engine.commit(key), engine.lookup(&hashes(1..2)).1), (1, 1));
}

#[test]
fn a_full_tier_keeps_serving_and_a_prefix_stays_whole() {
    let node = Node::start();
    let mut engine = StandInEngine::large(&node.daemon, "E0");
    engine.fill(1);
    // 2 MiB each: twice what fits.
    for chain in 0..6_u8 {
        let names: Vec<BlockHash> = (0..8).map(|number| [chain * 8 + number + 1; 32]).collect();
        engine.lookup(&names);
        let (key, failure) = engine.store(None, &names, &[0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(failure, None);
        engine.commit(key);
        let (claim, held) = engine.lookup(&names);
        let targets: Vec<u32> = (16..16 + held).collect();
        assert_eq!(engine.load(claim, &names[..targets.len()], &targets), None);
        for (source, target) in (0..).zip(&targets) {
            assert_eq!(engine.block(source), engine.block(*target));
        }
    }
    let tiers = &node.status()["tiers"];
    assert!(tiers["left_total"]["room"].as_u64() > Some(0) && tiers["host_blocks"].as_u64() > Some(8), "{tiers}");
}

#[test]
fn a_daemon_without_tiers_says_so() {
    let daemon = Daemon::start();
    let mut engine = StandInEngine::attach(&daemon, "E0");
    assert_eq!(engine.store(None, &hashes(1..2), &[1]).1.as_deref(), Some("no_tier"));
    assert_eq!(engine.load(1, &hashes(1..2), &[1]).as_deref(), Some("no_tier"));
    let key = engine.scheduler.lookup("request", &[hashes(1..2)]);
    let found = wait(
        || "an answer".to_owned(),
        || {
            engine
                .scheduler
                .poll()
                .into_iter()
                .find(|event| matches!(event, Event::Found { key: of, .. } if of == &key))
        },
    );
    assert!(matches!(&found, Event::Found { failure: Some(word), .. } if word == "no_tier"), "{found:?}");
}

#[test]
fn blocks_that_were_used_again_come_back_from_the_disk_when_memory_is_lost() {
    let mut node = Node::start_with(true);
    let options = EngineOptions { shape: Shape::MEDIUM, ..Default::default() };
    let mut first = StandInEngine::attach_with(&node.daemon, "E0", options);
    first.fill(3);
    let names = hashes(1..9);
    let blocks: Vec<u32> = (10..18).rev().collect();
    let (key, _) = first.store(None, &names, &blocks);
    assert_eq!((first.commit(key), first.lookup(&names[..6]).1), (8, 6));
    node.wait_on_disk(6);
    node.daemon.kill();
    std::fs::remove_file(arena(node.memory.path())).expect("it was there");
    node.daemon.restart();
    let mut second = StandInEngine::attach_with(&node.daemon, "E1", options);
    let (claim, held) = second.lookup(&names);
    assert_eq!(held, 6, "those that nobody used again are gone");
    let targets: Vec<u32> = (0..6).collect();
    assert_eq!(second.load(claim, &names[..6], &targets), None);
    for (target, source) in targets.iter().zip(&blocks) {
        assert_eq!(second.block(*target), first.block(*source), "block {target}");
    }
    let tiers = &node.status()["tiers"];
    assert_eq!(tiers["disk"]["left_total"]["damaged"].as_u64(), Some(0), "{tiers}");
    assert_eq!(tiers["host_blocks"].as_u64(), Some(6), "{tiers}");
}

#[test]
fn a_disk_that_another_daemon_has_is_no_tier_and_costs_nothing_else() {
    let node = Node::start_with(true);
    let memory = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
    let tables = format!(
        "[tier.host]\nmib = 64\npath = {:?}\n[tier.disk]\nmib = 64\npath = {:?}\n",
        arena(memory.path()),
        node.disk.path().join("store")
    );
    let other = Daemon::start_with(&DaemonOptions { tables, ..Default::default() });
    let mut engine = StandInEngine::attach(&other, "E0");
    let (key, _) = engine.store(None, &hashes(1..3), &[1, 2]);
    assert_eq!((engine.commit(key), engine.lookup(&hashes(1..3)).1), (2, 2));
    let status: serde_json::Value = serde_json::from_str(&other.operator().status().expect("status")).expect("JSON");
    assert!(status["tiers"]["disk"].is_null() && !node.status()["tiers"]["disk"].is_null(), "{status}");
    let line = other.wait_log("serves without a disk tier");
    assert!(line.contains("in use by process"), "{line}");
}
