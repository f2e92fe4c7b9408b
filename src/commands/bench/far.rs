//! The far end: serves or receives what the near end asks for, and never measures but its own CPU time.
//!
//! ```text
//! accept -> Hello -> Open: memory, plans, transport, works posted ahead -> Start ... Stop: CPU, check -> Open ...
//! ```
//!
//! Works are posted ahead of the near end's, and one more for each that completed: a transfer never waits for this
//! end to hear of it, as with a lease that was granted before. Limits: one near end at a time; [`AHEAD_MAX`] works.
//! Failure: what cannot be done is refused with the reason; a near end that goes away frees everything.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use kvferry_core::lease::LeaseGate;
use kvferry_core::{Time, WorkId};
use kvferry_memory::Region;
use kvferry_transport::{Admission, Event, Key, ReadWork, Role, ServeWork, Source, Start, Transport as _, Work};
use kvferry_transport_tcp::TcpTransport;
use rustix::process::{Signal, set_parent_process_death_signal};

use super::arena::Arena;
use super::ceilings::{echo, iperf, raw};
use super::cell::{Cell, Direction, Via};
use super::content;
use super::control::{Ask, Line, PATIENCE, PROTOCOL, Reply};
use super::driver::{Driver, cpu_s, explain};
use super::identity::Identity;
use super::measure::Calls;
use super::placement::Placement;
use super::settings::{ENDPOINT, bind};

/// Most works posted ahead; the transport's own limit.
const AHEAD_MAX: u64 = 1024;
/// How long a caller may take to say who it is.
const GREETING_MAX: Duration = Duration::from_secs(5);
/// How long a near end may think between two cells: it fills and checks memory of its own.
const IDLE_MAX: Duration = Duration::from_secs(600);
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Runs the far end of a benchmark between two hosts, until it is interrupted.
///
/// Whoever reaches the address may make it allocate memory and move bytes: listen on a network of your own.
#[derive(Args, Debug)]
pub(crate) struct Listen {
    /// Where the near end calls: an IP address of this host and a port, 0 for a free one.
    #[arg(long, value_name = "A:PORT")]
    address: SocketAddr,
    /// Ends with its parent process and after its first near end.
    #[arg(long, hide = true)]
    child: bool,
}

impl Listen {
    pub(crate) fn run(self) -> Result<()> {
        if self.child {
            set_parent_process_death_signal(Some(Signal::KILL)).context("bind this process's life to its parent's")?;
        }
        let listener = TcpListener::bind(self.address).with_context(|| format!("listen on {}", self.address))?;
        println!("listening on {}", listener.local_addr()?);
        loop {
            let (stream, caller) = listener.accept().context("accept a near end")?;
            if !self.child {
                eprintln!("{caller} measures");
            }
            let result = Session::new(stream).and_then(|mut session| session.run());
            if self.child {
                // Whatever went wrong, the near end was told, or is gone.
                return Ok(());
            }
            match result {
                Ok(()) => eprintln!("{caller} is done"),
                Err(error) => eprintln!("{caller} was let go: {error:#}"),
            }
        }
    }
}

/// One near end.
struct Session {
    line: Line,
    arena: Arena,
}

/// Why a cell ended.
enum Ended {
    /// The near end asked for something else.
    Asked,
    /// The near end is gone.
    Gone,
}

const fn asked((): ()) -> Ended {
    Ended::Asked
}

impl Session {
    fn new(stream: TcpStream) -> Result<Self> {
        Ok(Self { line: Line::new(stream)?, arena: Arena::default() })
    }

    fn run(&mut self) -> Result<()> {
        // While the first message does not come, nobody else is served.
        match self.line.receive(GREETING_MAX).inspect_err(|error| self.refuse_quietly(error))? {
            Some(Ask::Hello { protocol, version }) if protocol == PROTOCOL && version == VERSION => {
                self.line.send(&Reply::Hello { protocol: PROTOCOL, version: VERSION.to_owned() })?;
            }
            Some(Ask::Hello { version, .. }) => {
                return self.refuse(&anyhow::anyhow!(
                    "this end is kvferry {VERSION}, the near end {version}: use the same build"
                ));
            }
            Some(_) => return self.refuse(&anyhow::anyhow!("the first message must be a greeting")),
            None => return Ok(()),
        }
        loop {
            let done = match self.line.receive(IDLE_MAX).inspect_err(|error| self.refuse_quietly(error))? {
                None => return Ok(()),
                Some(Ask::Open { cell, keys, identity }) => self.serve(&cell, keys, identity.as_ref()),
                Some(Ask::Raw { way, key }) => raw::serve(&way, &key, &mut self.line, &mut self.arena).map(asked),
                Some(Ask::Echo { spin_us, key }) => echo::serve(spin_us, &key, &mut self.line).map(asked),
                Some(Ask::Iperf3) => iperf::serve(&mut self.line, PATIENCE).map(asked),
                Some(other) => Err(anyhow::anyhow!("{} makes no sense between cells", other.name())),
            };
            match done {
                Ok(Ended::Asked) => {}
                Ok(Ended::Gone) => return Ok(()),
                Err(error) => return self.refuse(&error),
            }
        }
    }

    /// Tells the near end why, and ends.
    fn refuse(&mut self, error: &anyhow::Error) -> Result<()> {
        self.line.send(&Reply::Refused { reason: format!("{error:#}") })?;
        bail!("{error:#}")
    }

    /// For bytes that may not come from a near end at all.
    fn refuse_quietly(&self, error: &anyhow::Error) {
        if let Ok(stream) = self.line.stream().try_clone()
            && let Ok(mut line) = Line::new(stream)
        {
            // It may be gone.
            let _ = line.send(&Reply::Refused { reason: format!("{error:#}") });
        }
    }

    /// One cell, from `Open` to `Stop`.
    fn serve(&mut self, cell: &Cell, keys: Vec<Key>, identity: Option<&Identity>) -> Result<Ended> {
        cell.check()?;
        if cell.transport != Via::Tcp || keys.len() != cell.streams {
            bail!("a cell over {} streams with {} keys makes no sense here", cell.streams, keys.len());
        }
        let placement = Placement::of(cell)?;
        let region = match cell.direction {
            Direction::Read => self.arena.source(cell.region_bytes)?,
            Direction::Write => self.arena.target(cell.region_bytes)?,
        };
        let address = SocketAddr::new(self.line.stream().local_addr()?.ip(), 0);
        let origin = Instant::now();
        let transport = bind(address, cell, identity, origin).context("listen for data connections")?;
        let port = transport.local_addr()?.port();
        let mut driver = Driver::new(transport, ENDPOINT, cell.spin_us, origin);
        let role = match cell.direction {
            Direction::Read => Role::Serves,
            Direction::Write => Role::Reads,
        };
        let (now, expires) = (driver.now(), driver.connect_deadline());
        driver.transport.admit(now, Admission { endpoint: ENDPOINT, role, keys, expires })?;
        self.line.send(&Reply::Opened { port })?;
        driver.wait_up()?;
        let mut cell =
            Serving { cell, placement, region, driver, posted: 0, cpu_at_start: 0.0, calls_at_start: Calls::default() };
        for _ in 0..(2 * u64::from(cell.cell.depth) + 16).min(AHEAD_MAX) {
            cell.post_next()?;
        }
        cell.run(&mut self.line)
    }
}

struct Serving<'a> {
    cell: &'a Cell,
    placement: Placement,
    region: Arc<Region>,
    driver: Driver<TcpTransport>,
    posted: u64,
    cpu_at_start: f64,
    calls_at_start: Calls,
}

impl Serving<'_> {
    fn post_next(&mut self) -> Result<()> {
        let id = WorkId(self.posted);
        let plan = Arc::clone(self.placement.plan(self.posted));
        let region = Arc::clone(&self.region);
        self.posted += 1;
        self.driver.post(match self.cell.direction {
            Direction::Read => Work::Serve(ServeWork {
                id,
                plan,
                source: region,
                lease: LeaseGate::new(Time::NEVER),
                start: Start::Fetched,
                deadline: Time::NEVER,
            }),
            Direction::Write => Work::Read(ReadWork {
                id,
                plan,
                target: region,
                source: Source::Pushed { work: id },
                deadline: Time::NEVER,
            }),
        })
    }

    /// Turns until the near end says stop.
    fn run(&mut self, line: &mut Line) -> Result<Ended> {
        loop {
            let busy = self.driver.turn();
            for place in 0..self.driver.events.len() {
                match self.driver.events[place] {
                    Event::Completed(completion) => {
                        if let Err(fault) = completion.result {
                            return self.end_badly(line, fault);
                        }
                        self.post_next()?;
                    }
                    Event::EndpointDown(_, fault) => return self.end_badly(line, fault),
                    Event::EndpointUp(_) => {}
                }
            }
            let asked = line.has_bytes()
                || if busy { self.driver.look(Some(line.as_fd())) } else { self.driver.wait(None, Some(line.as_fd())) };
            if asked && let Some(ended) = self.answer(line)? {
                return Ok(ended);
            }
        }
    }

    fn answer(&mut self, line: &mut Line) -> Result<Option<Ended>> {
        match line.receive(PATIENCE)? {
            None => return Ok(Some(Ended::Gone)),
            Some(Ask::Ready) => line.send(&Reply::Ready)?,
            Some(Ask::Start) => {
                if self.cell.direction == Direction::Write {
                    content::wipe(&self.region)?;
                }
                self.cpu_at_start = cpu_s();
                self.calls_at_start = Calls::of(&self.driver);
                line.send(&Reply::Started)?;
            }
            Some(Ask::Stop { check }) => {
                let cpu_s = cpu_s() - self.cpu_at_start;
                let calls = Calls::of(&self.driver).since(self.calls_at_start);
                let now = self.driver.now();
                self.driver.transport.close(now, ENDPOINT);
                let checked_bytes = match check {
                    Some((first, end)) if self.cell.direction == Direction::Write => {
                        self.placement.check(first, end, &self.region)?
                    }
                    _ => 0,
                };
                line.send(&Reply::Stopped { cpu_s, calls, checked_bytes })?;
                return Ok(Some(Ended::Asked));
            }
            Some(other) => bail!("{} makes no sense within a cell", other.name()),
        }
        Ok(None)
    }

    /// The data connections ended first: the near end may be gone too, and then there is nobody to tell.
    fn end_badly(&self, line: &mut Line, fault: kvferry_transport::Fault) -> Result<Ended> {
        match line.receive::<Ask>(PATIENCE) {
            Ok(None) | Err(_) => Ok(Ended::Gone),
            Ok(Some(_)) => bail!("{}: {fault} ({})", explain(fault), self.cell),
        }
    }
}
