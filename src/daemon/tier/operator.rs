//! Hub: people ask that something of what the tiers hold goes, or that it is read.
//!
//! ```text
//! Sweep -> tier thread, slice by slice -> Inventory;  SweepQuery -> SweepReply, until it is complete
//! ```
//!
//! A sweep ends with the session that began it. One of each kind at a time. Not everybody who may attach may do this:
//! who runs engines has no business with what other engines have stored.

use std::collections::HashMap;

use kvferry_core::{Fingerprint, Time, WorkId};
use kvferry_proto::v1::{self, from_daemon};
use kvferry_tier::Tenant;
use kvferry_tier::tiers::{Sweep, SweepCount, SweepFilter, SweepProgress, Tier};

use super::super::cached::{SweepStatus, SweepSum};
use super::super::command::{Process, SessionId};
use super::super::hub::Hub;
use super::super::wire;
use super::listing::Lists;
use super::thread::{Inventory, TierCommand};

/// What who means a disk is told where there is none.
const NO_DISK: &str =
    "this daemon has no disk tier: set tier.disk.mib in its config; where it is set, the log says why there is none";
/// What is said beyond a limit.
pub(super) const BUSY: &str = "the tiers are busy with what others ask; try again";
/// Questions of people that the tiers have not answered.
pub(crate) const OPERATORS_MAX: usize = 16;
/// Fingerprints that one sweep names.
const FINGERPRINTS_MAX: usize = 256;
/// Models that are remembered by their fingerprint.
const MODELS_MAX: usize = 1024;
/// Bytes of a model's name.
const MODEL_LENGTH_MAX: usize = 256;

/// What people have asked.
#[derive(Default)]
pub(crate) struct Operators {
    pub(super) lists: Lists,
    sweeps: HashMap<SessionId, Asked>,
    /// As engines that were attached in this daemon's life said.
    pub(super) models: HashMap<Fingerprint, String>,
}

#[derive(Clone, Copy)]
struct Asked {
    work: WorkId,
    sweep: Sweep,
    since: Time,
    process: Process,
    /// How it ended, once another one of its kind has begun: the tiers tell of the last one alone.
    ended: Option<SweepProgress>,
}

impl Asked {
    fn progress(&self, inventory: &Inventory) -> Option<SweepProgress> {
        self.ended.or_else(|| inventory.sweep(self.sweep, self.work))
    }

    fn is_over(&self, inventory: &Inventory) -> bool {
        self.progress(inventory).is_some_and(|of| of.is_over)
    }
}

impl Operators {
    /// An engine says what its model is called. A name that is not fit to be printed is none.
    pub(crate) fn learn_model(&mut self, fingerprint: Fingerprint, model: &str) {
        let is_fit = !model.is_empty() && model.len() <= MODEL_LENGTH_MAX && !model.chars().any(char::is_control);
        if is_fit && (self.models.len() < MODELS_MAX || self.models.contains_key(&fingerprint)) {
            self.models.insert(fingerprint, model.to_owned());
        }
    }
}

impl Hub {
    /// A person wants blocks to go, or to be read.
    pub(crate) fn begin_sweep(&mut self, session: SessionId, sweep: &v1::Sweep) -> Result<from_daemon::Body, String> {
        let process = self.engines.sessions.get(&session).ok_or("session is closed")?.process;
        let own = rustix::process::geteuid().as_raw();
        if process.uid != 0 && process.uid != own {
            return Err(format!("user {} may not do this: only root and the daemon's own user may", process.uid));
        }
        let filter = filter(&sweep.fingerprints, sweep.tenant, &sweep.tier)?;
        let kind = match sweep.kind() {
            v1::SweepKind::Evict if sweep.everything || filter != SweepFilter::default() => Sweep::Evict,
            v1::SweepKind::Evict => return Err("nothing says what is to go".to_owned()),
            v1::SweepKind::Verify => Sweep::Verify,
            v1::SweepKind::Unspecified => return Err("a kind is needed".to_owned()),
        };
        let (work, since) = (self.draw_work(), self.clock.now());
        let tiering = self.tiering.as_mut().ok_or_else(no_tier)?;
        let (handle, operators) = (&tiering.handle, &mut tiering.operators);
        if filter.tier == Some(Tier::Disk) && !handle.has_disk {
            return Err(NO_DISK.to_owned());
        }
        // Of before it begins, so that what is over now is told of when it has begun.
        let inventory = handle.inventory();
        // Who is done asks for how it went until the session closes.
        if operators.sweeps.get(&session).is_some_and(|asked| !asked.is_over(&inventory)) {
            return Err("this session has one under way".to_owned());
        }
        if let Some(other) = operators.sweeps.values().find(|asked| asked.sweep == kind && !asked.is_over(&inventory)) {
            let what = match kind {
                Sweep::Evict => "evicts",
                Sweep::Verify => "verifies",
            };
            return Err(format!("process {} {what} already: wait for it, or end it", other.process.pid));
        }
        if operators.sweeps.len() >= OPERATORS_MAX || !handle.send(TierCommand::Sweep(work, kind, filter.clone())) {
            return Err(BUSY.to_owned());
        }
        for asked in operators.sweeps.values_mut() {
            asked.ended = asked.progress(&inventory).filter(|of| of.is_over);
        }
        operators.sweeps.insert(session, Asked { work, sweep: kind, since, process, ended: None });
        tracing::info!(pid = process.pid, uid = process.uid, sweep = ?kind, ?filter, "an operator's sweep begins");
        self.sweep_status(session)
    }

    /// How far the session's sweep has come.
    pub(crate) fn sweep_status(&self, session: SessionId) -> Result<from_daemon::Body, String> {
        let tiering = self.tiering.as_ref().ok_or_else(no_tier)?;
        let asked = tiering.operators.sweeps.get(&session).ok_or("this session has none under way")?;
        let inventory = tiering.handle.inventory();
        let progress = asked.progress(&inventory);
        let sum = |count: SweepCount| SweepSum {
            blocks_total: count.blocks_total,
            bytes_total: count.bytes_total,
            blocks: count.blocks,
            bytes: count.bytes,
            held_blocks: count.held_blocks,
            held_bytes: count.held_bytes,
            damaged_blocks: count.damaged,
            unreadable_blocks: count.unreadable,
        };
        let elapsed = self.clock.now().until(asked.since);
        let status = SweepStatus {
            complete: progress.is_some_and(|of| of.is_over),
            elapsed_ms: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
            host: progress.map(|of| sum(of.host)).unwrap_or_default(),
            disk: inventory.disk.map(|_| progress.map(|of| sum(of.disk)).unwrap_or_default()),
        };
        Ok(from_daemon::Body::Sweep(v1::SweepReply { json: serde_json::to_string(&status).unwrap_or_default() }))
    }

    /// A person's session is gone, and with it what was begun.
    pub(crate) fn leave_operator(&mut self, session: SessionId) {
        let Some(tiering) = &mut self.tiering else { return };
        tiering.operators.lists.leave(session);
        if let Some(asked) = tiering.operators.sweeps.remove(&session) {
            tiering.handle.send(TierCommand::EndSweep(asked.work));
        }
    }
}

pub(super) fn no_tier() -> String {
    "this daemon keeps no blocks: set tier.host.mib in its config".to_owned()
}

pub(super) fn filter(fingerprints: &[Vec<u8>], tenant: Option<u64>, tier: &str) -> Result<SweepFilter, String> {
    if fingerprints.len() > FINGERPRINTS_MAX {
        return Err(format!("{} fingerprints; at most {FINGERPRINTS_MAX}", fingerprints.len()));
    }
    let fingerprints = fingerprints.iter().map(|bytes| wire::fingerprint(bytes)).collect::<Result<_, _>>()?;
    let tier = match tier {
        "" => None,
        "host" => Some(Tier::Host),
        "disk" => Some(Tier::Disk),
        other => return Err(format!("no tier {other:?}: host or disk")),
    };
    Ok(SweepFilter { fingerprints, tenant: tenant.map(Tenant), tier })
}
