//! Hub: engines come and go.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use kvferry_core::Rank;
use kvferry_core::transfer::Failure;
use kvferry_memory::Region;
use kvferry_proto::v1::{self, from_daemon};
use kvferry_tier::tiers::Device;

use super::command::SessionId;
use super::data::DataCommand;
use super::engines::{Engine, Worker};
use super::hub::Hub;
use super::wire;

/// Bytes that one question for checksums may read.
const CHECKSUM_BYTES_MAX: u64 = 256 << 20;
/// Ranks of one engine.
const RANKS_MAX: u32 = 1024;

impl Hub {
    /// Takes a worker's region in.
    pub(super) async fn attach(
        &mut self,
        session: SessionId,
        attach: &v1::Attach,
        mut fds: Vec<OwnedFd>,
    ) -> Result<from_daemon::Body, String> {
        let (1, Some(fd)) = (fds.len(), fds.pop()) else {
            return Err("attach comes with exactly one file descriptor".to_owned());
        };
        let rank = Rank(attach.rank);
        if attach.rank_count == 0 || attach.rank_count > RANKS_MAX || attach.rank >= attach.rank_count {
            return Err(format!("rank {rank} of {} does not exist", attach.rank_count));
        }
        let layout = Arc::new(wire::layout(attach.layout.as_ref())?);
        let fingerprint = wire::fingerprint(&attach.fingerprint)?;
        let open = self.engines.sessions.get(&session).ok_or("session is closed")?;
        if open.rank.is_some() {
            return Err("this session has attached already".to_owned());
        }
        let engine_id = open.engine_id.clone();
        if let Some(engine) = self.engines.engines.get(&engine_id) {
            if let Some(worker) = engine.workers.get(&rank) {
                let pid = self.engines.sessions.get(&worker.session).map_or(0, |open| open.process.pid);
                return Err(format!(
                    "engine {engine_id:?} has rank {rank} attached by process {pid}; every engine needs an engine_id of its own"
                ));
            }
            // A ticket carries one fingerprint for all ranks.
            if let Some(other) = engine.workers.values().find(|worker| worker.fingerprint != fingerprint) {
                let other = other.fingerprint;
                return Err(format!(
                    "engine {engine_id:?} has fingerprint {other} on another rank, {fingerprint} here"
                ));
            }
            if engine.rank_count != attach.rank_count && !engine.workers.is_empty() {
                return Err(format!("engine {engine_id:?} has {} ranks, not {}", engine.rank_count, attach.rank_count));
            }
        }
        let region =
            Region::map(fd, layout.region_bytes(), &self.meter).map_err(|error| format!("map region: {error}"))?;
        self.data.send(DataCommand::Register(Arc::clone(&region))).await;

        let device = self.tiering.as_ref().map(|_| Device::new(fingerprint, rank, Arc::clone(&region), &layout));
        let device = device.and_then(|device| {
            let warn = |error: &_| tracing::warn!(engine = engine_id, %error, "no tier keeps this engine's blocks");
            device.inspect_err(warn).ok().map(Arc::new)
        });
        if let Some(tiering) = &mut self.tiering {
            tiering.operators.learn_model(fingerprint, &attach.model);
        }
        let epoch = self.renew_epoch(&engine_id, attach.rank_count);
        if let Some(open) = self.engines.sessions.get_mut(&session) {
            open.rank = Some(rank);
        }
        if let Some(engine) = self.engines.engines.get_mut(&engine_id) {
            engine.workers.insert(rank, Worker { session, region, layout: Arc::clone(&layout), fingerprint, device });
        }
        tracing::info!(
            engine = engine_id, rank = rank.0, epoch = epoch.0, %fingerprint,
            bytes = layout.region_bytes(), blocks = layout.block_count(), "engine attached"
        );
        self.pay_clears_of(&engine_id);
        Ok(from_daemon::Body::Attached(v1::Attached { epoch: epoch.0 }))
    }

    /// A connection is gone: its region unmaps, its leases end, its transfers stop.
    pub(super) async fn close_session(&mut self, session: SessionId) {
        let Some(closed) = self.engines.sessions.remove(&session) else { return };
        if closed.role == v1::Role::Operator {
            return self.leave_operator(session);
        }
        let engine_id = closed.engine_id;
        self.leave_tiers(session, &engine_id, closed.role == v1::Role::Scheduler);
        let ours: Vec<_> = self.by_key.iter().filter(|((s, _), _)| *s == session).map(|(_, work)| *work).collect();
        for work in ours {
            self.cancel_transfer(work, Failure::Aborted).await;
        }
        if let Some(rank) = closed.rank {
            let worker = self.engines.engines.get_mut(&engine_id).and_then(|engine| engine.workers.remove(&rank));
            if let Some(worker) = worker {
                for work in self.engines.works_on(&worker.region) {
                    self.stop_serving(work, None).await;
                    self.cancel_transfer(work, Failure::Unreachable).await;
                }
                if let Some(free) = self.engines.retire(worker.region) {
                    self.data.send(DataCommand::Deregister(free)).await;
                }
            }
            tracing::info!(engine = engine_id, rank = rank.0, "engine's worker is gone");
        }
        // A scheduler that is gone has forgotten which blocks it leased; a worker's blocks are gone with it.
        let rank_count = self.engines.engines.get(&engine_id).map(|engine| engine.rank_count);
        if let Some(rank_count) = rank_count {
            self.renew_epoch(&engine_id, rank_count);
        }
        if self.engines.engines.get(&engine_id).is_some_and(|engine| engine.workers.is_empty()) {
            self.engines.engines.remove(&engine_id);
        }
    }

    /// Ends all that the engine's last epoch promised, and starts the next.
    fn renew_epoch(&mut self, engine_id: &str, rank_count: u32) -> kvferry_core::Epoch {
        let epoch = self.draw_epoch();
        let engine = self.engines.engines.entry(engine_id.to_owned()).or_insert_with(|| Engine {
            epoch,
            rank_count,
            workers: std::collections::BTreeMap::new(),
        });
        engine.rank_count = rank_count;
        let ended = std::mem::replace(&mut engine.epoch, epoch);
        if ended != epoch {
            self.leases.end_epoch(ended);
        }
        epoch
    }

    /// CRC-32C of each asked block, for people and tests that compare engines.
    pub(super) fn checksums(&self, query: &v1::ChecksumQuery) -> Result<from_daemon::Body, String> {
        let (_, worker) = self
            .engines
            .worker(&query.engine_id, Rank(query.rank))
            .ok_or_else(|| format!("no engine {:?} with rank {} is attached", query.engine_id, query.rank))?;
        // The hub does nothing else meanwhile.
        let asked = worker.layout.bytes_per_block(query.group).unwrap_or(0).saturating_mul(query.blocks.len() as u64);
        if asked > CHECKSUM_BYTES_MAX {
            return Err(format!("{asked} bytes in one question; ask for at most {CHECKSUM_BYTES_MAX}"));
        }
        let sums = query.blocks.iter().map(|block| self.checksum(worker, query.group, *block));
        Ok(from_daemon::Body::Checksums(v1::ChecksumReply { crc32c: sums.collect::<Result<_, _>>()? }))
    }

    fn checksum(&self, worker: &Worker, group: u32, block: u32) -> Result<u32, String> {
        use kvferry_core::plan::{Cursor, GroupBlocks, Plan, Side};
        let block = wire::blocks(&[block]);
        let own = [GroupBlocks { group, source: block.clone(), target: block }];
        let plan = Plan::compile(&worker.layout, &worker.layout, &own).map_err(|error| error.to_string())?;
        let mut cursor = Cursor::new(Arc::new(plan), Side::Source);
        let mut slices = Vec::new();
        while cursor.remaining() > 0 {
            cursor.take(u64::MAX, usize::MAX, &mut slices);
        }
        slices.iter().try_fold(0, |sum, slice| {
            worker.region.crc32c(sum, slice.offset, slice.length).map_err(|error| error.to_string())
        })
    }
}
