//! What one end of a loopback connection costs by epoll and by `io_uring`, before any protocol: gathers of 512 KiB from
//! scattered blocks of 64 KiB into scattered blocks, and 64 B there and back.
//!
//! ```text
//! cargo run --release -p kvferry-transport-tcp --example rings -- [rounds] [MiB a cell] [streams,...] [ways,...]
//! region --(epoll: sendmsg | ring: sendmsg, sendmsg_zc, writev_fixed)--> socket
//! socket --(epoll: readv | ring: recvmsg, readv_fixed, multishot recv + copy)--> region
//! ```
//!
//! One thread an end. A cell prints the median of its rounds; rounds go through all cells in turn, so that a change of
//! the machine meets every cell. The result is in docs/adr/0011.

mod epoll;
mod flow;
mod ring;

use std::error::Error;
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use flow::{Field, Flow, Spent, cpu_time};

type Failure = Box<dyn Error + Send + Sync>;

/// How an end moves bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Epoll,
    /// Epoll with one call a stream and turn, as a ring has it.
    EpollOnce,
    Fixed,
    Multishot,
    Ring,
    ZeroCopy,
}

/// What an end does while there is nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    /// Sleeps in the call of its own kind: `epoll_wait`, `io_uring_enter`.
    Own,
    /// Sleeps in `poll`, as a thread must that waits for other things too.
    Poll,
    Spin,
}

const WAYS: [(&str, Way); 6] = [
    ("epoll", Way::Epoll),
    ("epoll-1", Way::EpollOnce),
    ("ring", Way::Ring),
    ("zc", Way::ZeroCopy),
    ("multishot", Way::Multishot),
    ("fixed", Way::Fixed),
];
const WAITS: [Wait; 3] = [Wait::Spin, Wait::Poll, Wait::Own];

impl Way {
    fn is_epoll(self) -> bool {
        matches!(self, Self::Epoll | Self::EpollOnce)
    }
}

/// One cell of the table and what its rounds came to.
struct Cell {
    way: (&'static str, Way),
    wait: Wait,
    streams: usize,
    rounds: Vec<Round>,
}

#[derive(Clone, Copy)]
struct Round {
    gbps: f64,
    cpu_s_per_gb: f64,
    calls_per_mib: f64,
}

fn pair(count: usize) -> Result<(Vec<TcpStream>, Vec<TcpStream>), Failure> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let (mut near, mut far) = (Vec::new(), Vec::new());
    for _ in 0..count {
        near.push(TcpStream::connect(listener.local_addr()?)?);
        far.push(listener.accept()?.0);
    }
    for socket in near.iter().chain(&far) {
        socket.set_nodelay(true)?;
    }
    Ok((near, far))
}

fn flows(sockets: Vec<TcpStream>, field: &Arc<Field>, bytes: u64) -> Vec<Flow> {
    let count = sockets.len();
    let flow = |(index, socket)| Flow::new(socket, Arc::clone(field), index, count, bytes / count as u64);
    sockets.into_iter().enumerate().map(flow).collect()
}

fn stream(cell: &Cell, fields: &[Arc<Field>; 2], bytes: u64) -> Result<Round, Failure> {
    let (near, far) = pair(cell.streams)?;
    let (out, into) = (flows(near, &fields[0], bytes), flows(far, &fields[1], bytes));
    let start = Arc::new(Barrier::new(2));
    let (way, wait, gate) = (cell.way.1, cell.wait, Arc::clone(&start));
    let sender = std::thread::spawn(move || -> Result<Spent, Failure> {
        gate.wait();
        let cpu = cpu_time();
        let calls = if way.is_epoll() { epoll::send(out, way, wait)? } else { ring::send(out, way, wait)? };
        Ok(Spent { calls, cpu: cpu_time() - cpu })
    });
    start.wait();
    let (begun, cpu) = (Instant::now(), cpu_time());
    let calls = if way.is_epoll() { epoll::receive(into, way, wait)? } else { ring::receive(into, way, wait)? };
    let (wall, cpu) = (begun.elapsed(), cpu_time() - cpu);
    let sent = sender.join().map_err(|_| "the sender panicked")??;
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    let (gigabytes, mebibytes) = (bytes as f64 / 1e9, (bytes >> 20) as f64);
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    let calls_per_mib = (calls + sent.calls) as f64 / mebibytes;
    Ok(Round {
        gbps: gigabytes / wall.as_secs_f64(),
        cpu_s_per_gb: (cpu + sent.cpu).as_secs_f64() / gigabytes,
        calls_per_mib,
    })
}

/// Median and 99th percentile of 64 B there and back.
fn echo(way: Way, wait: Wait, count: usize) -> Result<(Duration, Duration), Failure> {
    let (mut near, mut far) = pair(1)?;
    let (near, far) = (near.remove(0), far.remove(0));
    let answer = std::thread::spawn(move || {
        if way == Way::Epoll { epoll::echo(&far, wait, count, false) } else { ring::echo(&far, wait, count, false) }
    });
    let times =
        if way == Way::Epoll { epoll::echo(&near, wait, count, true) } else { ring::echo(&near, wait, count, true) };
    let mut times = times?;
    answer.join().map_err(|_| "the echo panicked")??;
    times.sort_unstable();
    Ok((times[times.len() / 2], times[times.len() * 99 / 100]))
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let argument = |place: usize, default: &str| arguments.get(place).map_or_else(|| default.to_owned(), Clone::clone);
    let rounds: usize = argument(0, "3").parse()?;
    let bytes = argument(1, "512").parse::<u64>()? << 20;
    let wanted = argument(3, "epoll,epoll-1,ring,zc,multishot,fixed");
    let mut cells = Vec::new();
    for streams in argument(2, "1,2,8").split(',') {
        for wait in WAITS {
            for way in WAYS.into_iter().filter(|(name, _)| wanted.split(',').any(|other| other == *name)) {
                cells.push(Cell { way, wait, streams: streams.parse()?, rounds: Vec::new() });
            }
        }
    }
    let fields = [Arc::new(Field::new(64 << 20, true)?), Arc::new(Field::new(64 << 20, false)?)];
    for _ in 0..rounds {
        for cell in &mut cells {
            fields[1].wipe()?;
            match stream(cell, &fields, bytes) {
                Ok(round) => cell.rounds.push(round),
                Err(error) => println!("{} {:?} x{}: {error}", cell.way.0, cell.wait, cell.streams),
            }
            fields[0].check(&fields[1], bytes / cell.streams as u64, cell.streams)?;
        }
    }
    println!("way        wait  streams   GB/s  [min  max]   CPU s/GB  calls/MiB");
    for cell in cells.iter().filter(|cell| !cell.rounds.is_empty()) {
        let gbps = || cell.rounds.iter().map(|round| round.gbps);
        println!(
            "{:<10} {:<5} {:>7}  {:>5.2}  [{:.2} {:.2}]  {:>8.3}  {:>9.2}",
            cell.way.0,
            format!("{:?}", cell.wait),
            cell.streams,
            median(gbps()),
            gbps().fold(f64::MAX, f64::min),
            gbps().fold(0.0, f64::max),
            median(cell.rounds.iter().map(|round| round.cpu_s_per_gb)),
            median(cell.rounds.iter().map(|round| round.calls_per_mib)),
        );
    }
    println!("64 B there and back, us: p50, p99");
    for wait in WAITS {
        for way in WAYS.into_iter().filter(|(_, way)| matches!(way, Way::Epoll | Way::Ring)) {
            let (p50, p99) = echo(way.1, wait, if wait == Wait::Spin { 30_000 } else { 5_000 })?;
            println!(
                "{:<10} {:<5} {:>6.1} {:>6.1}",
                way.0,
                format!("{wait:?}"),
                p50.as_secs_f64() * 1e6,
                p99.as_secs_f64() * 1e6
            );
        }
    }
    Ok(())
}
