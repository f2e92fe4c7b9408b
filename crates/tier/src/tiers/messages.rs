//! What tiers are asked, and what they say.

use std::sync::Arc;

use kvferry_core::{BlockIndex, Fingerprint, Time, WorkId};

use super::Device;
use crate::cache::Holding;
use crate::disk::{self, Span};
use crate::store::{BlockHash, Tenant};

/// Why a lookup, a load or a store came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TierFailure {
    /// Given up by who asked for it.
    Aborted,
    /// Bytes were not what was stored.
    Checksum,
    /// Everything of this fingerprint was to be forgotten.
    Cleared,
    /// It took longer than it might.
    Deadline,
    /// The disk did not give it.
    Disk,
    /// A block is not there any more.
    Evicted,
    /// Too much at a time.
    Limit,
    /// It does not fit the engine's own layout.
    Request,
}

impl TierFailure {
    /// One word, as messages and metrics have it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Aborted => "aborted",
            Self::Checksum => "checksum",
            Self::Cleared => "cleared",
            Self::Deadline => "deadline",
            Self::Disk => "disk",
            Self::Evicted => "evicted",
            Self::Limit => "limit",
            Self::Request => "request",
        }
    }
}

/// Where blocks rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tier {
    /// Host memory.
    Host,
    /// A disk.
    Disk,
}

impl Tier {
    /// One word, as messages and metrics have it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Disk => "disk",
        }
    }
}

/// What whoever asked is to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TierEvent {
    /// Blocks of one fingerprint came and went, each with its cache group. Of engines with several ranks, those of the
    /// first.
    Changed {
        /// Of whom.
        fingerprint: Fingerprint,
        /// Where.
        tier: Tier,
        /// Found from now on.
        stored: Vec<(u32, BlockHash)>,
        /// Not there any more.
        removed: Vec<(u32, BlockHash)>,
    },
    /// The answer to a lookup.
    Found {
        /// The lookup, and the claim's name.
        claim: WorkId,
        /// Of each group, how many of the first blocks every rank has.
        held: Vec<u32>,
        /// Of each group, how many of those some rank has on the disk alone; they are being brought.
        on_disk: Vec<u32>,
        /// Why none is held, if not because none is there.
        failure: Option<TierFailure>,
    },
    /// What a lookup found is not held any more, or was nothing.
    Released {
        /// The lookup.
        claim: WorkId,
    },
    /// Nothing that was stored before is found any more.
    Cleared {
        /// Of whom.
        fingerprint: Fingerprint,
    },
    /// The answer to a [question](super::Tiers::list).
    Listed {
        /// The question.
        work: WorkId,
        /// What each tier holds, by class and tenant: see [`by_fingerprint`](super::by_fingerprint).
        holdings: Vec<(Tier, Holding)>,
    },
    /// A load has ended; nothing touches its blocks any more.
    Loaded {
        /// The load.
        work: WorkId,
        /// Bytes that arrived and were verified, if all were.
        result: Result<Loaded, TierFailure>,
    },
    /// The blocks of a store were copied, and will not be read again. Nobody finds them before they are committed.
    Copied {
        /// The store.
        work: WorkId,
        /// Why it comes to nothing; less than all blocks is no failure.
        failure: Option<TierFailure>,
    },
    /// The blocks of a store are found from now on.
    Stored {
        /// The store.
        work: WorkId,
        /// How many they are; those that were there before are not among them.
        blocks: u64,
    },
}

/// What a load has brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Bytes, all verified.
    pub bytes: u64,
    /// Of those, what had to come from the disk first.
    pub disk_bytes: u64,
}

/// Blocks for the disk, or from it; answered by [`Tiers::handle_disk`].
#[derive(Debug)]
pub enum DiskJob {
    /// For [`Mover::read`](crate::disk::Mover::read).
    Read {
        /// To be said with the result.
        tag: u64,
        /// What.
        block: disk::Block,
        /// Where to.
        span: Span,
    },
    /// For [`Mover::write`](crate::disk::Mover::write).
    Write {
        /// To be said with the result.
        tag: u64,
        /// Where to.
        filling: disk::Filling,
        /// What.
        span: Span,
    },
}

/// One engine asks what is there for a prompt.
#[derive(Debug)]
pub struct Lookup {
    /// All ranks of the engine.
    pub devices: Vec<Arc<Device>>,
    /// Of each cache group, the prompt's blocks in order.
    pub groups: Vec<Vec<BlockHash>>,
}

/// One rank wants blocks.
#[derive(Debug)]
pub struct LoadRequest {
    /// The lookup that found them.
    pub claim: WorkId,
    /// Where they go.
    pub device: Arc<Device>,
    /// Of each cache group, blocks and the engine's own for them.
    pub groups: Vec<Vec<(BlockHash, BlockIndex)>>,
    /// When it is given up.
    pub deadline: Time,
}

/// Blocks that follow each other, and the one before the first.
pub type ChainPiece = (Option<BlockHash>, Vec<(BlockHash, BlockIndex)>);

/// One rank gives blocks to be kept.
#[derive(Debug)]
pub struct StoreRequest {
    /// Where they come from.
    pub device: Arc<Device>,
    /// Of each cache group.
    pub groups: Vec<ChainPiece>,
    /// Whose they are.
    pub tenant: Tenant,
}
