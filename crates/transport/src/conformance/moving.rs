//! Bytes arrive, all of them, where the plan says, and nowhere else.

use super::shape::Shape;
use super::stage::Stage;
use super::{Make, Violation};

/// Works in flight together, if the transport takes as many.
const INTERLEAVED: usize = 24;

/// Every axis order into every axis order.
///
/// # Errors
///
/// If the transport does otherwise.
pub fn moves_mixed_layouts(make: Make<'_>) -> Result<(), Violation> {
    let mut stage = Stage::new(make);
    for shape in Shape::mixed() {
        stage.carry(&shape)?;
    }
    stage.finish()
}

/// A plan of no bytes completes like any other.
///
/// # Errors
///
/// If the transport does otherwise.
pub fn moves_an_empty_plan(make: Make<'_>) -> Result<(), Violation> {
    let mut stage = Stage::new(make);
    stage.carry(&Shape::empty())?;
    stage.carry(&Shape::small())?;
    stage.finish()
}

/// A work of many turns.
///
/// # Errors
///
/// If the transport does otherwise.
pub fn moves_one_large_work(make: Make<'_>) -> Result<(), Violation> {
    let mut stage = Stage::new(make);
    stage.carry(&Shape::large())?;
    stage.finish()
}

/// Large, small and empty works in flight together, each with bytes of its own.
///
/// # Errors
///
/// If the transport does otherwise.
pub fn moves_many_works_interleaved(make: Make<'_>) -> Result<(), Violation> {
    let mut stage = Stage::new(make);
    let shapes = [Shape::medium(), Shape::small(), Shape::empty(), Shape::small_otherwise()];
    let count = INTERLEAVED.min(stage.works_max());
    let laid: Vec<usize> = shapes.iter().cycle().take(count).map(|shape| stage.lay(shape)).collect();
    for index in &laid {
        stage.post(*index)?;
    }
    for index in laid {
        stage.must_succeed(index)?;
    }
    stage.finish()
}
