//! Ping-pong of 64 bytes over TCP with the far end, over a Unix socket, and of a futex: what a wake-up costs.
//!
//! ```text
//! ping: write -> wait -> read ...      pong: wait -> read -> write ...      latency: one there and back
//! ```
//!
//! Both sides wait as the cell's ends do: they spin for its spin time and then sleep. Without spinning they sleep in
//! the call that reads. Limits: a partner that says nothing for [`WAIT_MAX`] is gone.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use hdrhistogram::Histogram;
use kvferry_transport::Key;
use kvferry_transport_tcp::Congestion;
use rustix::io::Errno;
use rustix::thread::futex;
use rustix::time::Timespec;

use crate::commands::bench::control::{Ask, Line, Reply, unexpected};
use crate::commands::bench::measure::histogram;
use crate::commands::bench::plain::{self, WAIT_MAX, readable};
use crate::random;

const MESSAGE_BYTES: usize = 64;
/// A far end's partner may think for this long in all.
const ECHO_MAX: Duration = Duration::from_secs(60);

/// Microseconds there and back.
#[derive(Clone, Copy, Debug)]
pub(super) struct RoundTrip {
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
}

impl RoundTrip {
    fn of(latencies: &Histogram<u64>) -> Result<Self> {
        ensure!(!latencies.is_empty(), "no round trip came back in time");
        let micros = |percent| latencies.value_at_percentile(percent) as f64 / 1e3;
        Ok(Self { p50_us: micros(50.0), p99_us: micros(99.0) })
    }
}

/// Near end: with the far end over TCP.
pub(super) fn tcp(line: &mut Line, spin: Duration, time: Duration) -> Result<RoundTrip> {
    let key = random::key()?;
    let spin_us = u32::try_from(spin.as_micros())?;
    let port = match line.ask(&Ask::Echo { spin_us, key })? {
        Reply::Opened { port } => port,
        other => return unexpected(&other),
    };
    let address = SocketAddr::new(line.stream().peer_addr()?.ip(), port);
    let stream = plain::dial(address, &key, 1, &Congestion::Auto)?.remove(0);
    stream.set_nonblocking(!spin.is_zero())?;
    let round_trip = ping(&stream, spin, time)?;
    drop(stream);
    match line.hear()? {
        Reply::Ready => Ok(round_trip),
        other => unexpected(&other),
    }
}

/// Far end: what [`tcp`] asks for.
pub(in crate::commands::bench) fn serve(spin_us: u32, key: &Key, line: &mut Line) -> Result<()> {
    ensure!(spin_us <= 1_000_000, "{spin_us} us of spinning are too many");
    let (listener, port) = plain::offer(line.stream().local_addr()?.ip(), &Congestion::Auto)?;
    line.send(&Reply::Opened { port })?;
    let stream: TcpStream = plain::accept(&listener, key, 1)?.remove(0);
    stream.set_nonblocking(spin_us > 0)?;
    pong(&stream, Duration::from_micros(spin_us.into()))?;
    line.send(&Reply::Ready)
}

/// Between two threads of this process.
pub(super) fn unix(spin: Duration, time: Duration) -> Result<RoundTrip> {
    let (near, far) = UnixStream::pair().context("make a pair of Unix sockets")?;
    for stream in [&near, &far] {
        stream.set_nonblocking(!spin.is_zero())?;
        stream.set_read_timeout(Some(WAIT_MAX))?;
    }
    std::thread::scope(|scope| {
        let partner = scope.spawn(move || pong(&far, spin));
        let round_trip = ping(&near, spin, time);
        drop(near);
        match partner.join() {
            Ok(done) => done.and(round_trip),
            Err(_) => bail!("the thread that echoes panicked"),
        }
    })
}

fn ping<S>(stream: &S, spin: Duration, time: Duration) -> Result<RoundTrip>
where
    S: AsFd,
    for<'a> &'a S: Read + Write,
{
    let mut message = [7; MESSAGE_BYTES];
    let mut latencies = histogram()?;
    let begun = Instant::now();
    while begun.elapsed() < time {
        let sent = Instant::now();
        send(stream, &message)?;
        ensure!(receive(stream, &mut message, spin)?, "the partner of a ping-pong went away");
        // The first tenth wakes both sides up.
        if begun.elapsed() > time / 10 {
            latencies.saturating_record(u64::try_from(sent.elapsed().as_nanos())?.max(1));
        }
    }
    RoundTrip::of(&latencies)
}

fn pong<S>(stream: &S, spin: Duration) -> Result<()>
where
    S: AsFd,
    for<'a> &'a S: Read + Write,
{
    let begun = Instant::now();
    let mut message = [0; MESSAGE_BYTES];
    while begun.elapsed() < ECHO_MAX && receive(stream, &mut message, spin)? {
        send(stream, &message)?;
    }
    Ok(())
}

fn send<S>(mut stream: &S, message: &[u8]) -> Result<()>
where
    for<'a> &'a S: Write,
{
    // 64 bytes fit into an empty socket buffer, blocking or not.
    stream.write_all(message).context("send a ping")
}

/// Reads a whole message. False: the partner closed.
fn receive<S>(mut stream: &S, message: &mut [u8], spin: Duration) -> Result<bool>
where
    S: AsFd,
    for<'a> &'a S: Read,
{
    let mut got = 0;
    let mut idle_since = None;
    while got < message.len() {
        match stream.read(&mut message[got..]) {
            Ok(0) => return Ok(false),
            Ok(count) => got += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                ensure!(!spin.is_zero(), "the partner of a ping-pong said nothing for {WAIT_MAX:?}");
                let since: Instant = *idle_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= spin {
                    ensure!(readable(stream, WAIT_MAX), "the partner of a ping-pong said nothing for {WAIT_MAX:?}");
                } else {
                    std::hint::spin_loop();
                }
            }
            // The partner left without reading the last echo.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(false),
            Err(error) => return Err(error).context("receive a ping"),
        }
    }
    Ok(true)
}

/// Two threads that wake each other by a futex, each asleep before it is woken.
pub(super) fn futex(time: Duration) -> Result<RoundTrip> {
    let turn = AtomicU32::new(NEAR);
    let mut latencies = histogram()?;
    std::thread::scope(|scope| {
        scope.spawn(|| while hand_over(&turn, FAR, NEAR) {});
        let begun = Instant::now();
        while begun.elapsed() < time {
            let sent = Instant::now();
            turn.store(FAR, Ordering::Release);
            // Fails for no waiter alone, and then there is none to wake.
            let _ = futex::wake(&turn, futex::Flags::PRIVATE, 1);
            await_turn(&turn, NEAR);
            latencies.saturating_record(u64::try_from(sent.elapsed().as_nanos()).unwrap_or(u64::MAX).max(1));
        }
        turn.store(OVER, Ordering::Release);
        let _ = futex::wake(&turn, futex::Flags::PRIVATE, 1);
    });
    RoundTrip::of(&latencies)
}

const NEAR: u32 = 0;
const FAR: u32 = 1;
const OVER: u32 = 2;

/// Waits for the own turn and gives it to the other. False: it is over.
fn hand_over(turn: &AtomicU32, own: u32, other: u32) -> bool {
    if await_turn(turn, own) == OVER {
        return false;
    }
    turn.store(other, Ordering::Release);
    let _ = futex::wake(turn, futex::Flags::PRIVATE, 1);
    true
}

fn await_turn(turn: &AtomicU32, own: u32) -> u32 {
    loop {
        let now = turn.load(Ordering::Acquire);
        if now == own || now == OVER {
            return now;
        }
        let a_second = Timespec { tv_sec: 1, tv_nsec: 0 };
        match futex::wait(turn, futex::Flags::PRIVATE, now, Some(&a_second)) {
            // Changed meanwhile, interrupted, late or woken: the loop looks again.
            Ok(()) | Err(Errno::AGAIN | Errno::INTR | Errno::TIMEDOUT) => {}
            Err(_) => std::thread::yield_now(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_come_back() {
        let time = Duration::from_millis(20);
        for spin in [Duration::ZERO, Duration::from_micros(50)] {
            let unix = unix(spin, time).expect("a round trip");
            assert!(unix.p50_us > 0.0 && unix.p50_us <= unix.p99_us, "{unix:?}");
        }
        let futex = futex(time).expect("a round trip");
        assert!(futex.p50_us > 0.0 && futex.p50_us <= futex.p99_us, "{futex:?}");
    }
}
