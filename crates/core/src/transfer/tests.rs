use std::time::Duration;

use proptest::prelude::*;

use super::*;

const WORK: WorkId = WorkId(5);

fn at(ms: u64) -> Time {
    Time::from_start(Duration::from_millis(ms))
}

fn actions(transfer: &mut Transfer) -> Vec<Action> {
    std::iter::from_fn(|| transfer.poll_action()).collect()
}

fn moving() -> Transfer {
    let mut transfer = Transfer::new(WORK, at(100));
    assert_eq!(actions(&mut transfer), [Action::Connect]);
    transfer.handle_connected();
    assert_eq!(actions(&mut transfer), [Action::Confirm]);
    transfer.handle_confirmed(64);
    assert_eq!(actions(&mut transfer), [Action::Post { work: WORK }]);
    transfer
}

#[test]
fn delivers_the_straight_line() {
    let mut transfer = moving();
    transfer.handle_completed(Ok(64));
    assert_eq!(actions(&mut transfer), [Action::Report(Outcome::Delivered { bytes: 64 })]);
    assert!(transfer.is_done() && transfer.poll_deadline().is_none());
}

#[test]
fn fewer_bytes_than_planned_is_no_delivery() {
    let mut transfer = moving();
    transfer.handle_completed(Ok(63));
    assert_eq!(actions(&mut transfer).pop(), Some(Action::Report(Outcome::Failed(Failure::Protocol))));
}

#[test]
fn a_deadline_waits_for_the_read_to_be_quiet() {
    let mut transfer = moving();
    transfer.handle_timeout(at(99));
    assert_eq!(actions(&mut transfer), []);
    transfer.handle_timeout(at(100));
    assert_eq!(actions(&mut transfer), [Action::Stop { work: WORK }]);
    assert!(!transfer.is_done(), "the blocks are still named by posted work");
    transfer.handle_completed(Ok(64));
    assert_eq!(
        actions(&mut transfer),
        [Action::Report(Outcome::Failed(Failure::Deadline))],
        "a success that comes too late is a failure"
    );
}

#[test]
fn an_abort_before_anything_was_posted_is_over_at_once() {
    let mut transfer = Transfer::new(WORK, at(100));
    transfer.handle_cancel(Failure::Aborted);
    assert_eq!(actions(&mut transfer), [Action::Relinquish, Action::Report(Outcome::Failed(Failure::Aborted))]);
    transfer.handle_connected();
    assert_eq!(actions(&mut transfer), []);
    transfer.handle_confirmed(64);
    assert_eq!(actions(&mut transfer), [Action::Relinquish], "what was pinned for nobody is given back");
}

proptest! {
    /// Any order of events: one report, never between a post and its completion.
    #[test]
    fn reports_once_and_only_when_quiet(events in proptest::collection::vec(0u8..8, 0..40)) {
        let mut transfer = Transfer::new(WORK, at(100));
        let (mut reports, mut posted) = (0, false);
        for event in events.into_iter().chain([6, 7]) {
            match event {
                0 => transfer.handle_connected(),
                1 => transfer.handle_confirmed(64),
                2 => transfer.handle_refused(Failure::Unreachable),
                3 if posted => { posted = false; transfer.handle_completed(Ok(64)); }
                4 if posted => { posted = false; transfer.handle_completed(Err(Failure::Checksum)); }
                5 => transfer.handle_cancel(Failure::Aborted),
                6 => transfer.handle_timeout(at(100)),
                7 if posted => { posted = false; transfer.handle_completed(Err(Failure::Unreachable)); }
                _ => {}
            }
            // The shell refuses only what it has not posted.
            for action in actions(&mut transfer) {
                match action {
                    Action::Post { .. } => { prop_assert!(!posted); posted = true; }
                    Action::Report(_) => { reports += 1; prop_assert!(!posted || event == 2); }
                    _ => {}
                }
            }
            if event == 2 { posted = false; }
        }
        prop_assert_eq!(reports, 1);
        prop_assert!(transfer.is_done());
    }
}
