//! Posts that must not be taken, and come back whole.

use std::sync::Arc;

use kvferry_core::WorkId;

use super::shape::Shape;
use super::stage::{End, Stage};
use super::{Make, Violation};
use crate::{EndpointId, Fault, Source, Work};

/// The endpoint takes as many works as it says, hands the next one back, and takes it once there is room.
///
/// # Errors
///
/// If the transport does otherwise.
pub fn post_beyond_the_limit_is_handed_back(make: Make<'_>) -> Result<(), Violation> {
    let mut stage = Stage::new(make);
    let shape = Shape::small();
    let mut taken = Vec::new();
    for _ in 0..stage.works_max() {
        let index = stage.lay(&shape);
        stage.post_read(index)?;
        taken.push(stage.transfer(index).read);
    }
    let beyond = stage.lay(&shape);
    let work = stage.read_work(beyond);
    stage.must_hand_back(End::Reader, beyond, work, Fault::Full)?;
    for id in &taken {
        stage.cancel(End::Reader, *id);
    }
    for id in taken {
        stage.must_end(id, "Cancelled", |result| result == Err(Fault::Cancelled))?;
    }
    if stage.is_pair() && !stage.is_push() {
        stage.post_serve(beyond)?;
    }
    stage.post_read_once_there_is_room(beyond)?;
    if stage.is_push() {
        stage.post_serve(beyond)?;
    }
    stage.must_succeed(beyond)?;
    stage.finish()
}

/// A plan that reaches outside a region is refused before any byte moves.
///
/// # Errors
///
/// If the transport does otherwise.
pub fn out_of_bounds_is_handed_back(make: Make<'_>) -> Result<(), Violation> {
    let mut stage = Stage::new(make);
    let shape = Shape::small();
    let short_target = stage.lay_sized(&shape, shape.source_bytes, shape.target_bytes - 1);
    let work = stage.read_work(short_target);
    stage.must_hand_back(End::Reader, short_target, work, Fault::OutOfBounds)?;
    let short_source = stage.lay_sized(&shape, shape.source_bytes - 1, shape.target_bytes);
    let (end, work) = if stage.is_pair() {
        (End::Holder, stage.serve_work(short_source))
    } else {
        (End::Reader, stage.read_work(short_source))
    };
    stage.must_hand_back(end, short_source, work, Fault::OutOfBounds)?;
    stage.carry(&shape)?;
    stage.finish()
}

/// An id is good for one work at a time.
///
/// # Errors
///
/// If the transport does otherwise.
pub fn id_in_flight_is_handed_back(make: Make<'_>) -> Result<(), Violation> {
    let mut stage = Stage::new(make);
    let (first, second) = (stage.lay(&Shape::small()), stage.lay(&Shape::small()));
    stage.post(first)?;
    let id = stage.transfer(first).read;
    let mut work = stage.read_work(second);
    set_id(&mut work, id);
    stage.must_hand_back(End::Reader, second, work, Fault::Refused)?;
    if stage.is_pair() {
        let id = stage.transfer(first).serve;
        let mut work = stage.serve_work(second);
        set_id(&mut work, id);
        stage.must_hand_back(End::Holder, second, work, Fault::Refused)?;
    }
    stage.must_succeed(first)?;
    stage.finish()
}

/// A kind of work the transport does not do.
///
/// # Errors
///
/// If the transport does otherwise.
pub fn foreign_work_is_handed_back(make: Make<'_>) -> Result<(), Violation> {
    let mut stage = Stage::new(make);
    let index = stage.lay(&Shape::small());
    let mut work = stage.read_work(index);
    if let Work::Read(read) = &mut work {
        read.source = if stage.is_pair() {
            let transfer = stage.transfer(index);
            Source::Region { region: Arc::clone(&transfer.source), lease: transfer.lease.clone() }
        } else {
            Source::Peer { work: WorkId(7) }
        };
    }
    stage.must_hand_back(End::Reader, index, work, Fault::Unsupported)?;
    if !stage.is_pair() {
        let work = stage.serve_work(index);
        stage.must_hand_back(End::Reader, index, work, Fault::Unsupported)?;
    }
    stage.carry(&Shape::small())?;
    stage.finish()
}

/// An endpoint nobody knows is not there, and closing it is no event.
///
/// # Errors
///
/// If the transport does otherwise.
pub fn unknown_endpoint_is_nobody(make: Make<'_>) -> Result<(), Violation> {
    let mut stage = Stage::new(make);
    let now = stage.clock.now();
    let nobody = EndpointId(u64::MAX);
    let transport = &mut stage.seat(End::Reader).transport;
    if transport.endpoint(nobody).is_some() {
        return Err(Violation::StillUp(nobody));
    }
    transport.close(now, nobody);
    stage.carry(&Shape::small())?;
    stage.finish()
}

const fn set_id(work: &mut Work, id: WorkId) {
    match work {
        Work::Read(read) => read.id = id,
        Work::Serve(serve) => serve.id = id,
    }
}
