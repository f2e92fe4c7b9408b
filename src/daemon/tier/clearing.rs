//! Hub: what an engine has stored is worth nothing any more.
//!
//! ```text
//! Clear -> owed -> are all its ranks there? -> tier thread -> Cleared
//!            \-> not yet: when the last one attaches, or else before its next lookup is looked at
//! ```
//!
//! An order names its blocks by the ranks that attached, so some of them are not enough: what one rank keeps of old
//! blocks is found again once the others have stored new ones by the same names. An order that is not carried out ends
//! with its session; the engine's client gives it again to whoever it connects to next.

use std::collections::BTreeSet;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use kvferry_core::Fingerprint;
use kvferry_tier::tiers::Device;

use super::super::command::SessionId;
use super::super::hub::Hub;
use super::Tiering;
use super::thread::TierCommand;

impl Tiering {
    /// False: the tiers will not hear of it.
    fn clear(&mut self, session: SessionId, fingerprint: Fingerprint, devices: Vec<Arc<Device>>) -> bool {
        match self.clearing.entry(fingerprint) {
            Entry::Occupied(mut under_way) => {
                under_way.get_mut().insert(session);
                true
            }
            Entry::Vacant(vacant) => {
                let sent = self.handle.send(TierCommand::Clear(devices));
                if sent {
                    vacant.insert(BTreeSet::new());
                }
                sent
            }
        }
    }
}

impl Hub {
    /// What the engine's fingerprint has stored is worth nothing any more.
    pub(in super::super) fn clear_tiers(&mut self, session: SessionId) {
        if let Some(open) = self.engines.sessions.get_mut(&session) {
            open.owes_clear = true;
            self.pay_clear(session);
        }
    }

    /// The engine's last rank may have attached.
    pub(in super::super) fn pay_clears_of(&mut self, engine_id: &str) {
        for session in self.engines.sessions_of(engine_id) {
            self.pay_clear(session);
        }
    }

    /// Passes on what a session has ordered, if anything. False: not yet, and nothing may be found before.
    pub(super) fn pay_clear(&mut self, session: SessionId) -> bool {
        let Some(open) = self.engines.sessions.get_mut(&session) else { return false };
        if !open.owes_clear {
            return true;
        }
        let engine = self.engines.engines.get(&open.engine_id).filter(|engine| engine.is_whole());
        let workers = engine.into_iter().flat_map(|engine| engine.workers.values());
        let devices: Vec<_> = workers.filter_map(|worker| worker.device.clone()).collect();
        let (Some(tiering), Some(device)) = (&mut self.tiering, devices.first()) else { return false };
        let fingerprint = device.fingerprint();
        tracing::info!(engine = open.engine_id, %fingerprint, "forgets what is stored of this fingerprint");
        open.owes_clear = !tiering.clear(session, fingerprint, devices);
        !open.owes_clear
    }

    /// The tiers have heard of an order. One that came meanwhile is for the stores that have begun since.
    pub(super) fn handle_cleared(&mut self, fingerprint: Fingerprint) {
        let again = self.tiering.as_mut().and_then(|tiering| tiering.clearing.remove(&fingerprint));
        for session in again.unwrap_or_default() {
            self.clear_tiers(session);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::tier::thread::TierHandle;

    #[test]
    fn an_order_that_there_is_no_room_for_is_not_taken_for_one_under_way() {
        let (handle, take) = TierHandle::unheard(1);
        let mut tiering = Tiering::new(handle);
        // Goes first, so that no end waits for room.
        let take = take;
        let (session, fingerprint) = (SessionId(1), Fingerprint([7; 32]));
        assert!(tiering.clear(session, Fingerprint([8; 32]), Vec::new()), "takes the room");
        assert!(!tiering.clear(session, fingerprint, Vec::new()));
        assert!(!tiering.clear(session, fingerprint, Vec::new()), "nor is the next one");
        assert!(take());
        assert!(tiering.clear(session, fingerprint, Vec::new()), "there is room");
        assert!(tiering.clear(session, fingerprint, Vec::new()), "once more when that is heard");
        assert!(take() && !take());
    }
}
