//! The other way to move bytes: operations posted on a ring of `io_uring`, completed by the kernel.
//!
//! ```text
//! Stream::send, receive -> Lane (vectors, edges, the region's Arc) -> submission queue --one enter a turn--> kernel
//! kernel -> completion queue -> Ring::reap -> the lane's result -> the stream is readable, writable again -> same calls
//! ```
//!
//! Readers and holders do not know of it: a stream whose operation is in flight is not ready, a finished one is, and
//! the call that posted the operation, made again, takes its result. What the two sides decided meanwhile changes
//! nothing about that result, because the lane remembers what was posted.
//!
//! Memory: an operation in flight names memory of a lane and of a region. The lane holds both until the completion,
//! and an endpoint withholds the completion of a work that failed until nothing in flight names memory ([`parting`]).
//!
//! Sleeping: the ring signals an eventfd, which is armed for the time between turns only. Polling the ring's own
//! descriptor was seen to miss completions of deferred task work (Linux 6.18).
//!
//! Limits: one operation a lane, two lanes a stream, [`QUEUE_ENTRIES`] submissions a turn; what finds the queue full is
//! posted in the next turn. Failure: an operation fails as a system call does, with the same [`Fault`]s; a ring that
//! can no longer be entered fails every new post. Shutdown: everything is cancelled and awaited; if the kernel does not
//! let us (another thread turned the ring), the lanes are leaked, so that what they name stays mapped.
//!
//! Why not registered buffers, multishot receive or zero-copy send: measured, docs/adr/0011.

mod lane;
mod parting;
mod probe;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{Ordering, fence};

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use kvferry_transport::Fault;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use slab::Slab;

pub(crate) use lane::{Direction, Finished, Message};
pub(crate) use parting::Parting;
pub(crate) use probe::choose;
pub use probe::{Choice, Missing, probe};

use crate::token::Token;
use crate::wire::Body;
use lane::Lane;

/// Submissions that fit one turn.
const QUEUE_ENTRIES: u32 = 256;
/// Completions that fit; more wait in the kernel.
const COMPLETIONS_MAX: u32 = 4096;
/// Where unwanted bytes go, and how often a drop asks for the last completions.
const SCRATCH_BYTES: usize = 64 << 10;
const DRAIN_TRIES: u32 = 1000;

/// No lane has this slot.
const NO_LANE: u64 = u32::MAX as u64;
const DOOR: u64 = NO_LANE | 1 << 32;
const CANCEL: u64 = NO_LANE | 2 << 32;

/// Flag of `io_uring_enter`: also run what waits to be completed.
const GETEVENTS: u32 = 1;

/// One ring, and the lanes of all streams of a transport.
pub(crate) struct Ring {
    ring: IoUring,
    eventfd: OwnedFd,
    // Boxed: the kernel knows their addresses. The option is for the drop alone.
    lanes: Slab<Box<Lane>>,
    scratch: Box<[u8]>,
    /// Whether the calling thread has made the ring its own.
    is_enabled: bool,
    /// The eventfd may have been signalled since it was last read.
    is_signalled: bool,
    /// Whether the eventfd is armed.
    is_armed: bool,
    /// Whether the kernel watches the door for us.
    watches_door: bool,
    broken: Option<Errno>,
    generation: u32,
    /// Calls of `io_uring_enter`.
    pub(crate) enters: u64,
    /// Completions that matched nothing.
    pub(crate) stale: u64,
}

/// One operation: a lane, and which of its operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Operation {
    lane: usize,
    generation: u32,
}

impl Ring {
    /// A ring that belongs to the thread that turns it first.
    pub(crate) fn open() -> Result<Self, Missing> {
        let missing = |step: &'static str| move |error: io::Error| Missing { step, error };
        let mut builder = IoUring::builder();
        builder.setup_r_disabled().setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
        builder.setup_clamp().setup_cqsize(COMPLETIONS_MAX).dontfork();
        let mut ring: IoUring = builder.build(QUEUE_ENTRIES).map_err(missing("set up a ring"))?;
        if !ring.params().is_feature_nodrop() || !ring.params().is_feature_submit_stable() {
            return Err(missing("find its features")(io::ErrorKind::Unsupported.into()));
        }
        let eventfd = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)
            .map_err(|errno| missing("make an eventfd")(errno.into()))?;
        ring.submitter().register_eventfd(eventfd.as_raw_fd()).map_err(missing("register an eventfd"))?;
        ring.completion().disable_eventfd();
        Ok(Self {
            ring,
            eventfd,
            lanes: Slab::new(),
            scratch: vec![0; SCRATCH_BYTES].into_boxed_slice(),
            is_enabled: false,
            is_signalled: false,
            is_armed: false,
            watches_door: false,
            broken: None,
            generation: 0,
            enters: 0,
            stale: 0,
        })
    }

    /// Readable when a turn has something to do.
    pub(crate) fn wait_fd(&self) -> BorrowedFd<'_> {
        self.eventfd.as_fd()
    }

    /// A lane for one direction of one stream.
    pub(crate) fn add_lane(&mut self, stream: Token, direction: Direction) -> usize {
        self.lanes.insert(Box::new(Lane::new(stream, direction)))
    }

    /// Gives up a lane on which nothing is in flight.
    pub(crate) fn remove_lane(&mut self, lane: usize) {
        if self.operation(lane).is_none() {
            self.lanes.remove(lane);
        }
    }

    /// What is in flight on a lane.
    pub(crate) fn operation(&self, lane: usize) -> Option<Operation> {
        let generation = self.lanes.get(lane)?.posted()?;
        Some(Operation { lane, generation })
    }

    /// What is in flight on a lane and names memory of a region.
    pub(crate) fn lent(&self, lane: usize) -> Option<Operation> {
        self.operation(lane).filter(|_| self.lanes[lane].has_region())
    }

    /// Whether an operation may be posted on a lane.
    pub(crate) fn is_idle(&self, lane: usize) -> bool {
        self.lanes.get(lane).is_some_and(|lane| lane.is_idle())
    }

    pub(crate) fn is_posted(&self, operation: Operation) -> bool {
        self.operation(operation.lane) == Some(operation)
    }

    /// Whether the stream's end, or a failure, waits to be taken from this lane.
    pub(crate) fn has_ended(&self, lane: usize) -> bool {
        self.lanes.get(lane).is_some_and(|lane| lane.has_ended())
    }

    /// Takes the result of what was posted on a lane. `None`: nothing was, or it is in flight.
    pub(crate) fn take(&mut self, lane: usize) -> Option<Result<Finished<'_>, Fault>> {
        self.lanes.get_mut(lane)?.take()
    }

    /// Posts an operation on an idle lane. False: no room, try again in the next turn.
    pub(crate) fn post(
        &mut self,
        lane: usize,
        socket: BorrowedFd<'_>,
        message: &Message<'_>,
        body: &Body<'_>,
    ) -> Result<bool, Fault> {
        if let Some(errno) = self.broken {
            return Err(Fault::Io(errno.raw_os_error()));
        }
        if !self.make_room() {
            return Ok(false);
        }
        self.generation = self.generation.wrapping_add(1);
        let Some(posting) = self.lanes.get_mut(lane) else { return Err(Fault::PeerClosed) };
        let entry = posting.prepare(self.generation, socket, message, body, &mut self.scratch)?;
        let operation = Operation { lane, generation: self.generation };
        // SAFETY: the entry names vectors, edges and a message of the lane, memory of a region whose Arc the lane took,
        // the scratch bytes or static zeros. The lane is boxed and neither removed nor posted on again before its
        // completion was reaped; the ring drains before lanes and scratch are freed, or leaks them.
        let pushed = unsafe { self.ring.submission().push(&entry.user_data(operation.to_u64())) }.is_ok();
        if !pushed {
            self.lanes[lane].withdraw();
        }
        Ok(pushed)
    }

    /// Asks the kernel to end an operation soon. False: no room, try again in the next turn.
    pub(crate) fn recall(&mut self, operation: Operation) -> bool {
        if !self.is_posted(operation) || self.lanes[operation.lane].is_recalled {
            return true;
        }
        let pushed = self.make_room() && self.push(&opcode::AsyncCancel::new(operation.to_u64()).build(), CANCEL);
        self.lanes[operation.lane].is_recalled = pushed;
        pushed
    }

    /// Begins a turn: lets deferred work run and hands out what has completed. True: the door has something to say.
    pub(crate) fn reap(&mut self, mut ready: impl FnMut(Token, Direction)) -> bool {
        if !self.is_enabled {
            match self.ring.submitter().register_enable_rings() {
                Ok(()) => self.is_enabled = true,
                Err(error) => self.fail(&error),
            }
        }
        if self.is_armed {
            self.is_armed = false;
            self.ring.completion().disable_eventfd();
            self.is_signalled |= self.has_news();
        }
        if self.has_deferred() {
            self.enter();
        }
        let mut knocked = false;
        let Self { ring, lanes, stale, watches_door, .. } = self;
        for done in ring.completion() {
            match done.user_data() {
                DOOR => {
                    *watches_door = false;
                    knocked = true;
                }
                CANCEL => {}
                user_data => {
                    let operation = Operation::from_u64(user_data);
                    let lane = lanes.get_mut(operation.lane).filter(|lane| lane.posted() == Some(operation.generation));
                    match lane {
                        Some(lane) if !cqueue::more(done.flags()) => {
                            lane.finish(done.result());
                            ready(lane.stream, lane.direction);
                        }
                        _ => *stale += 1,
                    }
                }
            }
        }
        knocked
    }

    /// Has the kernel watch the epoll of listener and half-open connections, once it has nothing more to say.
    pub(crate) fn watch_door(&mut self, epoll: BorrowedFd<'_>) {
        if !self.watches_door && self.make_room() {
            let events = u32::try_from(libc::POLLIN).unwrap_or(1);
            let entry = opcode::PollAdd::new(types::Fd(epoll.as_raw_fd()), events).build();
            self.watches_door = self.push(&entry, DOOR);
        }
    }

    /// Ends a turn: hands over what was posted, and arms the eventfd if there is nothing to reap. True: there is.
    pub(crate) fn commit(&mut self) -> bool {
        if !self.ring.submission().is_empty() {
            self.enter();
        }
        if self.has_news() {
            return true;
        }
        if self.is_signalled {
            self.is_signalled = false;
            // Not readable: the signal was for what came too late to count.
            let _ = rustix::io::read(&self.eventfd, &mut [0; 8]);
        }
        self.ring.completion().enable_eventfd();
        self.is_armed = true;
        // What came before it was armed is not signalled: either it is seen here, or the kernel sees it armed.
        fence(Ordering::SeqCst);
        self.has_news()
    }

    /// Whether a turn would find something.
    fn has_news(&mut self) -> bool {
        self.has_deferred() || !self.ring.completion().is_empty()
    }

    fn has_deferred(&mut self) -> bool {
        let queue = self.ring.submission();
        queue.taskrun() || queue.cq_overflow()
    }

    fn make_room(&mut self) -> bool {
        if self.ring.submission().is_full() {
            self.enter();
        }
        !self.ring.submission().is_full()
    }

    fn push(&mut self, entry: &squeue::Entry, user_data: u64) -> bool {
        // SAFETY: polling and cancelling name no memory; the epoll outlives the ring, as the transport drops it later.
        unsafe { self.ring.submission().push(&entry.clone().user_data(user_data)) }.is_ok()
    }

    /// Hands over what is queued and runs what the kernel has deferred; waits for nothing.
    fn enter(&mut self) {
        if !self.is_enabled {
            return;
        }
        self.enters += 1;
        let queued = u32::try_from(self.ring.submission().len()).unwrap_or(u32::MAX);
        // SAFETY: no argument is a pointer.
        let entered = unsafe { self.ring.submitter().enter::<libc::sigset_t>(queued, 0, GETEVENTS, None) };
        if let Err(error) = entered {
            self.fail(&error);
        }
    }

    fn fail(&mut self, error: &io::Error) {
        let errno = Errno::from_io_error(error).unwrap_or(Errno::IO);
        // These ask for another try; `BUSY` for completions to be reaped first.
        if !matches!(errno, Errno::AGAIN | Errno::BUSY | Errno::INTR | Errno::NOMEM) {
            self.broken = Some(errno);
        }
    }
}

impl Operation {
    const fn to_u64(self) -> u64 {
        (self.generation as u64) << 32 | self.lane as u64
    }

    #[expect(clippy::cast_possible_truncation, reason = "the two halves")]
    const fn from_u64(value: u64) -> Self {
        Self { lane: value as u32 as usize, generation: (value >> 32) as u32 }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let lanes: Vec<usize> = self.lanes.iter().map(|(lane, _)| lane).collect();
        for _ in 0..DRAIN_TRIES {
            let posted: Vec<Operation> = lanes.iter().filter_map(|&lane| self.operation(lane)).collect();
            if posted.is_empty() {
                return;
            }
            for operation in posted {
                self.recall(operation);
            }
            self.enter();
            self.reap(|_, _| {});
            if self.broken.is_some() {
                break;
            }
            // Almost always there after one enter; a network card may hold on to bytes a little longer.
            std::thread::yield_now();
        }
        // Mapped forever, rather than written to after being unmapped.
        std::mem::forget(std::mem::take(&mut self.lanes));
        std::mem::forget(std::mem::take(&mut self.scratch));
    }
}
