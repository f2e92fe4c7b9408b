//! The suite reports transports that break their contract: a suite that cannot fail proves nothing.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use kvferry_core::{Time, WorkId};
use kvferry_memory::Region;
use kvferry_transport::conformance::{
    Clock, Property, Rig, Violation, close_completes_everything_first, deadline_already_passed, deadline_midway,
    lease_closed_midway, lease_ended_before_the_post, lease_expired_midway, moves_an_empty_plan,
    moves_many_works_interleaved, moves_mixed_layouts, moves_one_large_work,
};
use kvferry_transport::{
    Act, Admission, CopySettings, CopyTransport, Dial, Endpoint, EndpointId, Event, Fault, Faulty, Script, Transport,
};

/// The first read of each property has this id.
const FIRST: WorkId = WorkId(1);

/// What a property says of a copy transport that goes wrong at its first post.
fn verdict(property: Property, act: Act) -> Violation {
    let make = |_: &Clock| {
        let settings = CopySettings::default();
        let transport = Faulty::new(Box::new(CopyTransport::new(settings)), Script::once(act));
        let rig = Rig::alone(Box::new(transport), CopyTransport::ENDPOINT, settings.works_max);
        // Long enough for the slowest machine to move what does move, short enough to wait for what never comes.
        Rig { patience: Duration::from_secs(3), ..rig }
    };
    property(&make).expect_err("the suite must notice")
}

#[test]
fn a_lost_completion() {
    let lost = verdict(moves_one_large_work, Act::Lose);
    assert_eq!(lost, Violation::TimedOut("a completion"));
}

#[test]
fn a_lost_completion_at_close() {
    let lost = verdict(close_completes_everything_first, Act::Lose);
    assert!(matches!(lost, Violation::DownTooEarly { in_flight: 1, .. }), "{lost}");
}

#[test]
fn a_duplicate_completion() {
    for property in [moves_one_large_work, moves_many_works_interleaved, moves_an_empty_plan, deadline_midway] {
        assert_eq!(verdict(property, Act::Duplicate), Violation::CompletedTwice(FIRST));
    }
}

#[test]
fn a_flipped_byte() {
    for at in [0, 1_000_000, u64::MAX] {
        let wrong = verdict(moves_one_large_work, Act::FlipByte { at });
        assert!(matches!(wrong, Violation::WrongBytes { id: FIRST, .. }), "{wrong}");
    }
}

#[test]
fn an_early_success() {
    let early = verdict(moves_one_large_work, Act::SucceedEarly);
    assert!(matches!(early, Violation::WrongBytes { id: FIRST, .. }), "{early}");
}

#[test]
fn a_lease_that_is_not_looked_at() {
    for property in [lease_ended_before_the_post, lease_closed_midway, lease_expired_midway] {
        let blind = verdict(property, Act::IgnoreLease);
        assert!(
            matches!(blind, Violation::WrongResult { id: FIRST, expected: "LeaseEnded", result: Ok(_) }),
            "{blind}"
        );
    }
}

#[test]
fn a_deadline_that_is_not_looked_at() {
    for property in [deadline_already_passed, deadline_midway] {
        let blind = verdict(property, Act::IgnoreDeadline);
        assert!(matches!(blind, Violation::WrongResult { id: FIRST, expected: "Deadline", result: Ok(_) }), "{blind}");
    }
}

#[test]
fn a_failure_without_a_cause() {
    let failed = verdict(moves_one_large_work, Act::Fail(Fault::PeerClosed));
    let result = Err(Fault::PeerClosed);
    assert_eq!(failed, Violation::WrongResult { id: FIRST, expected: "success", result });
}

#[test]
fn good_work_handed_back() {
    let refused = verdict(moves_one_large_work, Act::FailPost(Fault::Full));
    assert_eq!(refused, Violation::HandedBack { id: FIRST, fault: Fault::Full });
}

#[test]
fn a_region_held_after_the_completion() {
    let held = verdict(moves_one_large_work, Act::HoldRegion);
    assert_eq!(held, Violation::RegionHeld { id: FIRST, extra: 1 });
}

#[test]
fn a_byte_written_after_the_completion() {
    for turns in [0, 2] {
        assert_eq!(verdict(moves_one_large_work, Act::WriteLate { turns }), Violation::TouchedLate(FIRST));
    }
}

#[test]
fn a_turn_that_says_it_is_done_with_work_left() {
    assert_eq!(verdict_of_answer(moves_mixed_layouts, false), Violation::MissedWakeup);
}

#[test]
fn a_turn_that_always_asks_for_more() {
    assert_eq!(verdict_of_answer(moves_mixed_layouts, true), Violation::NeverIdle);
}

fn verdict_of_answer(property: Property, answer: bool) -> Violation {
    let make = |_: &Clock| {
        let inner = CopyTransport::new(CopySettings::default());
        Rig::alone(Box::new(Stubborn { inner, answer }), CopyTransport::ENDPOINT, 1)
    };
    property(&make).expect_err("the suite must notice")
}

/// Gives the same answer after every turn, whatever is left to do.
struct Stubborn {
    inner: CopyTransport,
    answer: bool,
}

impl Transport for Stubborn {
    fn name(&self) -> &'static str {
        "stubborn"
    }

    fn register(&mut self, region: &Arc<Region>) -> Result<(), Fault> {
        self.inner.register(region)
    }

    fn deregister(&mut self, region: &Arc<Region>) {
        self.inner.deregister(region);
    }

    fn connect(&mut self, now: Time, dial: Dial) -> Result<(), Fault> {
        self.inner.connect(now, dial)
    }

    fn admit(&mut self, now: Time, admission: Admission) -> Result<(), Fault> {
        self.inner.admit(now, admission)
    }

    fn close(&mut self, now: Time, endpoint: EndpointId) {
        self.inner.close(now, endpoint);
    }

    fn endpoint(&mut self, id: EndpointId) -> Option<&mut dyn Endpoint> {
        self.inner.endpoint(id)
    }

    fn turn(&mut self, now: Time, events: &mut Vec<Event>) -> bool {
        self.inner.turn(now, events);
        self.answer
    }

    fn next_deadline(&self) -> Option<Time> {
        None
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
