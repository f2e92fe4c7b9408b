//! An engine that stores, commits, gives up, looks up, forgets, loads and clears, several things at a time, for as long as
//! somebody steps it; every answer is held against the ledger.

use std::collections::{BTreeMap, HashMap};

use kvferry_client::{Event, LoadedBlocks, StoredBlocks};

use super::ledger::{LENGTH, Ledger, Name, names};
use crate::support::{Dice, StandInEngine, wait};

/// What one engine has under way.
const OPEN_MAX: usize = 6;
/// Blocks of one store.
const STORED_MAX: u32 = 6;
/// One clear among so many choices.
const CLEAR_ONE_IN: u32 = 200;
/// What may come in place of blocks. Not among them: bytes that are not what was stored.
const FAILURES: [&str; 7] = ["daemon_gone", "engine", "evicted", "cleared", "limit", "aborted", "deadline"];

/// One engine.
pub(super) struct Driver {
    pub(super) engine: StandInEngine,
    kind: usize,
    may_clear: bool,
    free: Vec<u32>,
    lookups: HashMap<u64, Lookup>,
    works: HashMap<u64, Work>,
    clearing: Clearing,
    /// What came of everything, by word.
    pub(super) counts: BTreeMap<String, u64>,
}

struct Lookup {
    names: Vec<Name>,
    is_after_clear: bool,
}

enum Work {
    Committing { names: Vec<Name> },
    Loading { names: Vec<Name>, slots: Vec<u32> },
    Storing { names: Vec<Name>, slots: Vec<u32>, is_good: bool },
}

#[derive(PartialEq)]
enum Clearing {
    No,
    /// Once nothing is under way.
    Soon,
    /// A lookup on its heels tells when it has happened; where the daemon is gone, one that the next daemon answers.
    Sent,
}

impl Driver {
    pub(super) fn new(engine: StandInEngine, kind: usize, may_clear: bool) -> Self {
        // Block 0 is vLLM's, and never moves.
        let free = (1..engine.shape.blocks).collect();
        let (lookups, works) = (HashMap::new(), HashMap::new());
        Self { engine, kind, may_clear, free, lookups, works, clearing: Clearing::No, counts: BTreeMap::new() }
    }

    /// Takes in what has happened and begins something new, where there is room. False: neither.
    pub(super) fn step(&mut self, ledger: &mut Ledger, dice: &mut Dice) -> bool {
        let heard = self.hear(ledger);
        let open = self.lookups.len() + self.works.len();
        match self.clearing {
            Clearing::Soon if open == 0 => {
                ledger.clearing(self.kind);
                self.engine.scheduler.clear();
                self.clearing = Clearing::Sent;
                self.look_up(names(self.kind, 0, 0..1), true);
            }
            Clearing::No if open < OPEN_MAX => self.begin(ledger, dice),
            _ => return heard,
        }
        true
    }

    fn begin(&mut self, ledger: &Ledger, dice: &mut Dice) {
        let chain = pick(dice, ledger.chains());
        if self.may_clear && dice.below(CLEAR_ONE_IN) == 0 {
            self.clearing = Clearing::Soon;
        } else if dice.below(2) == 0 {
            let whole = 1 + pick(dice, LENGTH);
            self.look_up(names(self.kind, chain, 0..whole), false);
        } else {
            self.store(ledger, dice, chain);
        }
    }

    fn look_up(&mut self, names: Vec<Name>, is_after_clear: bool) {
        let hashes = names.iter().map(|name| name.hash()).collect();
        let key = self.engine.scheduler.lookup("torture", &[hashes]);
        self.lookups.insert(key, Lookup { names, is_after_clear });
    }

    fn store(&mut self, ledger: &Ledger, dice: &mut Dice, chain: usize) {
        let start = match ledger.prefix(self.kind, chain) {
            LENGTH => pick(dice, LENGTH),
            there => there,
        };
        let count = 1 + pick(dice, STORED_MAX as usize).min(LENGTH - start - 1);
        let names = names(self.kind, chain, start..start + count);
        let Some(slots) = self.take(count) else { return };
        for (name, slot) in names.iter().zip(&slots) {
            self.engine.write_block(*slot, &ledger.content(*name, self.engine.shape.block_bytes()));
        }
        let parent = start.checked_sub(1).map(|place| Name { place, ..names[0] }.hash());
        let group =
            StoredBlocks { parent, hashes: names.iter().map(|name| name.hash()).collect(), blocks: slots.clone() };
        let key = self.engine.worker.store("torture", &[group], super::tenant(chain).as_bytes());
        let is_good = dice.below(6) > 0;
        if !is_good {
            // As a preemption does: what is copied is half of one and half of the other.
            self.engine.scribble(&slots);
        }
        self.works.insert(key, Work::Storing { names, slots, is_good });
    }

    fn take(&mut self, count: usize) -> Option<Vec<u32>> {
        let left = self.free.len().checked_sub(count)?;
        Some(self.free.split_off(left))
    }

    fn hear(&mut self, ledger: &mut Ledger) -> bool {
        let events = self.engine.scheduler.poll().into_iter().chain(self.engine.rest());
        let events: Vec<Event> = events.collect();
        let heard = !events.is_empty();
        for event in events {
            match event {
                Event::Found { key, held, failure, .. } => {
                    self.found(ledger, key, held.first().copied(), failure.as_deref());
                }
                Event::Copied { key, failure, .. } => self.copied(ledger, key, failure.as_deref()),
                Event::Stored { key, blocks, failure } => self.stored(ledger, key, blocks, failure.as_deref()),
                Event::Loaded { key, failure, .. } => self.loaded(ledger, key, failure.as_deref()),
                _ => {}
            }
        }
        heard
    }

    fn count(&mut self, what: &str, failure: Option<&str>) {
        assert!(failure.is_none_or(|word| FAILURES.contains(&word)), "{what}: {failure:?}");
        let word = failure.map_or_else(|| what.to_owned(), |word| format!("{what}: {word}"));
        *self.counts.entry(word).or_default() += 1;
    }

    fn found(&mut self, ledger: &mut Ledger, key: u64, held: Option<u32>, failure: Option<&str>) {
        let Lookup { mut names, is_after_clear } = self.lookups.remove(&key).expect("an answer to a question");
        self.count("found", failure);
        if is_after_clear {
            match failure {
                None => {
                    assert_eq!(held, Some(0), "cleared");
                    ledger.cleared(self.kind);
                    self.clearing = Clearing::No;
                    self.count("cleared", None);
                }
                Some("daemon_gone") => {}
                Some(_) => self.look_up(names, true),
            }
            return;
        }
        let held = held.filter(|_| failure.is_none()).unwrap_or(0);
        names.truncate(usize::try_from(held).expect("few"));
        names.iter().for_each(|name| ledger.found(*name));
        // Some are found and not wanted any more.
        let slots = if key.is_multiple_of(4) { None } else { self.take(names.len()) };
        let Some(slots) = slots.filter(|slots| !slots.is_empty()) else {
            return self.engine.scheduler.forget(key);
        };
        self.load(key, names, slots);
    }

    fn load(&mut self, claim: u64, names: Vec<Name>, slots: Vec<u32>) {
        self.engine.scribble(&slots);
        let group = LoadedBlocks { hashes: names.iter().map(|name| name.hash()).collect(), blocks: slots.clone() };
        let key = self.engine.worker.load("torture", claim, &[group], 10_000);
        self.works.insert(key, Work::Loading { names, slots });
    }

    fn loaded(&mut self, ledger: &mut Ledger, key: u64, failure: Option<&str>) {
        let Some(Work::Loading { names, slots }) = self.works.remove(&key) else { panic!("nobody loads {key}") };
        self.count("loaded", failure);
        if failure.is_none() {
            for (name, slot) in names.iter().zip(&slots) {
                ledger.check(*name, &self.engine.block(*slot));
                ledger.is_kept(*name);
            }
        }
        self.free.extend(slots);
    }

    fn copied(&mut self, ledger: &mut Ledger, key: u64, failure: Option<&str>) {
        let Some(Work::Storing { names, slots, is_good }) = self.works.remove(&key) else {
            panic!("nobody stores {key}")
        };
        self.count("copied", failure);
        // They are the engine's again.
        self.engine.scribble(&slots);
        self.free.extend(slots);
        if failure.is_some() {
            return;
        }
        if !is_good {
            return self.engine.worker.abort(key);
        }
        names.iter().for_each(|name| ledger.committing(*name));
        self.works.insert(key, Work::Committing { names });
        self.engine.worker.commit(key);
    }

    fn stored(&mut self, ledger: &mut Ledger, key: u64, blocks: u64, failure: Option<&str>) {
        // Of one that was given up there is a last word, too.
        let Some(Work::Committing { names }) = self.works.remove(&key) else { return };
        self.count("stored", failure);
        // Less than all may mean that some were there, or that there was no room.
        if failure.is_none() && blocks == names.len() as u64 {
            names.iter().for_each(|name| ledger.is_kept(*name));
        }
    }

    /// The daemon is gone: everything that is under way ends without it.
    pub(super) fn drain(&mut self, ledger: &mut Ledger) {
        let name = self.engine.name.clone();
        wait(
            || format!("everything that {name} has under way to end"),
            || {
                self.hear(ledger);
                (self.lookups.is_empty() && self.works.is_empty()).then_some(())
            },
        );
        if self.clearing == Clearing::Soon {
            self.clearing = Clearing::No;
        }
    }

    /// The next daemon is there: what the last one was told to clear is gone before anything is found.
    pub(super) fn settle_clearing(&mut self, ledger: &mut Ledger) {
        if self.clearing != Clearing::Sent {
            return;
        }
        self.look_up(names(self.kind, 0, 0..1), true);
        let name = self.engine.name.clone();
        wait(
            || format!("what {name} has cleared to be gone"),
            || {
                self.hear(ledger);
                (self.clearing == Clearing::No).then_some(())
            },
        );
    }

    /// Looks a whole chain up and loads what is there; what is not there is gone. How many blocks there are.
    pub(super) fn check(&mut self, ledger: &mut Ledger, chain: usize) -> usize {
        let names = names(self.kind, chain, 0..LENGTH);
        let hashes: Vec<_> = names.iter().map(|name| name.hash()).collect();
        let (claim, held) = self.engine.lookup(&hashes);
        let held = usize::try_from(held).expect("few");
        names[..held].iter().for_each(|name| ledger.found(*name));
        if let Some(missing) = names.get(held) {
            ledger.missing(*missing);
        }
        let slots = self.free[..held].to_vec();
        self.engine.scribble(&slots);
        if held > 0 {
            let failure = self.engine.load(claim, &hashes[..held], &slots);
            self.count("checked", failure.as_deref());
            if failure.is_some() {
                assert!(!ledger.is_roomy(), "{failure:?}");
                return held;
            }
        }
        for (name, slot) in names.iter().zip(&slots) {
            ledger.check(*name, &self.engine.block(*slot));
            ledger.is_kept(*name);
        }
        held
    }

    /// Asks for each block by itself that may stand behind one that is not there.
    pub(super) fn look_behind(&mut self, ledger: &mut Ledger, chain: usize) {
        for name in names(self.kind, chain, 0..LENGTH) {
            let (claim, held) = self.engine.lookup(&[name.hash()]);
            if held == 0 {
                ledger.missing(name);
            } else {
                ledger.found(name);
                self.engine.scheduler.forget(claim);
            }
        }
    }
}

fn pick(dice: &mut Dice, end: usize) -> usize {
    dice.below(u32::try_from(end).expect("few")) as usize
}
