//! Moves bytes between two regions of one node by copying them.
//!
//! ```text
//! post -> queue -> turn: piece by piece, works in rotation -> sum source, copy, sum target -> a later turn: lease? -> Completed
//! ```
//!
//! The source is summed before its bytes are copied and the target after: bytes that changed on the way, in the source
//! or the target, do not match. The lease is asked once more in the turn after the last byte, whose `now` is later
//! than every byte read; only then does the work complete.
//!
//! Limits: [`CopySettings::works_max`] works in flight, [`CopySettings::turn_bytes_max`] bytes a turn.
//! Failure: a deadline, an ended lease or a cancel is found at the next turn; the rest of the plan is not copied.
//! Shutdown: [`Transport::close`] cancels everything; a closed copy transport stays closed.
//!
//! Why not `copy_file_range` or `vmsplice`: memfds of two engines share no pages to move, and the sums need the bytes
//! in the cache anyway.

mod job;

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use kvferry_core::plan::{Side, Slice};
use kvferry_core::{Time, WorkId};
use kvferry_memory::Region;

use self::job::{Job, Progress};
use crate::{Admission, Completion, Dial, Endpoint, EndpointId, Event, Fault, Source, Transport, Work, plan_fits};

/// How much a copy transport does at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopySettings {
    /// Works in flight, at least 1. Each costs about 250 bytes. Default 256.
    pub works_max: usize,
    /// Bytes copied in one turn, at least 1: how long other transports of the thread wait, about 1 ms at the default
    /// of 4 MiB.
    pub turn_bytes_max: u64,
    /// Bytes copied of one work before the next has its turn, at least 1. The default of 256 KiB stays in the
    /// second-level cache between the sums and the copy.
    pub piece_bytes: u64,
}

impl Default for CopySettings {
    fn default() -> Self {
        Self { works_max: 256, turn_bytes_max: 4 << 20, piece_bytes: 256 << 10 }
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
    /// Room for the slices of a piece, kept so that a turn allocates nothing.
    source_slices: Vec<Slice>,
    target_slices: Vec<Slice>,
}

impl CopyTransport {
    /// The endpoint to post on.
    pub const ENDPOINT: EndpointId = EndpointId(0);

    /// A transport with nothing to do. Settings of zero count as one.
    #[must_use]
    pub fn new(settings: CopySettings) -> Self {
        let settings = CopySettings {
            works_max: settings.works_max.max(1),
            turn_bytes_max: settings.turn_bytes_max.max(1),
            piece_bytes: settings.piece_bytes.max(1),
        };
        let lane = Lane {
            settings,
            jobs: VecDeque::with_capacity(settings.works_max),
            source_slices: Vec::with_capacity(job::SLICES_MAX),
            target_slices: Vec::with_capacity(job::SLICES_MAX),
        };
        Self { lane, state: State::Open }
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
                self.lane.abandon(events);
                events.push(Event::EndpointDown(Self::ENDPOINT, Fault::Cancelled));
                self.state = State::Closed;
            }
            State::Open => self.lane.turn(now, events),
        }
        // Jobs that only wait for their lease to be asked once more count too.
        !self.lane.jobs.is_empty()
    }

    fn next_deadline(&self) -> Option<Time> {
        self.lane.jobs.iter().map(|job| job.deadline()).min()
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        None
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
        let (source, lease) = (Arc::clone(source), lease.clone());
        self.jobs.push_back(Job::new(&read, source, lease));
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
    /// Gives every job one look, and those with bytes left a piece at a time until the turn's bytes are spent.
    fn turn(&mut self, now: Time, events: &mut Vec<Event>) {
        // Only jobs that were finished before this turn began have a `now` later than their last byte.
        for _ in 0..self.jobs.len() {
            let Some(job) = self.jobs.pop_front() else { break };
            match job.look(now) {
                Progress::Done(result) => finish(job, result, events),
                Progress::More => self.jobs.push_back(job),
            }
        }
        let mut budget = self.settings.turn_bytes_max;
        // Copied jobs stay in rotation until the next turn; as many of them in a row as there are jobs: nothing to copy.
        let mut copied_in_a_row = 0;
        while budget > 0 && copied_in_a_row < self.jobs.len() {
            let Some(mut job) = self.jobs.pop_front() else { break };
            let bytes = self.settings.piece_bytes.min(budget).min(job.remaining());
            if bytes == 0 {
                copied_in_a_row += 1;
                self.jobs.push_back(job);
                continue;
            }
            copied_in_a_row = 0;
            budget -= bytes;
            match job.copy(bytes, &mut self.source_slices, &mut self.target_slices) {
                Ok(()) => self.jobs.push_back(job),
                Err(fault) => finish(job, Err(fault), events),
            }
        }
    }

    fn abandon(&mut self, events: &mut Vec<Event>) {
        for job in self.jobs.drain(..) {
            finish(job, Err(Fault::Cancelled), events);
        }
    }
}

/// Lets go of the job's regions first: a completion says that nothing of the work is held any more.
fn finish(job: Job, result: Result<u64, Fault>, events: &mut Vec<Event>) {
    let id = job.id();
    drop(job);
    events.push(Event::Completed(Completion { id, result }));
}
