//! Layouts and plans for the suite.

use std::sync::Arc;

use kvferry_core::BlockIndex;
use kvferry_core::layout::{AxisOrder, GroupLayout, LayerSpan, Layout};
use kvferry_core::plan::{GroupBlocks, Plan};

/// What is to be moved, from what layout into what layout.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) plan: Arc<Plan>,
    pub(super) source_bytes: u64,
    pub(super) target_bytes: u64,
}

/// The counts that both ends of a shape share.
#[derive(Clone, Copy)]
struct Page {
    layers: u32,
    heads: u32,
    tokens: u32,
    content: u32,
}

/// How one end lays its blocks out.
#[derive(Clone, Copy)]
struct Side {
    order: AxisOrder,
    blocks: u32,
    /// Bytes before the first block.
    offset: u64,
    /// Bytes left free behind each page where the order allows it.
    padding: u64,
}

impl Shape {
    /// Every order into every order, with odd sizes, padding and blocks out of order: about 12 KiB each.
    pub(super) fn mixed() -> Vec<Self> {
        let page = Page { layers: 3, heads: 2, tokens: 4, content: 52 };
        let mut shapes = Vec::new();
        for source in AxisOrder::ALL {
            for target in AxisOrder::ALL {
                let source = Side { order: source, blocks: 11, offset: 128, padding: 24 };
                let target = Side { order: target, blocks: 13, offset: 4099, padding: 8 };
                let pairs = [(9, 0), (1, 1), (2, 2), (3, 12), (0, 7), (10, 4), (5, 5), (4, 6)];
                shapes.push(Self::new(page, source, target, &pairs));
            }
        }
        shapes
    }

    /// No bytes at all.
    pub(super) fn empty() -> Self {
        let page = Page { layers: 2, heads: 1, tokens: 1, content: 64 };
        let side = Side { order: AxisOrder::Lbhnc, blocks: 4, offset: 0, padding: 0 };
        Self::new(page, side, side, &[])
    }

    /// 16 KiB.
    pub(super) fn small() -> Self {
        Self::stacked(2, 4, 2048)
    }

    /// The bytes of [`Shape::small`] and its regions, but other blocks in other places.
    pub(super) fn small_otherwise() -> Self {
        let page = Page { layers: 2, heads: 1, tokens: 1, content: 2048 };
        let (source, target) = ends(4);
        Self::new(page, source, target, &[(0, 1), (1, 2), (2, 3), (3, 0)])
    }

    /// 3 MiB, in several pieces of any sensible size.
    pub(super) fn medium() -> Self {
        Self::stacked(12, 32, 8192)
    }

    /// 16 MiB.
    pub(super) fn large() -> Self {
        Self::stacked(16, 64, 16_384)
    }

    /// 64 MiB: more than the turn of a copy, and more than the sockets of a connection hold.
    pub(super) fn huge() -> Self {
        Self::stacked(16, 256, 16_384)
    }

    /// Whole pages of one layer each, layer by layer at the source and block by block, backwards, at the target.
    fn stacked(layers: u32, blocks: u32, page_bytes: u32) -> Self {
        let page = Page { layers, heads: 1, tokens: 1, content: page_bytes };
        let (source, target) = ends(blocks);
        let pairs: Vec<(u32, u32)> = (0..blocks).map(|block| (block, blocks - 1 - block)).collect();
        Self::new(page, source, target, &pairs)
    }

    fn new(page: Page, source: Side, target: Side, pairs: &[(u32, u32)]) -> Self {
        let (source, target) = (layout(page, source), layout(page, target));
        let blocks = GroupBlocks {
            group: 0,
            source: pairs.iter().map(|pair| BlockIndex(pair.0)).collect(),
            target: pairs.iter().map(|pair| BlockIndex(pair.1)).collect(),
        };
        let plan = Plan::compile(&source, &target, &[blocks]).expect("the suite's blocks are inside its layouts");
        Self { plan: Arc::new(plan), source_bytes: source.region_bytes(), target_bytes: target.region_bytes() }
    }
}

fn ends(blocks: u32) -> (Side, Side) {
    let source = Side { order: AxisOrder::Lbhnc, blocks, offset: 0, padding: 0 };
    (source, Side { order: AxisOrder::Blhnc, ..source })
}

fn layout(page: Page, side: Side) -> Layout {
    let (layers, heads, tokens) = (u64::from(page.layers), u64::from(page.heads), u64::from(page.tokens));
    let (blocks, content, padding) = (u64::from(side.blocks), u64::from(page.content), side.padding);
    let whole = heads * tokens * content + padding;
    let one_head = tokens * content + padding;
    let (layer_stride, block_stride) = match side.order {
        AxisOrder::Bhlnc => (one_head, heads * layers * one_head),
        AxisOrder::Blhnc | AxisOrder::Blnhc => (whole, layers * whole),
        AxisOrder::Lbhnc | AxisOrder::Lbnhc => (blocks * whole, whole),
        AxisOrder::Lhbnc => (heads * blocks * one_head, one_head),
    };
    let bytes = side.offset + layers * blocks * heads * (whole.max(one_head));
    let span = LayerSpan {
        layer_count: page.layers,
        offset: side.offset,
        layer_stride,
        block_stride,
        head_count: page.heads,
        token_count: page.tokens,
        content_bytes: page.content,
    };
    let groups = vec![GroupLayout { spans: vec![span] }];
    Layout::new(side.order, side.blocks, bytes, groups).expect("the suite's layouts are sound")
}
