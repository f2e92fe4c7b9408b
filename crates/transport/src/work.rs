//! What can be posted: one plan's bytes, read into a region or served out of one.

use std::sync::Arc;

use kvferry_core::lease::LeaseGate;
use kvferry_core::plan::{Plan, Side};
use kvferry_core::{Time, WorkId};
use kvferry_memory::Region;

/// Where a read takes its bytes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// The far end of the endpoint, which was told to serve and sends when asked.
    Peer {
        /// The id of the holder's [`ServeWork`].
        work: WorkId,
    },
    /// The far end of the endpoint, which sends unasked. The read must be posted before the holder posts its work.
    Pushed {
        /// The id of the holder's [`ServeWork`].
        work: WorkId,
    },
    /// A region on this node, under the lease that keeps it unchanged.
    Region {
        /// The bytes; the plan's source side.
        region: Arc<Region>,
        /// The promise that they do not change; checked after the last byte.
        lease: LeaseGate,
    },
}

/// Fetches a plan's bytes into a local region.
#[derive(Clone, Debug)]
pub struct ReadWork {
    /// Names the work in cancels and in its completion.
    pub id: WorkId,
    /// What moves where; the same at both ends.
    pub plan: Arc<Plan>,
    /// Where the bytes land; the plan's target side.
    pub target: Arc<Region>,
    /// Where they come from.
    pub source: Source,
    /// When the read fails with [`Fault::Deadline`](crate::Fault::Deadline) instead.
    pub deadline: Time,
}

/// What a holder waits for before it sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// The reader's fetch. The work completes when the last byte has left and its lease was live then.
    Fetched,
    /// Nothing. The work completes once the reader has said that every byte landed and was verified, or why not.
    Pushed,
}

/// Moves a plan's bytes from a local region to the peer, once.
#[derive(Clone, Debug)]
pub struct ServeWork {
    /// Names the work in cancels, in its completion and in the peer's fetch.
    pub id: WorkId,
    /// What moves where; the same at both ends.
    pub plan: Arc<Plan>,
    /// Where the bytes lie; the plan's source side.
    pub source: Arc<Region>,
    /// The promise that they do not change; checked after the last byte, and told to the reader.
    pub lease: LeaseGate,
    /// What sets it going.
    pub start: Start,
    /// When the serving ends with [`Fault::Deadline`](crate::Fault::Deadline), fetched or not.
    pub deadline: Time,
}

/// Work for an endpoint.
#[derive(Clone, Debug)]
pub enum Work {
    /// Bytes come in.
    Read(ReadWork),
    /// Bytes go out.
    Serve(ServeWork),
}

impl Work {
    /// The id it will complete under.
    #[must_use]
    pub const fn id(&self) -> WorkId {
        match self {
            Self::Read(read) => read.id,
            Self::Serve(serve) => serve.id,
        }
    }

    /// What moves where.
    #[must_use]
    pub const fn plan(&self) -> &Arc<Plan> {
        match self {
            Self::Read(read) => &read.plan,
            Self::Serve(serve) => &serve.plan,
        }
    }

    /// When it fails with [`Fault::Deadline`](crate::Fault::Deadline).
    #[must_use]
    pub const fn deadline(&self) -> Time {
        match self {
            Self::Read(read) => read.deadline,
            Self::Serve(serve) => serve.deadline,
        }
    }
}

/// Whether every byte of one side of the plan lies inside `region`. O(runs), for the moment of posting.
#[must_use]
pub fn plan_fits(plan: &Plan, side: Side, region: &Region) -> bool {
    plan.runs().iter().all(|run| {
        let (offset, stride) = match side {
            Side::Source => (run.source, run.source_stride),
            Side::Target => (run.target, run.target_stride),
        };
        if run.count == 0 || run.length == 0 {
            return true;
        }
        // Checked: a plan is compiled from a peer's layout, and a wrapped sum must not look small.
        u64::from(run.count - 1)
            .checked_mul(stride)
            .and_then(|reach| reach.checked_add(offset))
            .and_then(|last| last.checked_add(run.length))
            .is_some_and(|end| end <= region.len())
    })
}
