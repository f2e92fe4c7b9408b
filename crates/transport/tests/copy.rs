//! What only the copy transport promises: bounded turns, fair shares, and sums on both sides.

use std::sync::Arc;

use kvferry_core::layout::{AxisOrder, GroupLayout, LayerSpan, Layout};
use kvferry_core::lease::LeaseGate;
use kvferry_core::plan::{GroupBlocks, Plan};
use kvferry_core::{BlockIndex, Time, WorkId};
use kvferry_memory::{Meter, Region};
use kvferry_transport::{Completion, CopySettings, CopyTransport, Event, Fault, ReadWork, Source, Transport, Work};

const PAGE: u32 = 4096;
const NOW: Time = Time::from_nanos(1);

fn region(blocks: u32) -> Arc<Region> {
    let bytes = u64::from(blocks * PAGE);
    let fd = kvferry_memory::create("kvferry-copy", bytes).expect("make memory");
    let region = Region::map(fd, bytes, &Meter::new()).expect("map memory");
    for block in 0..blocks {
        let value = u8::try_from(block % 250 + 1).expect("small");
        region.write(u64::from(block * PAGE), &[value; PAGE as usize]).expect("inside");
    }
    region
}

/// One layer of `blocks` pages; `pairs` of them move.
fn plan(blocks: u32, pairs: impl Iterator<Item = (u32, u32)>) -> Arc<Plan> {
    let span = LayerSpan {
        layer_count: 1,
        offset: 0,
        layer_stride: u64::from(blocks * PAGE),
        block_stride: u64::from(PAGE),
        head_count: 1,
        token_count: 1,
        content_bytes: PAGE,
    };
    let groups = vec![GroupLayout { spans: vec![span] }];
    let layout = Layout::new(AxisOrder::Lbhnc, blocks, u64::from(blocks * PAGE), groups).expect("a sound layout");
    let (source, target) = pairs.map(|(source, target)| (BlockIndex(source), BlockIndex(target))).unzip();
    let blocks = GroupBlocks { group: 0, source, target };
    Arc::new(Plan::compile(&layout, &layout, &[blocks]).expect("blocks of the layout"))
}

fn read(id: u64, plan: &Arc<Plan>, source: &Arc<Region>, target: &Arc<Region>) -> Work {
    Work::Read(ReadWork {
        id: WorkId(id),
        plan: Arc::clone(plan),
        target: Arc::clone(target),
        source: Source::Region { region: Arc::clone(source), lease: LeaseGate::new(Time::NEVER) },
        deadline: Time::NEVER,
    })
}

fn post(transport: &mut CopyTransport, work: Work) {
    transport.endpoint(CopyTransport::ENDPOINT).expect("always up").post(NOW, work).expect("room");
}

fn landed(target: &Region, blocks: u32) -> u32 {
    let is_written = |block: &u32| {
        let mut byte = [0];
        target.read(u64::from(block * PAGE), &mut byte).expect("inside");
        byte != [0]
    };
    u32::try_from((0..blocks).filter(is_written).count()).expect("as many as there are blocks")
}

fn blank(blocks: u32) -> Arc<Region> {
    let bytes = u64::from(blocks * PAGE);
    Region::map(kvferry_memory::create("kvferry-copy", bytes).expect("make memory"), bytes, &Meter::new()).expect("map")
}

#[test]
fn a_turn_copies_no_more_than_its_bytes() {
    let settings = CopySettings { turn_bytes_max: 16 * u64::from(PAGE), ..CopySettings::default() };
    let mut transport = CopyTransport::new(settings);
    let (source, target) = (region(64), blank(64));
    post(&mut transport, read(1, &plan(64, (0..64).map(|block| (block, block))), &source, &target));
    let mut events = Vec::new();
    for turn in 1..=4 {
        assert!(transport.turn(NOW, &mut events), "the lease is asked in a turn after the last byte");
        assert_eq!((landed(&target, 64), events.len()), (16 * turn, 0));
    }
    assert!(!transport.turn(NOW, &mut events));
    assert_eq!(events, [Event::Completed(Completion { id: WorkId(1), result: Ok(64 * u64::from(PAGE)) })]);
}

#[test]
fn a_small_work_does_not_wait_for_a_large_one() {
    let settings = CopySettings {
        turn_bytes_max: 8 * u64::from(PAGE),
        piece_bytes: PAGE.into(),
        works_max: 8,
        ..CopySettings::default()
    };
    let mut transport = CopyTransport::new(settings);
    let (source, large, small) = (region(256), blank(256), blank(256));
    post(&mut transport, read(1, &plan(256, (0..256).map(|block| (block, block))), &source, &large));
    post(&mut transport, read(2, &plan(256, (0..2).map(|block| (block, block))), &source, &small));
    let mut events = Vec::new();
    transport.turn(NOW, &mut events);
    transport.turn(NOW, &mut events);
    assert_eq!(events, [Event::Completed(Completion { id: WorkId(2), result: Ok(2 * u64::from(PAGE)) })]);
}

#[test]
fn a_plan_that_reads_what_it_writes_is_refused() {
    // Two blocks that change places: whichever is copied first, the other's bytes are gone.
    let mut transport = CopyTransport::new(CopySettings::default());
    let both = region(8);
    let endpoint = transport.endpoint(CopyTransport::ENDPOINT).expect("always up");
    for pairs in [vec![(0, 1), (1, 0)], vec![(3, 4), (4, 5)], vec![(6, 7), (2, 6)], vec![(5, 5)]] {
        let work = read(1, &plan(8, pairs.iter().copied()), &both, &both);
        let refused = endpoint.post(NOW, work).map_err(|(fault, _)| fault);
        assert_eq!(refused, Err(Fault::Refused), "{pairs:?}");
    }
    // Between two memories the same plans are fine.
    endpoint.post(NOW, read(1, &plan(8, [(0, 1), (1, 0)].into_iter()), &both, &blank(8))).expect("room");
}

#[test]
fn blocks_move_within_one_region() {
    let mut transport = CopyTransport::new(CopySettings::default());
    let both = region(8);
    post(&mut transport, read(1, &plan(8, [(0, 4), (1, 5)].into_iter()), &both, &both));
    let mut events = Vec::new();
    while transport.turn(NOW, &mut events) {}
    assert_eq!(events, [Event::Completed(Completion { id: WorkId(1), result: Ok(2 * u64::from(PAGE)) })]);
    assert_eq!(both.crc32c(0, 0, u64::from(2 * PAGE)), both.crc32c(0, u64::from(4 * PAGE), u64::from(2 * PAGE)));
}
