//! Requests that do not fit, and more of them than a daemon takes on: refused in words, and nothing is lost.

use std::time::{Duration, Instant};

use kvferry_client::{ClientError, Role, WantedBlocks};

use crate::support::engine::client;
use crate::support::stage::count;
use crate::support::tricks::Trick;
use crate::support::{Daemon, Shape, Stage, StandInEngine};

fn wanted(positions: &[u32], targets: &[u32]) -> WantedBlocks {
    WantedBlocks { positions: positions.to_vec(), targets: targets.to_vec() }
}

#[test]
fn wanted_blocks_that_do_not_fit_are_refused() {
    let (p, d) = (Daemon::start(), Daemon::start());
    let mut prefill = StandInEngine::attach(&p, "P0");
    let many: Vec<u32> = (0..1_000_000).map(|number| number % 64).collect();
    let wrong = [
        vec![wanted(&[3], &[1])],
        vec![wanted(&[u32::MAX], &[1])],
        vec![wanted(&[0], &[0])],
        vec![wanted(&[2], &[3])],
        vec![wanted(&[0], &[64])],
        vec![wanted(&[0], &[u32::MAX])],
        vec![wanted(&[0, 1], &[3, 3])],
        vec![wanted(&[0, 1], &[3])],
        vec![wanted(&[0], &[3, 4])],
        vec![wanted(&[], &[]), wanted(&[0], &[3])],
        vec![WantedBlocks::default(); 10_000].into_iter().chain([wanted(&[0], &[3])]).collect(),
        vec![wanted(&many, &many)],
    ];
    for daemon in [&d, &p] {
        let mut decode = StandInEngine::attach(daemon, "D0");
        for (number, groups) in wrong.iter().enumerate() {
            // The third is vLLM's null block: it holds nothing.
            let granted = prefill.grant("r1", &[1, 2, 0], 10_000);
            let key = decode.worker.redeem("r1", &granted.ticket, groups, 10_000, &[]);
            assert_eq!(decode.outcome(key).as_deref(), Some("request"), "request {number}");
            // Its one reader will not come again, or has said so.
            let ended = prefill.lease_end(granted.lease_id);
            assert!(ended == "read" || ended == "relinquished", "{ended}");
        }
        let key = decode.redeem(&prefill.grant("r1", &[1, 2], 10_000).ticket, &[1, 2]);
        assert_eq!(decode.outcome(key), None);
    }
    p.wait_quiet();
    d.wait_quiet();
}

#[test]
fn a_request_longer_than_a_frame_costs_only_itself() {
    let daemon = Daemon::start();
    let mut prefill = StandInEngine::attach(&daemon, "P0");
    let granted = prefill.grant("r1", &[1, 2], 10_000);
    let many = vec![u32::MAX; 4 << 20];
    let refused = prefill.scheduler.grant("r2", std::slice::from_ref(&many), 10_000, &[]);
    assert!(matches!(&refused, Err(ClientError::Refused(said)) if said.contains("longer")), "{refused:?}");
    let key = prefill.worker.redeem("r3", &granted.ticket, &[wanted(&many, &many)], 10_000, &[]);
    assert_eq!(prefill.outcome(key).as_deref(), Some("request"));
    assert_eq!(count(&daemon.status(), "/leases"), 1, "the engine's lease lives on");
}

#[test]
fn leases_that_do_not_fit_are_refused() {
    let daemon = Daemon::limited("leases_max = 2\nlease_ms_max = 5000\nlease_blocks_max = 8");
    let mut engine = StandInEngine::attach(&daemon, "P0");
    let refusal = |engine: &StandInEngine, groups: &[Vec<u32>], lease_ms| match engine.scheduler.grant(
        "r",
        groups,
        lease_ms,
        &[],
    ) {
        Err(ClientError::Refused(said)) => said,
        other => panic!("not refused: {other:?}"),
    };
    assert!(refusal(&engine, &[vec![64]], 1000).contains("not among the layout's 64"));
    assert!(refusal(&engine, &[vec![1], vec![1]], 1000).contains("2 groups"));
    assert!(refusal(&engine, &[vec![]], 1000).contains("at least one block"));
    assert!(refusal(&engine, &[], 1000).contains("at least one block"));
    assert!(refusal(&engine, &[(0..9).collect()], 1000).contains("may hold 8 blocks, not 9"));
    assert!(refusal(&engine, &[vec![1]], 5001).contains("lasts at most 5s"));

    let first = engine.grant("r1", &[1], 5000);
    let second = engine.grant("r2", &[2], 5000);
    assert!(refusal(&engine, &[vec![3]], 1000).contains("all 2 leases are taken"));
    assert_eq!(count(&daemon.status(), "/leases"), 2);
    engine.scheduler.relinquish(&first.ticket);
    assert_eq!(engine.lease_end(first.lease_id), "relinquished");
    let third = engine.grant("r3", &[3], 5000);
    let mut reader = StandInEngine::attach(&daemon, "D0");
    for granted in [second, third] {
        let key = reader.redeem(&granted.ticket, &[1]);
        assert_eq!(reader.outcome(key), None);
    }
}

#[test]
fn a_lease_ends_when_it_said() {
    let daemon = Daemon::start();
    let mut engine = StandInEngine::attach(&daemon, "P0");
    let since = Instant::now();
    let granted = engine.grant("r1", &[1], 300);
    assert_eq!(granted.lease_ms, 300);
    assert_eq!(engine.lease_end(granted.lease_id), "expired");
    assert!(since.elapsed() >= Duration::from_millis(300));
    let key = engine.redeem(&granted.ticket, &[2]);
    assert_eq!(engine.outcome(key).as_deref(), Some("lease"));
}

#[test]
fn transfers_beyond_the_limit_are_refused_and_nothing_is_lost() {
    let mut stage = Stage::set(Shape::LARGE, "transfers_max = 1");
    assert_eq!(stage.hand_over(), None);
    let other = Daemon::start();
    let mut third = StandInEngine::large(&other, "D1");
    let key = third.redeem(&stage.prefill.grant("warm", &[1], 20_000).ticket, &[1]);
    assert_eq!(third.outcome(key), None, "its link stands");
    stage.relay.down().set(Trick::Hold { at: 1 << 20 });
    let first = stage.begin(8, 20_000, 20_000);
    stage.wait_moving();
    // The reader's own limit.
    let second = stage.prefill.grant("second", &[1, 2], 20_000);
    let key = stage.decode.redeem(&second.ticket, &[20, 21]);
    assert_eq!(stage.decode.outcome(key).as_deref(), Some("limit"));
    // The holder's, asked by another daemon.
    let key = third.redeem(&second.ticket, &[20, 21]);
    assert_eq!(third.outcome(key).as_deref(), Some("limit"));

    stage.relay.down().set(Trick::Pass);
    assert_eq!(stage.decode.outcome(first.key), None);
    stage.check(&first);
    // A refusal for want of room uses no ticket up.
    stage.p.wait_for("room", |status| count(status, "/transfers/serving") == 0);
    let key = third.redeem(&second.ticket, &[20, 21]);
    assert_eq!(third.outcome(key), None);
    drop(third);
    stage.end();
}

#[test]
fn sessions_beyond_the_limit_wait_for_room() {
    let daemon = Daemon::limited("sessions_max = 3");
    let engine = StandInEngine::attach(&daemon, "P0");
    let third = daemon.operator();
    let mut fourth = client(daemon.socket(), "", Role::Operator);
    daemon.wait_log("limits.sessions_max");
    assert!(!fourth.is_connected());
    assert!(matches!(fourth.status(), Err(ClientError::NotConnected(_))));
    engine.grant("r1", &[1], 1000);
    drop(third);
    assert!(fourth.wait_connected(crate::support::PATIENCE), "room again");
    fourth.status().expect("an answer");
    fourth = client(daemon.socket(), "", Role::Operator);
    assert!(fourth.wait_connected(crate::support::PATIENCE), "room again");
}
