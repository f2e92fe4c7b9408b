//! The near end: starts transfers, measures them, and asks the far end for its part.
//!
//! ```text
//! Open -> connect -> warm up -> wipe -> Start -> timed: post, turn, record ... drain -> Stop -> check (last round)
//! ```
//!
//! Failure: a transfer that fails, a far end that goes away or stops, and content that is not what it must be end the
//! run with an error; no row is printed for a cell that did not move every byte.

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use kvferry_core::lease::LeaseGate;
use kvferry_core::{Time, WorkId};
use kvferry_memory::Region;
use kvferry_transport::{
    CopySettings, CopyTransport, Dial, Event, Key, ReadWork, Role, ServeWork, Source, Start, Transport, Work,
};

use super::arena::Arena;
use super::cell::{Cell, Direction, Via};
use super::content;
use super::control::{Ask, Line, Reply, unexpected};
use super::driver::{Driver, cpu_s, explain};
use super::identity::Identity;
use super::measure::{Calls, Round, histogram};
use super::pace::Pace;
use super::placement::Placement;
use super::progress::Progress;
use super::settings::{ENDPOINT, bind};
use crate::random;

/// What is moved before the timed part: one transfer at least, or this long. Windows open sooner; a scheduler takes
/// that long to find a core for each of four threads on two (docs/adr/0019).
const WARM_UP_NS: u64 = 150_000_000;
/// How long after its end an open loop may still start what was due.
const DRAIN_NS: u64 = 10_000_000_000;
/// One transfer may take this long.
const TRANSFER_MAX: Duration = Duration::from_secs(120);

/// One round of one cell; `line` leads to the far end, which a copy has not. With `check`, the content is compared.
pub(super) fn round(
    cell: &Cell,
    line: Option<&mut Line>,
    arena: &mut Arena,
    check: bool,
    progress: &Progress,
) -> Result<Round> {
    cell.check()?;
    let placement = Placement::of(cell)?;
    match (cell.transport, line) {
        (Via::Copy, _) => copy(cell, placement, arena, check, progress),
        (Via::Tcp, Some(line)) => tcp(cell, placement, line, arena, check, progress),
        (Via::Tcp, None) => Err(anyhow!("TCP needs a far end")),
    }
}

fn copy(cell: &Cell, placement: Placement, arena: &mut Arena, check: bool, progress: &Progress) -> Result<Round> {
    let (source, target) = (arena.source(cell.region_bytes)?, arena.target(cell.region_bytes)?);
    let works_max = usize::try_from(cell.depth)?;
    let transport =
        CopyTransport::new(CopySettings { works_max, threads: cell.copy_threads, ..CopySettings::default() });
    let driver = Driver::new(transport, CopyTransport::ENDPOINT, cell.spin_us, Instant::now());
    let moves = Moves::Copy { source, target: Arc::clone(&target) };
    let mut initiator = Initiator { cell, placement, driver, moves, next: 0, under_way: Vec::new() };
    initiator.warm_up()?;
    content::wipe(&target)?;
    let first = initiator.next;
    let mut round = initiator.timed(progress)?;
    if check {
        round.checked_bytes = initiator.placement.check(first, initiator.next, &target)?;
    }
    Ok(round)
}

fn tcp(
    cell: &Cell,
    placement: Placement,
    line: &mut Line,
    arena: &mut Arena,
    check: bool,
    progress: &Progress,
) -> Result<Round> {
    let (role, moves) = match cell.direction {
        Direction::Read => (Role::Reads, Moves::Read(arena.target(cell.region_bytes)?)),
        Direction::Write => (Role::Serves, Moves::Write(arena.source(cell.region_bytes)?)),
    };
    let keys = (0..cell.streams).map(|_| random::key()).collect::<Result<Vec<Key>>>()?;
    let identity = cell.tls.then(Identity::throw_away).transpose()?;
    let own = SocketAddr::new(line.stream().local_addr()?.ip(), 0);
    let origin = Instant::now();
    let transport = bind(own, cell, identity.as_ref(), origin).context("set up the transport")?;
    let port = match line.ask(&Ask::Open { cell: Box::new(cell.clone()), keys: keys.clone(), identity })? {
        Reply::Opened { port } => port,
        other => return unexpected(&other),
    };
    let address = SocketAddr::new(line.stream().peer_addr()?.ip(), port);
    let moved_by = format!("{}, {}", transport.choice().io, transport.congestion()?);
    let mut driver = Driver::new(transport, ENDPOINT, cell.spin_us, origin);
    let (now, deadline) = (driver.now(), driver.connect_deadline());
    driver.transport.connect(now, Dial { endpoint: ENDPOINT, role, address, keys, deadline })?;
    driver.wait_up().context("connect to the far end")?;
    let Reply::Ready = line.ask(&Ask::Ready)? else { bail!("the far end answered out of turn") };
    let mut initiator = Initiator { cell, placement, driver, moves, next: 0, under_way: Vec::new() };
    initiator.warm_up()?;
    if let Moves::Read(target) = &initiator.moves {
        content::wipe(target)?;
    }
    let Reply::Started = line.ask(&Ask::Start)? else { bail!("the far end answered out of turn") };
    let first = initiator.next;
    let calls_at_start = Calls::of(&initiator.driver);
    let mut round = initiator.timed(progress)?;
    round.moved_by = moved_by;
    round.calls = Calls::of(&initiator.driver).since(calls_at_start);
    let asked = check.then_some((first, initiator.next));
    match line.ask(&Ask::Stop { check: asked })? {
        Reply::Stopped { cpu_s, calls, checked_bytes } => {
            round.cpu_s += cpu_s;
            round.calls = round.calls.plus(calls);
            round.checked_bytes = checked_bytes;
        }
        other => return unexpected(&other),
    }
    if let (true, Moves::Read(target)) = (check, &initiator.moves) {
        round.checked_bytes = initiator.placement.check(first, initiator.next, target)?;
    }
    Ok(round)
}

/// What a transfer is made of, apart from its plan.
enum Moves {
    Copy {
        source: Arc<Region>,
        target: Arc<Region>,
    },
    /// Into the target.
    Read(Arc<Region>),
    /// Out of the source.
    Write(Arc<Region>),
}

struct Initiator<'a, T> {
    cell: &'a Cell,
    placement: Placement,
    driver: Driver<T>,
    moves: Moves,
    /// Number of the next transfer, on both ends.
    next: u64,
    /// Intended starts, in nanoseconds of the driver, of what is in flight.
    under_way: Vec<(WorkId, u64)>,
}

impl<T: Transport> Initiator<'_, T> {
    fn work(&self, id: WorkId) -> Work {
        let plan = Arc::clone(self.placement.plan(id.0));
        let deadline = self.driver.now().after(TRANSFER_MAX);
        let lease = LeaseGate::new(Time::NEVER);
        match &self.moves {
            Moves::Copy { source, target } => {
                let source = Source::Region { region: Arc::clone(source), lease };
                Work::Read(ReadWork { id, plan, target: Arc::clone(target), source, deadline })
            }
            Moves::Read(target) => {
                let source = Source::Peer { work: id };
                Work::Read(ReadWork { id, plan, target: Arc::clone(target), source, deadline })
            }
            Moves::Write(source) => {
                let (source, start) = (Arc::clone(source), Start::Pushed);
                Work::Serve(ServeWork { id, plan, source, lease, start, deadline })
            }
        }
    }

    /// Opens windows, wakes both ends, and finds out about trouble before anything is timed.
    fn warm_up(&mut self) -> Result<()> {
        let mut ignored = histogram()?;
        self.drive(Pace::new(None, WARM_UP_NS), &mut ignored, &Progress::default()).map(|_| ())
    }

    fn timed(&mut self, progress: &Progress) -> Result<Round> {
        let mut latencies = histogram()?;
        let pace = Pace::new(self.cell.rate, self.cell.duration_ms * 1_000_000);
        let cpu_at_start = cpu_s();
        let driven = self.drive(pace, &mut latencies, progress)?;
        Ok(Round {
            bytes: driven.transfers * self.cell.transfer_bytes(),
            seconds: Duration::from_nanos(driven.elapsed_ns).as_secs_f64(),
            transfers: driven.transfers,
            unstarted: driven.unstarted,
            latencies,
            cpu_s: cpu_s() - cpu_at_start,
            calls: Calls::default(),
            moved_by: String::new(),
            checked_bytes: 0,
        })
    }

    /// Starts what the pace says, until all of it has ended.
    fn drive(
        &mut self,
        mut pace: Pace,
        latencies: &mut hdrhistogram::Histogram<u64>,
        progress: &Progress,
    ) -> Result<Driven> {
        let depth = usize::try_from(self.cell.depth)?;
        let begun = self.driver.now_ns();
        let give_up = begun + self.cell.duration_ms * 1_000_000 + DRAIN_NS;
        let mut driven = Driven::default();
        loop {
            let now = self.driver.now_ns();
            while self.under_way.len() < depth && now < give_up {
                let Some(intended) = pace.due(now - begun) else { break };
                let id = WorkId(self.next);
                self.next += 1;
                self.under_way.push((id, begun + intended));
                self.driver.post(self.work(id))?;
            }
            if self.under_way.is_empty() && (pace.next_start(now - begun).is_none() || now >= give_up) {
                break;
            }
            let busy = self.driver.turn();
            if !self.driver.events.is_empty() {
                driven.elapsed_ns = self.driver.now_ns() - begun;
                driven.transfers += self.settle(begun + driven.elapsed_ns, latencies)?;
                progress.moved(driven.transfers * self.cell.transfer_bytes());
            }
            if !busy {
                let next_start = pace.next_start(now - begun).map(|start| begun + start);
                let has_room = self.under_way.len() < depth;
                self.driver.wait(next_start.filter(|_| has_room), None);
            }
        }
        let now = self.driver.now_ns() - begun;
        for intended in pace.overdue(now) {
            latencies.saturating_record(now - intended);
            driven.unstarted += 1;
        }
        Ok(driven)
    }

    /// Records what the last turn completed.
    fn settle(&mut self, now: u64, latencies: &mut hdrhistogram::Histogram<u64>) -> Result<u64> {
        let mut transfers = 0;
        for event in &self.driver.events {
            match *event {
                Event::Completed(completion) => {
                    let place = self.under_way.iter().position(|(id, _)| *id == completion.id);
                    let place = place.with_context(|| format!("transfer {} ended twice", completion.id))?;
                    let (_, intended) = self.under_way.swap_remove(place);
                    let bytes = completion.result.map_err(|fault| anyhow!(fault).context(explain(fault)))?;
                    let must = self.cell.transfer_bytes();
                    ensure!(bytes == must, "a transfer moved {bytes} bytes and not {must}");
                    latencies.saturating_record((now - intended).max(1));
                    transfers += 1;
                }
                Event::EndpointDown(_, fault) => return Err(anyhow!(fault).context(explain(fault))),
                Event::EndpointUp(_) => {}
            }
        }
        Ok(transfers)
    }
}

#[derive(Default)]
struct Driven {
    transfers: u64,
    unstarted: u64,
    /// From the beginning to the last completion.
    elapsed_ns: u64,
}

/// Sleeps end when they should: the kernel may otherwise delay them by 50 us to save wake-ups.
pub(super) fn sharpen_timers() {
    // Refused, the figures have that much more in them.
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
}
