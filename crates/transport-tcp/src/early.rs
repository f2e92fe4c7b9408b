//! Fetches that came before the work they ask for.
//!
//! The reader's daemon may be quicker than the holder's: a fetch waits a little for its work, then it is refused.

use std::time::Duration;

use kvferry_core::{Time, WorkId};

use crate::frame::{Frame, HEADER_BYTES, Tag};
use crate::settings::Settings;

/// The early fetches of one endpoint.
pub(crate) struct EarlyFetches {
    waiting: Vec<(Fetch, Time)>,
    waiting_max: usize,
    ahead_max: Duration,
}

/// What a reader asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fetch {
    pub(crate) stream: usize,
    pub(crate) work: WorkId,
    pub(crate) tag: Tag,
    pub(crate) digest: u64,
}

impl EarlyFetches {
    /// None yet; at most as many as there may be works, a stream.
    pub(crate) fn new(stream_count: usize, settings: &Settings) -> Self {
        let waiting_max = settings.works_max * stream_count;
        Self { waiting: Vec::new(), waiting_max, ahead_max: settings.fetch_ahead_max }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Lets a fetch wait. False: there is no room, it must be refused.
    pub(crate) fn wait(&mut self, fetch: Fetch, now: Time) -> bool {
        let has_room = self.waiting.len() < self.waiting_max;
        if has_room {
            self.waiting.push((fetch, now.after(self.ahead_max)));
        }
        has_room
    }

    /// The fetches of a work that has come.
    pub(crate) fn take(&mut self, work: WorkId) -> Vec<Fetch> {
        self.waiting.extract_if(.., |(fetch, _)| fetch.work == work).map(|(fetch, _)| fetch).collect()
    }

    /// Forgets a fetch that its reader takes back. False: it does not wait here.
    pub(crate) fn cancel(&mut self, stream: usize, work: WorkId, tag: Tag) -> bool {
        let same = |(fetch, _): &(Fetch, Time)| fetch.stream == stream && fetch.work == work && fetch.tag == tag;
        let place = self.waiting.iter().position(same);
        place.map(|place| self.waiting.swap_remove(place)).is_some()
    }

    /// Forgets the fetches that waited too long and hands each out.
    pub(crate) fn expire(&mut self, now: Time, mut refuse: impl FnMut(Fetch)) {
        self.waiting.retain(|&(fetch, until)| {
            if until <= now {
                refuse(fetch);
            }
            until > now
        });
    }

    /// When the first of them has waited too long.
    pub(crate) fn next_deadline(&self) -> Time {
        self.waiting.iter().map(|&(_, until)| until).min().unwrap_or(Time::NEVER)
    }
}

impl Fetch {
    /// The answer to a fetch that nothing comes of.
    pub(crate) fn refusal(&self) -> [u8; HEADER_BYTES] {
        Frame::Refuse { work: self.work, tag: self.tag }.encode()
    }
}
