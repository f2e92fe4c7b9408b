//! What an engine's process says of itself and asks for.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use kvferry_proto::v1;

/// Which process of an engine this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A person's command: may only ask.
    Operator,
    /// Grants and relinquishes.
    Scheduler,
    /// Attaches a region and redeems.
    Worker,
}

impl From<Role> for v1::Role {
    fn from(role: Role) -> Self {
        match role {
            Role::Operator => Self::Operator,
            Role::Scheduler => Self::Scheduler,
            Role::Worker => Self::Worker,
        }
    }
}

/// Layers of equal shape at equal distance: bytes of layer `l`, block `b` start at
/// `offset + l * layer_stride + b * block_stride`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerSpan {
    /// Layers in this span.
    pub layer_count: u32,
    /// First byte of the first layer's first block.
    pub offset: u64,
    /// Bytes from a layer to the next.
    pub layer_stride: u64,
    /// Bytes from a block to the next.
    pub block_stride: u64,
    /// KV heads in a page.
    pub head_count: u32,
    /// Tokens in a block.
    pub token_count: u32,
    /// Bytes of one token of one head: K and V together.
    pub content_bytes: u32,
}

/// The layers of one cache group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupLayout {
    /// In layer order.
    pub spans: Vec<LayerSpan>,
}

/// How a worker lays out its cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The order of the axes as vLLM names it, such as `LBHNC`.
    pub order: String,
    /// Blocks in the cache.
    pub block_count: u32,
    /// Bytes of the region.
    pub region_bytes: u64,
    /// The cache groups; they may overlay the same bytes.
    pub groups: Vec<GroupLayout>,
}

/// A worker's cache, as it is shared with the daemon.
#[derive(Clone, Debug)]
pub struct AttachSpec {
    /// This worker's place among the workers of the engine.
    pub rank: u32,
    /// Workers of the engine.
    pub rank_count: u32,
    /// Hash of all that must agree between two engines.
    pub fingerprint: [u8; 32],
    /// The layout of the bytes behind `region`.
    pub layout: Layout,
    /// A memfd sealed against shrinking and growing.
    pub region: Arc<OwnedFd>,
    /// What people call the model; empty where nobody knows.
    pub model: String,
}

/// Blocks of one cache group to fetch: the lease's block at `positions[i]` goes to block `targets[i]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WantedBlocks {
    /// Places in the lease's list of this group.
    pub positions: Vec<u32>,
    /// Blocks of this engine.
    pub targets: Vec<u32>,
}

/// The name of a block's content, the same on every node.
pub type BlockHash = [u8; 32];

/// Blocks of one cache group to load: `hashes[i]` goes to block `blocks[i]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadedBlocks {
    /// What they are.
    pub hashes: Vec<BlockHash>,
    /// Blocks of this engine.
    pub blocks: Vec<u32>,
}

/// Blocks of one cache group to store: a piece of a chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredBlocks {
    /// The block before the first; none for the first of a prompt.
    pub parent: Option<BlockHash>,
    /// What they are, each behind the one before it.
    pub hashes: Vec<BlockHash>,
    /// Where they are: blocks of this engine.
    pub blocks: Vec<u32>,
}

/// A lease and its ticket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// The lease.
    pub lease_id: u64,
    /// The life of the daemon that granted it.
    pub daemon_epoch: u64,
    /// What the reader redeems.
    pub ticket: String,
    /// How long the lease holds.
    pub lease_ms: u64,
    /// Host of the daemon's control port.
    pub host: String,
    /// The daemon's control port.
    pub port: u16,
}

impl From<&Layout> for v1::Layout {
    fn from(layout: &Layout) -> Self {
        let span = |span: &LayerSpan| v1::LayerSpan {
            layer_count: span.layer_count,
            offset: span.offset,
            layer_stride: span.layer_stride,
            block_stride: span.block_stride,
            head_count: span.head_count,
            token_count: span.token_count,
            content_bytes: span.content_bytes,
        };
        let groups = layout.groups.iter().map(|g| v1::GroupLayout { spans: g.spans.iter().map(span).collect() });
        Self {
            order: layout.order.clone(),
            block_count: layout.block_count,
            region_bytes: layout.region_bytes,
            groups: groups.collect(),
        }
    }
}
