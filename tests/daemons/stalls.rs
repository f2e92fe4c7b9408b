//! Peers that stop: every transfer has its fate by its deadline, and no lease outlives its own.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::Shape;
use crate::support::tricks::Trick;
use crate::support::{SLACK, Stage};

/// Most of a transfer of [`BLOCKS`] is still to come when this many bytes have passed.
const SOME: u64 = 3 << 20;
/// More bytes than the kernel's socket buffers hold: 64 MiB.
const BLOCKS: u32 = Shape::LARGE.blocks - 1;

/// The transfer has begun and cannot end.
fn stuck(lease_ms: u64, deadline_ms: u64) -> (Stage, crate::support::stage::Handover, Instant) {
    let mut stage = Stage::large();
    assert_eq!(stage.hand_over(), None);
    stage.relay.down().set(Trick::Hold { at: SOME });
    let since = Instant::now();
    let handover = stage.begin(BLOCKS, lease_ms, deadline_ms);
    crate::support::wait(|| "the first bytes".to_owned(), || (stage.relay.down().passed() >= SOME).then_some(()));
    (stage, handover, since)
}

fn assert_by(since: Instant, deadline_ms: u64) {
    assert!(since.elapsed() < Duration::from_millis(deadline_ms) + SLACK, "took {:?}", since.elapsed());
}

#[test]
fn a_holder_that_stops_sending_costs_the_deadline() {
    let (mut stage, handover, since) = stuck(30_000, 1_500);
    assert_eq!(stage.decode.outcome(handover.key).as_deref(), Some("deadline"));
    assert_by(since, 1_500);
    // The reader's word reaches the holder, though its bytes do not reach the reader.
    assert_eq!(stage.prefill.lease_end(handover.lease), "read");
    assert_by(since, 1_500);
    stage.p.wait_quiet();
    stage.d.wait_quiet();
    stage.relay.down().set(Trick::Pass);
    stage.end();
}

#[test]
fn a_reader_that_stops_reading_loses_its_lease() {
    let (mut stage, handover, since) = stuck(1_500, 20_000);
    assert_eq!(stage.prefill.lease_end(handover.lease), "expired");
    assert_by(since, 1_500);
    stage.p.wait_quiet();
    stage.relay.down().set(Trick::Pass);
    assert_eq!(stage.decode.outcome(handover.key).as_deref(), Some("lease"));
    stage.end();
}

#[test]
fn a_block_overwritten_after_the_lease_is_not_delivered() {
    let (mut stage, handover, _) = stuck(800, 20_000);
    assert_eq!(stage.prefill.lease_end(handover.lease), "expired");
    // The engine uses its blocks again, and only then do the bytes flow on.
    stage.prefill.fill(99);
    stage.relay.down().set(Trick::Pass);
    assert_eq!(stage.decode.outcome(handover.key).as_deref(), Some("lease"));
    assert_eq!(stage.d.status()["transfers"]["finished"][1]["outcome"], "lease");
    stage.end();
}

#[test]
fn a_path_that_goes_dark_is_given_up() {
    let (mut stage, handover, since) = stuck(30_000, 20_000);
    stage.relay.up().set(Trick::Hold { at: 0 });
    assert_eq!(stage.decode.outcome(handover.key).as_deref(), Some("unreachable"));
    assert_eq!(stage.prefill.lease_end(handover.lease), "read");
    // After the transport's five seconds without a byte, not after the deadlines.
    assert_by(since, 6_000);
    stage.p.wait_quiet();
    stage.d.wait_quiet();
    stage.relay.up().set(Trick::Pass);
    stage.relay.down().set(Trick::Pass);
    stage.end();
}

#[test]
fn a_holder_that_freezes_costs_the_deadline() {
    let (mut stage, handover, since) = stuck(2_000, 1_500);
    stage.p.signal(Signal::STOP);
    stage.relay.down().set(Trick::Pass);
    assert_eq!(stage.decode.outcome(handover.key).as_deref(), Some("deadline"));
    assert_by(since, 1_500);
    stage.d.wait_quiet();
    // A transfer that only now begins has its fate, too.
    let late = Instant::now();
    let key = stage.decode.redeem_within(&handover.ticket, &[1], 700);
    assert_eq!(stage.decode.outcome(key).as_deref(), Some("deadline"));
    assert_by(late, 700);
    stage.p.signal(Signal::CONT);
    stage.prefill.lease_end(handover.lease);
    stage.end();
}

#[test]
fn a_reader_that_freezes_loses_its_lease() {
    let (mut stage, handover, since) = stuck(1_500, 10_000);
    stage.d.signal(Signal::STOP);
    assert_eq!(stage.prefill.lease_end(handover.lease), "expired");
    assert_by(since, 1_500);
    stage.p.wait_quiet();
    stage.prefill.fill(99);
    stage.d.signal(Signal::CONT);
    stage.relay.down().set(Trick::Pass);
    assert_eq!(stage.decode.outcome(handover.key).as_deref(), Some("lease"));
    stage.end();
}
