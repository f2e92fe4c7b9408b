//! A pair of transports whose wire is a lock: the plainest thing that has a holder's end. It shows what the suite asks
//! of pairs, and lets the suite's own properties be tested without a network.

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use kvferry_core::plan::{Cursor, Side, Slice};
use kvferry_core::{Time, WorkId};
use kvferry_memory::Region;
use kvferry_transport::conformance::{Clock, Rig};
use kvferry_transport::{
    Admission, Completion, Dial, Endpoint, EndpointId, Event, Fault, ReadWork, ServeWork, Source, Transport, Work,
    plan_fits,
};

pub(crate) const ENDPOINT: EndpointId = EndpointId(7);
pub(crate) const WORKS_MAX: usize = 24;
const TURN_BYTES: u64 = 2 << 20;
const PARK_MAX: Duration = Duration::from_millis(500);

const READER: usize = 0;
const HOLDER: usize = 1;

/// Both ends, (reader, holder), already up.
pub(crate) fn twins() -> (Box<dyn Transport>, Box<dyn Transport>) {
    let wire = Arc::new(Mutex::new(Wire::default()));
    wire.lock().expect("a fresh lock").events = [vec![Event::EndpointUp(ENDPOINT)], vec![Event::EndpointUp(ENDPOINT)]];
    (Box::new(Twin { wire: Arc::clone(&wire), end: READER }), Box::new(Twin { wire, end: HOLDER }))
}

pub(crate) fn rig(clock: &Clock, reader: Box<dyn Transport>, holder: Box<dyn Transport>) -> Rig {
    Rig::pair(clock, ENDPOINT, reader, holder, WORKS_MAX)
}

struct Twin {
    wire: Arc<Mutex<Wire>>,
    end: usize,
}

#[derive(Default)]
struct Wire {
    reads: Vec<Read>,
    serves: Vec<ServeWork>,
    /// What each end's next turn reports.
    events: [Vec<Event>; 2],
    is_down: bool,
}

struct Read {
    work: ReadWork,
    serve: WorkId,
    source: Cursor,
    target: Cursor,
    posted: Time,
}

impl Wire {
    fn complete(&mut self, end: usize, id: WorkId, result: Result<u64, Fault>) {
        self.events[end].push(Event::Completed(Completion { id, result }));
    }

    fn end_read(&mut self, id: WorkId, result: Result<u64, Fault>) {
        if let Some(index) = self.reads.iter().position(|read| read.work.id == id) {
            drop(self.reads.remove(index));
            self.complete(READER, id, result);
        }
    }

    fn end_serve(&mut self, id: WorkId, result: Result<u64, Fault>) {
        if let Some(index) = self.serves.iter().position(|serve| serve.id == id) {
            drop(self.serves.remove(index));
            self.complete(HOLDER, id, result);
        }
    }

    /// Both works of one movement end alike.
    fn end_both(&mut self, read: WorkId, serve: WorkId, result: Result<u64, Fault>) {
        self.end_read(read, result);
        self.end_serve(serve, result);
    }

    fn advance(&mut self, now: Time) {
        let late: Vec<_> = self.serves.iter().filter(|serve| now >= serve.deadline).map(|serve| serve.id).collect();
        late.into_iter().for_each(|id| self.end_serve(id, Err(Fault::Deadline)));
        let reads: Vec<_> = self.reads.iter().map(|read| (read.work.id, read.serve)).collect();
        for (read, serve) in reads {
            if let Some(result) = self.advance_read(read, now) {
                self.end_both(read, serve, result);
            }
        }
    }

    fn advance_read(&mut self, id: WorkId, now: Time) -> Option<Result<u64, Fault>> {
        let Self { reads, serves, .. } = self;
        let read = reads.iter_mut().find(|read| read.work.id == id)?;
        if now >= read.work.deadline {
            return Some(Err(Fault::Deadline));
        }
        let Some(serve) = serves.iter().find(|serve| serve.id == read.serve) else {
            return (now >= read.posted.after(PARK_MAX)).then_some(Err(Fault::Refused));
        };
        if serve.plan.digest() != read.work.plan.digest() {
            return Some(Err(Fault::Protocol));
        }
        if !serve.lease.is_live(now) {
            return Some(Err(Fault::LeaseEnded));
        }
        if read.target.remaining() == 0 {
            return Some(Ok(read.work.plan.bytes()));
        }
        let mut left = TURN_BYTES;
        while left > 0 && read.target.remaining() > 0 {
            let (mut slices, mut rooms): (Vec<Slice>, Vec<Slice>) = (Vec::new(), Vec::new());
            let taken = read.source.take(left, 1, &mut slices);
            read.target.take(taken, usize::MAX, &mut rooms);
            let mut from = slices[0].offset;
            for room in rooms {
                let copied = read.work.target.copy_from(room.offset, &serve.source, from, room.length);
                copied.expect("the post has checked the plan");
                from += room.length;
            }
            left -= taken;
        }
        None
    }

    fn go_down(&mut self, by: usize) {
        let faults =
            if by == READER { [Fault::Cancelled, Fault::PeerClosed] } else { [Fault::PeerClosed, Fault::Cancelled] };
        for read in std::mem::take(&mut self.reads) {
            self.complete(READER, read.work.id, Err(faults[READER]));
        }
        for serve in std::mem::take(&mut self.serves) {
            self.complete(HOLDER, serve.id, Err(faults[HOLDER]));
        }
        for end in [READER, HOLDER] {
            self.events[end].push(Event::EndpointDown(ENDPOINT, faults[end]));
        }
        self.is_down = true;
    }
}

impl Twin {
    fn wire(&self) -> MutexGuard<'_, Wire> {
        self.wire.lock().expect("one thread drives both ends")
    }

    fn refusal(&self, work: &Work) -> Option<Fault> {
        let wire = self.wire();
        match (work, self.end) {
            (Work::Read(read), READER) if matches!(read.source, Source::Peer { .. }) => {
                if wire.reads.iter().any(|other| other.work.id == read.id) {
                    Some(Fault::Refused)
                } else if wire.reads.len() >= WORKS_MAX {
                    Some(Fault::Full)
                } else {
                    (!plan_fits(&read.plan, Side::Target, &read.target)).then_some(Fault::OutOfBounds)
                }
            }
            (Work::Serve(serve), HOLDER) => {
                if wire.serves.iter().any(|other| other.id == serve.id) {
                    Some(Fault::Refused)
                } else {
                    (!plan_fits(&serve.plan, Side::Source, &serve.source)).then_some(Fault::OutOfBounds)
                }
            }
            _ => Some(Fault::Unsupported),
        }
    }
}

impl Endpoint for Twin {
    fn post(&mut self, now: Time, work: Work) -> Result<(), (Fault, Work)> {
        if let Some(fault) = self.refusal(&work) {
            return Err((fault, work));
        }
        match work {
            Work::Read(work) => {
                let Source::Peer { work: serve } = work.source else {
                    return Err((Fault::Unsupported, Work::Read(work)));
                };
                let source = Cursor::new(Arc::clone(&work.plan), Side::Source);
                let target = Cursor::new(Arc::clone(&work.plan), Side::Target);
                self.wire().reads.push(Read { work, serve, source, target, posted: now });
            }
            Work::Serve(serve) => self.wire().serves.push(serve),
        }
        Ok(())
    }

    fn cancel(&mut self, _now: Time, id: WorkId) {
        let mut wire = self.wire();
        let pair = wire.reads.iter().map(|read| (read.work.id, read.serve));
        let pair = pair.into_iter().find(|(read, serve)| id == if self.end == READER { *read } else { *serve });
        if let Some((read, serve)) = pair {
            wire.end_both(read, serve, Err(Fault::Cancelled));
        } else if self.end == HOLDER {
            wire.end_serve(id, Err(Fault::Cancelled));
        }
    }

    fn in_flight(&self) -> usize {
        let wire = self.wire();
        let posted = if self.end == READER { wire.reads.len() } else { wire.serves.len() };
        let is_completion = |event: &&Event| matches!(event, Event::Completed(_));
        posted + wire.events[self.end].iter().filter(is_completion).count()
    }
}

impl Transport for Twin {
    fn name(&self) -> &'static str {
        "twin"
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
        let mut wire = self.wire();
        if endpoint == ENDPOINT && !wire.is_down {
            wire.go_down(self.end);
        }
    }

    fn endpoint(&mut self, id: EndpointId) -> Option<&mut dyn Endpoint> {
        let is_up = id == ENDPOINT && !self.wire().is_down;
        is_up.then_some(self)
    }

    fn turn(&mut self, now: Time, events: &mut Vec<Event>) -> bool {
        let mut wire = self.wire();
        wire.advance(now);
        events.append(&mut wire.events[self.end]);
        // A read that waits for its serve, and a serve that waits for its read, wait for a post or a deadline.
        let moves = |read: &Read| wire.serves.iter().any(|serve| serve.id == read.serve);
        wire.reads.iter().any(moves) || !wire.events[READER].is_empty() || !wire.events[HOLDER].is_empty()
    }

    fn next_deadline(&self) -> Option<Time> {
        let wire = self.wire();
        let reads = wire.reads.iter().map(|read| read.work.deadline.min(read.posted.after(PARK_MAX)));
        reads.chain(wire.serves.iter().map(|serve| serve.deadline)).min()
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
