//! What a turn reports.

use kvferry_core::WorkId;

use crate::{EndpointId, Fault};

/// The one end of one posted piece of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The id the work was posted under.
    pub id: WorkId,
    /// Bytes moved, all of them verified and under a live lease; or why there is nothing to use.
    pub result: Result<u64, Fault>,
}

/// Something that happened during a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Posted work ended. The transport has let go of its regions.
    Completed(Completion),
    /// The endpoint is gone; the completions of all its work came before this event.
    EndpointDown(EndpointId, Fault),
    /// All streams of the endpoint stand; work may be posted.
    EndpointUp(EndpointId),
}
