//! No success without a lease that lives to the last byte.

use std::time::Duration;

use super::shape::Shape;
use super::stage::Stage;
use super::{Make, Violation};
use crate::Fault;

/// As long as the deadlines of the other properties, for the same reasons.
const LEASE: Duration = Duration::from_secs(2);

/// A lease that ended before its work was posted.
///
/// # Errors
///
/// If the transport does otherwise.
pub fn lease_ended_before_the_post(make: Make<'_>) -> Result<(), Violation> {
    let mut stage = Stage::new(make);
    for shape in [Shape::medium(), Shape::empty()] {
        let index = stage.lay(&shape);
        stage.transfer(index).lease.close();
        stage.post(index)?;
        must_end_with_the_lease(&mut stage, index)?;
    }
    stage.carry(&Shape::small())?;
    stage.finish()
}

/// A lease that is ended while the bytes come in.
///
/// # Errors
///
/// If the transport does otherwise.
pub fn lease_closed_midway(make: Make<'_>) -> Result<(), Violation> {
    let (mut stage, index) = Stage::midway(make, |_, _| {})?;
    stage.transfer(index).lease.close();
    must_end_with_the_lease(&mut stage, index)?;
    stage.carry(&Shape::small())?;
    stage.finish()
}

/// A lease whose time is up while the bytes come in, though nobody closes its gate.
///
/// # Errors
///
/// If the transport does otherwise.
pub fn lease_expired_midway(make: Make<'_>) -> Result<(), Violation> {
    let (mut stage, index) = Stage::midway(make, |stage, index| {
        let end = stage.clock.now().after(LEASE);
        stage.transfer(index).lease = kvferry_core::lease::LeaseGate::new(end);
    })?;
    stage.clock.advance(LEASE);
    must_end_with_the_lease(&mut stage, index)?;
    stage.finish()
}

fn must_end_with_the_lease(stage: &mut Stage, index: usize) -> Result<(), Violation> {
    let (read, serve) = (stage.transfer(index).read, stage.transfer(index).serve);
    stage.must_end(read, "LeaseEnded", |result| result == Err(Fault::LeaseEnded))?;
    if stage.is_pair() {
        stage.must_end(serve, "LeaseEnded", |result| result == Err(Fault::LeaseEnded))?;
    }
    Ok(())
}
