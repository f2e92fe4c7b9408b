//! Small, always equal pieces of work for counting instructions: plans, checksums, frames.
//!
//! `python3 benches/instructions` runs it under callgrind, once for each name, and compares (docs/adr/0017). By itself:
//! `cargo bench --profile instructions -p kvferry-transport-tcp --bench instructions -- NAME`. Only what
//! [`measured`] calls is counted; what a work needs is made before.

use std::hint::black_box;
use std::sync::Arc;

use kvferry_core::layout::{AxisOrder, GroupLayout, LayerSpan, Layout};
use kvferry_core::plan::{Cursor, GroupBlocks, Plan, Side, Slice};
use kvferry_core::{BlockIndex, WorkId};
use kvferry_memory::{Meter, Region};
use kvferry_transport_tcp::frame::{Frame, Outcome, Tag};

const NAMES: [&str; 7] =
    ["plan-compile", "plan-split", "plan-walk", "checksum-large", "checksum-small", "frame-encode", "frame-decode"];

fn main() {
    // cargo adds an argument of its own.
    let name = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    match name.as_deref() {
        Some("plan-compile") => measured(|| drop(black_box(compile()))),
        Some("plan-split") => {
            let plan = compile();
            measured(|| drop(black_box(plan.split(4))));
        }
        Some("plan-walk") => walk(&Arc::new(compile())),
        Some("checksum-large") => sum(64 << 10, 4),
        Some("checksum-small") => sum(512, 128),
        Some("frame-encode") => {
            let frames = frames();
            measured(|| {
                for frame in &frames {
                    black_box(frame.encode());
                }
            });
        }
        Some("frame-decode") => {
            let headers: Vec<_> = frames().iter().map(Frame::encode).collect();
            measured(|| {
                for bytes in &headers {
                    black_box(Frame::decode(bytes)).expect("a frame of ours");
                }
            });
        }
        _ => NAMES.iter().for_each(|name| println!("{name}")),
    }
}

/// What callgrind counts, with all that it calls.
#[inline(never)]
fn measured(work: impl FnOnce()) {
    work();
    // Something behind the call, or it would be a jump and this function not be there when it returns.
    black_box(());
}

/// 256 scattered blocks of a 70 B model on one worker, from one order of the axes into another.
fn compile() -> Plan {
    let layout = |order, layer_stride, block_stride| {
        let span = LayerSpan {
            layer_count: 80,
            offset: 0,
            layer_stride,
            block_stride,
            head_count: 8,
            token_count: 16,
            content_bytes: 512,
        };
        Layout::new(order, 512, 80 * 512 * (64 << 10), vec![GroupLayout { spans: vec![span] }]).expect("a dense layout")
    };
    let page = 64 << 10;
    let (source, target) = (layout(AxisOrder::Lbhnc, page * 512, page), layout(AxisOrder::Blhnc, page, page * 80));
    // 3 and 5 have no factor in common with 512: every block once, and no two neighbours.
    let blocks = |factor| (0..256_u32).map(|place| BlockIndex(place * factor % 512)).collect();
    let blocks = GroupBlocks { group: 0, source: blocks(3), target: blocks(5) };
    Plan::compile(black_box(&source), black_box(&target), black_box(&[blocks])).expect("blocks of the layouts")
}

/// Both sides, 1 MiB or 1,024 slices at a time, as a transport does.
fn walk(plan: &Arc<Plan>) {
    let mut slices: Vec<Slice> = Vec::with_capacity(1024);
    measured(|| {
        for side in [Side::Source, Side::Target] {
            let mut cursor = Cursor::new(Arc::clone(plan), side);
            while cursor.remaining() > 0 {
                slices.clear();
                cursor.take(1 << 20, 1024, &mut slices);
                black_box(&slices);
            }
        }
    });
}

/// Pieces of a region, one sum going on over all of them.
fn sum(length: u64, count: u64) {
    let bytes = length * count;
    let fd = kvferry_memory::create("kvferry-sum", bytes).expect("make memory");
    let region = Region::map(fd, bytes, &Meter::new()).expect("map memory");
    measured(|| {
        let sum = (0..count).fold(0, |crc, piece| region.crc32c(crc, piece * length, length).expect("inside"));
        black_box(sum);
    });
}

fn frames() -> Vec<Frame> {
    let (work, tag) = (WorkId(7), Tag(9));
    (0..100)
        .flat_map(|sequence| {
            [
                Frame::Piece { work, tag, sequence, length: 512 << 10, checksum: Some(sequence) },
                Frame::Fetch { work, tag, digest: sequence.into() },
                Frame::Trailer { work, tag, bytes: sequence.into(), digest: 3, outcome: Outcome::Live },
            ]
        })
        .collect()
}
