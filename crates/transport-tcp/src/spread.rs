//! Endpoints whose streams are spread over several threads: one to the outside, one part in each event loop.
//!
//! ```text
//! post -> Joint: checked, cut into shares -> an order for each thread that has a stream with a share
//!                                                                     |
//! one Completed, once every thread has said that its part is over  <--+   the first fault calls the others off
//! ```
//!
//! Who has which streams is each end's own business: on the wire there are only streams. The transport's own thread
//! is number 0 and has the first streams, so a small work, which is one part, wakes nobody else.
//!
//! Limits: as for an endpoint on one thread. Failure: a part that goes down takes the others along; the endpoint goes
//! down when all have, and when every work of it has completed.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use kvferry_core::Time;
use kvferry_transport::{Admission, Completion, Dial, Endpoint, EndpointId, Event, Fault, Role};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

use crate::Counters;
use crate::admission::Caller;
use crate::event_loop::{EventLoop, Report};
use crate::joint::{Joint, Told};
use crate::mailbox::Mailbox;
use crate::settings::Settings;
use crate::threads::{DataThread, Order, Threads};

/// A thread with this many orders before it gets no callers on top.
const ORDERS_MAX: usize = 1024;

/// See the module.
pub(crate) struct Spread {
    /// Numbers 1 and up.
    threads: Vec<DataThread>,
    reports: Arc<Mailbox<(usize, Report)>>,
    /// Readable when the own event loop or the mailbox is.
    gate: OwnedFd,
    joints: HashMap<EndpointId, Joint>,
    works_max: usize,
}

impl Spread {
    /// Starts the threads beside the one of `own`.
    pub(crate) fn start(own: &EventLoop, settings: &Settings, threads: &Threads) -> io::Result<Self> {
        let reports = Arc::new(Mailbox::new()?);
        let gate = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&gate, own.wait_fd(), EventData::new_u64(0), EventFlags::IN)?;
        epoll::add(&gate, &*reports, EventData::new_u64(1), EventFlags::IN)?;
        let start = |number| DataThread::start(number, settings, threads, Arc::clone(&reports));
        let threads = (1..threads.count).map(start).collect::<io::Result<_>>()?;
        Ok(Self { threads, reports, gate, joints: HashMap::new(), works_max: settings.works_max })
    }

    pub(crate) fn wait_fd(&self) -> BorrowedFd<'_> {
        self.gate.as_fd()
    }

    /// All of them, with the own one.
    pub(crate) const fn thread_count(&self) -> usize {
        self.threads.len() + 1
    }

    pub(crate) fn counters(&self) -> impl Iterator<Item = Counters> {
        self.threads.iter().map(DataThread::counters)
    }

    /// Endpoints that are spread, gone ones included until that is reported.
    pub(crate) fn endpoint_count(&self) -> usize {
        self.joints.len()
    }

    pub(crate) fn is_known(&self, id: EndpointId) -> bool {
        self.joints.contains_key(&id)
    }

    pub(crate) fn connect(&mut self, own: &mut EventLoop, now: Time, dial: &Dial) -> Result<(), Fault> {
        let joint = self.joint(dial.endpoint, dial.role, dial.keys.len());
        let part = |streams: Range<usize>| Dial { keys: dial.keys[streams].to_vec(), ..dial.clone() };
        own.connect(now, &part(joint.streams_of(0)), joint.place_of(0))?;
        joint.order_others(|number| Order::Connect(part(joint.streams_of(number)), joint.place_of(number)));
        self.joints.insert(dial.endpoint, joint);
        Ok(())
    }

    pub(crate) fn admit(&mut self, own: &mut EventLoop, admission: &Admission) {
        let joint = self.joint(admission.endpoint, admission.role, admission.keys.len());
        let part = |streams: Range<usize>| Admission { keys: admission.keys[streams].to_vec(), ..admission.clone() };
        own.admit(&part(joint.streams_of(0)), joint.place_of(0));
        joint.order_others(|number| Order::Admit(part(joint.streams_of(number)), joint.place_of(number)));
        self.joints.insert(admission.endpoint, joint);
    }

    fn joint(&self, id: EndpointId, role: Role, stream_count: usize) -> Joint {
        let others = self.threads.iter().map(|thread| &thread.orders);
        Joint::new(id, role, stream_count, others, self.works_max)
    }

    /// Ends an endpoint that is spread; an unknown one is ignored.
    pub(crate) fn close(&mut self, own: &mut EventLoop, now: Time, id: EndpointId) {
        let Some(joint) = self.joints.get_mut(&id) else { return };
        // What was posted a moment ago completes with the rest.
        tell_own(joint, own, now, &self.reports);
        joint.fail(Fault::Cancelled);
        close_all(joint, own);
    }

    /// The endpoint of this name, while all of it is up.
    pub(crate) fn endpoint(&mut self, id: EndpointId) -> Option<&mut dyn Endpoint> {
        let joint = self.joints.get_mut(&id)?;
        if joint.is_up() { Some(joint) } else { None }
    }

    /// Gives a caller for a stream of another thread to that thread. False: there is no such stream, or the
    /// thread has too much to do.
    pub(crate) fn forward(&self, caller: Caller) -> bool {
        let joint = self.joints.get(&caller.endpoint);
        let Some(orders) = joint.and_then(|joint| joint.orders_for(caller.stream)) else { return false };
        let has_room = orders.len() < ORDERS_MAX;
        if has_room {
            orders.put([Order::Welcome(caller)]);
        }
        has_room
    }

    /// Whether a turn has something to tell its own thread.
    pub(crate) fn has_told(&self) -> bool {
        self.joints.values().any(Joint::has_told)
    }

    /// Whether other threads are at work too.
    pub(crate) fn is_shared(&self) -> bool {
        self.joints.values().any(Joint::is_shared)
    }

    /// Begins a turn: tells the own thread what was posted and cancelled since the last.
    pub(crate) fn begin_turn(&mut self, own: &mut EventLoop, now: Time) {
        for joint in self.joints.values_mut().filter(|joint| joint.has_told()) {
            tell_own(joint, own, now, &self.reports);
        }
    }

    /// Ends a turn: makes one event of what each thread reports. True: there was something from others.
    pub(crate) fn end_turn(
        &mut self,
        own: &mut EventLoop,
        own_reports: &mut Vec<Report>,
        events: &mut Vec<Event>,
    ) -> bool {
        let others = self.reports.take();
        let has_others = !others.is_empty();
        let mine = own_reports.drain(..).map(|report| (0, report));
        for (number, report) in mine.chain(others) {
            let Some(joint) = self.joints.get_mut(&report.endpoint) else {
                events.push(report.event);
                continue;
            };
            let was_well = joint.is_well();
            events.extend(joint.announce());
            events.extend(joint.handle(number, report.event));
            if was_well && !joint.is_well() {
                close_all(joint, own);
            }
            if let Some(down) = joint.over() {
                events.push(down);
                self.joints.remove(&report.endpoint);
            }
        }
        has_others
    }
}

fn tell_own(joint: &mut Joint, own: &mut EventLoop, now: Time, reports: &Mailbox<(usize, Report)>) {
    let endpoint = joint.id;
    for told in joint.take_told() {
        match (told, own.endpoint(endpoint)) {
            (Told::Post(work, shares), part) => {
                let id = work.id();
                let posted = match part {
                    Some(part) => part.post_shares(now, work, shares).map_err(|(fault, _)| fault),
                    None => Err(Fault::PeerClosed),
                };
                if let Err(fault) = posted {
                    // Reported like everything else that a thread finds.
                    let event = Event::Completed(Completion { id, result: Err(fault) });
                    reports.put([(0, Report { endpoint, event })]);
                }
            }
            (Told::Stop(id, fault), Some(part)) => part.stop(id, fault),
            (Told::Stop(..), None) => {}
        }
    }
}

/// For the reason that the joint has; those who are down already ignore it.
fn close_all(joint: &Joint, own: &mut EventLoop) {
    let Some(fault) = joint.fault() else { return };
    own.close(joint.id, fault);
    joint.order_others(|_| Order::Close(joint.id, fault));
}
