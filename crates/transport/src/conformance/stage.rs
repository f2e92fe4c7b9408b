//! Drives a rig and watches every event.

mod aftermath;
mod watch;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvferry_core::WorkId;
use kvferry_memory::Meter;
use rustix::event::{PollFd, PollFlags, Timespec};

use super::shape::Shape;
use super::transfer::Transfer;
use super::violation::Violation;
use super::{Clock, Make, Rig, Seat};
use crate::{Event, Fault, ReadWork, ServeWork, Source, Start, Work};

/// How long an idle rig sleeps at most before it is looked at again.
const NAP_MAX: Duration = Duration::from_millis(20);
/// Naps that ended without a sign though there was work. One may be a byte that came just then; more are a pattern.
const MISSED_WAKEUPS_MAX: u32 = 3;

/// Rigs tried before a transport counts as too fast to be caught midway.
const MIDWAY_TRIES: u32 = 3;

/// An end of the rig.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Holder,
    Reader,
}

/// A rig, its transfers and the ledger of everything posted.
pub(super) struct Stage {
    pub(super) clock: Clock,
    rig: Rig,
    meter: Meter,
    transfers: Vec<Transfer>,
    ledger: HashMap<WorkId, Entry>,
    /// Ends whose endpoint has gone down.
    down: Vec<End>,
    next_id: u64,
    missed_wakeups: u32,
    events: Vec<Event>,
}

struct Entry {
    end: End,
    transfer: usize,
    /// Owners of the transfer's (source, target) before the post.
    owners: (usize, usize),
    result: Option<Result<u64, Fault>>,
}

impl Stage {
    pub(super) fn new(make: Make<'_>) -> Self {
        let clock = Clock::new();
        let rig = make(&clock);
        Self {
            clock,
            rig,
            meter: Meter::new(),
            transfers: Vec::new(),
            ledger: HashMap::new(),
            down: Vec::new(),
            next_id: 1,
            missed_wakeups: 0,
            events: Vec::new(),
        }
    }

    /// Whether sources are served by another end, instead of named by the read.
    pub(super) const fn is_pair(&self) -> bool {
        self.rig.holder.is_some()
    }

    /// Whether the holder sends without being asked.
    pub(super) const fn is_push(&self) -> bool {
        self.rig.pushes
    }

    pub(super) const fn works_max(&self) -> usize {
        self.rig.works_max
    }

    pub(super) fn transfer(&mut self, index: usize) -> &mut Transfer {
        &mut self.transfers[index]
    }

    /// Makes a transfer and registers its regions; posts nothing.
    pub(super) fn lay(&mut self, shape: &Shape) -> usize {
        let transfer = Transfer::new(shape, (WorkId(self.next_id), WorkId(self.next_id + 1)), &self.meter);
        self.next_id += 2;
        self.adopt(transfer)
    }

    /// As [`lay`](Self::lay), with regions of other sizes than the shape's.
    pub(super) fn lay_sized(&mut self, shape: &Shape, source_bytes: u64, target_bytes: u64) -> usize {
        self.lay(&Shape { plan: Arc::clone(&shape.plan), source_bytes, target_bytes })
    }

    fn adopt(&mut self, transfer: Transfer) -> usize {
        let registered = self.seat(End::Reader).transport.register(&transfer.target);
        let source_end = if self.is_pair() { End::Holder } else { End::Reader };
        let registered = registered.and_then(|()| self.seat(source_end).transport.register(&transfer.source));
        registered.expect("a transport takes the suite's regions");
        self.transfers.push(transfer);
        self.transfers.len() - 1
    }

    /// Posts what moves the transfer: a serve, if the rig is a pair, and a read.
    pub(super) fn post(&mut self, index: usize) -> Result<(), Violation> {
        if self.is_push() {
            self.post_read(index)?;
            return self.post_serve(index);
        }
        if self.is_pair() {
            self.post_serve(index)?;
        }
        self.post_read(index)
    }

    pub(super) fn post_serve(&mut self, index: usize) -> Result<(), Violation> {
        let work = self.serve_work(index);
        self.must_take(End::Holder, index, work)
    }

    pub(super) fn post_read(&mut self, index: usize) -> Result<(), Violation> {
        let work = self.read_work(index);
        self.must_take(End::Reader, index, work)
    }

    /// Posts a read again and again while it is handed back as too many: a path may have to clear away what was
    /// cancelled on it before it takes more.
    pub(super) fn post_read_once_there_is_room(&mut self, index: usize) -> Result<(), Violation> {
        let mut last = Ok(());
        self.until("room for a post", |stage| {
            last = stage.post_read(index);
            !matches!(last, Err(Violation::HandedBack { fault: Fault::Full, .. }))
        })?;
        last
    }

    pub(super) fn serve_work(&self, index: usize) -> Work {
        let Transfer { plan, source, lease, deadline, serve, .. } = &self.transfers[index];
        Work::Serve(ServeWork {
            id: *serve,
            plan: Arc::clone(plan),
            source: Arc::clone(source),
            lease: lease.clone(),
            start: if self.rig.pushes { Start::Pushed } else { Start::Fetched },
            deadline: *deadline,
        })
    }

    pub(super) fn read_work(&self, index: usize) -> Work {
        let Transfer { plan, source, target, lease, deadline, read, serve, .. } = &self.transfers[index];
        let source = if self.rig.pushes {
            Source::Pushed { work: *serve }
        } else if self.is_pair() {
            Source::Peer { work: *serve }
        } else {
            Source::Region { region: Arc::clone(source), lease: lease.clone() }
        };
        let (plan, target) = (Arc::clone(plan), Arc::clone(target));
        Work::Read(ReadWork { id: *read, plan, target, source, deadline: *deadline })
    }

    /// A post that must succeed.
    pub(super) fn must_take(&mut self, end: End, index: usize, work: Work) -> Result<(), Violation> {
        let id = work.id();
        match self.try_post(end, index, work)? {
            Ok(()) => Ok(()),
            Err((fault, _)) => Err(Violation::HandedBack { id, fault }),
        }
    }

    /// A post that must be handed back, whole, with this fault.
    pub(super) fn must_hand_back(
        &mut self,
        end: End,
        index: usize,
        work: Work,
        expected: Fault,
    ) -> Result<(), Violation> {
        let before = format!("{work:?}");
        let id = work.id();
        match self.try_post(end, index, work)? {
            Err((fault, work)) if fault == expected && format!("{work:?}") == before => Ok(()),
            answer => Err(Violation::WrongHandBack { id, expected, answer: answer.err().map(|(fault, _)| fault) }),
        }
    }

    /// Posts, and opens a line in the ledger if the work is taken.
    fn try_post(&mut self, end: End, index: usize, work: Work) -> Result<Result<(), (Fault, Work)>, Violation> {
        let id = work.id();
        let now = self.clock.now();
        let Transfer { source, target, .. } = &self.transfers[index];
        // The work itself owns one or both; what counts is who else did before.
        let of_work = match &work {
            Work::Read(ReadWork { source: Source::Region { .. }, .. }) => (1, 1),
            Work::Read(_) => (0, 1),
            Work::Serve(_) => (1, 0),
        };
        let owners = (Arc::strong_count(source) - of_work.0, Arc::strong_count(target) - of_work.1);
        let seat = self.seat(end);
        let name = seat.endpoint;
        let Some(endpoint) = seat.transport.endpoint(name) else { return Err(Violation::EndpointLost(name)) };
        let posted = endpoint.post(now, work);
        if posted.is_ok() {
            self.ledger.insert(id, Entry { end, transfer: index, owners, result: None });
        }
        Ok(posted)
    }

    /// Cancels, if the endpoint is still there: one that is not completes its works without being told.
    pub(super) fn cancel(&mut self, end: End, id: WorkId) {
        let now = self.clock.now();
        let seat = self.seat(end);
        if let Some(endpoint) = seat.transport.endpoint(seat.endpoint) {
            endpoint.cancel(now, id);
        }
    }

    pub(super) fn seat(&mut self, end: End) -> &mut Seat {
        match end {
            End::Holder => self.rig.holder.as_mut().expect("a pair has a holder"),
            End::Reader => &mut self.rig.reader,
        }
    }

    pub(super) fn is_down(&self, end: End) -> bool {
        self.down.contains(&end)
    }

    /// One turn of each end. True: call again at once.
    pub(super) fn step(&mut self) -> Result<bool, Violation> {
        let mut busy = false;
        for end in [End::Holder, End::Reader] {
            if end == End::Holder && !self.is_pair() {
                continue;
            }
            let mut events = std::mem::take(&mut self.events);
            let now = self.clock.now();
            busy |= self.seat(end).transport.turn(now, &mut events);
            busy |= !events.is_empty();
            for event in events.drain(..) {
                self.note(end, event)?;
            }
            self.events = events;
        }
        Ok(busy)
    }

    /// Drives the rig until `met`, which must be within its patience.
    pub(super) fn until(
        &mut self,
        what: &'static str,
        mut met: impl FnMut(&mut Self) -> bool,
    ) -> Result<(), Violation> {
        let end = Instant::now() + self.rig.patience;
        let mut slept_through = false;
        while !met(self) {
            if Instant::now() > end {
                return Err(Violation::TimedOut(what));
            }
            let busy = self.step()?;
            self.missed_wakeups += u32::from(busy && slept_through);
            if self.missed_wakeups >= MISSED_WAKEUPS_MAX {
                return Err(Violation::MissedWakeup);
            }
            slept_through = !busy && self.sleep();
        }
        Ok(())
    }

    /// Drives the rig for a while, whatever it does.
    pub(super) fn linger(&mut self, time: Duration) -> Result<(), Violation> {
        let end = Instant::now() + time;
        self.until("time to pass", |_| Instant::now() >= end)
    }

    /// Sleeps until an fd is readable or a deadline near; true if neither came before the nap was over.
    fn sleep(&self) -> bool {
        let seats = || [self.rig.holder.as_ref(), Some(&self.rig.reader)].into_iter().flatten();
        let now = self.clock.now();
        let deadline = seats().filter_map(|seat| seat.transport.next_deadline()).min();
        let until_deadline = deadline.map_or(NAP_MAX, |deadline| deadline.until(now));
        let nap = until_deadline.min(NAP_MAX);
        let timeout = Timespec { tv_sec: 0, tv_nsec: nap.subsec_nanos().into() };
        let mut fds: Vec<_> = seats()
            .filter_map(|seat| seat.transport.wait_fd())
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
            .collect();
        if fds.is_empty() {
            std::thread::sleep(nap.min(Duration::from_millis(1)));
            return until_deadline >= NAP_MAX;
        }
        let ready = rustix::event::poll(&mut fds, Some(&timeout));
        ready == Ok(0) && until_deadline >= NAP_MAX
    }

    /// Moves a shape's bytes from beginning to end, right.
    pub(super) fn carry(&mut self, shape: &Shape) -> Result<usize, Violation> {
        let index = self.lay(shape);
        self.post(index)?;
        self.must_succeed(index)?;
        Ok(index)
    }

    /// A rig caught with a large transfer under way: some of its bytes have landed, and the end is not near.
    pub(super) fn midway(make: Make<'_>, prepare: impl Fn(&mut Self, usize)) -> Result<(Self, usize), Violation> {
        for _ in 0..MIDWAY_TRIES {
            let mut stage = Self::new(make);
            let index = stage.lay(&Shape::huge());
            prepare(&mut stage, index);
            stage.post(index)?;
            let (read, serve) = (stage.transfer(index).read, stage.transfer(index).serve);
            stage.until("the first bytes to land", |stage| {
                stage.result(read).is_some() || stage.transfer(index).probes_landed() > 0
            })?;
            let is_over = stage.result(read).is_some() || stage.result(serve).is_some();
            if !is_over && stage.transfer(index).is_midway() {
                return Ok((stage, index));
            }
        }
        Err(Violation::Inconclusive)
    }

    /// Waits until every work of a posted transfer has succeeded.
    pub(super) fn must_succeed(&mut self, index: usize) -> Result<(), Violation> {
        let Transfer { read, serve, .. } = self.transfers[index];
        self.must_end(read, "success", |result| result.is_ok())?;
        if self.is_pair() {
            self.must_end(serve, "success", |result| result.is_ok())?;
        }
        Ok(())
    }

    /// Waits for the completion of a work and judges its result.
    pub(super) fn must_end(
        &mut self,
        id: WorkId,
        expected: &'static str,
        judge: impl Fn(Result<u64, Fault>) -> bool,
    ) -> Result<(), Violation> {
        self.until("a completion", |stage| stage.result(id).is_some())?;
        match self.result(id) {
            Some(result) if !judge(result) => Err(Violation::WrongResult { id, expected, result }),
            _ => Ok(()),
        }
    }

    pub(super) fn result(&self, id: WorkId) -> Option<Result<u64, Fault>> {
        self.ledger.get(&id).and_then(|entry| entry.result)
    }

    /// Whether everything posted has completed.
    pub(super) fn all_completed(&self) -> bool {
        self.ledger.values().all(|entry| entry.result.is_some())
    }
}
