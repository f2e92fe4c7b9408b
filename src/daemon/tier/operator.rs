//! Hub: people ask what the tiers hold, that something of it goes, or that it is read.
//!
//! ```text
//! CacheQuery -> tier thread -> Listed -> rows, with the names of models -> CacheReply
//! Sweep      -> tier thread, slice by slice -> Inventory;  SweepQuery -> SweepReply, until it is complete
//! ```
//!
//! A sweep ends with the session that began it. One of each kind at a time. Not everybody who may attach may do this:
//! who runs engines has no business with what other engines have stored.

use std::collections::HashMap;

use kvferry_core::{Fingerprint, Time, WorkId};
use kvferry_proto::v1::{self, from_daemon};
use kvferry_tier::tiers::{Sweep, SweepCount, SweepFilter, SweepProgress, Tier};
use kvferry_tier::{Holding, Tenant};

use super::super::cached::{CacheList, CacheRow, CacheSum, SweepStatus, SweepSum};
use super::super::command::{Process, SessionId};
use super::super::hub::Hub;
use super::super::wire;
use super::thread::{Inventory, TierCommand};

/// What who means a disk is told where there is none.
const NO_DISK: &str =
    "this daemon has no disk tier: set tier.disk.mib in its config; where it is set, the log says why there is none";
/// Questions of people that the tiers have not answered.
pub(crate) const OPERATORS_MAX: usize = 16;
/// Rows that one answer names: with one tenant a user they would be as many as users.
const ROWS_MAX: usize = 10_000;
/// Fingerprints that one sweep names.
const FINGERPRINTS_MAX: usize = 256;
/// Models that are remembered by their fingerprint.
const MODELS_MAX: usize = 1024;
/// Bytes of a model's name.
const MODEL_LENGTH_MAX: usize = 256;

/// What people have asked.
#[derive(Default)]
pub(crate) struct Operators {
    lists: HashMap<WorkId, (SessionId, u64)>,
    sweeps: HashMap<SessionId, Asked>,
    /// As engines that were attached in this daemon's life said.
    models: HashMap<Fingerprint, String>,
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
    /// What is stored, by whom. `None`: the answer follows.
    pub(crate) fn list_cache(&mut self, session: SessionId, id: u64) -> Result<Option<from_daemon::Body>, String> {
        let work = self.draw_work();
        let tiering = self.tiering.as_mut().ok_or_else(no_tier)?;
        if tiering.operators.lists.len() >= OPERATORS_MAX || !tiering.handle.send(TierCommand::List(work)) {
            return Err("the tiers are busy with what others ask; try again".to_owned());
        }
        tiering.operators.lists.insert(work, (session, id));
        Ok(None)
    }

    /// The tiers say what they hold.
    pub(super) fn tell_list(&mut self, work: WorkId, holdings: &[(Tier, Holding)]) {
        let Some((session, id)) = self.tiering.as_mut().and_then(|tiering| tiering.operators.lists.remove(&work))
        else {
            return;
        };
        let json = serde_json::to_string(&self.cache_list(holdings)).unwrap_or_default();
        self.reply(session, id, from_daemon::Body::Cache(v1::CacheReply { json }));
    }

    fn cache_list(&self, holdings: &[(Tier, Holding)]) -> CacheList {
        let now = self.clock.now();
        let models = self.tiering.as_ref().map(|tiering| &tiering.operators.models);
        let workers = || self.engines.engines.values().flat_map(|engine| engine.workers.values());
        let mut holdings = holdings.to_vec();
        holdings.sort_by_key(|(tier, of)| (std::cmp::Reverse(of.bytes), of.fingerprint.0, of.tenant.0, *tier as u8));
        let row = |(tier, of): &(Tier, Holding)| CacheRow {
            tier: tier.word().to_owned(),
            model: models.and_then(|models| models.get(&of.fingerprint)).cloned().unwrap_or_default(),
            fingerprint: hex(&of.fingerprint),
            attached: workers().any(|worker| worker.fingerprint == of.fingerprint),
            tenant: if of.tenant == Tenant(0) { String::new() } else { format!("{:016x}", of.tenant.0) },
            blocks: of.blocks,
            bytes: of.bytes,
            hits: of.hits,
            used_ms_ago: of.used.map(|used| u64::try_from(now.until(used).as_millis()).unwrap_or(u64::MAX)),
        };
        let (named, others) = holdings.split_at(holdings.len().min(ROWS_MAX));
        CacheList {
            rows: named.iter().map(row).collect(),
            others: CacheSum {
                rows: others.len(),
                blocks: others.iter().map(|(_, of)| of.blocks).sum(),
                bytes: others.iter().map(|(_, of)| of.bytes).sum(),
            },
        }
    }

    /// A person wants blocks to go, or to be read.
    pub(crate) fn begin_sweep(&mut self, session: SessionId, sweep: &v1::Sweep) -> Result<from_daemon::Body, String> {
        let process = self.engines.sessions.get(&session).ok_or("session is closed")?.process;
        let own = rustix::process::geteuid().as_raw();
        if process.uid != 0 && process.uid != own {
            return Err(format!("user {} may not do this: only root and the daemon's own user may", process.uid));
        }
        let filter = filter(sweep)?;
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
            return Err("the tiers are busy with what others ask; try again".to_owned());
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
        if let Some(asked) = tiering.operators.sweeps.remove(&session) {
            tiering.handle.send(TierCommand::EndSweep(asked.work));
        }
    }
}

fn no_tier() -> String {
    "this daemon keeps no blocks: set tier.host.mib in its config".to_owned()
}

fn filter(sweep: &v1::Sweep) -> Result<SweepFilter, String> {
    if sweep.fingerprints.len() > FINGERPRINTS_MAX {
        return Err(format!("{} fingerprints; at most {FINGERPRINTS_MAX}", sweep.fingerprints.len()));
    }
    let fingerprints = sweep.fingerprints.iter().map(|bytes| wire::fingerprint(bytes)).collect::<Result<_, _>>()?;
    let tier = match sweep.tier.as_str() {
        "" => None,
        "host" => Some(Tier::Host),
        "disk" => Some(Tier::Disk),
        other => return Err(format!("no tier {other:?}: host or disk")),
    };
    Ok(SweepFilter { fingerprints, tenant: sweep.tenant.map(Tenant), tier })
}

/// All of it, as `--fingerprint` takes it back.
fn hex(fingerprint: &Fingerprint) -> String {
    fingerprint.0.iter().map(|byte| format!("{byte:02x}")).collect()
}
