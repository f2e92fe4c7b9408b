//! An arena's chunk as plans see it: a layout, like an engine's.
//!
//! ```text
//! engine: layer 0 [block 0][block 1]...   layer 1 [block 0][block 1]...
//! chunk:  [slot 0: layer 0, layer 1, ...][slot 1: layer 0, layer 1, ...]
//! ```
//!
//! A block is one piece in the arena, whatever it is in the engine, so that a disk or another node takes it as one. With a
//! layout on both sides a put, a get and a transfer to another node are the same plan, over the same transports.

use kvferry_core::BlockIndex;
use kvferry_core::layout::{AxisOrder, GroupLayout, LayerSpan, Layout, LayoutError};

use super::{Arena, Block, Filling};
use crate::store::ClassId;

impl Arena {
    /// How blocks of this class lie in the chunk that this one is in; `engine` has one group, the class's own. Slots are
    /// its block indices. `None`: the engine's blocks are not of the class's size.
    ///
    /// # Errors
    ///
    /// [`LayoutError`], for an engine's layout that only just passed its own limits.
    pub fn chunk_layout(
        &self,
        class: ClassId,
        at: impl Into<Slot>,
        engine: &Layout,
    ) -> Result<Option<Layout>, LayoutError> {
        if engine.groups().len() != 1 || engine.bytes_per_block(0) != Some(self.classes.block_bytes(class)) {
            return Ok(None);
        }
        let cut = self.classes.class_cut(class);
        let first = self.geometry.body(at.into().chunk, cut, 0);
        let spans = pack(&engine.groups()[0], first, cut.slot_bytes);
        let order = inside(engine.order());
        Layout::new(order, cut.slots, self.region.len(), vec![GroupLayout { spans }]).map(Some)
    }
}

/// Where a block is: a chunk, and a block index of its [layout](Arena::chunk_layout).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slot {
    /// Blocks of one chunk are of one layout.
    pub chunk: u32,
    /// The block of that layout.
    pub index: BlockIndex,
}

impl From<&Filling> for Slot {
    fn from(filling: &Filling) -> Self {
        Self { chunk: filling.place.chunk, index: BlockIndex(filling.place.slot) }
    }
}

impl From<&Block> for Slot {
    fn from(block: &Block) -> Self {
        Self { chunk: block.place.chunk, index: BlockIndex(block.place.slot) }
    }
}

/// The group's layers, one behind the other in each slot.
fn pack(group: &GroupLayout, first: u64, slot_bytes: u64) -> Vec<LayerSpan> {
    let mut offset = first;
    let mut spans = Vec::with_capacity(group.spans.len());
    for span in &group.spans {
        let page = u64::from(span.head_count) * u64::from(span.token_count) * u64::from(span.content_bytes);
        spans.push(LayerSpan { offset, layer_stride: page, block_stride: slot_bytes, ..span.clone() });
        offset += page * u64::from(span.layer_count);
    }
    spans
}

/// The order with layers inside blocks that keeps the inside of a page as the engine has it, where one does.
const fn inside(engine: AxisOrder) -> AxisOrder {
    match engine {
        AxisOrder::Blnhc | AxisOrder::Lbnhc => AxisOrder::Blnhc,
        AxisOrder::Bhlnc | AxisOrder::Blhnc | AxisOrder::Lbhnc | AxisOrder::Lhbnc => AxisOrder::Blhnc,
    }
}

#[cfg(test)]
mod tests {
    use kvferry_core::Fingerprint;
    use kvferry_core::plan::{GroupBlocks, Plan};
    use kvferry_memory::{Meter, Piece, Region, Stores};

    use super::*;
    use crate::store::{Store as _, Tenant};

    const BLOCKS: u32 = 12;
    const LAYERS: u32 = 3;
    const PAGE: u64 = 2 * 4 * 64;

    /// An engine with two spans of layers, as each order lays them out.
    fn engine(order: AxisOrder) -> Layout {
        let span = |offset, layer_stride, block_stride| LayerSpan {
            layer_count: LAYERS,
            offset,
            layer_stride,
            block_stride,
            head_count: 2,
            token_count: 4,
            content_bytes: 64,
        };
        let (blocks, layers) = (u64::from(BLOCKS), u64::from(LAYERS));
        let strides = match order {
            AxisOrder::Blhnc | AxisOrder::Blnhc => (PAGE, layers * PAGE),
            AxisOrder::Lbhnc | AxisOrder::Lbnhc => (blocks * PAGE, PAGE),
            AxisOrder::Bhlnc => (PAGE / 2, layers * PAGE),
            AxisOrder::Lhbnc => (blocks * PAGE, PAGE / 2),
        };
        let half = blocks * layers * PAGE;
        let spans = vec![span(0, strides.0, strides.1), span(half, strides.0, strides.1)];
        Layout::new(order, BLOCKS, 2 * half, vec![GroupLayout { spans }]).expect("a layout")
    }

    fn pieces(plan: &Plan) -> Vec<Piece> {
        let of = |run: &kvferry_core::plan::Run| {
            let run = *run;
            (0..u64::from(run.count)).map(move |piece| Piece {
                source: run.source + piece * run.source_stride,
                target: run.target + piece * run.target_stride,
                length: run.length,
            })
        };
        plan.runs().iter().flat_map(of).collect()
    }

    fn plan(source: &Layout, target: &Layout, from: u32, to: u32) -> Plan {
        let blocks = [GroupBlocks { group: 0, source: vec![BlockIndex(from)], target: vec![BlockIndex(to)] }];
        Plan::compile(source, target, &blocks).expect("a plan")
    }

    #[test]
    fn a_block_comes_back_as_it_went_whatever_the_engine_s_order() {
        let folder = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
        let meter = Meter::new();
        let (mut arena, _) = Arena::open(&folder.path().join("arena"), 8 << 20, 1 << 14, &meter).expect("an arena");
        for (number, order) in AxisOrder::ALL.into_iter().enumerate() {
            let engine = engine(order);
            let region = |seed: u8| {
                let fd = kvferry_memory::create("kvferry-packing", engine.region_bytes()).expect("memory");
                let region = Region::map(fd, engine.region_bytes(), &meter).expect("a region");
                let bytes: Vec<u8> =
                    (0..engine.region_bytes()).map(|at| ((at * 37) >> 2).to_le_bytes()[0] ^ seed).collect();
                region.write(0, &bytes).expect("inside");
                region
            };
            let (first, second) = (region(1), region(2));
            let fingerprint = Fingerprint([u8::try_from(number).expect("small"); 32]);
            let bytes = engine.bytes_per_block(0).expect("one group");
            let class = arena.class(fingerprint, 0, bytes).expect("a class");
            let filling = arena.reserve(class, [7; 32], Tenant(0)).expect("a place");
            let chunk = arena.chunk_layout(class, &filling, &engine).expect("a layout").expect("of its size");
            let put = plan(&engine, &chunk, 5, Slot::from(&filling).index.0);
            let stored = arena.region();
            stored.copy_summed(&first, &pieces(&put), Stores::Streamed).expect("inside");
            // One piece, and all of the block's bytes in it.
            let checksum = stored.crc32c(0, filling.offset, filling.bytes).expect("inside");
            arena.seal(filling, checksum, None).expect("kept");
            let block = arena.pin(class, &[7; 32]).expect("there");
            let chunk = arena.chunk_layout(class, &block, &engine).expect("a layout").expect("of its size");
            let get = plan(&chunk, &engine, Slot::from(&block).index.0, 9);
            second.copy_summed(arena.region(), &pieces(&get), Stores::Streamed).expect("inside");
            // Block 5 of the first engine is block 9 of the second, and nothing else has changed.
            let same = plan(&engine, &engine, 5, 9);
            let wanted = region(2);
            wanted.copy_summed(&first, &pieces(&same), Stores::Cached).expect("inside");
            let all = |region: &Region| region.crc32c(0, 0, region.len()).expect("inside");
            assert_eq!(all(&second), all(&wanted), "{order}");
            assert_ne!(all(&second), all(&region(2)), "{order}: something was moved");
            assert!(arena.unpin(&block));
        }
    }

    #[test]
    fn an_engine_of_another_size_has_no_layout_here() {
        let folder = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
        let (mut arena, _) =
            Arena::open(&folder.path().join("arena"), 4 << 20, 1 << 14, &Meter::new()).expect("an arena");
        let class = arena.class(Fingerprint([1; 32]), 0, 4096).expect("a class");
        let filling = arena.reserve(class, [7; 32], Tenant(0)).expect("a place");
        assert_eq!(arena.chunk_layout(class, &filling, &engine(AxisOrder::Lbhnc)), Ok(None));
        arena.abandon(filling);
    }
}
