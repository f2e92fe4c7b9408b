//! What must hold of every event, whatever the property.

use std::sync::Arc;

use super::{End, Entry, Stage, Violation};
use crate::{Completion, Event};

impl Stage {
    /// Checks an event against what must always hold.
    pub(super) fn note(&mut self, end: End, event: Event) -> Result<(), Violation> {
        match event {
            Event::Completed(completion) => self.note_completion(end, completion),
            Event::EndpointDown(endpoint, _) => {
                let is_open = |entry: &&Entry| entry.end == end && entry.result.is_none();
                let in_flight = self.ledger.values().filter(is_open).count();
                if in_flight > 0 || self.is_down(end) {
                    return Err(Violation::DownTooEarly { endpoint, in_flight });
                }
                self.down.push(end);
                Ok(())
            }
            Event::EndpointUp(_) => Ok(()),
        }
    }

    fn note_completion(&mut self, end: End, completion: Completion) -> Result<(), Violation> {
        let Completion { id, result } = completion;
        if self.is_down(end) {
            return Err(Violation::CompletedAfterDown(id));
        }
        let entry = self.ledger.get_mut(&id).filter(|entry| entry.end == end);
        let entry = entry.ok_or(Violation::UnknownCompletion(id))?;
        if entry.result.replace(result).is_some() {
            return Err(Violation::CompletedTwice(id));
        }
        let transfer = &mut self.transfers[entry.transfer];
        let (source, target) = (Arc::strong_count(&transfer.source), Arc::strong_count(&transfer.target));
        // A serve holds the source, a read the target, and on one node the source as well.
        let watches_source = end == End::Holder || self.rig.holder.is_none();
        let source_extra = if watches_source { source.saturating_sub(entry.owners.0) } else { 0 };
        let target_extra = if end == End::Reader { target.saturating_sub(entry.owners.1) } else { 0 };
        if end == End::Reader {
            transfer.settled = Some(transfer.target_sum());
        }
        if let Ok(reported) = result {
            let planned = transfer.plan.bytes();
            if reported != planned {
                return Err(Violation::WrongCount { id, reported, planned });
            }
            if end == End::Reader {
                transfer.check_bytes()?;
            }
        }
        match source_extra.max(target_extra) {
            0 => Ok(()),
            extra => Err(Violation::RegionHeld { id, extra }),
        }
    }
}
