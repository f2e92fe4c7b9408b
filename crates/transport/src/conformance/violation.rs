//! What a transport was caught at.

use kvferry_core::WorkId;
use thiserror::Error;

use crate::{EndpointId, Fault};

/// A property that does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Violation {
    /// A work completed a second time.
    #[error("work {0} completed twice")]
    CompletedTwice(WorkId),
    /// Something happened on an endpoint that was down.
    #[error("work {0} completed after its endpoint had gone down")]
    CompletedAfterDown(WorkId),
    /// The endpoint of the rig is not there.
    #[error("endpoint {} is not up", .0.0)]
    EndpointLost(EndpointId),
    /// The endpoint went down before a work of it completed, or twice.
    #[error("endpoint {} went down with {in_flight} works not completed", .endpoint.0)]
    DownTooEarly {
        /// Which endpoint.
        endpoint: EndpointId,
        /// Works without a completion; 0: it went down a second time.
        in_flight: usize,
    },
    /// Good work was not taken.
    #[error("work {id} was handed back: {fault}")]
    HandedBack {
        /// Which work.
        id: WorkId,
        /// The reason given.
        fault: Fault,
    },
    /// All work has completed, and the endpoint counts some as in flight.
    #[error("{0} works counted as in flight after the last completion")]
    InFlightMiscounted(usize),
    /// The transport is too fast, or too eager, for the property to say anything.
    #[error("the work was over before it could be caught midway")]
    Inconclusive,
    /// Bytes are mapped though every owner is gone.
    #[error("{0} bytes are still mapped at the end")]
    Mapped(u64),
    /// The transport slept though it had something to do.
    #[error("a turn had work although neither wait_fd nor next_deadline said so")]
    MissedWakeup,
    /// A turn asks for more though there is nothing to do.
    #[error("turns ask for more turns with nothing in flight")]
    NeverIdle,
    /// A region is held after its work completed, or after the transport was dropped.
    #[error("{extra} owners of a region are left after work {id}")]
    RegionHeld {
        /// The work that named the region.
        id: WorkId,
        /// Owners too many.
        extra: usize,
    },
    /// An endpoint is there that is down, or never was.
    #[error("endpoint {} can be had although it is not up", .0.0)]
    StillUp(EndpointId),
    /// Something that was due did not come.
    #[error("waited too long for {0}")]
    TimedOut(&'static str),
    /// The target changed after the completion.
    #[error("the target of work {0} was written after its completion")]
    TouchedLate(WorkId),
    /// A completion of a work that was not posted there.
    #[error("work {0} completed but was never posted here")]
    UnknownCompletion(WorkId),
    /// Success with wrong bytes, in the plan or beside it.
    #[error("work {id} succeeded, but byte {offset} of the target is wrong")]
    WrongBytes {
        /// Which work.
        id: WorkId,
        /// The first wrong byte of the target region.
        offset: u64,
    },
    /// Success with a wrong number.
    #[error("work {id} says it moved {reported} bytes, the plan has {planned}")]
    WrongCount {
        /// Which work.
        id: WorkId,
        /// Bytes of the completion.
        reported: u64,
        /// Bytes of the plan.
        planned: u64,
    },
    /// A post that had to be handed back was not, or otherwise than it had to.
    #[error("the post of work {id} had to be handed back as it was, with {expected:?}; the answer was {answer:?}")]
    WrongHandBack {
        /// Which work.
        id: WorkId,
        /// The fault that is due.
        expected: Fault,
        /// The fault that came, if any.
        answer: Option<Fault>,
    },
    /// The work ended otherwise than it had to.
    #[error("work {id} had to end with {expected}; it ended with {result:?}")]
    WrongResult {
        /// Which work.
        id: WorkId,
        /// In words.
        expected: &'static str,
        /// What came.
        result: Result<u64, Fault>,
    },
}
