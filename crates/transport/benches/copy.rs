//! How fast blocks of one node are copied, beside a plain memcpy of the same blocks.
//!
//! `cargo bench -p kvferry-transport --bench copy [-- --busy N]`. Random blocks of two regions of 512 MiB, through
//! `CopyTransport` as the daemon uses it: post, turns, completion, with the second look. The ceiling is
//! `copy_nonoverlapping` of the same blocks in the same order on one thread. Rounds alternate between all of them; GB/s,
//! median (least to most), then the ratio to the ceiling's median. `--busy` starts threads that spin beside it.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use kvferry_core::layout::{AxisOrder, GroupLayout, LayerSpan, Layout};
use kvferry_core::lease::LeaseGate;
use kvferry_core::plan::{GroupBlocks, Plan};
use kvferry_core::{BlockIndex, Time, WorkId};
use kvferry_memory::{Meter, Region};
use kvferry_transport::{CopySettings, CopyTransport, Event, ReadWork, Source, Transport, Work};
use rustix::event::{PollFd, PollFlags, poll};

const REGION: u64 = 512 << 20;
const ROUNDS: usize = 9;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let busy = arguments.iter().position(|argument| argument == "--busy").and_then(|at| arguments.get(at + 1));
    let busy: usize = busy.map_or(0, |count| count.parse().expect("--busy takes a number of threads"));
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..busy {
            scope.spawn(|| {
                let mut rounds = 0_u64;
                while !over.load(Ordering::Relaxed) {
                    rounds = black_box(rounds + 1);
                }
            });
        }
        let (source, target) = (region(), region());
        println!("{busy} busy threads; GB/s: median (least to most) ratio to memcpy");
        let shapes = [(1024, 64 << 10), (64, 1 << 20), (8192, 16 << 10), (64, 64 << 10), (16, 64 << 10), (4, 64 << 10)];
        for (count, bytes) in shapes {
            report(count, bytes, &source, &target);
        }
        over.store(true, Ordering::Relaxed);
    });
}

fn region() -> Arc<Region> {
    let fd = kvferry_memory::create("kvferry-bench", REGION).expect("make memory");
    let region = Region::map(fd, REGION, &Meter::new()).expect("map memory");
    let page: Vec<u8> = (0..4096_u32).map(|place| place.wrapping_mul(0x9e37_79b9).to_be_bytes()[0]).collect();
    (0..REGION / 4096).for_each(|place| region.write(place * 4096, &page).expect("inside"));
    region
}

fn report(count: u32, block_bytes: u32, source: &Arc<Region>, target: &Arc<Region>) {
    let plans: Vec<Arc<Plan>> = (0..4).map(|seed| plan(count, block_bytes, seed)).collect();
    let streamed = CopySettings { stream_bytes_min: 0, split_bytes_min: 0, ..CopySettings::default() };
    let cached = CopySettings { stream_bytes_min: u64::MAX, ..streamed };
    let settings = [
        ("defaults", CopySettings::default()),
        ("defaults, 2 threads", CopySettings { threads: 2, ..CopySettings::default() }),
        ("streamed", streamed),
        ("streamed, 2 threads", CopySettings { threads: 2, ..streamed }),
        ("cached", cached),
        ("cached, 2 threads", CopySettings { threads: 2, ..cached }),
    ];
    let mut transports: Vec<_> = settings.iter().map(|(_, settings)| CopyTransport::new(*settings)).collect();
    let mut speeds = vec![Vec::new(); settings.len() + 1];
    for round in 0..ROUNDS {
        // Small transfers are repeated, so that every figure is of 64 MiB and more.
        let bytes = u64::from(count) * u64::from(block_bytes);
        let repeats = usize::try_from((64 << 20) / bytes).expect("small").max(1);
        let plans: Vec<_> = (0..repeats).map(|repeat| &plans[(round + repeat) % plans.len()]).collect();
        speeds[0].push(timed(&plans, |plan| memcpy(plan, source, target)));
        for (transport, speeds) in transports.iter_mut().zip(&mut speeds[1..]) {
            speeds.push(timed(&plans, |plan| carry(transport, plan, source, target)));
        }
    }
    println!("{count} x {} KiB", block_bytes >> 10);
    let mut ceiling = 0.0;
    for (name, speeds) in std::iter::once("memcpy").chain(settings.map(|(name, _)| name)).zip(&mut speeds) {
        speeds.sort_by(f64::total_cmp);
        let median = speeds[ROUNDS / 2];
        if ceiling == 0.0 {
            ceiling = median;
        }
        println!("  {name:20} {median:6.2} ({:5.2} to {:5.2}) {:5.2}", speeds[0], speeds[ROUNDS - 1], median / ceiling);
    }
}

/// Random blocks of the source to random blocks of the target.
fn plan(count: u32, block_bytes: u32, seed: u64) -> Arc<Plan> {
    let blocks = u32::try_from(REGION / u64::from(block_bytes)).expect("small");
    let span = LayerSpan {
        layer_count: 1,
        offset: 0,
        layer_stride: REGION,
        block_stride: block_bytes.into(),
        head_count: 1,
        token_count: 16,
        content_bytes: block_bytes / 16,
    };
    let groups = vec![GroupLayout { spans: vec![span] }];
    let layout = Layout::new(AxisOrder::Lbhnc, blocks, REGION, groups).expect("a sound layout");
    let pick = |seed| shuffled(blocks, seed).into_iter().take(count as usize).map(BlockIndex).collect();
    let blocks = GroupBlocks { group: 0, source: pick(2 * seed + 1), target: pick(2 * seed + 2) };
    Arc::new(Plan::compile(&layout, &layout, &[blocks]).expect("blocks of the layout"))
}

fn shuffled(count: u32, seed: u64) -> Vec<u32> {
    let mut numbers: Vec<u32> = (0..count).collect();
    let mut state = seed;
    for last in (1..numbers.len()).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        numbers.swap(last, usize::try_from(state >> 33).expect("31 bits") % (last + 1));
    }
    numbers
}

fn timed(plans: &[&Arc<Plan>], mut go: impl FnMut(&Arc<Plan>)) -> f64 {
    let start = Instant::now();
    plans.iter().for_each(|plan| go(plan));
    let bytes: u64 = plans.iter().map(|plan| plan.bytes()).sum();
    f64::from(u32::try_from(bytes).expect("small")) / 1e9 / start.elapsed().as_secs_f64()
}

fn memcpy(plan: &Arc<Plan>, source: &Region, target: &Region) {
    for run in plan.runs() {
        for piece in 0..u64::from(run.count) {
            let (from, to) = (run.source + piece * run.source_stride, run.target + piece * run.target_stride);
            target.copy_from(to, source, from, run.length).expect("inside");
        }
    }
    black_box(target);
}

fn carry(transport: &mut CopyTransport, plan: &Arc<Plan>, source: &Arc<Region>, target: &Arc<Region>) {
    let work = Work::Read(ReadWork {
        id: WorkId(1),
        plan: Arc::clone(plan),
        target: Arc::clone(target),
        source: Source::Region { region: Arc::clone(source), lease: LeaseGate::new(Time::NEVER) },
        deadline: Time::NEVER,
    });
    let now = Time::from_nanos(1);
    transport.endpoint(CopyTransport::ENDPOINT).expect("up").post(now, work).expect("room");
    let mut events = Vec::new();
    while events.is_empty() {
        if !transport.turn(now, &mut events) && events.is_empty() {
            let fd = transport.wait_fd().expect("another thread is at work");
            poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], None).expect("poll");
        }
    }
    assert!(
        matches!(events[..], [Event::Completed(completion)] if completion.result == Ok(plan.bytes())),
        "{events:?}"
    );
}
