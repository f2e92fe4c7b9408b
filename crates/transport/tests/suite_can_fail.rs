//! The suite reports transports that break their contract: a suite that cannot fail proves nothing.

use std::time::Duration;

use kvferry_core::WorkId;
use kvferry_transport::conformance::{
    Clock, Property, Rig, Violation, close_completes_everything_first, deadline_already_passed, deadline_midway,
    lease_closed_midway, lease_ended_before_the_post, lease_expired_midway, moves_an_empty_plan,
    moves_many_works_interleaved, moves_one_large_work,
};
use kvferry_transport::{Act, CopySettings, CopyTransport, Fault, Faulty, Script};

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
