//! What was asked for by key and is answered once, by an event: also when the daemon goes away.

use std::collections::HashMap;

use kvferry_proto::v1::{self, from_daemon};

use crate::event::Event;

/// One thing that was asked for.
pub(crate) struct Asked {
    pub(crate) kind: Kind,
    /// The engine's name for the request; empty for a commit.
    pub(crate) request_id: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Commit,
    Load,
    Lookup,
    Redeem,
    Store,
}

impl Asked {
    /// The answer where there is no other.
    pub(crate) fn failed(self, key: u64, failure: &str) -> Event {
        let (request_id, failure) = (self.request_id, Some(failure.to_owned()));
        match self.kind {
            Kind::Commit => Event::Stored { key, blocks: 0, failure },
            Kind::Load => Event::Loaded { key, request_id, failure, bytes: 0, micros: 0, disk_bytes: 0 },
            Kind::Lookup => Event::Found { key, request_id, held: Vec::new(), on_disk: Vec::new(), failure },
            Kind::Redeem => Event::TransferDone { key, request_id, failure, bytes: 0, micros: 0 },
            Kind::Store => Event::Copied { key, request_id, failure },
        }
    }
}

/// The event of an outcome; none for a key that nobody waits for, which was answered before.
pub(crate) fn outcome(asked: &mut HashMap<u64, Asked>, body: from_daemon::Body) -> Option<Event> {
    let mut take = |key: u64, kind: Kind| {
        let is_of = asked.get(&key).is_some_and(|asked| asked.kind == kind);
        is_of.then(|| asked.remove(&key)).flatten().map(|asked| asked.request_id)
    };
    let word = |failure: String| (!failure.is_empty()).then_some(failure);
    Some(match body {
        from_daemon::Body::TransferDone(v1::TransferDone { key, delivered, failure, bytes, micros }) => {
            let request_id = take(key, Kind::Redeem)?;
            Event::TransferDone { key, request_id, failure: (!delivered).then_some(failure), bytes, micros }
        }
        from_daemon::Body::Found(v1::Found { key, held, on_disk, failure }) => {
            Event::Found { key, request_id: take(key, Kind::Lookup)?, held, on_disk, failure: word(failure) }
        }
        from_daemon::Body::Loaded(v1::Loaded { key, delivered, failure, bytes, micros, disk_bytes }) => {
            let request_id = take(key, Kind::Load)?;
            Event::Loaded { key, request_id, failure: (!delivered).then_some(failure), bytes, micros, disk_bytes }
        }
        from_daemon::Body::Copied(v1::Copied { key, failure }) => {
            Event::Copied { key, request_id: take(key, Kind::Store)?, failure: word(failure) }
        }
        from_daemon::Body::Stored(v1::Stored { key, blocks }) => {
            take(key, Kind::Commit)?;
            Event::Stored { key, blocks, failure: None }
        }
        _ => return None,
    })
}

/// What came and went, as an event.
pub(crate) fn changed(changed: v1::TierChanged) -> Event {
    let names = |groups: Vec<v1::BlockHashes>| {
        let of_group = |(group, list): (u32, v1::BlockHashes)| {
            let hashes: Vec<_> = list.hashes.as_chunks::<32>().0.to_vec();
            hashes.into_iter().map(move |hash| (group, hash))
        };
        (0..).zip(groups).flat_map(of_group).collect()
    };
    Event::TierChanged { tier: changed.tier, stored: names(changed.stored), removed: names(changed.removed) }
}
