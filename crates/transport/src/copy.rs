//! Moves bytes between two regions of one node by copying them.
//!
//! ```text
//! post -> jobs -> turn: chunk by chunk, works in rotation -+-> copied here, in two looks (Region::copy_verified) -+-> done
//!                                                          +-> pool: copied by the next free thread -------------+
//! done -> a later turn: lease? -> Completed
//! ```
//!
//! Each part of 16 KiB is looked at twice, so that bytes which change under the copy are a mismatch. The lease is asked
//! once more in a turn after the last chunk is back, whose `now` is later than every byte read; only then does the work
//! complete. A read within one memory whose plan reads what it writes has no right outcome and is not taken on.
//!
//! Limits: [`CopySettings::works_max`] works in flight, [`CopySettings::turn_bytes_max`] bytes a turn copied by the
//! data thread, [`CHUNKS_PER_THREAD`] chunks waiting for each other thread.
//! Failure: a deadline, an ended lease or a cancel is found at the next turn; chunks that no thread has begun are taken
//! back, running ones are awaited, the rest of the plan is not copied.
//! Shutdown: [`Transport::close`] cancels everything; a closed copy transport stays closed. The drop joins the threads.
//!
//! Why not `copy_file_range` or `vmsplice`: memfds of two engines share no pages to move, and the second look needs the
//! bytes in the cache anyway.

mod chunk;
mod job;
mod overlap;
mod pool;

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use kvferry_core::plan::{Side, Slice};
use kvferry_core::{Time, WorkId};
use kvferry_memory::{Region, Stores};

use self::chunk::Chunk;
use self::job::Job;
use self::overlap::overlaps;
use self::pool::Pool;
use crate::{Admission, Completion, Dial, Endpoint, EndpointId, Event, Fault, Source, Transport, Work, plan_fits};

/// Most threads that copy, the data thread included: a few cores fill any memory's bandwidth.
pub const COPY_THREADS_MAX: usize = 64;

/// Chunks that wait for each thread besides the data thread: enough that none runs dry while the data thread copies one
/// itself or turns to its sockets for a tenth of a millisecond.
const CHUNKS_PER_THREAD: usize = 4;

/// How much a copy transport does at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopySettings {
    /// Works in flight, at least 1. Each costs about 250 bytes. Default 256.
    pub works_max: usize,
    /// Bytes copied in one turn by the data thread, at least 1: how long other transports of the thread wait, about half
    /// a millisecond at the default of 4 MiB.
    pub turn_bytes_max: u64,
    /// Bytes copied of one work before the next has its turn, at least 1. The default of 256 KiB takes about 30 us.
    pub piece_bytes: u64,
    /// Threads that copy, the data thread included, 1 to [`COPY_THREADS_MAX`]. Each beyond the first costs 400 KiB.
    /// Default 1.
    pub threads: usize,
    /// Works of fewer bytes are left to the data thread: to wake another one takes about what it saves. Default 2 MiB.
    pub split_bytes_min: u64,
    /// Works of at least as many bytes are stored past the cache, where the CPU can: they would not stay in it. Default
    /// 1 MiB, half a second-level cache.
    pub stream_bytes_min: u64,
}

impl Default for CopySettings {
    fn default() -> Self {
        Self {
            works_max: 256,
            turn_bytes_max: 4 << 20,
            piece_bytes: 256 << 10,
            threads: 1,
            split_bytes_min: 2 << 20,
            stream_bytes_min: 1 << 20,
        }
    }
}

/// The transport of one node: one endpoint, [`CopyTransport::ENDPOINT`], up from the start.
#[derive(Debug)]
pub struct CopyTransport {
    lane: Lane,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed,
    Closing,
    Open,
}

/// The one endpoint: the works in flight, in rotation.
#[derive(Debug)]
struct Lane {
    settings: CopySettings,
    jobs: VecDeque<Job>,
    /// The other threads, unless the data thread copies alone.
    pool: Option<Pool>,
    /// Chunks for the pool that are not with it.
    free: Vec<Chunk>,
    /// The one that the data thread copies itself.
    own: Chunk,
    /// Room for chunks that come back and for the slices of one, kept so that a turn allocates nothing.
    returned: Vec<Chunk>,
    slices: [Vec<Slice>; 2],
}

impl CopyTransport {
    /// The endpoint to post on.
    pub const ENDPOINT: EndpointId = EndpointId(0);

    /// A transport with nothing to do. Settings of zero count as one. Where the system refuses threads, it works with
    /// fewer; [`threads`](Self::threads) tells.
    #[must_use]
    pub fn new(settings: CopySettings) -> Self {
        let settings = CopySettings {
            works_max: settings.works_max.max(1),
            turn_bytes_max: settings.turn_bytes_max.max(1),
            piece_bytes: settings.piece_bytes.max(1),
            threads: settings.threads.clamp(1, COPY_THREADS_MAX),
            ..settings
        };
        let helpers = settings.threads - 1;
        let pool = (helpers > 0).then(|| Pool::start(helpers, helpers * CHUNKS_PER_THREAD)).flatten();
        let chunk_count = pool.as_ref().map_or(0, Pool::threads) * CHUNKS_PER_THREAD;
        let lane = Lane {
            settings,
            jobs: VecDeque::with_capacity(settings.works_max),
            pool,
            free: (0..chunk_count).map(|_| Chunk::new()).collect(),
            own: Chunk::new(),
            returned: Vec::with_capacity(chunk_count),
            slices: [Vec::with_capacity(job::SLICES_MAX), Vec::with_capacity(job::SLICES_MAX)],
        };
        Self { lane, state: State::Open }
    }

    /// Threads that copy, the one that calls [`turn`](Transport::turn) included.
    #[must_use]
    pub fn threads(&self) -> usize {
        1 + self.lane.pool.as_ref().map_or(0, Pool::threads)
    }
}

impl Transport for CopyTransport {
    fn name(&self) -> &'static str {
        "copy"
    }

    fn register(&mut self, _region: &Arc<Region>) -> Result<(), Fault> {
        Ok(())
    }

    fn deregister(&mut self, _region: &Arc<Region>) {}

    fn connect(&mut self, _now: Time, _dial: Dial) -> Result<(), Fault> {
        Err(Fault::Unsupported)
    }

    fn admit(&mut self, _now: Time, _admission: Admission) -> Result<(), Fault> {
        Err(Fault::Unsupported)
    }

    fn close(&mut self, _now: Time, endpoint: EndpointId) {
        if endpoint == Self::ENDPOINT && self.state == State::Open {
            self.state = State::Closing;
        }
    }

    fn endpoint(&mut self, id: EndpointId) -> Option<&mut dyn Endpoint> {
        (id == Self::ENDPOINT && self.state == State::Open).then_some(&mut self.lane)
    }

    fn turn(&mut self, now: Time, events: &mut Vec<Event>) -> bool {
        match self.state {
            State::Closed => {}
            State::Closing => {
                self.lane.abandon(now, events);
                if self.lane.jobs.is_empty() {
                    events.push(Event::EndpointDown(Self::ENDPOINT, Fault::Cancelled));
                    self.state = State::Closed;
                }
            }
            State::Open => self.lane.turn(now, events),
        }
        self.lane.has_more()
    }

    fn next_deadline(&self) -> Option<Time> {
        self.lane.jobs.iter().filter_map(Job::deadline).min()
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        self.lane.pool.as_ref().map(Pool::wait_fd)
    }
}

impl Endpoint for Lane {
    fn post(&mut self, _now: Time, work: Work) -> Result<(), (Fault, Work)> {
        let read = match work {
            Work::Read(read) => read,
            serve @ Work::Serve(_) => return Err((Fault::Unsupported, serve)),
        };
        let Source::Region { region: source, lease } = &read.source else {
            return Err((Fault::Unsupported, Work::Read(read)));
        };
        if self.jobs.iter().any(|job| job.id() == read.id) {
            return Err((Fault::Refused, Work::Read(read)));
        }
        if self.jobs.len() >= self.settings.works_max {
            return Err((Fault::Full, Work::Read(read)));
        }
        if !plan_fits(&read.plan, Side::Source, source) || !plan_fits(&read.plan, Side::Target, &read.target) {
            return Err((Fault::OutOfBounds, Work::Read(read)));
        }
        if read.target.shares_memory_with(source) && overlaps(&read.plan) {
            return Err((Fault::Refused, Work::Read(read)));
        }
        let bytes = read.plan.bytes();
        let stores = if bytes < self.settings.stream_bytes_min { Stores::Cached } else { Stores::Streamed };
        let is_split = bytes >= self.settings.split_bytes_min;
        let (source, lease) = (Arc::clone(source), lease.clone());
        self.jobs.push_back(Job::new(&read, source, lease, stores, is_split));
        Ok(())
    }

    fn cancel(&mut self, _now: Time, id: WorkId) {
        if let Some(job) = self.jobs.iter_mut().find(|job| job.id() == id) {
            job.cancel();
        }
    }

    fn in_flight(&self) -> usize {
        self.jobs.len()
    }
}

impl Lane {
    /// Ends what is over, then hands out and copies until the turn's bytes are spent.
    fn turn(&mut self, now: Time, events: &mut Vec<Event>) {
        // Before anything is collected: only of chunks that were back before this turn is `now` later than every byte.
        self.end(now, events);
        let mut budget = self.settings.turn_bytes_max;
        loop {
            self.collect();
            if budget == 0 {
                return;
            }
            self.hand_out();
            if !self.cut_own(budget) && !self.take_own_back() {
                return;
            }
            self.own.run();
            budget = budget.saturating_sub(self.own.bytes);
            give_back(&mut self.jobs, &mut self.own);
        }
    }

    /// Judges every job and completes those that have ended.
    fn end(&mut self, now: Time, events: &mut Vec<Event>) {
        for _ in 0..self.jobs.len() {
            let Some(mut job) = self.jobs.pop_front() else { break };
            job.judge(now);
            self.withdraw(&mut job);
            match job.result() {
                Some(result) => finish(job, result, events),
                None => self.jobs.push_back(job),
            }
        }
    }

    /// Takes the chunks of a failed job back that no thread has begun.
    fn withdraw(&mut self, job: &mut Job) {
        let Some(pool) = &self.pool else { return };
        if !job.has_failed() || job.is_quiet() {
            return;
        }
        pool.withdraw(job.id(), &mut self.returned);
        for mut chunk in self.returned.drain(..) {
            job.take_back(Ok(()));
            chunk.clear();
            self.free.push(chunk);
        }
    }

    /// Takes back what the pool is done with.
    fn collect(&mut self) {
        let Some(pool) = &self.pool else { return };
        pool.collect(&mut self.returned);
        for mut chunk in self.returned.drain(..) {
            give_back(&mut self.jobs, &mut chunk);
            self.free.push(chunk);
        }
    }

    /// Fills the pool's queue from the jobs that may be split.
    fn hand_out(&mut self) {
        let Some(pool) = &self.pool else { return };
        while let Some(mut chunk) = self.free.pop() {
            let found = self.jobs.iter().position(|job| job.is_split() && job.remaining() > 0);
            let Some(mut job) = found.and_then(|place| self.jobs.remove(place)) else {
                self.free.push(chunk);
                return;
            };
            match job.cut(self.settings.piece_bytes, &mut self.slices, &mut chunk) {
                0 => self.free.push(chunk),
                _ => pool.push(chunk),
            }
            self.jobs.push_back(job);
        }
    }

    /// Cuts the next chunk for the data thread itself; false if nothing is left to cut.
    fn cut_own(&mut self, bytes_max: u64) -> bool {
        while let Some(place) = self.jobs.iter().position(|job| job.remaining() > 0) {
            let Some(mut job) = self.jobs.remove(place) else { break };
            let bytes = job.cut(self.settings.piece_bytes.min(bytes_max), &mut self.slices, &mut self.own);
            self.jobs.push_back(job);
            if bytes > 0 {
                return true;
            }
        }
        false
    }

    /// Takes a chunk back from the pool, for the data thread to copy; false if all are begun.
    fn take_own_back(&mut self) -> bool {
        let Some(chunk) = self.pool.as_ref().and_then(Pool::take_back) else { return false };
        self.free.push(std::mem::replace(&mut self.own, chunk));
        true
    }

    /// Whether a turn would find something to do now. If not, the pool says when.
    fn has_more(&self) -> bool {
        let is_ready = |job: &Job| job.is_quiet() || job.remaining() > 0;
        if self.jobs.is_empty() {
            return false;
        }
        // Quiet jobs only wait for their lease to be asked once more.
        self.jobs.iter().any(is_ready) || self.pool.as_ref().is_none_or(|pool| !pool.wait())
    }

    /// Cancels everything and completes what no thread touches any more.
    fn abandon(&mut self, now: Time, events: &mut Vec<Event>) {
        self.collect();
        self.jobs.iter_mut().for_each(Job::cancel);
        self.end(now, events);
    }
}

/// Tells the job of a chunk what came of it, and frees the chunk.
fn give_back(jobs: &mut VecDeque<Job>, chunk: &mut Chunk) {
    if let Some(job) = jobs.iter_mut().find(|job| chunk.is_of(job.id())) {
        job.take_back(chunk.result);
    }
    chunk.clear();
}

/// Lets go of the job's regions first: a completion says that nothing of the work is held any more.
fn finish(job: Job, result: Result<u64, Fault>, events: &mut Vec<Event>) {
    let id = job.id();
    drop(job);
    events.push(Event::Completed(Completion { id, result }));
}
