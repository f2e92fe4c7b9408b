//! What the threads of the copy transport promise: they help, they wake who waits, and nothing ends while one copies.

use std::sync::Arc;

use kvferry_core::layout::{AxisOrder, GroupLayout, LayerSpan, Layout};
use kvferry_core::lease::LeaseGate;
use kvferry_core::plan::{GroupBlocks, Plan};
use kvferry_core::{BlockIndex, Time, WorkId};
use kvferry_memory::{Meter, Region};
use kvferry_transport::{Completion, CopySettings, CopyTransport, Event, Fault, ReadWork, Source, Transport, Work};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

const PAGE: u32 = 64 << 10;
const BLOCKS: u32 = 256;
const BYTES: u64 = PAGE as u64 * BLOCKS as u64;
const NOW: Time = Time::from_nanos(1);
/// A wait that takes longer has failed.
const PATIENCE: Timespec = Timespec { tv_sec: 20, tv_nsec: 0 };

fn region(meter: &Meter) -> Arc<Region> {
    let fd = kvferry_memory::create("kvferry-copy", BYTES).expect("make memory");
    Region::map(fd, BYTES, meter).expect("map memory")
}

/// A region whose blocks are all different.
fn filled(meter: &Meter) -> Arc<Region> {
    let region = region(meter);
    for block in 0..BLOCKS {
        let words: Vec<u8> = (0..PAGE / 4).flat_map(|word| (word * 257 + block).to_le_bytes()).collect();
        region.write(u64::from(block) * u64::from(PAGE), &words).expect("inside");
    }
    region
}

/// Every block to another place.
fn plan() -> Arc<Plan> {
    let span = LayerSpan {
        layer_count: 1,
        offset: 0,
        layer_stride: BYTES,
        block_stride: PAGE.into(),
        head_count: 1,
        token_count: 1,
        content_bytes: PAGE,
    };
    let groups = vec![GroupLayout { spans: vec![span] }];
    let layout = Layout::new(AxisOrder::Lbhnc, BLOCKS, BYTES, groups).expect("a sound layout");
    let source = (0..BLOCKS).map(BlockIndex).collect();
    let target = (0..BLOCKS).map(|block| BlockIndex(block * 37 % BLOCKS)).collect();
    Arc::new(
        Plan::compile(&layout, &layout, &[GroupBlocks { group: 0, source, target }]).expect("blocks of the layout"),
    )
}

/// Threads that do nearly all of the copying: the data thread may copy one byte a turn.
fn by_threads(threads: usize) -> CopyTransport {
    let settings = CopySettings { threads, turn_bytes_max: 1, split_bytes_min: 1, ..CopySettings::default() };
    let transport = CopyTransport::new(settings);
    assert_eq!(transport.threads(), threads);
    transport
}

fn post(transport: &mut CopyTransport, source: Arc<Region>, target: Arc<Region>) -> LeaseGate {
    let lease = LeaseGate::new(Time::NEVER);
    let source = Source::Region { region: source, lease: lease.clone() };
    let read = ReadWork { id: WorkId(1), plan: plan(), target, source, deadline: Time::NEVER };
    transport.endpoint(CopyTransport::ENDPOINT).expect("up").post(NOW, Work::Read(read)).expect("room");
    lease
}

/// Turns, and sleeps where a turn says so, until the work ends; how many turns that took.
fn finish(transport: &mut CopyTransport) -> (Result<u64, Fault>, u32) {
    let mut events = Vec::new();
    for turns in 1.. {
        let more = transport.turn(NOW, &mut events);
        if let [Event::Completed(Completion { id: WorkId(1), result })] = events[..] {
            return (result, turns);
        }
        assert_eq!(events, []);
        if !more {
            let fd = transport.wait_fd().expect("threads are at work");
            let woken = poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&PATIENCE));
            assert_eq!(woken, Ok(1), "nobody woke the data thread");
        }
    }
    unreachable!("turns have no end")
}

#[test]
fn threads_copy_what_the_data_thread_does_not() {
    for threads in [2, 4] {
        let meter = Meter::new();
        let (source, target) = (filled(&meter), region(&meter));
        let mut transport = by_threads(threads);
        post(&mut transport, Arc::clone(&source), Arc::clone(&target));
        let (result, turns) = finish(&mut transport);
        assert_eq!(result, Ok(BYTES));
        assert!(u64::from(turns) < BYTES, "{turns} turns of a byte each: no thread helped");
        for block in 0..BLOCKS {
            let place = |block: u32| u64::from(block) * u64::from(PAGE);
            let wanted = source.crc32c(0, place(block), PAGE.into());
            assert_eq!(target.crc32c(0, place(block * 37 % BLOCKS), PAGE.into()), wanted, "block {block}");
        }
    }
}

#[test]
fn a_cancelled_work_holds_its_memory_until_it_completes() {
    let meter = Meter::new();
    let mut transport = by_threads(3);
    let (source, target) = (filled(&meter), region(&meter));
    post(&mut transport, source, target);
    let mut events = Vec::new();
    transport.turn(NOW, &mut events);
    assert_eq!((events.len(), meter.regions()), (0, 2), "the transport alone holds them now");
    transport.endpoint(CopyTransport::ENDPOINT).expect("up").cancel(NOW, WorkId(1));
    assert_eq!(meter.regions(), 2);
    assert_eq!(finish(&mut transport).0, Err(Fault::Cancelled));
    assert_eq!(meter.regions(), 0, "mapped after the completion");
}

#[test]
fn nothing_is_written_after_a_lease_has_ended_the_work() {
    let meter = Meter::new();
    let mut transport = by_threads(2);
    let (source, target) = (filled(&meter), region(&meter));
    let lease = post(&mut transport, source, Arc::clone(&target));
    transport.turn(NOW, &mut Vec::new());
    lease.close();
    assert_eq!(finish(&mut transport).0, Err(Fault::LeaseEnded));
    assert_eq!(meter.regions(), 1, "the source was let go");
    let blank = vec![0; usize::try_from(BYTES).expect("small")];
    target.write(0, &blank).expect("inside");
    // Joins the threads: whatever one still wrote is there now.
    drop(transport);
    let mut found = vec![1; blank.len()];
    target.read(0, &mut found).expect("inside");
    assert!(found == blank, "a thread wrote after the completion");
}

#[test]
fn the_drop_joins_the_threads() {
    let meter = Meter::new();
    let mut transport = by_threads(4);
    let (source, target) = (filled(&meter), region(&meter));
    post(&mut transport, source, target);
    transport.turn(NOW, &mut Vec::new());
    drop(transport);
    assert_eq!(meter.regions(), 0, "a thread still holds memory");
}
