//! The transports of this room pass the suite.

use std::sync::Arc;

use kvferry_transport::conformance::{Clock, Rig};
use kvferry_transport::{Act, CopySettings, CopyTransport, Counts, Faulty, Metered, Script, Transport};

kvferry_transport::conformance!(copy, copy_rig);
kvferry_transport::conformance!(copy_by_two, two_rig);
kvferry_transport::conformance!(copy_by_four_in_crumbs, four_rig);
kvferry_transport::conformance!(copy_in_crumbs, crumbs_rig);
kvferry_transport::conformance!(late_but_lawful, late_rig);
kvferry_transport::conformance!(metered, metered_rig);

fn copy(settings: CopySettings) -> Box<dyn Transport> {
    Box::new(CopyTransport::new(settings))
}

fn rig(transport: Box<dyn Transport>, works_max: usize) -> Rig {
    Rig::alone(transport, CopyTransport::ENDPOINT, works_max)
}

fn copy_rig(_: &Clock) -> Rig {
    let settings = CopySettings::default();
    rig(copy(settings), settings.works_max)
}

/// Pieces and turns that divide nothing evenly, and one work at a time.
fn crumbs_rig(_: &Clock) -> Rig {
    let settings =
        CopySettings { works_max: 1, turn_bytes_max: 1_000_003, piece_bytes: 4_999, ..CopySettings::default() };
    rig(copy(settings), 1)
}

/// One thread beside the one that turns.
fn two_rig(_: &Clock) -> Rig {
    let settings = CopySettings { threads: 2, split_bytes_min: 1, ..CopySettings::default() };
    rig(copy(settings), settings.works_max)
}

/// More threads than cores, and pieces that divide nothing evenly.
fn four_rig(_: &Clock) -> Rig {
    let settings = CopySettings {
        works_max: 3,
        turn_bytes_max: 100_003,
        piece_bytes: 4_999,
        threads: 4,
        split_bytes_min: 1,
        ..CopySettings::default()
    };
    rig(copy(settings), 3)
}

/// Completions that come some turns late break nothing.
fn late_rig(_: &Clock) -> Rig {
    let settings = CopySettings { works_max: 8, ..CopySettings::default() };
    let script = Script { lines: (0..1000).map(|post| (post, Act::Delay { turns: 2 })).collect() };
    rig(Box::new(Faulty::new(copy(settings), script)), settings.works_max)
}

fn metered_rig(_: &Clock) -> Rig {
    let settings = CopySettings::default();
    rig(Box::new(Metered::new(copy(settings), Arc::new(Counts::default()))), settings.works_max)
}
