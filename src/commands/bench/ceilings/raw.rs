//! Raw sockets between the same two processes, over the same memory: large calls and nothing else.
//!
//! ```text
//! sender: source region, one call after the other, for a while, then end of stream
//! receiver: target region, until the end of the stream: all bytes by all time since the connections stood
//! ```
//!
//! One thread a stream at each end. Asleep, calls block in the kernel; spinning, they return and are made again. Why
//! many ways: on loopback the size of a call and who sleeps decide more than anything else, and no one choice is best
//! on all machines.

use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail, ensure};
use kvferry_memory::Region;
use kvferry_transport::{Fault, Key};
use kvferry_transport_tcp::{Congestion, RawStream};
use serde::{Deserialize, Serialize};

use crate::commands::bench::arena::Arena;
use crate::commands::bench::cell::Direction;
use crate::commands::bench::control::{Ask, Line, Reply, unexpected};
use crate::commands::bench::plain::{self, WAIT_MAX};
use crate::random;

const CALL_BYTES_MAX: u64 = 64 << 20;
const STREAMS_MAX: usize = 16;

/// One way to use raw sockets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::commands::bench) struct RawWay {
    /// As seen from the near end.
    pub(super) direction: Direction,
    pub(super) call_bytes: u64,
    /// Whether both ends spin instead of sleeping in the kernel.
    pub(super) spins: bool,
    pub(super) streams: usize,
    /// Whether cubic replaces a system's BBR, as the transport does by itself; otherwise whatever the system says.
    pub(super) unpaced: bool,
    pub(super) millis: u64,
    pub(super) region_bytes: u64,
}

impl RawWay {
    /// Every way worth trying.
    pub(super) fn all(direction: Direction, millis: u64, region_bytes: u64) -> Vec<Self> {
        let mut ways = Vec::new();
        for streams in [1, 2] {
            for spins in [false, true] {
                for call_bytes in [256 << 10, 512 << 10, 1 << 20] {
                    for unpaced in [false, true] {
                        ways.push(Self { direction, call_bytes, spins, streams, unpaced, millis, region_bytes });
                    }
                }
            }
        }
        ways
    }

    /// `raw_tcp_512K_spin_2_unpaced_gbps`.
    pub(super) fn name(&self) -> String {
        let wait = if self.spins { "spin" } else { "sleep" };
        let congestion = if self.unpaced { "_unpaced" } else { "" };
        format!("raw_tcp_{}K_{wait}_{}{congestion}_gbps", self.call_bytes >> 10, self.streams)
    }

    const fn congestion(&self) -> Congestion {
        if self.unpaced { Congestion::Auto } else { Congestion::System }
    }

    fn check(&self) -> Result<()> {
        let sane = (1..=CALL_BYTES_MAX).contains(&self.call_bytes)
            && (1..=STREAMS_MAX).contains(&self.streams)
            && self.millis <= 60_000
            && self.region_bytes >= self.streams as u64;
        ensure!(sane, "these raw sockets make no sense: {self:?}");
        Ok(())
    }
}

/// Near end: GB/s this way.
pub(super) fn measure(way: &RawWay, line: &mut Line, arena: &mut Arena) -> Result<f64> {
    let key = random::key()?;
    let region = match way.direction {
        Direction::Read => arena.target(way.region_bytes)?,
        Direction::Write => arena.source(way.region_bytes)?,
    };
    let port = match line.ask(&Ask::Raw { way: way.clone(), key })? {
        Reply::Opened { port } => port,
        other => return unexpected(&other),
    };
    let address = SocketAddr::new(line.stream().peer_addr()?.ip(), port);
    let streams = plain::dial(address, &key, way.streams, &way.congestion())?;
    let own = pump(way, streams, &region, way.direction == Direction::Write)?;
    match line.hear()? {
        Reply::Moved { bytes, seconds } => {
            let (bytes, seconds) = if way.direction == Direction::Write { (bytes, seconds) } else { own };
            ensure!(seconds > 0.0, "raw sockets moved bytes in no time");
            Ok(bytes as f64 / seconds / 1e9)
        }
        other => unexpected(&other),
    }
}

/// Far end: what [`measure`] asks for.
pub(in crate::commands::bench) fn serve(way: &RawWay, key: &Key, line: &mut Line, arena: &mut Arena) -> Result<()> {
    way.check()?;
    let sends = way.direction == Direction::Read;
    let region = if sends { arena.source(way.region_bytes)? } else { arena.target(way.region_bytes)? };
    let (listener, port) = plain::offer(line.stream().local_addr()?.ip(), &way.congestion())?;
    line.send(&Reply::Opened { port })?;
    let streams = plain::accept(&listener, key, way.streams)?;
    let (bytes, seconds) = pump(way, streams, &region, sends)?;
    line.send(&Reply::Moved { bytes, seconds })
}

/// Moves bytes one way over all streams, each with a part of the region of its own.
fn pump(way: &RawWay, streams: Vec<TcpStream>, region: &Arc<Region>, sends: bool) -> Result<(u64, f64)> {
    let begun = Instant::now();
    let part = way.region_bytes / way.streams as u64;
    let (call, time) = (way.call_bytes.min(part), Duration::from_millis(way.millis));
    let bytes = std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for (number, socket) in streams.into_iter().enumerate() {
            socket.set_nonblocking(way.spins)?;
            let first = part * number as u64;
            threads.push(scope.spawn(move || {
                let mut cursor = Cursor { region, first, part, call, at: 0 };
                let mut stream = RawStream::new(socket);
                if sends { cursor.send(&mut stream, begun, time) } else { cursor.receive(&mut stream, begun, time) }
            }));
        }
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<u64>>| {
            thread.join().map_err(|_| anyhow!("a thread of raw sockets panicked"))?
        };
        threads.into_iter().map(join).sum::<Result<u64>>()
    })?;
    Ok((bytes, begun.elapsed().as_secs_f64()))
}

/// Goes round and round through a part of a region, a call at a time.
struct Cursor<'a> {
    region: &'a Arc<Region>,
    first: u64,
    part: u64,
    call: u64,
    at: u64,
}

impl Cursor<'_> {
    /// The next call's bytes: offset and length.
    fn next(&self) -> (u64, u64) {
        (self.first + self.at, self.call.min(self.part - self.at))
    }

    fn advance(&mut self, bytes: u64) {
        self.at = (self.at + bytes) % self.part;
    }

    fn send(&mut self, stream: &mut RawStream, begun: Instant, time: Duration) -> Result<u64> {
        let mut sent = 0;
        while begun.elapsed() < time {
            let (offset, length) = self.next();
            let bytes = stream.send(self.region, offset, length)?;
            self.advance(bytes);
            sent += bytes;
        }
        stream.socket().shutdown(Shutdown::Write)?;
        Ok(sent)
    }

    fn receive(&mut self, stream: &mut RawStream, begun: Instant, time: Duration) -> Result<u64> {
        let mut received = 0;
        loop {
            let (offset, length) = self.next();
            match stream.receive(self.region, offset, length) {
                Ok(0) if begun.elapsed() > time + WAIT_MAX => bail!("raw sockets stood still"),
                Ok(bytes) => {
                    self.advance(bytes);
                    received += bytes;
                }
                Err(Fault::PeerClosed) => return Ok(received),
                Err(fault) => return Err(fault.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_have_names_of_their_own() {
        let ways = RawWay::all(Direction::Read, 1, 1 << 20);
        let mut names: Vec<_> = ways.iter().map(RawWay::name).collect();
        assert!(names.contains(&"raw_tcp_512K_spin_2_gbps".to_owned()), "{names:?}");
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 24);
        assert!(ways.iter().all(|way| way.check().is_ok()));
    }

    #[test]
    fn nonsense_from_a_peer_is_refused() {
        let way = RawWay::all(Direction::Read, 1, 1 << 20).remove(0);
        for bad in [
            RawWay { call_bytes: 0, ..way.clone() },
            RawWay { call_bytes: u64::MAX, ..way.clone() },
            RawWay { streams: 0, ..way.clone() },
            RawWay { streams: 1000, ..way.clone() },
            RawWay { millis: u64::MAX, ..way.clone() },
            RawWay { region_bytes: 0, ..way },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_cursor_stays_in_its_part() {
        let fd = kvferry_memory::create("cursor", 4096).expect("a memfd");
        let region = Region::map(fd, 4096, &kvferry_memory::Meter::new()).expect("a region");
        let mut cursor = Cursor { region: &region, first: 1000, part: 100, call: 64, at: 0 };
        assert_eq!(cursor.next(), (1000, 64));
        cursor.advance(64);
        assert_eq!(cursor.next(), (1064, 36));
        cursor.advance(36);
        assert_eq!(cursor.next(), (1000, 64));
    }
}
