//! Two daemons with a hostile relay between them, and an engine on each.

use serde_json::Value;

use super::engine::EngineOptions;
use super::relay::Relay;
use super::{Daemon, DaemonOptions, Shape, StandInEngine};

/// `decode` on `d` redeems what `prefill` on `p` grants, through `relay`. One stream, so that places on it are known.
pub(crate) struct Stage {
    pub(crate) relay: Relay,
    pub(crate) p: Daemon,
    pub(crate) d: Daemon,
    pub(crate) prefill: StandInEngine,
    pub(crate) decode: StandInEngine,
}

impl Stage {
    /// Blocks of 8 KiB.
    pub(crate) fn small() -> Self {
        Self::set(Shape::SMALL, "")
    }

    /// Blocks of 2 MiB.
    pub(crate) fn large() -> Self {
        Self::set(Shape::LARGE, "")
    }

    /// With further lines for `[limits]` of both daemons.
    pub(crate) fn set(shape: Shape, limits: &str) -> Self {
        let relay = Relay::start();
        let p = relay.holder(limits);
        let d = DaemonOptions { peer: "streams = 1".to_owned(), limits: limits.to_owned(), ..Default::default() };
        let d = Daemon::start_with(&d);
        let options = EngineOptions { shape, ..Default::default() };
        let prefill = StandInEngine::attach_with(&p, "P0", options);
        let decode = StandInEngine::attach_with(&d, "D0", options);
        prefill.fill(1);
        Self { relay, p, d, prefill, decode }
    }

    /// Leases the first `count` blocks and redeems them into the same places.
    pub(crate) fn begin(&self, count: u32, lease_ms: u64, deadline_ms: u64) -> Handover {
        // Block 0 is vLLM's null block.
        let blocks: Vec<u32> = (1..=count).collect();
        self.decode.scribble(&blocks);
        let granted = self.prefill.grant("request", &blocks, lease_ms);
        let key = self.decode.redeem_within(&granted.ticket, &blocks, deadline_ms);
        Handover { lease: granted.lease_id, key, ticket: granted.ticket, blocks }
    }

    /// A whole hand-over of four blocks; `None` when delivered, and then every byte is checked.
    pub(crate) fn hand_over(&mut self) -> Option<String> {
        let handover = self.begin(4, 10_000, 10_000);
        let failure = self.decode.outcome(handover.key);
        if failure.is_none() {
            self.check(&handover);
        }
        failure
    }

    /// Every byte has arrived.
    pub(crate) fn check(&self, handover: &Handover) {
        for block in &handover.blocks {
            assert!(self.prefill.block(*block) == self.decode.block(*block), "block {block} differs");
        }
    }

    /// Nothing is in flight on either side, a further hand-over works, and nothing is left when the engines go.
    pub(crate) fn end(mut self) {
        self.p.wait_quiet();
        self.d.wait_quiet();
        assert_eq!(self.hand_over(), None, "a hand-over after all that");
        let Self { p, d, prefill, decode, .. } = self;
        drop((prefill, decode));
        p.wait_empty();
        d.wait_empty();
    }

    /// Waits until the reader has come as far as posting its read.
    pub(crate) fn wait_moving(&self) {
        self.d.wait_for("a transfer that moves", |status| {
            status["transfers"]["reading"].as_array().is_some_and(|all| all.iter().any(|one| one["state"] == "moving"))
        });
    }
}

/// What [`Stage::begin`] began.
pub(crate) struct Handover {
    pub(crate) lease: u64,
    pub(crate) key: u64,
    pub(crate) ticket: String,
    pub(crate) blocks: Vec<u32>,
}

/// How many there are in a list of the status.
pub(crate) fn count(status: &Value, path: &str) -> usize {
    status.pointer(path).and_then(Value::as_array).unwrap_or_else(|| panic!("no list at {path} in {status:#}")).len()
}
