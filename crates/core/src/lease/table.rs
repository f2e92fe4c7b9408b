//! The table of all leases that one daemon has given out.
//!
//! ```text
//! grant -> redeem (once a rank, pins the blocks) -> handle_read_ended (unpins) -> Ended, once
//!      \-> relinquish, end_engine, handle_timeout -> gate closed -> Quiesce each read -> all ended -> Ended, once
//! ```
//!
//! A rank's redemption is good for one read, so a lease ends by itself when the last rank's read has ended, whatever
//! its result: nobody could read again. `Ended` is emitted only when no posted read names the blocks any more.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use super::LeaseGate;
use crate::ids::{BlockIndex, Epoch, LeaseId, Rank, Time, WorkId};

/// What a lease table refuses to exceed.
#[derive(Clone, Copy, Debug)]
pub struct LeaseLimits {
    /// Leases at one time.
    pub leases_max: usize,
    /// Blocks of one lease, all groups together.
    pub blocks_max: usize,
    /// The longest promise an engine may ask for.
    pub duration_max: Duration,
}

/// What an engine asks to be leased.
#[derive(Clone, Debug)]
pub struct LeaseSpec {
    /// The engine's current epoch; the lease dies with it.
    pub epoch: Epoch,
    /// The engine's name for the request whose blocks these are.
    pub request_id: String,
    /// The blocks, a list for each cache group.
    pub blocks: Vec<Vec<BlockIndex>>,
    /// How many ranks hold a share of each block; every one is read once.
    pub rank_count: u32,
    /// How long the promise holds.
    pub duration: Duration,
    /// What the blocks were computed from, in the engine's words; a reader must know the same.
    pub binding: Vec<u8>,
}

/// A fresh lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    /// The lease.
    pub id: LeaseId,
    /// When it ends at the latest.
    pub deadline: Time,
}

/// What a redeemed lease gives to the read that pins it.
#[derive(Clone, Debug)]
pub struct Redeemed {
    /// The leased blocks, a list for each cache group.
    pub blocks: Arc<Vec<Vec<BlockIndex>>>,
    /// When the lease ends at the latest.
    pub deadline: Time,
    /// Whether it is live.
    pub gate: LeaseGate,
}

/// Why a lease was not granted.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum GrantError {
    /// More blocks than one lease may hold.
    #[error("a lease may hold {max} blocks, not {asked}")]
    Blocks {
        /// What was asked.
        asked: usize,
        /// The limit.
        max: usize,
    },
    /// A longer promise than the daemon gives.
    #[error("a lease lasts at most {max:?}, not {asked:?}")]
    Duration {
        /// What was asked.
        asked: Duration,
        /// The limit.
        max: Duration,
    },
    /// The table is full.
    #[error("all {max} leases are taken; try again when one has ended")]
    Full {
        /// The limit.
        max: usize,
    },
    /// The number is taken; draw another.
    #[error("lease number is taken")]
    NumberTaken,
    /// Nothing to lease, or nobody to read it.
    #[error("a lease needs at least one block and one rank")]
    Empty,
}

/// Why a lease was not redeemed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum RedeemError {
    /// The engine attached anew since the lease was given.
    #[error("lease is of another epoch")]
    Epoch,
    /// The lease's deadline has passed, or it is being ended.
    #[error("lease has ended")]
    Ended,
    /// The rank does not exist.
    #[error("rank is not among the lease's")]
    Rank,
    /// This rank's read was already taken: a ticket is good once.
    #[error("lease was already redeemed")]
    Redeemed,
    /// No such lease: it ended, or never was.
    #[error("lease is unknown")]
    Unknown,
}

/// Why a lease ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// The engine or one of its processes went away.
    EngineGone,
    /// The deadline passed.
    Expired,
    /// Every rank's read has ended.
    Read,
    /// The reader will not come.
    Relinquished,
}

impl EndReason {
    /// One word for engines and metrics.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::EngineGone => "engine_gone",
            Self::Expired => "expired",
            Self::Read => "read",
            Self::Relinquished => "relinquished",
        }
    }
}

/// What the owner of the table must do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseEvent {
    /// The blocks belong to the engine again. Emitted once for each lease.
    Ended {
        /// The lease.
        id: LeaseId,
        /// The engine's epoch it was granted under.
        epoch: Epoch,
        /// The engine's name for the request.
        request_id: String,
        /// Why.
        reason: EndReason,
    },
    /// Stop this read and call [`LeaseTable::handle_read_ended`] when it can touch memory no more.
    Quiesce {
        /// The read.
        work: WorkId,
    },
}

#[derive(Debug)]
struct Lease {
    epoch: Epoch,
    request_id: String,
    blocks: Arc<Vec<Vec<BlockIndex>>>,
    binding: Vec<u8>,
    deadline: Time,
    gate: LeaseGate,
    rank_count: u32,
    /// Ranks whose one read has not been taken yet.
    unread: BTreeSet<Rank>,
    /// Reads that may touch the blocks now.
    reading: BTreeSet<WorkId>,
    /// Set once the lease is being ended before its last read.
    ending: Option<EndReason>,
}

/// All leases of one daemon. See the module's text.
#[derive(Debug)]
pub struct LeaseTable {
    limits: LeaseLimits,
    leases: BTreeMap<LeaseId, Lease>,
    reads: BTreeMap<WorkId, LeaseId>,
    deadlines: BTreeSet<(Time, LeaseId)>,
    events: VecDeque<LeaseEvent>,
}

impl LeaseTable {
    /// An empty table.
    #[must_use]
    pub const fn new(limits: LeaseLimits) -> Self {
        Self {
            limits,
            leases: BTreeMap::new(),
            reads: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            events: VecDeque::new(),
        }
    }

    /// How many leases have not ended.
    #[must_use]
    pub fn len(&self) -> usize {
        self.leases.len()
    }

    /// Whether every lease has ended.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }

    /// How many reads pin blocks now.
    #[must_use]
    pub fn reading(&self) -> usize {
        self.reads.len()
    }

    /// Whether a lease is of blocks that were computed from this. A lease that has ended is of nothing.
    #[must_use]
    pub fn is_bound_to(&self, id: LeaseId, binding: &[u8]) -> bool {
        self.leases.get(&id).is_some_and(|lease| lease.binding == binding)
    }

    /// The leases, for people: number, request, blocks, deadline and reads in flight.
    pub fn iter(&self) -> impl Iterator<Item = (LeaseId, &str, usize, Time, usize)> {
        self.leases.iter().map(|(id, lease)| {
            let blocks = lease.blocks.iter().map(Vec::len).sum();
            (*id, lease.request_id.as_str(), blocks, lease.deadline, lease.reading.len())
        })
    }

    /// Leases blocks under the number `id`, which the caller draws at random.
    ///
    /// # Errors
    /// [`GrantError`]; nothing has changed then.
    pub fn grant(&mut self, now: Time, id: LeaseId, spec: LeaseSpec) -> Result<Granted, GrantError> {
        let asked = spec.blocks.iter().map(Vec::len).sum();
        if asked == 0 || spec.rank_count == 0 {
            return Err(GrantError::Empty);
        }
        if asked > self.limits.blocks_max {
            return Err(GrantError::Blocks { asked, max: self.limits.blocks_max });
        }
        if spec.duration > self.limits.duration_max {
            return Err(GrantError::Duration { asked: spec.duration, max: self.limits.duration_max });
        }
        if self.leases.len() >= self.limits.leases_max {
            return Err(GrantError::Full { max: self.limits.leases_max });
        }
        if self.leases.contains_key(&id) {
            return Err(GrantError::NumberTaken);
        }
        let deadline = now.after(spec.duration);
        self.deadlines.insert((deadline, id));
        self.leases.insert(
            id,
            Lease {
                epoch: spec.epoch,
                request_id: spec.request_id,
                blocks: Arc::new(spec.blocks),
                binding: spec.binding,
                deadline,
                gate: LeaseGate::new(deadline),
                rank_count: spec.rank_count,
                unread: (0..spec.rank_count).map(Rank).collect(),
                reading: BTreeSet::new(),
                ending: None,
            },
        );
        Ok(Granted { id, deadline })
    }

    /// Pins the lease's blocks for the one read of `rank`, named `work`.
    ///
    /// # Errors
    /// [`RedeemError`]; nothing has changed then.
    pub fn redeem(
        &mut self,
        now: Time,
        id: LeaseId,
        epoch: Epoch,
        rank: Rank,
        work: WorkId,
    ) -> Result<Redeemed, RedeemError> {
        let lease = self.leases.get_mut(&id).ok_or(RedeemError::Unknown)?;
        if lease.epoch != epoch {
            return Err(RedeemError::Epoch);
        }
        if lease.ending.is_some() || !lease.gate.is_live(now) {
            return Err(RedeemError::Ended);
        }
        if rank.0 >= lease.rank_count {
            return Err(RedeemError::Rank);
        }
        if !lease.unread.remove(&rank) {
            return Err(RedeemError::Redeemed);
        }
        lease.reading.insert(work);
        self.reads.insert(work, id);
        Ok(Redeemed { blocks: Arc::clone(&lease.blocks), deadline: lease.deadline, gate: lease.gate.clone() })
    }

    /// The read `work` can touch memory no more, however it went. A stale or unknown id changes nothing.
    pub fn handle_read_ended(&mut self, work: WorkId) {
        let Some(id) = self.reads.remove(&work) else { return };
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.reading.remove(&work);
        }
        self.settle(id);
    }

    /// The reader will not come. Changes nothing while another holder of the same ticket reads.
    pub fn relinquish(&mut self, id: LeaseId, epoch: Epoch) {
        if self.leases.get(&id).is_some_and(|lease| lease.epoch == epoch && lease.reading.is_empty()) {
            self.end(id, EndReason::Relinquished);
        }
    }

    /// Ends every lease of an engine's epoch.
    pub fn end_epoch(&mut self, epoch: Epoch) {
        let of_epoch = self.leases.iter().filter(|(_, lease)| lease.epoch == epoch);
        for id in of_epoch.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.end(id, EndReason::EngineGone);
        }
    }

    /// Ends what has expired by `now`.
    pub fn handle_timeout(&mut self, now: Time) {
        while let Some(&(deadline, id)) = self.deadlines.first() {
            if deadline > now {
                break;
            }
            self.deadlines.pop_first();
            self.end(id, EndReason::Expired);
        }
    }

    /// When [`Self::handle_timeout`] has something to do next.
    #[must_use]
    pub fn poll_deadline(&self) -> Option<Time> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// The next thing to do; call until `None` after every `handle_*`, `relinquish` and `end_epoch`.
    pub fn poll_event(&mut self) -> Option<LeaseEvent> {
        self.events.pop_front()
    }

    fn end(&mut self, id: LeaseId, reason: EndReason) {
        let Some(lease) = self.leases.get_mut(&id) else { return };
        if lease.ending.is_none() {
            lease.ending = Some(reason);
            lease.gate.close();
            self.events.extend(lease.reading.iter().map(|work| LeaseEvent::Quiesce { work: *work }));
        }
        self.settle(id);
    }

    /// Emits `Ended` once nothing can touch the blocks and nobody may come to read them.
    fn settle(&mut self, id: LeaseId) {
        let Some(lease) = self.leases.get(&id) else { return };
        if !lease.reading.is_empty() || (lease.ending.is_none() && !lease.unread.is_empty()) {
            return;
        }
        if let Some(lease) = self.leases.remove(&id) {
            lease.gate.close();
            self.deadlines.remove(&(lease.deadline, id));
            self.events.push_back(LeaseEvent::Ended {
                id,
                epoch: lease.epoch,
                request_id: lease.request_id,
                reason: lease.ending.unwrap_or(EndReason::Read),
            });
        }
    }
}

#[cfg(test)]
mod tests;
