//! Data threads beside the one that owns the transport, each with an event loop of its own.
//!
//! ```text
//! Spread -> Order -> [mailbox] -> thread: connect, admit, post, cancel, close ... turn -> Report -> [mailbox] -> Spread
//! ```
//!
//! One thread moves about 5 GB/s over loopback; a faster network, or two idle cores, need more (docs/adr/0019). A
//! thread owns what it drives, shares no lock but those of the mailboxes, and sleeps when it has nothing to do: it never
//! spins, as what it carries is large, and the threads at the other end need the cores (measured, docs/adr/0019).
//!
//! Limits: [`THREADS_MAX`]; orders are bounded by the works, endpoints and callers that there may be. Shutdown: the
//! handle's drop ends the thread, after at most one turn, and waits for it.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use kvferry_core::{Time, WorkId};
use kvferry_transport::{Admission, Completion, Dial, EndpointId, Event, Fault, Work};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::Counters;
use crate::admission::Caller;
use crate::event_loop::{EventLoop, Report};
use crate::joint::Place;
use crate::mailbox::Mailbox;
use crate::settings::Settings;
use crate::share::Shares;

/// Most threads that drive one transport.
pub const THREADS_MAX: usize = 16;

/// Longest sleep without a deadline.
const SLEEP_MAX: Duration = Duration::from_secs(60);

/// How many threads drive a transport, and what those need that are not the caller's.
#[derive(Clone)]
pub struct Threads {
    /// All of them, with the one that calls [`turn`](kvferry_transport::Transport::turn); 1 to [`THREADS_MAX`]. An
    /// endpoint uses at most one for each stream. With
    /// [`endpoint_bytes_per_second_max`](Settings::endpoint_bytes_per_second_max) it is 1: a pace needs one place.
    pub count: usize,
    /// The same clock whose time is given to the transport; it may be read at any time.
    pub clock: Arc<dyn Fn() -> Time + Send + Sync>,
}

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Threads").field("count", &self.count).finish_non_exhaustive()
    }
}

/// What a thread is told.
pub(crate) enum Order {
    Admit(Admission, Place),
    Close(EndpointId, Fault),
    Connect(Dial, Place),
    Post(EndpointId, Work, Shares),
    /// Ends a work early, for this reason.
    Stop(EndpointId, WorkId, Fault),
    Quit,
    Welcome(Caller),
}

/// The handle of one thread.
pub(crate) struct DataThread {
    pub(crate) orders: Arc<Mailbox<Order>>,
    counters: Arc<Mutex<Counters>>,
    thread: Option<JoinHandle<()>>,
}

impl DataThread {
    /// Starts the thread of this number; what it reports goes into `reports` under it.
    pub(crate) fn start(
        number: usize,
        settings: &Settings,
        threads: &Threads,
        reports: Arc<Mailbox<(usize, Report)>>,
    ) -> io::Result<Self> {
        let orders = Arc::new(Mailbox::new()?);
        let counters = Arc::new(Mutex::new(Counters::default()));
        let mut driven = Driven {
            number,
            event_loop: EventLoop::new(settings)?,
            orders: Arc::clone(&orders),
            reports,
            counters: Arc::clone(&counters),
            clock: Arc::clone(&threads.clock),
            found: Vec::new(),
        };
        let thread = std::thread::Builder::new().name(format!("kvferry-data-{number}")).spawn(move || driven.run())?;
        Ok(Self { orders, counters, thread: Some(thread) })
    }

    /// What it had counted when it last reported.
    pub(crate) fn counters(&self) -> Counters {
        *self.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for DataThread {
    fn drop(&mut self) {
        self.orders.put([Order::Quit]);
        if let Some(thread) = self.thread.take() {
            // It panicked: that was told where it happened.
            let _ = thread.join();
        }
    }
}

struct Driven {
    number: usize,
    event_loop: EventLoop,
    orders: Arc<Mailbox<Order>>,
    reports: Arc<Mailbox<(usize, Report)>>,
    counters: Arc<Mutex<Counters>>,
    clock: Arc<dyn Fn() -> Time + Send + Sync>,
    found: Vec<Report>,
}

impl Driven {
    fn run(&mut self) {
        loop {
            let now = (self.clock)();
            let orders = self.orders.take();
            let mut busy = !orders.is_empty();
            for order in orders {
                if matches!(order, Order::Quit) {
                    return;
                }
                self.carry_out(order, now);
            }
            busy |= self.event_loop.turn(now, &mut self.found);
            // A stream that is not this thread's either.
            for _stray in std::mem::take(&mut self.event_loop.foreign) {
                self.event_loop.refuse();
            }
            if !self.found.is_empty() {
                busy = true;
                *self.counters.lock().unwrap_or_else(PoisonError::into_inner) = self.event_loop.counters();
                let number = self.number;
                self.reports.put(self.found.drain(..).map(|report| (number, report)));
            }
            if !busy {
                self.sleep();
            }
        }
    }

    fn carry_out(&mut self, order: Order, now: Time) {
        match order {
            Order::Admit(admission, place) => self.event_loop.admit(&admission, place),
            Order::Close(endpoint, fault) => self.event_loop.close(endpoint, fault),
            Order::Connect(dial, place) => {
                if let Err(fault) = self.event_loop.connect(now, &dial, place) {
                    self.found.push(Report::down(dial.endpoint, fault));
                }
            }
            Order::Post(endpoint, work, shares) => {
                let id = work.id();
                let posted = match self.event_loop.endpoint(endpoint) {
                    Some(endpoint) => endpoint.post_shares(now, work, shares).map_err(|(fault, _)| fault),
                    None => Err(Fault::PeerClosed),
                };
                if let Err(fault) = posted {
                    let event = Event::Completed(Completion { id, result: Err(fault) });
                    self.found.push(Report { endpoint, event });
                }
            }
            Order::Stop(endpoint, work, fault) => {
                if let Some(endpoint) = self.event_loop.endpoint(endpoint) {
                    endpoint.stop(work, fault);
                }
            }
            Order::Quit => {}
            Order::Welcome(caller) => self.event_loop.welcome(caller, now),
        }
    }

    /// Sleeps until an order, a socket or a deadline.
    fn sleep(&self) {
        let due = self.event_loop.next_deadline().map(|deadline| deadline.until((self.clock)()));
        let timeout = Timespec::try_from(due.unwrap_or(SLEEP_MAX).min(SLEEP_MAX)).ok();
        let orders = PollFd::new(&self.orders, PollFlags::IN);
        let wire = PollFd::from_borrowed_fd(self.event_loop.wait_fd(), PollFlags::IN);
        // An interrupted sleep is a short one.
        let _ = poll(&mut [orders, wire], timeout.as_ref());
    }
}
