//! Drives one transport on the calling thread: turns, spins, sleeps, as the daemon's data thread does.
//!
//! ```text
//! turn ... turn -> nothing to do -> spin for a while -> poll(transport's fd, another fd, next deadline)
//! ```
//!
//! Waiting is part of what is measured: the spin time is the same at both ends and a parameter of the cell.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use kvferry_core::{Spin, Time};
use kvferry_transport::{EndpointId, Event, Fault, Transport, Work};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::{ClockId, Timespec, clock_gettime};

/// How long the data connections may take to stand.
pub(super) const CONNECT_MAX: Duration = Duration::from_secs(10);
/// How often a busy thread looks at the other fd.
const LOOK_EVERY_NS: u64 = 1_000_000;
/// Longest sleep without a deadline.
const SLEEP_MAX: Duration = Duration::from_secs(1);

/// A transport with one endpoint.
pub(super) struct Driver<T> {
    pub(super) transport: T,
    endpoint: EndpointId,
    origin: Instant,
    spin: Spin,
    looked_at: u64,
    /// How often it slept.
    pub(super) sleeps: u64,
    /// What the last turn reported.
    pub(super) events: Vec<Event>,
}

impl<T: Transport> Driver<T> {
    /// Time counts from `origin`, at every thread of the transport.
    pub(super) fn new(transport: T, endpoint: EndpointId, spin_us: u32, origin: Instant) -> Self {
        let spin = Spin::new(Duration::from_micros(spin_us.into()));
        let events = Vec::with_capacity(256);
        Self { transport, endpoint, origin, spin, looked_at: 0, sleeps: 0, events }
    }

    /// Nanoseconds since the origin.
    pub(super) fn now_ns(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    pub(super) fn now(&self) -> Time {
        Time::from_nanos(self.now_ns())
    }

    pub(super) fn post(&mut self, work: Work) -> Result<()> {
        let now = self.now();
        // Its event comes once all of the endpoint is over.
        let Some(endpoint) = self.transport.endpoint(self.endpoint) else {
            bail!("the far end went away: the data connection is gone")
        };
        if let Err((fault, work)) = endpoint.post(now, work) {
            bail!("transfer {} could not be posted: {fault}", work.id());
        }
        Ok(())
    }

    /// One turn; its events replace those of the last.
    pub(super) fn turn(&mut self) -> bool {
        self.events.clear();
        let now = self.now();
        let busy = self.transport.turn(now, &mut self.events) || !self.events.is_empty();
        if busy {
            self.spin.worked();
        }
        busy
    }

    /// After a turn with nothing to do: spins once, or sleeps until there is something to do, or `wake_at`. True: `also`
    /// is readable.
    pub(super) fn wait(&mut self, wake_at: Option<u64>, also: Option<BorrowedFd<'_>>) -> bool {
        let now = self.now_ns();
        if self.transport.may_spin() && self.spin.may_spin(Time::from_nanos(now)) {
            std::hint::spin_loop();
            return self.look(also);
        }
        let due = self.transport.next_deadline().map(|deadline| deadline.until(Time::from_nanos(now)));
        let woken = wake_at.map(|at| Duration::from_nanos(at.saturating_sub(now)));
        let timeout = due.into_iter().chain(woken).min().unwrap_or(SLEEP_MAX).min(SLEEP_MAX);
        let transport = self.transport.wait_fd().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        let has_own = transport.is_some();
        let also = also.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        let mut fds: Vec<_> = transport.into_iter().chain(also).collect();
        self.sleeps += 1;
        // An interrupted sleep is a short one.
        let _ = poll(&mut fds, Timespec::try_from(timeout).ok().as_ref());
        fds.get(usize::from(has_own)).is_some_and(|fd| !fd.revents().is_empty())
    }

    /// Whether the other fd is readable, asked now and then only: a system call costs more than a turn.
    pub(super) fn look(&mut self, also: Option<BorrowedFd<'_>>) -> bool {
        let now = self.now_ns();
        let Some(fd) = also.filter(|_| now - self.looked_at >= LOOK_EVERY_NS) else { return false };
        self.looked_at = now;
        let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
    }

    /// Turns until the endpoint stands.
    pub(super) fn wait_up(&mut self) -> Result<()> {
        let until = self.now_ns() + u64::try_from(CONNECT_MAX.as_nanos())?;
        loop {
            let busy = self.turn();
            match self.events.first() {
                Some(Event::EndpointUp(_)) => return Ok(()),
                Some(Event::EndpointDown(_, fault)) => bail!("the data connections did not come up: {fault}"),
                _ => {}
            }
            ensure!(self.now_ns() < until, "the data connections did not come up within {CONNECT_MAX:?}");
            if !busy {
                self.wait(Some(until), None);
            }
        }
    }

    /// By when the endpoint must stand.
    pub(super) fn connect_deadline(&self) -> Time {
        self.now().after(CONNECT_MAX)
    }
}

/// What a fault in the middle of a cell means to a person.
pub(super) fn explain(fault: Fault) -> &'static str {
    match fault {
        Fault::PeerClosed => "the far end went away in the middle of the measurement",
        Fault::Stalled => "the far end stopped moving bytes in the middle of the measurement",
        Fault::ChecksumMismatch => "bytes arrived damaged",
        _ => "a transfer failed",
    }
}

/// CPU time of all threads of this process, user and system.
pub(super) fn cpu_s() -> f64 {
    let spent = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(spent).unwrap_or_default().as_secs_f64()
}
