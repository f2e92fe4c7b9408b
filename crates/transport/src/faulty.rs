//! Goes wrong on purpose, at the places a test's script names.

use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Weak};

use kvferry_core::lease::LeaseGate;
use kvferry_core::plan::{Cursor, Plan, Side};
use kvferry_core::{Time, WorkId};
use kvferry_memory::Region;

use crate::{Admission, Completion, Dial, Endpoint, EndpointId, Event, Fault, Source, Transport, Work};

/// A transport that follows a [`Script`] and otherwise is the one it wraps.
pub struct Faulty(Lane);

/// What goes wrong with one post.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// The completion comes this many turns late. A transport may do that.
    Delay {
        /// Turns between the end of the work and its report.
        turns: u32,
    },
    /// The completion comes twice. No transport may.
    Duplicate,
    /// The work ends well, and this fault is reported instead. A transport may do that.
    Fail(Fault),
    /// The post is handed back with this fault. A transport may do that.
    FailPost(Fault),
    /// A byte of the target is wrong though the work ended well. No transport may.
    FlipByte {
        /// Which of the plan's bytes, in wire order; the last one if there are not as many.
        at: u64,
    },
    /// A region is held beyond the completion. No transport may.
    HoldRegion,
    /// The deadline is not looked at. No transport may.
    IgnoreDeadline,
    /// The lease is not looked at. No transport may.
    IgnoreLease,
    /// The completion never comes. No transport may.
    Lose,
    /// Success is reported before the first byte has moved. No transport may.
    SucceedEarly,
    /// A byte of the target is written some turns after the completion. No transport may.
    WriteLate {
        /// How many turns.
        turns: u32,
    },
}

/// What goes wrong when: each act with the number of the post, over all endpoints, that it happens to.
#[derive(Clone, Debug, Default)]
pub struct Script {
    /// `(post, act)`, posts counted from zero; the first line for a post counts.
    pub lines: Vec<(u64, Act)>,
}

/// The endpoint asked for last, seen through the transport that has it.
struct Lane {
    inner: Box<dyn Transport>,
    selected: EndpointId,
    /// The selected endpoint's, exact for as long as the borrow that selected it lasts.
    in_flight: usize,
    script: Script,
    /// Posts so far.
    posts: u64,
    /// Works in flight that the script names.
    victims: HashMap<WorkId, Victim>,
    /// What is to happen in a later turn, with the turns left.
    later: Vec<(u32, Later)>,
    /// Regions that should have been let go.
    held: Vec<Arc<Region>>,
}

struct Victim {
    act: Act,
    plan: Arc<Plan>,
    /// Where its bytes land, if it is a read. Weak: to own it would be a fault that no script asked for.
    target: Weak<Region>,
}

enum Later {
    Report(Event),
    Write(Weak<Region>, u64),
}

impl Script {
    /// One act, at the first post.
    #[must_use]
    pub fn once(act: Act) -> Self {
        Self { lines: vec![(0, act)] }
    }

    fn act(&self, post: u64) -> Option<Act> {
        self.lines.iter().find(|(at, _)| *at == post).map(|(_, act)| *act)
    }
}

impl Faulty {
    /// Wraps a transport.
    #[must_use]
    pub fn new(inner: Box<dyn Transport>, script: Script) -> Self {
        Self(Lane {
            inner,
            selected: EndpointId(0),
            in_flight: 0,
            script,
            posts: 0,
            victims: HashMap::new(),
            later: Vec::new(),
            held: Vec::new(),
        })
    }
}

impl Transport for Faulty {
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
        self.0.come_due(events);
        let before = events.len();
        let more = self.0.inner.turn(now, events);
        for event in events.split_off(before) {
            self.0.report(event, events);
        }
        more || !self.0.later.is_empty()
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
    fn post(&mut self, now: Time, mut work: Work) -> Result<(), (Fault, Work)> {
        let act = self.script.act(self.posts);
        self.posts += 1;
        let Some(endpoint) = self.inner.endpoint(self.selected) else { return Err((Fault::PeerClosed, work)) };
        let Some(act) = act else {
            let posted = endpoint.post(now, work);
            self.in_flight = endpoint.in_flight();
            return posted;
        };
        // Handed back if the inner transport refuses: what it saw may have been changed by the act.
        let original = work.clone();
        match act {
            Act::FailPost(fault) => return Err((fault, work)),
            Act::IgnoreDeadline => forget_deadline(&mut work),
            Act::IgnoreLease => forget_lease(&mut work),
            _ => {}
        }
        let id = work.id();
        let victim = Victim::new(act, &work);
        endpoint.post(now, work).map_err(|(fault, _)| (fault, original))?;
        self.in_flight = endpoint.in_flight();
        if act == Act::SucceedEarly {
            let completion = Completion { id, result: Ok(victim.plan.bytes()) };
            self.later.push((0, Later::Report(Event::Completed(completion))));
        }
        self.victims.insert(id, victim);
        Ok(())
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

impl Lane {
    /// Does what earlier turns have put off until this one.
    fn come_due(&mut self, events: &mut Vec<Event>) {
        for (turns, later) in std::mem::take(&mut self.later) {
            match (turns, later) {
                (0, Later::Report(event)) => events.push(event),
                (0, Later::Write(target, offset)) => flip(&target, offset),
                (turns, later) => self.later.push((turns - 1, later)),
            }
        }
    }

    /// Passes an event of the inner transport on, changed as the script says.
    fn report(&mut self, event: Event, events: &mut Vec<Event>) {
        let Event::Completed(mut completion) = event else {
            // An endpoint goes down after the completions of its works, the late ones too.
            let reports = self.later.iter().filter(|(_, later)| matches!(later, Later::Report(_)));
            return match reports.map(|(turns, _)| *turns).max() {
                Some(turns) => self.later.push((turns, Later::Report(event))),
                None => events.push(event),
            };
        };
        let Some(victim) = self.victims.remove(&completion.id) else { return events.push(event) };
        match victim.act {
            Act::Delay { turns } => return self.later.push((turns, Later::Report(event))),
            Act::Duplicate => events.push(event),
            Act::Fail(fault) => completion.result = completion.result.and(Err(fault)),
            Act::FlipByte { at } => flip(&victim.target, victim.target_offset(at)),
            Act::HoldRegion => self.held.extend(victim.target.upgrade()),
            Act::Lose | Act::SucceedEarly => return,
            Act::WriteLate { turns } => {
                let offset = victim.target_offset(0);
                self.later.push((turns, Later::Write(victim.target, offset)));
            }
            Act::FailPost(_) | Act::IgnoreDeadline | Act::IgnoreLease => {}
        }
        events.push(Event::Completed(completion));
    }
}

impl Victim {
    fn new(act: Act, work: &Work) -> Self {
        let (plan, target) = match work {
            Work::Read(read) => (&read.plan, Arc::downgrade(&read.target)),
            Work::Serve(serve) => (&serve.plan, Weak::new()),
        };
        Self { act, plan: Arc::clone(plan), target }
    }

    /// Where the plan's byte `at` lands.
    fn target_offset(&self, at: u64) -> u64 {
        let mut slices = Vec::new();
        Cursor::new(Arc::clone(&self.plan), Side::Target).take(at.saturating_add(1), usize::MAX, &mut slices);
        slices.last().map_or(0, |slice| slice.offset + slice.length - 1)
    }
}

/// Nothing happens where the region is gone, or ends before `offset`.
fn flip(target: &Weak<Region>, offset: u64) {
    let mut byte = [0];
    if let Some(target) = target.upgrade()
        && target.read(offset, &mut byte).is_ok()
    {
        let flipped = target.write(offset, &[!byte[0]]);
        debug_assert!(flipped.is_ok(), "a byte that can be read can be written");
    }
}

fn forget_deadline(work: &mut Work) {
    match work {
        Work::Read(read) => read.deadline = Time::NEVER,
        Work::Serve(serve) => serve.deadline = Time::NEVER,
    }
}

fn forget_lease(work: &mut Work) {
    let forever = LeaseGate::new(Time::NEVER);
    match work {
        Work::Read(read) => {
            if let Source::Region { lease, .. } = &mut read.source {
                *lease = forever;
            }
        }
        Work::Serve(serve) => serve.lease = forever,
    }
}
