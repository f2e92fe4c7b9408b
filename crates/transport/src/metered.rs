//! Counts what a transport is asked and what it answers.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kvferry_core::{Time, WorkId};
use kvferry_memory::Region;

use crate::{Admission, Dial, Endpoint, EndpointId, Event, Fault, Transport, Work};

/// A transport that counts into shared [`Counts`] and otherwise is the one it wraps.
pub struct Metered(Lane);

/// Running totals of one transport. Written by its data thread, read by whoever shows them.
#[derive(Debug, Default)]
pub struct Counts {
    /// Works taken on.
    posted: AtomicU64,
    /// Posts handed back.
    handed_back: AtomicU64,
    /// Works that completed with bytes.
    completed: AtomicU64,
    /// Bytes of those works.
    bytes: AtomicU64,
    /// Works that completed with a fault, in the order of [`Fault::LABELS`].
    failed: [AtomicU64; Fault::LABELS.len()],
    /// Endpoints that came up.
    endpoints_up: AtomicU64,
    /// Endpoints that went down, or never came up.
    endpoints_down: AtomicU64,
}

/// [`Counts`] at one moment. The numbers are read one by one: a post may be counted here whose completion is not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Works taken on.
    pub posted: u64,
    /// Posts handed back.
    pub handed_back: u64,
    /// Works that completed with bytes.
    pub completed: u64,
    /// Bytes of those works.
    pub bytes: u64,
    /// Works that completed with a fault, in the order of [`Fault::LABELS`].
    pub failed: [u64; Fault::LABELS.len()],
    /// Endpoints that came up.
    pub endpoints_up: u64,
    /// Endpoints that went down, or never came up.
    pub endpoints_down: u64,
}

/// The endpoint asked for last, seen through the transport that has it.
struct Lane {
    inner: Box<dyn Transport>,
    selected: EndpointId,
    /// The selected endpoint's, exact for as long as the borrow that selected it lasts.
    in_flight: usize,
    counts: Arc<Counts>,
}

impl Metered {
    /// Wraps a transport; `counts` may be shared with others.
    #[must_use]
    pub fn new(inner: Box<dyn Transport>, counts: Arc<Counts>) -> Self {
        Self(Lane { inner, selected: EndpointId(0), in_flight: 0, counts })
    }
}

impl Counts {
    /// All totals at this moment.
    #[must_use]
    pub fn totals(&self) -> Totals {
        // Relaxed: the numbers are shown, never acted on.
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Totals {
            posted: load(&self.posted),
            handed_back: load(&self.handed_back),
            completed: load(&self.completed),
            bytes: load(&self.bytes),
            failed: std::array::from_fn(|position| load(&self.failed[position])),
            endpoints_up: load(&self.endpoints_up),
            endpoints_down: load(&self.endpoints_down),
        }
    }

    fn note(&self, event: Event) {
        match event {
            Event::Completed(completion) => match completion.result {
                Ok(bytes) => {
                    add(&self.completed, 1);
                    add(&self.bytes, bytes);
                }
                Err(fault) => add(&self.failed[fault.position()], 1),
            },
            Event::EndpointDown(..) => add(&self.endpoints_down, 1),
            Event::EndpointUp(_) => add(&self.endpoints_up, 1),
        }
    }
}

impl Totals {
    /// Works that completed with this kind of fault.
    #[must_use]
    pub const fn failed_by(&self, fault: Fault) -> u64 {
        self.failed[fault.position()]
    }

    /// Works taken on and not completed yet.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.posted.saturating_sub(self.completed).saturating_sub(self.failed.iter().sum())
    }
}

impl Transport for Metered {
    fn name(&self) -> &'static str {
        self.0.inner.name()
    }

    fn register(&mut self, region: &Arc<Region>) -> Result<(), Fault> {
        self.0.inner.register(region)
    }

    fn deregister(&mut self, region: &Arc<Region>) {
        self.0.inner.deregister(region);
    }

    fn connect(&mut self, now: Time, dial: Dial) -> Result<(), Fault> {
        self.0.inner.connect(now, dial)
    }

    fn admit(&mut self, now: Time, admission: Admission) -> Result<(), Fault> {
        self.0.inner.admit(now, admission)
    }

    fn close(&mut self, now: Time, endpoint: EndpointId) {
        self.0.inner.close(now, endpoint);
    }

    fn endpoint(&mut self, id: EndpointId) -> Option<&mut dyn Endpoint> {
        self.0.in_flight = self.0.inner.endpoint(id)?.in_flight();
        self.0.selected = id;
        Some(&mut self.0)
    }

    fn turn(&mut self, now: Time, events: &mut Vec<Event>) -> bool {
        let before = events.len();
        let more = self.0.inner.turn(now, events);
        events.iter().skip(before).for_each(|event| self.0.counts.note(*event));
        more
    }

    fn next_deadline(&self) -> Option<Time> {
        self.0.inner.next_deadline()
    }

    fn may_spin(&self) -> bool {
        self.0.inner.may_spin()
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        self.0.inner.wait_fd()
    }
}

impl Endpoint for Lane {
    fn post(&mut self, now: Time, work: Work) -> Result<(), (Fault, Work)> {
        let posted = match self.inner.endpoint(self.selected) {
            Some(endpoint) => {
                let posted = endpoint.post(now, work);
                self.in_flight = endpoint.in_flight();
                posted
            }
            None => Err((Fault::PeerClosed, work)),
        };
        add(if posted.is_ok() { &self.counts.posted } else { &self.counts.handed_back }, 1);
        posted
    }

    fn cancel(&mut self, now: Time, id: WorkId) {
        if let Some(endpoint) = self.inner.endpoint(self.selected) {
            endpoint.cancel(now, id);
            self.in_flight = endpoint.in_flight();
        }
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }
}

fn add(count: &AtomicU64, more: u64) {
    count.fetch_add(more, Ordering::Relaxed);
}
