//! What a holder's end owes its reader. A transport without one has nothing to show here.

use std::time::Duration;

use super::shape::Shape;
use super::stage::{End, Stage};
use super::{Make, Violation};
use crate::{Fault, Work};

/// A head start for the read, well inside the time a holder keeps an early fetch.
const HEAD_START: Duration = Duration::from_millis(100);
const DEADLINE: Duration = Duration::from_secs(2);

/// A read of a serve that was never posted is refused.
///
/// # Errors
///
/// If the transport does otherwise.
pub fn unknown_serve_is_refused(make: Make<'_>) -> Result<(), Violation> {
    let Some(mut stage) = fetching_pair(make) else { return Ok(()) };
    let index = stage.lay(&Shape::small());
    stage.post_read(index)?;
    let read = stage.transfer(index).read;
    stage.must_end(read, "Refused", |result| result == Err(Fault::Refused))?;
    stage.carry(&Shape::small())?;
    stage.finish()
}

/// The read may overtake the serve on its way through the daemons.
///
/// # Errors
///
/// If the transport does otherwise.
pub fn serve_may_come_after_the_read(make: Make<'_>) -> Result<(), Violation> {
    let Some(mut stage) = pair(make) else { return Ok(()) };
    for shape in [Shape::medium(), Shape::empty()] {
        let index = stage.lay(&shape);
        stage.post_read(index)?;
        stage.linger(HEAD_START)?;
        stage.post_serve(index)?;
        stage.must_succeed(index)?;
    }
    stage.finish()
}

/// A serve that has completed is no longer there to be read.
///
/// # Errors
///
/// If the transport does otherwise.
pub fn serve_is_fetched_once(make: Make<'_>) -> Result<(), Violation> {
    let Some(mut stage) = fetching_pair(make) else { return Ok(()) };
    let first = stage.carry(&Shape::small())?;
    let served = stage.transfer(first).serve;
    let second = stage.lay(&Shape::small());
    stage.transfer(second).serve = served;
    stage.post_read(second)?;
    let read = stage.transfer(second).read;
    stage.must_end(read, "Refused", |result| result == Err(Fault::Refused))?;
    stage.finish()
}

/// A push that no read waits for is refused, whatever its size, and writes nothing.
///
/// # Errors
///
/// If the transport does otherwise.
pub fn unexpected_push_is_refused(make: Make<'_>) -> Result<(), Violation> {
    let Some(mut stage) = pair(make) else { return Ok(()) };
    if !stage.is_push() {
        println!("skipped: this rig fetches");
        return Ok(());
    }
    for shape in [Shape::small(), Shape::empty(), Shape::large()] {
        let index = stage.lay(&shape);
        stage.post_serve(index)?;
        let serve = stage.transfer(index).serve;
        stage.must_end(serve, "Refused", |result| result == Err(Fault::Refused))?;
    }
    stage.carry(&Shape::small())?;
    stage.finish()
}

/// A serve nobody reads ends at its deadline.
///
/// # Errors
///
/// If the transport does otherwise.
pub fn serve_ends_at_its_deadline(make: Make<'_>) -> Result<(), Violation> {
    let Some(mut stage) = fetching_pair(make) else { return Ok(()) };
    let index = stage.lay(&Shape::small());
    let deadline = stage.clock.now().after(DEADLINE);
    stage.transfer(index).deadline = deadline;
    stage.post_serve(index)?;
    stage.linger(Duration::from_millis(10))?;
    stage.clock.advance(DEADLINE);
    let serve = stage.transfer(index).serve;
    stage.must_end(serve, "Deadline", |result| result == Err(Fault::Deadline))?;
    stage.carry(&Shape::small())?;
    stage.finish()
}

/// A holder that cancels while the bytes go out tells its reader.
///
/// # Errors
///
/// If the transport does otherwise.
pub fn serve_cancelled_midway(make: Make<'_>) -> Result<(), Violation> {
    let Some(stage) = pair(make) else { return Ok(()) };
    drop(stage);
    let (mut stage, index) = Stage::midway(make, |_, _| {})?;
    let (read, serve) = (stage.transfer(index).read, stage.transfer(index).serve);
    stage.cancel(End::Holder, serve);
    stage.must_end(serve, "Cancelled", |result| result == Err(Fault::Cancelled))?;
    stage.must_end(read, "Cancelled", |result| result == Err(Fault::Cancelled))?;
    stage.carry(&Shape::small())?;
    stage.finish()
}

/// Ends that compiled different plans of the same length find out.
///
/// # Errors
///
/// If the transport does otherwise.
pub fn plans_that_differ_move_nothing(make: Make<'_>) -> Result<(), Violation> {
    let Some(mut stage) = pair(make) else { return Ok(()) };
    let index = stage.lay(&Shape::small());
    let mut work = stage.read_work(index);
    if let Work::Read(read) = &mut work {
        read.plan = Shape::small_otherwise().plan;
    }
    if stage.is_push() {
        stage.must_take(End::Reader, index, work)?;
        stage.post_serve(index)?;
    } else {
        stage.post_serve(index)?;
        stage.must_take(End::Reader, index, work)?;
    }
    let read = stage.transfer(index).read;
    stage.must_end(read, "a fault", |result| result.is_err())?;
    // A holder may end its serve over it, or keep it for a reader that asks for the right plan.
    let serve = stage.transfer(index).serve;
    stage.cancel(End::Holder, serve);
    stage.finish()
}

/// A pair whose reader asks: what a push has no counterpart to.
fn fetching_pair(make: Make<'_>) -> Option<Stage> {
    let stage = pair(make)?;
    if !stage.is_push() {
        return Some(stage);
    }
    println!("skipped: this rig pushes");
    None
}

fn pair(make: Make<'_>) -> Option<Stage> {
    let stage = Stage::new(make);
    if stage.is_pair() {
        return Some(stage);
    }
    println!("skipped: this transport has no holder's end");
    None
}
