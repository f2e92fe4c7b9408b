//! Works that end before their bytes are there: cancelled, or too late.

use std::time::Duration;

use kvferry_core::{Time, WorkId};

use super::shape::Shape;
use super::stage::{End, Stage};
use super::{Make, Violation};
use crate::Fault;

/// Far enough to reach the middle of a work, near enough that no transport thinks its peer stalled when it is skipped.
const DEADLINE: Duration = Duration::from_secs(2);

/// A work cancelled at once completes, once, and leaves the endpoint usable.
///
/// # Errors
///
/// If the transport does otherwise.
pub fn cancel_before_the_first_turn(make: Make<'_>) -> Result<(), Violation> {
    let mut stage = Stage::new(make);
    let index = stage.lay(&Shape::medium());
    stage.post(index)?;
    let (read, serve) = (stage.transfer(index).read, stage.transfer(index).serve);
    stage.cancel(End::Reader, read);
    stage.must_end(read, "Cancelled", |result| result == Err(Fault::Cancelled))?;
    if stage.is_pair() {
        // The read may never have reached the holder, so the holder is told by its own daemon.
        stage.cancel(End::Holder, serve);
        // A push may have been turned away by then.
        let is_push = stage.is_push();
        let ended = move |result| result == Err(Fault::Cancelled) || is_push && result == Err(Fault::Refused);
        stage.must_end(serve, "Cancelled", ended)?;
    }
    stage.carry(&Shape::small())?;
    stage.finish()
}

/// A work cancelled while its bytes come in completes, once, and from then on nothing is written.
///
/// # Errors
///
/// If the transport does otherwise.
pub fn cancel_midway(make: Make<'_>) -> Result<(), Violation> {
    let (mut stage, index) = Stage::midway(make, |_, _| {})?;
    let read = stage.transfer(index).read;
    stage.cancel(End::Reader, read);
    stage.must_end(read, "Cancelled", |result| result == Err(Fault::Cancelled))?;
    stage.carry(&Shape::small())?;
    stage.finish()
}

/// Ids that were never posted, or have completed, mean nothing.
///
/// # Errors
///
/// If the transport does otherwise.
pub fn cancel_of_stale_ids_is_ignored(make: Make<'_>) -> Result<(), Violation> {
    let mut stage = Stage::new(make);
    let done = stage.carry(&Shape::small())?;
    let running = stage.lay(&Shape::medium());
    stage.post(running)?;
    let (read, serve) = (stage.transfer(done).read, stage.transfer(done).serve);
    for stale in [read, serve, WorkId(0), WorkId(u64::MAX)] {
        stage.cancel(End::Reader, stale);
        if stage.is_pair() {
            stage.cancel(End::Holder, stale);
        }
    }
    stage.must_succeed(running)?;
    stage.finish()
}

/// A deadline that has passed at the post is found in a turn.
///
/// # Errors
///
/// If the transport does otherwise.
pub fn deadline_already_passed(make: Make<'_>) -> Result<(), Violation> {
    let mut stage = Stage::new(make);
    let index = stage.lay(&Shape::medium());
    stage.transfer(index).deadline = Time::from_nanos(1);
    stage.post(index)?;
    let (read, serve) = (stage.transfer(index).read, stage.transfer(index).serve);
    stage.must_end(read, "Deadline", |result| result == Err(Fault::Deadline))?;
    if stage.is_pair() {
        stage.must_end(serve, "Deadline", |result| result == Err(Fault::Deadline))?;
    }
    stage.carry(&Shape::small())?;
    stage.finish()
}

/// A deadline that passes while the bytes come in ends the work, and from then on nothing is written.
///
/// # Errors
///
/// If the transport does otherwise.
pub fn deadline_midway(make: Make<'_>) -> Result<(), Violation> {
    let (mut stage, index) = Stage::midway(make, |stage, index| {
        let deadline = stage.clock.now().after(DEADLINE);
        stage.transfer(index).deadline = deadline;
    })?;
    stage.clock.advance(DEADLINE);
    let read = stage.transfer(index).read;
    stage.must_end(read, "Deadline", |result| result == Err(Fault::Deadline))?;
    stage.finish()
}
