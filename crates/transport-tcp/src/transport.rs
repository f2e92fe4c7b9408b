//! The transport: an event loop that is driven by turns, and threads beside it if it has any.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use kvferry_core::Time;
use kvferry_memory::Region;
use kvferry_transport::{Admission, Dial, Endpoint, EndpointId, Event, Fault, Transport};

use crate::Counters;
use crate::admission::Door;
use crate::event_loop::{EventLoop, Report};
use crate::joint::Place;
use crate::settings::Settings;
use crate::spread::Spread;
use crate::threads::{THREADS_MAX, Threads};
use crate::uring::Choice;

/// Moves bytes over TCP. See the crate's documentation.
pub struct TcpTransport {
    own: EventLoop,
    /// Other threads, and the endpoints that they share.
    spread: Option<Spread>,
    /// Empty between turns.
    reports: Vec<Report>,
    endpoints_max: usize,
}

impl TcpTransport {
    /// Listens on `address`; port 0 lets the kernel choose, see [`local_addr`](Self::local_addr). The thread that calls
    /// [`turn`](Transport::turn) does everything.
    ///
    /// # Errors
    ///
    /// What the operating system says to the address, to the settings' socket buffers or congestion control;
    /// `Unsupported` where [`Io::Uring`](crate::Io::Uring) was asked for and does not work, with the step that failed.
    pub fn bind(address: SocketAddr, settings: &Settings) -> io::Result<Self> {
        let settings = settings.clamped();
        let own = EventLoop::listening(address, &settings)?;
        Ok(Self { own, spread: None, reports: Vec::new(), endpoints_max: settings.endpoints_max })
    }

    /// The same with other threads beside that one.
    ///
    /// # Errors
    ///
    /// As for [`bind`](Self::bind), and what the operating system says to new threads.
    pub fn bind_threads(address: SocketAddr, settings: &Settings, threads: &Threads) -> io::Result<Self> {
        let mut transport = Self::bind(address, settings)?;
        let settings = settings.clamped();
        let count = threads.count.min(THREADS_MAX);
        if count > 1 && settings.endpoint_bytes_per_second_max.is_none() {
            transport.spread = Some(Spread::start(&transport.own, &settings, &Threads { count, ..threads.clone() })?);
        }
        Ok(transport)
    }

    /// Where it listens.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.door()?.local_addr()
    }

    /// The congestion control that data connections begin with.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    pub fn congestion(&self) -> io::Result<String> {
        self.door()?.congestion()
    }

    fn door(&self) -> io::Result<&Door> {
        self.own.door().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// What it has counted so far, all threads together; of others, up to their last report.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let others = self.spread.iter().flat_map(Spread::counters);
        others.fold(self.own.counters(), Counters::plus)
    }

    /// Threads that move bytes, with the one that calls [`turn`](Transport::turn).
    #[must_use]
    pub fn thread_count(&self) -> usize {
        self.spread.as_ref().map_or(1, Spread::thread_count)
    }

    /// What moves the bytes, and why.
    #[must_use]
    pub const fn choice(&self) -> &Choice {
        self.own.choice()
    }

    fn check_new(&self, id: EndpointId, stream_count: usize) -> Result<(), Fault> {
        self.own.check_new(id, stream_count)?;
        match &self.spread {
            Some(spread) if spread.is_known(id) => Err(Fault::Refused),
            Some(spread) if spread.endpoint_count() >= self.endpoints_max => Err(Fault::Full),
            _ => Ok(()),
        }
    }

    /// Where endpoints of this many streams go, if that is not the own event loop alone.
    fn spread_for(&mut self, stream_count: usize) -> (&mut EventLoop, Option<&mut Spread>) {
        (&mut self.own, self.spread.as_mut().filter(|_| stream_count > 1))
    }
}

impl Transport for TcpTransport {
    fn name(&self) -> &'static str {
        "tcp"
    }

    fn register(&mut self, _region: &Arc<Region>) -> Result<(), Fault> {
        // A socket reads and writes any mapped memory.
        Ok(())
    }

    fn deregister(&mut self, _region: &Arc<Region>) {}

    fn connect(&mut self, now: Time, dial: Dial) -> Result<(), Fault> {
        self.check_new(dial.endpoint, dial.keys.len())?;
        match self.spread_for(dial.keys.len()) {
            (own, Some(spread)) => spread.connect(own, now, &dial),
            (own, None) => own.connect(now, &dial, Place::default()),
        }
    }

    fn admit(&mut self, _now: Time, admission: Admission) -> Result<(), Fault> {
        self.check_new(admission.endpoint, admission.keys.len())?;
        match self.spread_for(admission.keys.len()) {
            (own, Some(spread)) => spread.admit(own, &admission),
            (own, None) => own.admit(&admission, Place::default()),
        }
        Ok(())
    }

    fn close(&mut self, now: Time, endpoint: EndpointId) {
        match &mut self.spread {
            Some(spread) if spread.is_known(endpoint) => spread.close(&mut self.own, now, endpoint),
            _ => self.own.close(endpoint, Fault::Cancelled),
        }
    }

    fn endpoint(&mut self, id: EndpointId) -> Option<&mut dyn Endpoint> {
        match &mut self.spread {
            Some(spread) if spread.is_known(id) => spread.endpoint(id),
            _ => self.own.endpoint(id).map(|endpoint| -> &mut dyn Endpoint { endpoint }),
        }
    }

    fn turn(&mut self, now: Time, events: &mut Vec<Event>) -> bool {
        let Self { own, spread, reports, .. } = self;
        if let Some(spread) = spread {
            spread.begin_turn(own, now);
        }
        let mut busy = own.turn(now, reports);
        for caller in std::mem::take(&mut own.foreign) {
            if !spread.as_ref().is_some_and(|spread| spread.forward(caller)) {
                own.refuse();
            }
        }
        match spread {
            Some(spread) => busy |= spread.end_turn(own, reports, events),
            None => events.extend(reports.drain(..).map(|report| report.event)),
        }
        busy
    }

    fn next_deadline(&self) -> Option<Time> {
        if self.spread.as_ref().is_some_and(Spread::has_told) {
            return Some(Time::default());
        }
        self.own.next_deadline()
    }

    fn may_spin(&self) -> bool {
        !self.spread.as_ref().is_some_and(Spread::is_shared)
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.spread.as_ref().map_or_else(|| self.own.wait_fd(), Spread::wait_fd))
    }
}

impl fmt::Debug for TcpTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpTransport")
            .field("door", &self.local_addr())
            .field("choice", self.choice())
            .field("counters", &self.counters())
            .finish_non_exhaustive()
    }
}
