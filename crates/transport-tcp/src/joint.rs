//! One endpoint that is spread over several threads: what was posted, and who has not said yet how it ended.
//!
//! ```text
//! post -> shares -> an order for each other thread at once, for the own one with its next turn
//! reports of the threads -> one event for each work
//! ```
//!
//! The others are told within `post`: what is posted here may be offered by the peer a moment later.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use kvferry_core::plan::Side;
use kvferry_core::{Time, WorkId};
use kvferry_transport::{Completion, Endpoint, EndpointId, Event, Fault, Role, Source, Work, plan_fits};

use crate::mailbox::Mailbox;
use crate::share::{Shares, shares};
use crate::threads::Order;

/// What the streams here are of the whole endpoint, which may have others in other event loops.
#[derive(Clone, Debug, Default)]
pub(crate) struct Place {
    /// Which stream of the whole is the first here.
    pub(crate) first: u32,
    /// Threads whose part is up. Each counts itself before it lets the peer know: the peer may ask for a work at once.
    pub(crate) ups: Arc<AtomicUsize>,
    /// Completed reads of which bytes may still come, so that each has a slot here.
    pub(crate) draining: Arc<AtomicUsize>,
}

/// What the own thread, number 0, must be told.
pub(crate) enum Told {
    Post(Work, Shares),
    /// Ends a work early, for this reason.
    Stop(WorkId, Fault),
}

/// See the module.
pub(crate) struct Joint {
    pub(crate) id: EndpointId,
    role: Role,
    stream_count: usize,
    /// Of the other threads that have streams of this endpoint: numbers 1 and up.
    orders: Vec<Arc<Mailbox<Order>>>,
    works_max: usize,
    /// Slots at each thread that works of before still have. A thread counts one here before it reports the work.
    draining: Vec<Arc<AtomicUsize>>,
    /// Threads whose part came up.
    ups: Arc<AtomicUsize>,
    /// Whether it was said that all are.
    announced: bool,
    /// Threads whose part went down.
    downs: usize,
    /// Why it ends.
    fault: Option<Fault>,
    works: HashMap<WorkId, Open>,
    /// How many of them several threads are at.
    shared: usize,
    told: Vec<Told>,
}

/// A work until its completion.
struct Open {
    /// Threads that have not said how their part ended.
    threads: Vec<usize>,
    is_shared: bool,
    bytes: u64,
    fault: Option<Fault>,
}

impl Joint {
    /// Nobody has come up yet. `others` can be more than there is use for.
    pub(crate) fn new<'a>(
        id: EndpointId,
        role: Role,
        stream_count: usize,
        others: impl Iterator<Item = &'a Arc<Mailbox<Order>>>,
        works_max: usize,
    ) -> Self {
        let orders: Vec<_> = others.take(stream_count.saturating_sub(1)).cloned().collect();
        Self {
            id,
            role,
            stream_count,
            works_max,
            draining: (0..=orders.len()).map(|_| Arc::default()).collect(),
            orders,
            ups: Arc::default(),
            announced: false,
            downs: 0,
            fault: None,
            works: HashMap::new(),
            shared: 0,
            told: Vec::new(),
        }
    }

    const fn thread_count(&self) -> usize {
        self.orders.len() + 1
    }

    /// The streams of one thread: neighbours, and no thread has two more than another.
    pub(crate) const fn streams_of(&self, number: usize) -> Range<usize> {
        let (streams, threads) = (self.stream_count, self.thread_count());
        (number * streams).div_ceil(threads)..((number + 1) * streams).div_ceil(threads)
    }

    /// Where those are in the whole.
    pub(crate) fn place_of(&self, number: usize) -> Place {
        let first = u32::try_from(self.streams_of(number).start).unwrap_or(u32::MAX);
        Place { first, ups: Arc::clone(&self.ups), draining: Arc::clone(&self.draining[number]) }
    }

    /// Orders each of the others what is made for its number.
    pub(crate) fn order_others(&self, make: impl Fn(usize) -> Order) {
        for (number, orders) in (1..).zip(&self.orders) {
            orders.put([make(number)]);
        }
    }

    /// Where orders go to the thread that has this stream; none for the own thread's, and for one that there is not.
    pub(crate) fn orders_for(&self, stream: u32) -> Option<&Mailbox<Order>> {
        let stream = usize::try_from(stream).ok()?;
        let has_stream = |(number, orders): (usize, _)| self.streams_of(number).contains(&stream).then_some(orders);
        (1..).zip(&self.orders).find_map(has_stream).map(Arc::as_ref)
    }

    pub(crate) fn is_up(&self) -> bool {
        self.is_well() && self.ups.load(Ordering::Acquire) == self.thread_count()
    }

    /// Its first event, once all of it is up: before anything that a thread reports of it goes out.
    pub(crate) fn announce(&mut self) -> Option<Event> {
        let is_new = !self.announced && self.is_up();
        self.announced |= is_new;
        is_new.then_some(Event::EndpointUp(self.id))
    }

    /// Nothing ends it yet.
    pub(crate) const fn is_well(&self) -> bool {
        self.fault.is_none()
    }

    /// Why it ends, if it does.
    pub(crate) const fn fault(&self) -> Option<Fault> {
        self.fault
    }

    /// It ends, for this reason unless there was one before.
    pub(crate) fn fail(&mut self, fault: Fault) {
        self.fault.get_or_insert(fault);
    }

    /// Its last event, once all of it is over.
    pub(crate) fn over(&self) -> Option<Event> {
        let fault = self.fault.filter(|_| self.downs == self.thread_count() && self.works.is_empty())?;
        Some(Event::EndpointDown(self.id, fault))
    }

    /// Whether several threads are at a work.
    pub(crate) const fn is_shared(&self) -> bool {
        self.shared > 0
    }

    pub(crate) const fn has_told(&self) -> bool {
        !self.told.is_empty()
    }

    /// What is to be told to the own thread since the last time, in order.
    pub(crate) fn take_told(&mut self) -> Vec<Told> {
        std::mem::take(&mut self.told)
    }

    /// Takes in what one thread reports, and says what that comes to.
    pub(crate) fn handle(&mut self, number: usize, event: Event) -> Option<Event> {
        match event {
            Event::Completed(done) => self.handle_completed(number, done).map(Event::Completed),
            // It has counted itself; see `announce`.
            Event::EndpointUp(_) => None,
            Event::EndpointDown(_, fault) => {
                self.downs += 1;
                self.fail(fault);
                None
            }
        }
    }

    fn handle_completed(&mut self, number: usize, done: Completion) -> Option<Completion> {
        let open = self.works.get_mut(&done.id)?;
        open.threads.retain(|&other| other != number);
        let is_over = open.threads.is_empty();
        match done.result {
            Ok(bytes) => open.bytes += bytes,
            Err(fault) if open.fault.is_none() => {
                open.fault = Some(fault);
                self.call_off(done.id, fault);
            }
            // A cancel follows from another's fault as often as not, and may overtake it by way of the peer.
            Err(fault) if open.fault == Some(Fault::Cancelled) => open.fault = Some(fault),
            Err(_) => {}
        }
        if !is_over {
            return None;
        }
        let open = self.works.remove(&done.id)?;
        self.shared -= usize::from(open.is_shared);
        Some(Completion { id: done.id, result: open.fault.map_or(Ok(open.bytes), Err) })
    }

    /// Tells those who are still at a work to end it. The reason goes along, as each part's trailer tells the peer.
    fn call_off(&mut self, id: WorkId, fault: Fault) {
        let Some(open) = self.works.get(&id) else { return };
        for &number in &open.threads {
            match number.checked_sub(1) {
                None => self.told.push(Told::Stop(id, fault)),
                Some(other) => self.orders[other].put([Order::Stop(self.id, id, fault)]),
            }
        }
    }

    fn draining_most(&self) -> usize {
        self.draining.iter().map(|count| count.load(Ordering::Acquire)).max().unwrap_or(0)
    }

    fn refusal(&self, work: &Work) -> Option<Fault> {
        let (fits, is_mine) = match work {
            Work::Read(read) => {
                let is_mine = self.role == Role::Reads && !matches!(read.source, Source::Region { .. });
                (plan_fits(&read.plan, Side::Target, &read.target), is_mine)
            }
            Work::Serve(serve) => (plan_fits(&serve.plan, Side::Source, &serve.source), self.role == Role::Serves),
        };
        if !is_mine {
            Some(Fault::Unsupported)
        } else if self.works.contains_key(&work.id()) {
            Some(Fault::Refused)
        } else if self.works.len() + self.draining_most() >= self.works_max {
            Some(Fault::Full)
        } else {
            (!fits).then_some(Fault::OutOfBounds)
        }
    }
}

impl Endpoint for Joint {
    fn post(&mut self, _now: Time, work: Work) -> Result<(), (Fault, Work)> {
        if let Some(fault) = self.refusal(&work) {
            return Err((fault, work));
        }
        let mut own = shares(work.plan(), self.stream_count);
        let mut threads = vec![0];
        for number in (1..self.thread_count()).rev() {
            let shares = own.split_off(self.streams_of(number).start);
            if shares.iter().any(Option::is_some) {
                threads.push(number);
                self.orders[number - 1].put([Order::Post(self.id, work.clone(), shares)]);
            }
        }
        let is_shared = threads.len() > 1;
        self.shared += usize::from(is_shared);
        self.works.insert(work.id(), Open { threads, is_shared, bytes: 0, fault: None });
        self.told.push(Told::Post(work, own));
        Ok(())
    }

    fn cancel(&mut self, _now: Time, id: WorkId) {
        self.call_off(id, Fault::Cancelled);
    }

    fn in_flight(&self) -> usize {
        self.works.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: EndpointId = EndpointId(1);

    fn joint(streams: usize, threads: usize) -> Joint {
        let others: Vec<_> = (1..threads).map(|_| Arc::new(Mailbox::new().expect("an eventfd"))).collect();
        Joint::new(ID, Role::Reads, streams, others.iter(), 8)
    }

    #[test]
    fn every_stream_has_one_thread() {
        for streams in 1..=64_u32 {
            let last = streams - 1;
            let streams = streams as usize;
            for threads in 1..=16 {
                let joint = joint(streams, threads);
                let all: Vec<usize> = (0..joint.thread_count()).flat_map(|number| joint.streams_of(number)).collect();
                assert!(all.into_iter().eq(0..streams), "{streams} over {threads}");
                assert!((0..joint.thread_count()).all(|number| !joint.streams_of(number).is_empty()));
                assert!(joint.orders_for(0).is_none() && joint.orders_for(64).is_none());
                assert!(threads == 1 || streams == 1 || joint.orders_for(last).is_some());
            }
        }
    }

    fn open(joint: &mut Joint, id: u64) {
        joint.shared += 1;
        joint.works.insert(WorkId(id), Open { threads: vec![1, 0], is_shared: true, bytes: 0, fault: None });
    }

    fn done(id: u64, result: Result<u64, Fault>) -> Event {
        Event::Completed(Completion { id: WorkId(id), result })
    }

    #[test]
    fn a_work_ends_once_with_the_bytes_of_all() {
        let mut joint = joint(2, 2);
        open(&mut joint, 5);
        assert_eq!(joint.handle(0, done(5, Ok(10))), None);
        assert_eq!(joint.handle(1, done(5, Ok(7))), Some(done(5, Ok(17))));
        assert_eq!(joint.handle(1, done(5, Ok(7))), None, "it has ended");
    }

    #[test]
    fn the_first_fault_counts_and_calls_the_others_off() {
        let mut joint = joint(2, 2);
        open(&mut joint, 5);
        assert_eq!(joint.handle(1, done(5, Err(Fault::ChecksumMismatch))), None);
        assert!(matches!(joint.take_told()[..], [Told::Stop(WorkId(5), Fault::ChecksumMismatch)]));
        assert_eq!(joint.handle(0, done(5, Err(Fault::Cancelled))), Some(done(5, Err(Fault::ChecksumMismatch))));
        open(&mut joint, 6);
        assert_eq!(joint.handle(0, done(6, Err(Fault::Deadline))), None);
        assert!(matches!(joint.orders[0].take()[..], [Order::Stop(ID, WorkId(6), Fault::Deadline)]));
        assert_eq!(joint.handle(1, done(6, Ok(7))), Some(done(6, Err(Fault::Deadline))), "half is nothing");
    }

    #[test]
    fn a_fault_counts_more_than_the_cancel_that_came_of_it() {
        let mut joint = joint(2, 2);
        open(&mut joint, 5);
        assert_eq!(joint.handle(0, done(5, Err(Fault::Cancelled))), None);
        assert_eq!(joint.handle(1, done(5, Err(Fault::LeaseEnded))), Some(done(5, Err(Fault::LeaseEnded))));
    }

    #[test]
    fn it_is_up_when_all_are_and_down_when_all_is_over() {
        let mut joint = joint(4, 2);
        joint.place_of(1).ups.fetch_add(1, Ordering::Release);
        assert!(!joint.is_up() && joint.announce().is_none());
        joint.place_of(0).ups.fetch_add(1, Ordering::Release);
        assert!(joint.is_up(), "a part counts before its report comes: the peer may be quicker");
        assert_eq!(joint.announce(), Some(Event::EndpointUp(ID)));
        assert_eq!(joint.handle(1, Event::EndpointUp(ID)), None);
        assert_eq!(joint.announce(), None, "once");
        open(&mut joint, 5);
        assert_eq!(joint.handle(1, Event::EndpointDown(ID, Fault::Stalled)), None);
        assert!(!joint.is_up() && joint.over().is_none());
        assert_eq!(joint.handle(0, Event::EndpointDown(ID, Fault::Cancelled)), None);
        assert_eq!(joint.over(), None, "a work is open");
        joint.handle(1, done(5, Err(Fault::Stalled)));
        joint.handle(0, done(5, Err(Fault::Cancelled)));
        assert_eq!(joint.over(), Some(Event::EndpointDown(ID, Fault::Stalled)));
    }
}
