//! Many hand-overs at a time, every outcome counted and every delivered byte compared. The engine writes over its
//! blocks as soon as it has them back, as a real one does.

use std::collections::{BTreeMap, HashMap};

use kvferry_client::Event;

use super::{Dice, StandInEngine};

/// Blocks that one hand-over moves at most. Each has its own part of both caches.
const PART: u32 = 8;

/// Hand-overs from one engine to another. Fails when an outcome or the end of a lease comes twice, or when delivered
/// bytes are not those that were leased.
pub(crate) struct Load {
    pub(crate) prefill: StandInEngine,
    pub(crate) decode: StandInEngine,
    pub(crate) delivered: usize,
    /// Failures by their reason.
    pub(crate) failed: BTreeMap<String, usize>,
    /// Redeems whose outcome has not come.
    open: HashMap<u64, Open>,
    /// Leases whose end has not come, and their blocks.
    leases: HashMap<u64, Vec<u32>>,
    writes: u64,
}

struct Open {
    target: Vec<u32>,
    ticket: String,
    /// The bytes of each block when it was leased.
    bytes: Vec<Vec<u8>>,
}

impl Load {
    pub(crate) fn new(prefill: StandInEngine, decode: StandInEngine) -> Self {
        prefill.fill(1);
        Self {
            prefill,
            decode,
            delivered: 0,
            failed: BTreeMap::new(),
            open: HashMap::new(),
            leases: HashMap::new(),
            writes: 0,
        }
    }

    /// Starts one hand-over if there is room and the holder's daemon answers; returns its key.
    pub(crate) fn begin(&mut self, dice: &mut Dice, lease_ms: u64) -> Option<u64> {
        let source = free_part(self.prefill.shape.blocks, self.leases.values())?;
        let target = free_part(self.decode.shape.blocks, self.open.values().map(|open| &open.target))?;
        let count = usize::try_from(1 + dice.below(PART)).expect("few");
        let (source, target) = (dice.blocks(count, source), dice.blocks(count, target));
        let bytes = source.iter().map(|block| self.prefill.block(*block)).collect();
        self.decode.scribble(&target);
        let granted = self.prefill.scheduler.grant("load", std::slice::from_ref(&source), lease_ms, &[]).ok()?;
        let key = self.decode.redeem(&granted.ticket, &target);
        self.leases.insert(granted.lease_id, source);
        self.open.insert(key, Open { target, ticket: granted.ticket, bytes });
        Some(key)
    }

    /// One hand-over as soon as there is room for it, and waits for all that are open. It must be delivered.
    pub(crate) fn hand_over(&mut self, dice: &mut Dice) {
        super::wait(
            || "room for a hand-over".to_owned(),
            || {
                self.collect();
                self.begin(dice, 10_000)
            },
        );
        let before = self.delivered;
        self.drain();
        assert_eq!(self.delivered, before + 1, "{:?}", self.failed);
    }

    /// Hand-overs whose outcome has not come.
    pub(crate) fn open(&self) -> usize {
        self.open.len()
    }

    /// One that is open, and its ticket.
    pub(crate) fn any_open(&self, dice: &mut Dice) -> Option<(u64, String)> {
        let open = u32::try_from(self.open.len()).ok().filter(|count| *count > 0)?;
        let at = usize::try_from(dice.below(open)).expect("an index");
        self.open.iter().nth(at).map(|(key, open)| (*key, open.ticket.clone()))
    }

    /// Takes in what has happened.
    pub(crate) fn collect(&mut self) {
        for event in self.decode.rest() {
            let Event::TransferDone { key, failure, .. } = event else { continue };
            let open = self.open.remove(&key).unwrap_or_else(|| panic!("a second outcome of {key}: {failure:?}"));
            if let Some(reason) = failure {
                *self.failed.entry(reason).or_default() += 1;
                continue;
            }
            self.delivered += 1;
            for (leased, target) in open.bytes.iter().zip(&open.target) {
                assert!(*leased == self.decode.block(*target), "block {target} of the reader is wrong");
            }
        }
        for event in self.prefill.rest() {
            let Event::LeaseEnded { lease_id, reason, .. } = event else { continue };
            let ended = self.leases.remove(&lease_id);
            for block in ended.unwrap_or_else(|| panic!("a second end of lease {lease_id}: {reason}")) {
                self.writes += 1;
                self.prefill.fill_block(block, self.writes);
            }
        }
    }

    /// Waits for the outcomes of all that is open.
    pub(crate) fn drain(&mut self) {
        super::wait(
            || "the outcome of every redeem".to_owned(),
            || {
                self.collect();
                (self.open() == 0).then_some(())
            },
        );
    }

    /// The holder's daemon or engine is gone, and its leases with it, without a further word.
    pub(crate) fn forget_leases(&mut self) {
        self.collect();
        self.leases.clear();
    }

    /// Another engine takes the reader's place; what the last one waited for, nobody waits for.
    pub(crate) fn replace_decode(&mut self, decode: StandInEngine) {
        self.collect();
        self.decode = decode;
        self.open.clear();
    }

    /// Another engine takes the holder's place.
    pub(crate) fn replace_prefill(&mut self, prefill: StandInEngine) {
        self.forget_leases();
        prefill.fill(1);
        self.prefill = prefill;
    }
}

fn free_part<'a>(blocks: u32, taken: impl Iterator<Item = &'a Vec<u32>>) -> Option<std::ops::Range<u32>> {
    // Block 0 is vLLM's, and never moves.
    let taken: Vec<u32> = taken.map(|blocks| (blocks[0] - 1) / PART).collect();
    let free = (0..(blocks - 1) / PART).find(|part| !taken.contains(part));
    free.map(|part| part * PART + 1..(part + 1) * PART + 1)
}
