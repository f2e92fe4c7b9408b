//! From what was sent to what it means: parsed once, refused with a reason.

use kvferry_core::layout::{GroupLayout, LayerSpan, Layout};
use kvferry_core::{BlockIndex, Fingerprint};
use kvferry_proto::v1;

/// A layout as an engine or a peer describes it.
pub(crate) fn layout(sent: Option<&v1::Layout>) -> Result<Layout, String> {
    let sent = sent.ok_or("the layout is missing")?;
    let order = sent.order.parse().map_err(|error| format!("{error}"))?;
    let span = |span: &v1::LayerSpan| LayerSpan {
        layer_count: span.layer_count,
        offset: span.offset,
        layer_stride: span.layer_stride,
        block_stride: span.block_stride,
        head_count: span.head_count,
        token_count: span.token_count,
        content_bytes: span.content_bytes,
    };
    let groups = sent.groups.iter().map(|g| GroupLayout { spans: g.spans.iter().map(span).collect() }).collect();
    Layout::new(order, sent.block_count, sent.region_bytes, groups).map_err(|error| format!("layout: {error}"))
}

/// A layout as it is sent to a peer.
pub(crate) fn sent_layout(layout: &Layout) -> v1::Layout {
    let span = |span: &LayerSpan| v1::LayerSpan {
        layer_count: span.layer_count,
        offset: span.offset,
        layer_stride: span.layer_stride,
        block_stride: span.block_stride,
        head_count: span.head_count,
        token_count: span.token_count,
        content_bytes: span.content_bytes,
    };
    let groups = layout.groups().iter().map(|g| v1::GroupLayout { spans: g.spans.iter().map(span).collect() });
    v1::Layout {
        order: layout.order().to_string(),
        block_count: layout.block_count(),
        region_bytes: layout.region_bytes(),
        groups: groups.collect(),
    }
}

pub(crate) fn fingerprint(sent: &[u8]) -> Result<Fingerprint, String> {
    sent.try_into().map(Fingerprint).map_err(|_| format!("a fingerprint has 32 bytes, not {}", sent.len()))
}

pub(crate) fn blocks(sent: &[u32]) -> Vec<BlockIndex> {
    sent.iter().copied().map(BlockIndex).collect()
}

pub(crate) fn sent_blocks(blocks: &[BlockIndex]) -> v1::BlockList {
    v1::BlockList { blocks: blocks.iter().map(|block| block.0).collect() }
}
