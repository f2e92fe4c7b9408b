//! Works that are ended from outside: by their owner, or because of what another thread met at its part.

use kvferry_core::WorkId;
use kvferry_transport::{Completion, Fault};

use super::HolderSide;
use crate::frame::Outcome;
use crate::stream::Stream;

impl HolderSide {
    /// Ends a work early, for this reason, which the trailers tell, if it has not ended.
    pub(crate) fn stop(&mut self, streams: &mut [Stream], id: WorkId, fault: Fault, done: &mut Vec<Completion>) {
        if let Some(&slot) = self.ids.get(&id) {
            let outcome = match fault {
                Fault::Deadline => Outcome::Deadline,
                Fault::LeaseEnded => Outcome::LeaseEnded,
                _ => Outcome::Withdrawn,
            };
            let is_awaited = self.serves[slot].parts.iter().flatten().any(|part| part.tag.is_none());
            if fault != Fault::Cancelled && is_awaited {
                self.called_off.push_back((id, outcome));
                if self.called_off.len() > self.works_max {
                    self.called_off.pop_front();
                }
            }
            self.end(streams, slot, outcome, fault, done);
        }
    }
}
