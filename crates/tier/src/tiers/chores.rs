//! What nobody waits for: work for another thread, and what is done bit by bit between look-ups.
//!
//! ```text
//! poll_chore -> Chore::run on a thread of low priority -> handle_chore
//! clear -> nobody finds it, nor the next daemon -> nothing is at it any more -> tidy, tidy, ... -> room
//! ```
//!
//! Limits: one fit of each tier and one file of the disk are out at a time; a fingerprint is cleared once at a time,
//! however often that is asked for; [`tidy`](Tiers::tidy) takes some 0.1 ms. A chore
//! that never comes back costs what it was for: an old forecast serves on, blocks are not written to the disk.

use std::sync::Arc;

use kvferry_core::{Fingerprint, Time};

use super::{Device, Kind, Tier, TierEvent, TierFailure, Tiers};
use crate::disk::{Made, Making};
use crate::eviction::{Fit, Fitted};
use crate::store::Store as _;

/// Chores that are out at a time, at most.
pub const CHORES_MAX: usize = 3;

/// Work that takes milliseconds, to be answered by [`Tiers::handle_chore`].
#[derive(Debug)]
pub enum Chore {
    /// The forecast of a tier is to learn.
    Fit(Tier, Fit),
    /// The disk needs a file.
    Making(Making),
}

/// What came of a [`Chore`].
#[derive(Debug)]
pub enum ChoreDone {
    /// A forecast.
    Fitted(Tier, Fitted),
    /// A file, or none.
    Made(Made),
}

impl Chore {
    /// Does it, on the caller's thread.
    #[must_use]
    pub fn run(self) -> ChoreDone {
        match self {
            Self::Fit(tier, fit) => ChoreDone::Fitted(tier, fit.run()),
            Self::Making(making) => ChoreDone::Made(making.run()),
        }
    }
}

/// What is stored of a fingerprint is to be forgotten.
pub(super) struct Clearing {
    fingerprint: Fingerprint,
    /// Which tier is looked through, and from where on.
    at: (Tier, usize),
}

impl Tiers {
    /// The next thing to be done elsewhere.
    pub fn poll_chore(&mut self) -> Option<Chore> {
        if let Some(making) = self.disk.as_mut().and_then(|disk| disk.store_mut().poll_making()) {
            return Some(Chore::Making(making));
        }
        if let Some(fit) = self.host.poll_fit() {
            return Some(Chore::Fit(Tier::Host, fit));
        }
        self.disk.as_mut().and_then(|disk| disk.poll_fit()).map(|fit| Chore::Fit(Tier::Disk, fit))
    }

    /// It is done.
    pub fn handle_chore(&mut self, done: ChoreDone) {
        match (done, &mut self.disk) {
            (ChoreDone::Fitted(Tier::Host, fitted), _) => self.host.handle_fit(fitted),
            (ChoreDone::Fitted(Tier::Disk, fitted), Some(disk)) => disk.handle_fit(fitted),
            (ChoreDone::Made(made), Some(disk)) => disk.store_mut().handle_made(made),
            // Without a disk there is nothing of it to do.
            (_, None) => {}
        }
    }

    /// Does a little of what has to be done at some time. True: there is more, and nobody will say so.
    pub fn tidy(&mut self, now: Time) -> bool {
        let host_is_behind = self.host.catch_up(now);
        let disk_is_behind = self.disk.as_mut().is_some_and(|disk| disk.catch_up(now));
        self.clear_some() || host_is_behind || disk_is_behind
    }

    /// Nothing that is stored for the fingerprint of these devices, all of one engine, is found any more, nor what is being
    /// stored now; also of ranks that are not among them.
    pub fn clear(&mut self, now: Time, devices: &[Arc<Device>]) {
        let Some(fingerprint) = devices.first().map(|device| device.fingerprint()) else { return };
        let claims = self.claims.iter().filter(|(_, claim)| claim.fingerprint == fingerprint);
        for work in claims.map(|(work, _)| *work).collect::<Vec<_>>() {
            self.drop_claim(work);
        }
        let loads = self.loads.iter().filter(|(_, load)| load.device.fingerprint() == fingerprint);
        let stores = self.stores.iter().filter(|(_, store)| store.device.fingerprint() == fingerprint);
        let works: Vec<_> = loads.map(|(work, _)| *work).chain(stores.map(|(work, _)| *work)).collect();
        for work in works {
            self.fail(now, work, TierFailure::Cleared);
        }
        let host = &self.host;
        let is_of = |kind: &Kind| host.store().fingerprint(kind.host) == fingerprint;
        self.promotions.void(self.disk.as_mut(), is_of);
        self.demotions.void(|(kind, _)| is_of(kind));
        self.put_down_check(fingerprint);
        // Their classes, so that who watches is told of what goes.
        for (device, group) in devices.iter().flat_map(|device| (0..device.group_count()).map(move |at| (device, at))) {
            self.kind(device, group);
        }
        // Of one that is under way nothing was taken in meanwhile.
        if !self.is_to_be_cleared(fingerprint) {
            // Whoever kills this daemon before all of it has gone does not bring it back.
            self.host.store_mut().disown(fingerprint);
            if let Some(disk) = &mut self.disk {
                disk.store_mut().disown(fingerprint);
            }
            self.clearing.push(Clearing { fingerprint, at: (Tier::Host, 0) });
        }
        self.events.push_back(TierEvent::Cleared { fingerprint });
    }

    pub(super) fn is_clearing(&self, device: &Device) -> bool {
        self.is_to_be_cleared(device.fingerprint())
    }

    pub(super) fn is_to_be_cleared(&self, fingerprint: Fingerprint) -> bool {
        self.clearing.iter().any(|clearing| clearing.fingerprint == fingerprint)
    }

    /// A piece of what is to be cleared, and that nothing is at any more. Nobody finds it meanwhile, and nothing of it is taken
    /// in.
    fn clear_some(&mut self) -> bool {
        let is_quiet = |clearing: &Clearing| !self.is_busy(clearing.fingerprint);
        let Some(place) = self.clearing.iter().position(is_quiet) else { return false };
        let Clearing { fingerprint, at: (tier, from) } = &mut self.clearing[place];
        let next = match (*tier, &mut self.disk) {
            (Tier::Host, _) => self.host.clear_piece(*fingerprint, *from),
            (Tier::Disk, Some(disk)) => disk.clear_piece(*fingerprint, *from),
            (Tier::Disk, None) => None,
        };
        match (next, *tier) {
            (Some(next), _) => *from = next,
            (None, Tier::Host) => (*tier, *from) = (Tier::Disk, 0),
            (None, Tier::Disk) => {
                let Clearing { fingerprint, .. } = self.clearing.swap_remove(place);
                if let Some(disk) = &mut self.disk {
                    disk.store_mut().erase_lost(|of| of == fingerprint);
                }
                self.drop_doomed();
                return !self.clearing.is_empty();
            }
        }
        true
    }

    /// Whether something holds what is to be cleared, or is about to bring more of it.
    fn is_busy(&self, fingerprint: Fingerprint) -> bool {
        let is_kind = |kind: &Kind| self.host.store().fingerprint(kind.host) == fingerprint;
        self.loads.values().any(|load| load.device.fingerprint() == fingerprint)
            || self.stores.values().any(|store| store.device.fingerprint() == fingerprint)
            || self.promotions.has(|kind, _| is_kind(kind))
            || self.demotions.has(is_kind)
            || self.verifying.has(|tier, class| self.fingerprint(tier, class) == Some(fingerprint))
    }
}
