//! What a push adds to serving: it begins by itself, and each part ends with the reader's word.

use kvferry_core::WorkId;
use kvferry_transport::{Completion, Fault};

use super::HolderSide;
use crate::frame::{Frame, Outcome, Tag};
use crate::stream::Stream;

impl HolderSide {
    /// Begins every part of a push.
    pub(super) fn offer(&mut self, streams: &mut [Stream], slot: usize) {
        let serve = &mut self.serves[slot];
        let offer = Frame::Offer { work: serve.id, digest: serve.digest }.encode();
        for ((part, outflow), stream) in serve.parts.iter_mut().zip(&mut self.outflows).zip(streams) {
            let Some(part) = part else { continue };
            part.tag = Some(Tag::PUSHED);
            stream.push(&offer);
            outflow.enqueue(slot, part, self.turn);
        }
    }

    /// The reader says how a part of a push ended. It may have crossed our own end of it, then there is nothing left to
    /// end.
    pub(super) fn handle_receipt(
        &mut self,
        streams: &mut [Stream],
        index: usize,
        work: WorkId,
        outcome: Outcome,
        done: &mut Vec<Completion>,
    ) -> Result<(), Fault> {
        let Some(slot) = self.pushed(work) else { return Ok(()) };
        let fault = match outcome {
            Outcome::Live => {
                match &mut self.serves[slot].parts[index] {
                    Some(part) if part.ended && !part.received => part.received = true,
                    // It has all of what was not sent, or all of it twice?
                    _ => return Err(Fault::Protocol),
                }
                self.close_part(slot, done);
                return Ok(());
            }
            Outcome::Corrupt => Fault::ChecksumMismatch,
            Outcome::Deadline => Fault::Deadline,
            Outcome::LeaseEnded => Fault::LeaseEnded,
            Outcome::Stopped | Outcome::Withdrawn => Fault::Cancelled,
        };
        self.end(streams, slot, Outcome::Stopped, fault, done);
        Ok(())
    }

    pub(super) fn pushed(&self, work: WorkId) -> Option<usize> {
        self.ids.get(&work).copied().filter(|&slot| self.serves[slot].is_pushed)
    }
}
