//! `kvferry bench hop`: how long a request takes from an engine to its daemon and back, and what that costs at least.
//!
//! ```text
//! here: engine --redeem--> daemon (child process): taken, checked, in its tables --Accepted--> here
//! over rings, over the socket
//!   awake: one request after another; apart: 20 us after the last outcome, spent computing; asleep: after 2 ms of sleep
//! beside: ping-pong over a Unix socket, and waking a thread that sleeps on a futex, or on an eventfd in an epoll
//! ```
//!
//! Like for like: "asleep" over a ring has one wake-up, the daemon's, by eventfd. The caller looks for the answer, since
//! that has paid off before, as the caller of the rows "wake a thread" does; these have one wake-up, too, and no work.
//! Both ways asleep, with two wake-ups, is what the ping-pong over a socket shows.
//!
//! The redeem is a real one and fully checked. Its lease has ended, so that no bytes move and nothing but the hop is
//! measured. Nobody is pinned to a core unless `--pin` asks for it ([`cores`]). Where cores are short everything here is
//! slower, the ratios less so.

mod cores;
mod daemon;
mod limits;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use kvferry_client::{
    AttachSpec, Client, ClientConfig, Event, GroupLayout, LayerSpan, Layout, RingSettings, Role, WantedBlocks,
};
use serde::Serialize;

use self::cores::Cores;
use self::daemon::ChildDaemon;
use self::limits::{Bed, Sleeper};
use super::measure;

/// What the daemon gets to answer, at most.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long everybody is left alone before a request that is to find them asleep.
const PAUSE: Duration = Duration::from_millis(2);
/// Between an outcome and the next request of an engine that is busy meanwhile.
const APART: Duration = Duration::from_micros(20);
/// Requests before those that count.
const WARM_UP: u32 = 200;
const BLOCKS: u32 = 16;

/// Measures the local hop: submit to accept over rings and socket, beside a socket's ping-pong and a futex wake.
#[derive(Args, Debug)]
pub(super) struct Hop {
    /// Requests that follow each other at once, or 20 us apart.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(100..=10_000_000))]
    awake: u32,
    /// Requests with a pause of 2 ms before each.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    asleep: u32,
    /// How long the idle daemon is watched, seconds.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    idle_s: u64,
    /// How long the daemon looks for a request before it sleeps, microseconds; without it the daemon's default.
    #[arg(long, value_parser = clap::value_parser!(u64).range(..=10_000))]
    ring_spin_us: Option<u64>,
    /// Keeps this process on one core and the daemon on another, so that who sleeps has its core asleep too.
    #[arg(long)]
    pin: bool,
    /// Prints one JSON object for each row.
    #[arg(long)]
    json: bool,
}

/// What the engine does before it asks.
#[derive(Clone, Copy, Debug)]
enum Pause {
    /// Nothing.
    None,
    /// It computes.
    Busy(Duration),
    /// It sleeps.
    Asleep(Duration),
}

impl Pause {
    fn take(self) {
        match self {
            Self::None => {}
            Self::Busy(pause) => {
                let since = Instant::now();
                while since.elapsed() < pause {
                    std::hint::spin_loop();
                }
            }
            Self::Asleep(pause) => std::thread::sleep(pause),
        }
    }
}

/// One line of the result.
#[derive(Serialize)]
struct Row {
    what: &'static str,
    waiting: &'static str,
    p50_us: f64,
    p99_us: f64,
    samples: u64,
}

impl Hop {
    pub(super) fn run(self) -> Result<()> {
        let cores = if self.pin { Cores::apart()? } else { Cores::ANY };
        let daemon = ChildDaemon::start(self.ring_spin_us, cores)?;
        let mut engines = Vec::new();
        for (what, rings) in [("submit to accept, ring", true), ("submit to accept, socket", false)] {
            engines.push((what, Engine::attach(&daemon, what, rings)?));
        }
        let mut rows = Vec::new();
        let modes = [
            ("awake", self.awake, Pause::None),
            ("apart", self.awake, Pause::Busy(APART)),
            ("asleep", self.asleep, Pause::Asleep(PAUSE)),
        ];
        for (waiting, count, pause) in modes {
            for (what, engine) in &mut engines {
                rows.push(sample(what, waiting, count, pause, || engine.submit())?);
            }
            let mut pair = limits::SocketPair::start(!matches!(pause, Pause::Asleep(_)), cores)?;
            rows.push(sample("ping-pong, Unix socket", waiting, count, pause, || pair.round())?);
        }
        for (what, bed) in [("wake a thread, futex", Bed::Futex), ("wake a thread, epoll", Bed::Epoll)] {
            let sleeper = Sleeper::start(bed, cores)?;
            rows.push(sample(what, "asleep", self.asleep, Pause::Asleep(PAUSE), || sleeper.wake())?);
        }
        let idle = daemon.idle_share(Duration::from_secs(self.idle_s))?;
        let sides = [cores::of(std::process::id())?, cores::of(daemon.id())?];
        self.print(&rows, idle, &sides)
    }

    fn print(&self, rows: &[Row], idle: f64, sides: &[BTreeSet<usize>; 2]) -> Result<()> {
        if self.json {
            for row in rows {
                println!("{}", serde_json::to_string(row)?);
            }
            println!("{}", serde_json::json!({ "what": "cores", "here": sides[0], "daemon": sides[1] }));
            println!("{}", serde_json::json!({ "what": "idle daemon", "core_share": idle }));
            return Ok(());
        }
        println!("{:26}  {:7}  {:>9}  {:>9}  {:>8}", "", "", "p50 us", "p99 us", "samples");
        for row in rows {
            println!("{:26}  {:7}  {:9.1}  {:9.1}  {:8}", row.what, row.waiting, row.p50_us, row.p99_us, row.samples);
        }
        println!("this process on cores {:?}, the daemon on {:?}", sides[0], sides[1]);
        println!("idle daemon, two engines attached: {:.2} % of a core", idle * 100.0);
        Ok(())
    }
}

/// Times `once`, again and again.
fn sample(
    what: &'static str,
    waiting: &'static str,
    count: u32,
    pause: Pause,
    mut once: impl FnMut() -> Result<Duration>,
) -> Result<Row> {
    let mut latencies = measure::histogram()?;
    // Pauses make samples dear, and leave nothing warm.
    let warm_up = if matches!(pause, Pause::Asleep(_)) { WARM_UP / 10 } else { WARM_UP };
    for number in 0..warm_up + count {
        pause.take();
        let took = u64::try_from(once().with_context(|| format!("{what}, {waiting}"))?.as_nanos())?;
        if number >= warm_up {
            latencies.record(took.max(1)).context("a latency out of range")?;
        }
    }
    let micros = |quantile: f64| latencies.value_at_quantile(quantile) as f64 / 1e3;
    Ok(Row { what, waiting, p50_us: micros(0.5), p99_us: micros(0.99), samples: latencies.len() })
}

/// An engine whose one lease has ended.
struct Engine {
    worker: Client,
    _scheduler: Client,
    ticket: String,
    wanted: [WantedBlocks; 1],
}

impl Engine {
    fn attach(daemon: &ChildDaemon, name: &str, rings: bool) -> Result<Self> {
        let layout = layout();
        let region = kvferry_memory::create("kvferry-bench", layout.region_bytes).context("create a cache")?;
        let client = |role| {
            let (socket, engine_id) = (daemon.socket(), name.to_owned());
            let config = ClientConfig { socket, engine_id, role, reply_timeout: PATIENCE };
            Client::start_with(config, RingSettings { enabled: rings, ..Default::default() })
        };
        let (worker, scheduler) = (client(Role::Worker)?, client(Role::Scheduler)?);
        let spec = AttachSpec {
            rank: 0,
            rank_count: 1,
            fingerprint: [0; 32],
            layout,
            region: Arc::new(region),
            model: String::new(),
        };
        worker.attach(spec);
        ensure!(
            worker.wait_connected(PATIENCE) && scheduler.wait_connected(PATIENCE),
            "the daemon did not take the engine: {:?}",
            worker.poll()
        );
        ensure!(worker.is_on_ring() == rings, "the daemon offers no rings");
        let granted = scheduler.grant("hop", &[vec![1]], 60_000, &[]).context("lease a block")?;
        scheduler.relinquish(&granted.ticket);
        let wanted = [WantedBlocks { positions: vec![0], targets: vec![2] }];
        Ok(Self { worker, _scheduler: scheduler, ticket: granted.ticket, wanted })
    }

    /// How long it takes from the submission to the daemon's word that it has taken it. Waits for the outcome as well, so
    /// that the next submission finds a daemon with nothing else to do.
    fn submit(&mut self) -> Result<Duration> {
        let since = Instant::now();
        let (submitted, accepted) = self.worker.redeem_acknowledged("hop", &self.ticket, &self.wanted, 10_000, &[]);
        let took = since.elapsed();
        accepted.context("submit a redeem")?;
        while since.elapsed() < PATIENCE {
            for event in self.worker.poll() {
                if let Event::TransferDone { key, failure, .. } = event
                    && key == submitted
                {
                    ensure!(failure.is_some(), "bytes moved under a lease that has ended");
                    return Ok(took);
                }
            }
            std::hint::spin_loop();
        }
        bail!("no outcome within {PATIENCE:?}")
    }
}

fn layout() -> Layout {
    let span = LayerSpan {
        layer_count: 1,
        offset: 0,
        layer_stride: 4096 * u64::from(BLOCKS),
        block_stride: 4096,
        head_count: 2,
        token_count: 16,
        content_bytes: 128,
    };
    Layout {
        order: "LBHNC".to_owned(),
        block_count: BLOCKS,
        region_bytes: 4096 * u64::from(BLOCKS),
        groups: vec![GroupLayout { spans: vec![span] }],
    }
}
