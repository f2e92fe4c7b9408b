//! What `kvferry cache ls`, `evict` and `verify` show, as data.

use serde::{Deserialize, Serialize};

/// What the tiers hold, by tier, fingerprint and tenant.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct CacheList {
    /// Those with the most bytes first.
    pub(crate) rows: Vec<CacheRow>,
    /// Rows beyond those, summed.
    pub(crate) others: CacheSum,
    /// All that blocks are stored of, whatever was asked for: that a row is not named takes none away.
    pub(crate) fingerprints: Vec<CacheFingerprint>,
}

/// Whose engines' blocks there are.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct CacheFingerprint {
    /// In hexadecimal digits.
    pub(crate) fingerprint: String,
    /// As in a [`CacheRow`].
    pub(crate) model: String,
}

/// What one tenant has of one fingerprint in one tier.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct CacheRow {
    /// `host` or `disk`.
    pub(crate) tier: String,
    /// As engines of it name their model; empty while none has said so to this daemon.
    pub(crate) model: String,
    /// Of the engines, in hexadecimal digits.
    pub(crate) fingerprint: String,
    /// An engine of it is attached.
    pub(crate) attached: bool,
    /// A number made of the tenant's name, in hexadecimal digits; empty for blocks of nobody in particular.
    pub(crate) tenant: String,
    pub(crate) blocks: u64,
    pub(crate) bytes: u64,
    /// Blocks that lookups found in this tier, in this daemon's life.
    pub(crate) hits: u64,
    /// How long ago the last of them was; none: not in this daemon's life.
    pub(crate) used_ms_ago: Option<u64>,
}

/// Several rows.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct CacheSum {
    pub(crate) rows: usize,
    pub(crate) blocks: u64,
    pub(crate) bytes: u64,
}

/// How far an eviction or a verification has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SweepStatus {
    /// It is over, and all that was asked for is done.
    pub(crate) complete: bool,
    pub(crate) elapsed_ms: u64,
    pub(crate) host: SweepSum,
    /// Where there is one.
    pub(crate) disk: Option<SweepSum>,
}

/// In one tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SweepSum {
    /// What fitted when it began.
    pub(crate) blocks_total: u64,
    pub(crate) bytes_total: u64,
    /// What went, or was read and is whole.
    pub(crate) blocks: u64,
    pub(crate) bytes: u64,
    /// What goes once those who hold it let go.
    pub(crate) held_blocks: u64,
    pub(crate) held_bytes: u64,
    /// What was not what was stored, and is gone.
    pub(crate) damaged_blocks: u64,
    /// What the disk would not give, and stays.
    pub(crate) unreadable_blocks: u64,
}

impl SweepStatus {
    /// Of both tiers.
    pub(crate) fn sum(&self) -> SweepSum {
        let (a, b) = (self.host, self.disk.unwrap_or_default());
        SweepSum {
            blocks_total: a.blocks_total + b.blocks_total,
            bytes_total: a.bytes_total + b.bytes_total,
            blocks: a.blocks + b.blocks,
            bytes: a.bytes + b.bytes,
            held_blocks: a.held_blocks + b.held_blocks,
            held_bytes: a.held_bytes + b.held_bytes,
            damaged_blocks: a.damaged_blocks + b.damaged_blocks,
            unreadable_blocks: a.unreadable_blocks + b.unreadable_blocks,
        }
    }
}
