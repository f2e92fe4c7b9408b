//! One transfer on the reader's side, as a state machine that does no I/O.
//!
//! ```text
//! Connecting --connected--> Confirming --confirmed--> Moving --completed--> Done (delivered)
//!     any state --refused, cancelled, timed out, path lost--> [Moving: Quiescing --completed-->] Done (failed)
//! ```
//!
//! The shell calls `handle_*` with what happened, then [`Transfer::poll_action`] until `None`, and
//! [`Transfer::handle_timeout`] no later than [`Transfer::poll_deadline`]. [`Action::Report`] comes exactly once, and
//! never while posted work may still write into the engine's blocks.

use std::collections::VecDeque;

use thiserror::Error;

use crate::ids::{Time, WorkId};

/// Why a transfer delivered nothing.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq, Hash)]
pub enum Failure {
    /// The engine gave the request up.
    #[error("aborted by the engine")]
    Aborted,
    /// A checksum did not match.
    #[error("bytes did not match their checksum")]
    Checksum,
    /// The transfer's deadline passed.
    #[error("deadline passed")]
    Deadline,
    /// The engines differ in what must agree.
    #[error("engines are not alike (fingerprints differ)")]
    Fingerprint,
    /// The holder is not among the peers that this daemon may talk to.
    #[error("the ticket names a holder that is not an allowed peer")]
    Forbidden,
    /// The lease ended before the last byte.
    #[error("lease ended before the last byte")]
    Lease,
    /// The daemon's own limits are reached.
    #[error("too many transfers in flight")]
    Limit,
    /// The ticket cannot be read, or its holder did not issue it.
    #[error("ticket is not valid")]
    Ticket,
    /// The holder cannot be reached, or its path broke.
    #[error("holder is unreachable")]
    Unreachable,
    /// The peer broke the protocol, or both sides' plans differ.
    #[error("peer broke the protocol")]
    Protocol,
    /// The request for blocks does not fit the lease or the layouts.
    #[error("asked blocks do not fit the lease or the layout")]
    Request,
}

impl Failure {
    /// One word for clients, metrics and tests; the message is for people.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Aborted => "aborted",
            Self::Checksum => "checksum",
            Self::Deadline => "deadline",
            Self::Fingerprint => "fingerprint",
            Self::Forbidden => "forbidden",
            Self::Lease => "lease",
            Self::Limit => "limit",
            Self::Protocol => "protocol",
            Self::Request => "request",
            Self::Ticket => "ticket",
            Self::Unreachable => "unreachable",
        }
    }
}

/// How a transfer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every byte arrived, matched its checksum, and was under a live lease to the last.
    Delivered {
        /// Bytes moved and verified.
        bytes: u64,
    },
    /// Nothing may be used.
    Failed(Failure),
}

/// What the shell must do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make a path to the holder; answer with `handle_connected` or `handle_refused`.
    Connect,
    /// Confirm the lease with the holder; answer with `handle_confirmed` or `handle_refused`.
    Confirm,
    /// Post the read `work` whose bytes the holder serves; answer with `handle_completed`, once.
    Post {
        /// Our work.
        work: WorkId,
    },
    /// Stop the posted read; its completion is still awaited.
    Stop {
        /// Our work.
        work: WorkId,
    },
    /// Tell the holder that nobody will read under this ticket. Best effort: the lease's deadline stands behind it.
    Relinquish,
    /// Tell the engine. The last action.
    Report(Outcome),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Connecting,
    Confirming,
    Moving,
    Quiescing(Failure),
    Done,
}

/// See the module's text.
#[derive(Debug)]
pub struct Transfer {
    work: WorkId,
    deadline: Time,
    /// A full transfer's size in bytes, known once the plan is.
    bytes: u64,
    state: State,
    actions: VecDeque<Action>,
}

impl Transfer {
    /// A transfer whose read will be posted under the name `work`, and that has a fate by `deadline`.
    #[must_use]
    pub fn new(work: WorkId, deadline: Time) -> Self {
        Self { work, deadline, bytes: 0, state: State::Connecting, actions: VecDeque::from([Action::Connect]) }
    }

    /// The name of its read.
    #[must_use]
    pub const fn work(&self) -> WorkId {
        self.work
    }

    /// When it fails at the latest.
    #[must_use]
    pub const fn deadline(&self) -> Time {
        self.deadline
    }

    /// A word for people: what it is waiting for.
    #[must_use]
    pub const fn state(&self) -> &'static str {
        match self.state {
            State::Connecting => "connecting",
            State::Confirming => "confirming",
            State::Moving => "moving",
            State::Quiescing(_) => "stopping",
            State::Done => "done",
        }
    }

    /// Whether its outcome has been decided and reported.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.state == State::Done && self.actions.is_empty()
    }

    /// There is a path to the holder.
    pub fn handle_connected(&mut self) {
        if self.state == State::Connecting {
            self.state = State::Confirming;
            self.actions.push_back(Action::Confirm);
        }
    }

    /// The holder has pinned the blocks and will serve `bytes` bytes.
    pub fn handle_confirmed(&mut self, bytes: u64) {
        match self.state {
            State::Confirming => {
                self.bytes = bytes;
                self.state = State::Moving;
                self.actions.push_back(Action::Post { work: self.work });
            }
            // Nobody will read what the holder has just pinned.
            State::Done => self.actions.push_back(Action::Relinquish),
            State::Connecting | State::Moving | State::Quiescing(_) => {}
        }
    }

    /// The path, the holder or this daemon said no before anything was posted, or posting itself was refused.
    pub fn handle_refused(&mut self, failure: Failure) {
        match self.state {
            State::Connecting | State::Confirming | State::Moving => self.finish(Outcome::Failed(failure)),
            State::Quiescing(first) => self.finish(Outcome::Failed(first)),
            State::Done => {}
        }
    }

    /// The posted read has completed: nothing writes into the blocks any more.
    pub fn handle_completed(&mut self, result: Result<u64, Failure>) {
        match (self.state, result) {
            (State::Moving, Ok(bytes)) if bytes == self.bytes => self.finish(Outcome::Delivered { bytes }),
            (State::Moving, Ok(_)) => self.finish(Outcome::Failed(Failure::Protocol)),
            (State::Moving, Err(failure)) => self.finish(Outcome::Failed(failure)),
            // Whole or not, the engine was promised a failure: it may already plan to recompute.
            (State::Quiescing(failure), _) => self.finish(Outcome::Failed(failure)),
            (State::Connecting | State::Confirming | State::Done, _) => {}
        }
    }

    /// Give it up for `failure`: the engine aborted, or went away.
    pub fn handle_cancel(&mut self, failure: Failure) {
        match self.state {
            State::Connecting | State::Confirming => {
                self.finish(Outcome::Failed(failure));
                // Frees the holder's blocks now, where the lease's deadline would only do so later. A posted read
                // tells the holder by itself when it stops.
                self.actions.push_front(Action::Relinquish);
            }
            State::Moving => {
                self.state = State::Quiescing(failure);
                self.actions.push_back(Action::Stop { work: self.work });
            }
            State::Quiescing(_) | State::Done => {}
        }
    }

    /// Fails it when its deadline has passed.
    pub fn handle_timeout(&mut self, now: Time) {
        if now >= self.deadline {
            self.handle_cancel(Failure::Deadline);
        }
    }

    /// When [`Self::handle_timeout`] has something to do; `None` when only a completion can move it on.
    #[must_use]
    pub const fn poll_deadline(&self) -> Option<Time> {
        match self.state {
            State::Connecting | State::Confirming | State::Moving => Some(self.deadline),
            State::Quiescing(_) | State::Done => None,
        }
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    fn finish(&mut self, outcome: Outcome) {
        // What has not been acted on yet must not happen any more.
        self.actions.clear();
        self.state = State::Done;
        self.actions.push_back(Action::Report(outcome));
    }
}

#[cfg(test)]
mod tests;
