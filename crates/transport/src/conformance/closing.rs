//! Endpoints and transports that go away with work in flight.

use kvferry_core::WorkId;

use super::shape::Shape;
use super::stage::{End, Stage};
use super::{Make, Violation};

/// Works in flight when the end comes.
const WORKS: usize = 3;
/// Turns before the end comes, so that bytes are under way.
const TURNS: usize = 3;

/// Closing completes every work, then the endpoint goes down, at both ends.
///
/// # Errors
///
/// If the transport does otherwise.
pub fn close_completes_everything_first(make: Make<'_>) -> Result<(), Violation> {
    close(make, End::Reader)
}

/// A holder that closes completes its reader's works too.
///
/// # Errors
///
/// If the transport does otherwise.
pub fn holder_close_reaches_the_reader(make: Make<'_>) -> Result<(), Violation> {
    close(make, End::Holder)
}

/// Dropping a transport with work in flight leaves no region held or mapped.
///
/// # Errors
///
/// If the transport does otherwise.
pub fn dropping_the_transport_lets_go(make: Make<'_>) -> Result<(), Violation> {
    let mut stage = Stage::new(make);
    under_way(&mut stage)?;
    stage.take_apart()
}

fn close(make: Make<'_>, end: End) -> Result<(), Violation> {
    let mut stage = Stage::new(make);
    if end == End::Holder && !stage.is_pair() {
        println!("skipped: this transport has no holder's end");
        return Ok(());
    }
    let works = under_way(&mut stage)?;
    let now = stage.clock.now();
    let seat = stage.seat(end);
    let endpoint = seat.endpoint;
    seat.transport.close(now, endpoint);
    stage.until("the endpoint to go down at both ends", |stage| {
        stage.is_down(End::Reader) && (!stage.is_pair() || stage.is_down(End::Holder))
    })?;
    let reader = stage.seat(End::Reader);
    if reader.transport.endpoint(endpoint).is_some() {
        return Err(Violation::StillUp(endpoint));
    }
    // Closing what is closed, and cancelling what has completed, is no event.
    reader.transport.close(now, endpoint);
    for id in works {
        // Success is right if the work was over before the close: the ledger has looked at its bytes.
        stage.must_end(id, "an end", |_| true)?;
    }
    stage.finish()
}

/// Posts works and lets the first of their bytes move.
fn under_way(stage: &mut Stage) -> Result<Vec<WorkId>, Violation> {
    let mut works = Vec::new();
    for _ in 0..WORKS.min(stage.works_max()) {
        let index = stage.lay(&Shape::large());
        stage.post(index)?;
        works.push(stage.transfer(index).read);
        if stage.is_pair() {
            works.push(stage.transfer(index).serve);
        }
    }
    for _ in 0..TURNS {
        stage.step()?;
    }
    Ok(works)
}
