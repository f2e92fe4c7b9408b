//! The main job without vLLM: blocks of one engine reach another, through two daemons and through one.

use crate::support::engine::EngineOptions;
use crate::support::{Daemon, DaemonOptions, Shape, StandInEngine};

#[test]
fn two_daemons_hand_over_blocks() {
    let (p, d) =
        (Daemon::start(), Daemon::start_with(&DaemonOptions { host: "127.0.0.2".to_owned(), ..Default::default() }));
    let mut prefill = StandInEngine::attach(&p, "P0");
    let shape = Shape { blocks: 80, ..Shape::SMALL };
    let mut decode =
        StandInEngine::attach_with(&d, "D0", EngineOptions { shape, order: "BLHNC", ..Default::default() });
    prefill.fill(1);
    decode.fill(2);
    let untouched = decode.sums(&d, &[3, 8]);

    let (source, target) = ([5, 6, 7, 20, 3], [9, 10, 40, 41, 2]);
    let granted = prefill.grant("r1", &source, 10_000);
    let key = decode.redeem(&granted.ticket, &target);
    assert_eq!(decode.outcome(key), None);
    assert_eq!(prefill.lease_end(granted.lease_id), "read");

    assert_eq!(prefill.sums(&p, &source), decode.sums(&d, &target));
    for (source, target) in source.iter().zip(&target) {
        assert!(prefill.block(*source) == decode.block(*target), "block {source} at {target}");
    }
    assert_eq!(decode.sums(&d, &[3, 8]), untouched, "no other block changed");
    let status = d.status();
    assert_eq!(status["transfers"]["bytes_total"], 5 * Shape::SMALL.block_bytes());
    assert_eq!(status["transfers"]["finished"][0]["via"], "tcp");

    // A second one, over the same link, of a part of what is leased.
    let granted = prefill.grant("r2", &source, 10_000);
    let key = decode.redeem(&granted.ticket, &target[..2]);
    assert_eq!(decode.outcome(key), None);

    drop((prefill, decode));
    p.wait_empty();
    d.wait_empty();
}

#[test]
fn one_daemon_hands_over_by_copy() {
    let daemon = Daemon::start();
    let mut prefill = StandInEngine::attach(&daemon, "P0");
    let mut decode = StandInEngine::attach(&daemon, "D0");
    prefill.fill(1);
    let granted = prefill.grant("r1", &[1, 2, 3], 10_000);
    let key = decode.redeem(&granted.ticket, &[7, 5, 6]);
    assert_eq!(decode.outcome(key), None);
    assert_eq!(prefill.lease_end(granted.lease_id), "read");
    assert_eq!(prefill.sums(&daemon, &[1, 2, 3]), decode.sums(&daemon, &[7, 5, 6]));
    assert_eq!(daemon.status()["transfers"]["finished"][0]["via"], "copy");
    drop((prefill, decode));
    daemon.wait_empty();
}

#[test]
fn nothing_wanted_is_delivered_at_once() {
    let daemon = Daemon::start();
    let mut prefill = StandInEngine::attach(&daemon, "P0");
    let mut decode = StandInEngine::attach(&daemon, "D0");
    let granted = prefill.grant("r1", &[1, 2, 3], 10_000);
    let key = decode.redeem(&granted.ticket, &[]);
    assert_eq!(decode.outcome(key), None);
    assert_eq!(prefill.lease_end(granted.lease_id), "read");
}
