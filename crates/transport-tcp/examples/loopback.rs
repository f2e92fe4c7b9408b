//! How fast the transport moves blocks over loopback: one holder thread, one reader thread, every byte verified.
//!
//! ```text
//! cargo run --release -p kvferry-transport-tcp --example loopback -- [streams] [rounds] [block bytes,...] [blocks] [clear|tls] [sums|nosums] [auto|epoll|uring]
//! ```
//!
//! Both threads spin for a while before they sleep, as the daemon's do. The target is wiped before each round and its
//! content is checked after the last; the rate is total bytes over total time, of rounds that include post and completion.

use std::error::Error;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use kvferry_core::layout::{AxisOrder, GroupLayout, LayerSpan, Layout};
use kvferry_core::lease::LeaseGate;
use kvferry_core::plan::{GroupBlocks, Plan};
use kvferry_core::{BlockIndex, Time, WorkId};
use kvferry_memory::{Meter, Region};
use kvferry_transport::{
    Admission, Dial, EndpointId, Event, ReadWork, Role, ServeWork, Source, Start, Transport, Work,
};
use kvferry_transport_tcp::{Counters, Io, Pem, Settings, TcpTransport, Tls};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

const ENDPOINT: EndpointId = EndpointId(1);
const SPIN: Duration = Duration::from_micros(50);

type Failure = Box<dyn Error + Send + Sync>;

/// A transport on its own thread, its events until the wanted one.
struct Driver {
    transport: TcpTransport,
    start: Instant,
    events: Vec<Event>,
}

impl Driver {
    fn now(&self) -> Time {
        Time::from_start(self.start.elapsed())
    }

    /// Turns until an event comes.
    fn next(&mut self) -> Result<Event, Failure> {
        let mut idle_since = Instant::now();
        loop {
            if let Some(event) = self.events.pop() {
                return Ok(event);
            }
            let now = self.now();
            if self.transport.turn(now, &mut self.events) {
                idle_since = Instant::now();
            } else if self.events.is_empty() && idle_since.elapsed() > SPIN {
                let wait = self.transport.next_deadline().unwrap_or(Time::NEVER).until(now).min(Duration::from_secs(1));
                let fd = self.transport.wait_fd().ok_or("no fd to wait for")?;
                poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&Timespec::try_from(wait)?))?;
                idle_since = Instant::now();
            } else {
                std::hint::spin_loop();
            }
        }
    }
}

fn layout(block_bytes: u32, block_count: u32) -> Result<Arc<Layout>, Failure> {
    let bytes = u64::from(block_bytes) * u64::from(block_count);
    let span = LayerSpan {
        layer_count: 1,
        offset: 0,
        layer_stride: bytes,
        block_stride: u64::from(block_bytes),
        head_count: 1,
        token_count: 1,
        content_bytes: block_bytes,
    };
    Ok(Arc::new(Layout::new(AxisOrder::Lbnhc, block_count, bytes, vec![GroupLayout { spans: vec![span] }])?))
}

fn region(bytes: u64) -> Result<Arc<Region>, Failure> {
    Ok(Region::map(kvferry_memory::create("loopback", bytes)?, bytes, &Meter::new())?)
}

/// Neighbours at neither end, so that nothing merges.
fn scattered(block_bytes: u32, block_count: u32) -> Result<Arc<Plan>, Failure> {
    let layout = layout(block_bytes, block_count)?;
    let half = block_count / 2;
    let source: Vec<_> = (0..half).map(|block| BlockIndex(block * 2)).collect();
    let target: Vec<_> = (0..half).map(|block| BlockIndex((half - 1 - block) * 2)).collect();
    Ok(Arc::new(Plan::compile(&layout, &layout, &[GroupBlocks { group: 0, source, target }])?))
}

fn serve(
    mut driver: Driver,
    plan: &Arc<Plan>,
    source: &Arc<Region>,
    go: &Receiver<WorkId>,
    ready: &SyncSender<()>,
) -> Result<Counters, Failure> {
    if driver.next()? != Event::EndpointUp(ENDPOINT) {
        return Err("the holder's endpoint did not come up".into());
    }
    while let Ok(id) = go.recv() {
        let lease = LeaseGate::new(Time::NEVER);
        let work = ServeWork {
            id,
            plan: Arc::clone(plan),
            source: Arc::clone(source),
            lease,
            start: Start::Fetched,
            deadline: Time::NEVER,
        };
        let now = driver.now();
        let endpoint = driver.transport.endpoint(ENDPOINT).ok_or("the endpoint is gone")?;
        endpoint.post(now, Work::Serve(work)).map_err(|(fault, _)| fault)?;
        ready.send(())?;
        match driver.next()? {
            Event::Completed(completion) => completion.result?,
            event => return Err(format!("{event:?}").into()),
        };
    }
    Ok(driver.transport.counters())
}

fn run(block_bytes: u32, block_count: u32, streams: usize, rounds: u32, settings: &Settings) -> Result<(), Failure> {
    let plan = scattered(block_bytes, block_count * 2)?;
    let region_bytes = u64::from(block_bytes) * u64::from(block_count) * 2;
    let (source, target) = (region(region_bytes)?, region(region_bytes)?);
    let zeros = vec![0_u8; usize::try_from(block_bytes)?];
    for block in 0..u64::from(block_count) * 2 {
        let pattern: Vec<u8> =
            (0..block_bytes).map(|byte| (u64::from(byte / 8) * 31 + block * 7 + 1).to_le_bytes()[0]).collect();
        source.write(block * u64::from(block_bytes), &pattern)?;
    }

    let start = Instant::now();
    let keys: Vec<[u8; 32]> = (0..streams).map(|stream| [u8::try_from(stream).unwrap_or(0); 32]).collect();
    let bind = || TcpTransport::bind(([127, 0, 0, 1], 0).into(), settings);
    let mut holder = Driver { transport: bind()?, start, events: Vec::new() };
    let mut reader = Driver { transport: bind()?, start, events: Vec::new() };
    let now = reader.now();
    let address = holder.transport.local_addr()?;
    holder
        .transport
        .admit(now, Admission { endpoint: ENDPOINT, role: Role::Serves, keys: keys.clone(), expires: Time::NEVER })?;
    reader
        .transport
        .connect(now, Dial { endpoint: ENDPOINT, role: Role::Reads, address, keys, deadline: Time::NEVER })?;

    let (go, go_receiver) = sync_channel(1);
    let (ready, ready_receiver) = sync_channel(1);
    let serving = {
        let (plan, source) = (Arc::clone(&plan), Arc::clone(&source));
        std::thread::spawn(move || serve(holder, &plan, &source, &go_receiver, &ready))
    };
    if reader.next()? != Event::EndpointUp(ENDPOINT) {
        return Err("the reader's endpoint did not come up".into());
    }

    let mut times = Vec::new();
    let mut cpu = Duration::ZERO;
    for round in 0..=rounds {
        for block in 0..u64::from(block_count) * 2 {
            target.write(block * u64::from(block_bytes), &zeros)?;
        }
        let id = WorkId(u64::from(round));
        go.send(id)?;
        ready_receiver.recv()?;
        let (begun, cpu_begun) = (Instant::now(), cpu_time());
        let read = ReadWork {
            id,
            plan: Arc::clone(&plan),
            target: Arc::clone(&target),
            source: Source::Peer { work: id },
            deadline: Time::NEVER,
        };
        let now = reader.now();
        let endpoint = reader.transport.endpoint(ENDPOINT).ok_or("the endpoint is gone")?;
        endpoint.post(now, Work::Read(read)).map_err(|(fault, _)| fault)?;
        match reader.next()? {
            Event::Completed(completion) if completion.result? == plan.bytes() => {}
            event => return Err(format!("{event:?}").into()),
        }
        // The first round touches the pages.
        if round > 0 {
            times.push(begun.elapsed().as_secs_f64());
            cpu += cpu_time().saturating_sub(cpu_begun);
        }
    }
    drop(go);
    let holder_counters = serving.join().map_err(|_| "the holder's thread panicked")??;
    check(&plan, &source, &target)?;

    let reader_counters = reader.transport.counters();
    let total: f64 = times.iter().sum();
    times.sort_by(f64::total_cmp);
    let bytes = f64::from(block_bytes) * f64::from(block_count);
    let per_call = |bytes: u64, calls: u64| bytes / calls.max(1) / 1024;
    let median = times[times.len() / 2];
    println!(
        "{block_count} x {block_bytes} B, {streams} streams: {:.2} GB/s mean, {:.2} median, {:.2} best; \
         {:.0} us median; {:.3} CPU s/GB; KiB a call: {} out, {} in; by {}",
        bytes * f64::from(rounds) / total / 1e9,
        bytes / median / 1e9,
        bytes / times[0] / 1e9,
        median * 1e6,
        cpu.as_secs_f64() / (bytes * f64::from(rounds) / 1e9),
        per_call(holder_counters.bytes_sent, holder_counters.send_calls),
        per_call(reader_counters.bytes_received, reader_counters.receive_calls),
        reader.transport.choice().io,
    );
    Ok(())
}

/// Both ends' processor time.
fn cpu_time() -> Duration {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(spent.tv_sec.unsigned_abs(), u32::try_from(spent.tv_nsec).unwrap_or(0))
}

/// Compares every piece of the plan, byte for byte.
fn check(plan: &Plan, source: &Region, target: &Region) -> Result<(), Failure> {
    for run in plan.runs() {
        for piece in 0..u64::from(run.count) {
            let (mut sent, mut landed) = (vec![0; usize::try_from(run.length)?], vec![0; usize::try_from(run.length)?]);
            source.read(run.source + piece * run.source_stride, &mut sent)?;
            target.read(run.target + piece * run.target_stride, &mut landed)?;
            if sent != landed {
                return Err(format!("piece {piece} of {run:?} differs").into());
            }
        }
    }
    Ok(())
}

/// A key and its own certificate, which both ends believe.
fn throw_away_tls() -> Result<Tls, Failure> {
    let name = "loopback.example";
    let made = rcgen::generate_simple_self_signed(vec![name.to_owned()])?;
    let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let (certificate, key) = (certificate.as_bytes(), key.as_bytes());
    Ok(Tls::new(&Pem { certificate, key, authority: certificate, name })?)
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let argument = |place: usize, default: &str| arguments.get(place).map_or_else(|| default.to_owned(), Clone::clone);
    let streams: usize = argument(0, "4").parse()?;
    let rounds: u32 = argument(1, "20").parse()?;
    let block_count: u32 = argument(3, "1024").parse()?;
    let is_encrypted = argument(4, "clear") == "tls";
    let settings = Settings {
        tls: is_encrypted.then(throw_away_tls).transpose()?.map(Arc::new),
        checksums: argument(5, "sums") == "sums",
        io: match argument(6, "auto").as_str() {
            "epoll" => Io::Epoll,
            "uring" => Io::Uring,
            _ => Io::Auto,
        },
        ..Settings::default()
    };
    for block_bytes in argument(2, "65536,1048576").split(',') {
        run(block_bytes.parse()?, block_count, streams, rounds, &settings)?;
    }
    Ok(())
}
