//! The suite's properties of pairs, against a pair that keeps them and against one that does not.

mod twin;

use std::time::Duration;

use kvferry_core::WorkId;
use kvferry_transport::conformance::{
    Clock, Property, Rig, Violation, cancel_midway, holder_close_reaches_the_reader, lease_closed_midway,
    lease_ended_before_the_post, moves_mixed_layouts, plans_that_differ_move_nothing, serve_ends_at_its_deadline,
    unknown_serve_is_refused,
};
use kvferry_transport::{Act, Fault, Faulty, Script, Transport};

kvferry_transport::conformance!(twins, twins_rig);

fn twins_rig(clock: &Clock) -> Rig {
    let (reader, holder) = twin::twins();
    twin::rig(clock, reader, holder)
}

/// The first read and the first serve of each property.
const READ: WorkId = WorkId(1);
const SERVE: WorkId = WorkId(2);

/// What a property says of a pair one end of which goes wrong at its first post.
fn verdict(property: Property, at_holder: bool, act: Act) -> Violation {
    let spoil = |transport: Box<dyn Transport>| Box::new(Faulty::new(transport, Script::once(act)));
    let make = |clock: &Clock| {
        let (reader, holder) = twin::twins();
        let rig =
            if at_holder { twin::rig(clock, reader, spoil(holder)) } else { twin::rig(clock, spoil(reader), holder) };
        Rig { patience: Duration::from_secs(3), ..rig }
    };
    property(&make).expect_err("the suite must notice")
}

#[test]
fn a_holder_that_does_not_look_at_the_lease() {
    for property in [lease_closed_midway, lease_ended_before_the_post] {
        let blind = verdict(property, true, Act::IgnoreLease);
        assert!(matches!(blind, Violation::WrongResult { id: READ, expected: "LeaseEnded", result: Ok(_) }), "{blind}");
    }
}

#[test]
fn a_holder_that_never_reports() {
    assert_eq!(verdict(moves_mixed_layouts, true, Act::Lose), Violation::TimedOut("a completion"));
    let lost = verdict(holder_close_reaches_the_reader, true, Act::Lose);
    assert!(matches!(lost, Violation::DownTooEarly { in_flight: 1, .. }), "{lost}");
}

#[test]
fn a_holder_that_never_reports_a_cancelled_serve() {
    assert_eq!(verdict(cancel_midway, true, Act::Lose), Violation::TimedOut("the completion of everything posted"));
}

#[test]
fn a_holder_that_never_reports_a_late_serve() {
    assert_eq!(verdict(serve_ends_at_its_deadline, true, Act::Lose), Violation::TimedOut("a completion"));
}

#[test]
fn a_holder_that_reports_twice() {
    assert_eq!(verdict(moves_mixed_layouts, true, Act::Duplicate), Violation::CompletedTwice(SERVE));
}

#[test]
fn a_holder_that_serves_beyond_the_deadline() {
    let late = verdict(serve_ends_at_its_deadline, true, Act::IgnoreDeadline);
    assert_eq!(late, Violation::TimedOut("a completion"));
}

#[test]
fn a_reader_that_believes_what_nobody_serves() {
    let early = verdict(unknown_serve_is_refused, false, Act::SucceedEarly);
    assert!(matches!(early, Violation::WrongBytes { id: READ, .. }), "{early}");
}

#[test]
fn a_reader_that_believes_another_plan() {
    let early = verdict(plans_that_differ_move_nothing, false, Act::SucceedEarly);
    assert!(
        matches!(early, Violation::WrongBytes { id: READ, .. } | Violation::WrongResult { id: READ, .. }),
        "{early}"
    );
    let refused = verdict(moves_mixed_layouts, false, Act::Fail(Fault::Refused));
    let result = Err(Fault::Refused);
    assert_eq!(refused, Violation::WrongResult { id: READ, expected: "success", result });
}
