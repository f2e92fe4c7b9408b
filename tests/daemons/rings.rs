//! The rings between engines and their daemon: used where offered, full, cut off, and written to by processes that lie.

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use kvferry_client::ring::Pushed;
use kvferry_client::{Client, ClientConfig, Event, RingSettings, Role, WantedBlocks};
use kvferry_proto::v1::{self, ToDaemon, to_daemon};
use prost::Message as _;
use rustix::process::Signal;

use crate::support::session::{Session, frame};
use crate::support::{Daemon, DaemonOptions, Dice, PATIENCE, StandInEngine, wait};

/// Where the words of submissions and their bytes stand in a ring's memory.
const TAIL_AT: u64 = 0;
const HEAD_AT: u64 = 128;
const BYTES_AT: u64 = 4096;
/// The words of completions: three further on.
const COMPLETIONS_HEAD_AT: u64 = 4 * 128;

fn daemon_with(attach: &str) -> Daemon {
    Daemon::start_with(&DaemonOptions { attach: attach.to_owned(), ..Default::default() })
}

fn hops(daemon: &Daemon) -> Vec<String> {
    let status = daemon.status();
    let engines = status["engines"].as_array().expect("engines").clone();
    engines.iter().map(|engine| engine["workers"][0]["hop"].as_str().expect("hop").to_owned()).collect()
}

/// A transfer from one engine to another of the same daemon.
fn hand_over(prefill: &mut StandInEngine, decode: &mut StandInEngine) {
    prefill.fill(3);
    let granted = prefill.grant("request", &[1, 2, 3], 20_000);
    let key = decode.redeem(&granted.ticket, &[4, 5, 6]);
    assert_eq!(decode.outcome(key), None);
    assert_eq!(decode.block(5), prefill.block(2));
    prefill.lease_end(granted.lease_id);
}

#[test]
fn engines_use_the_rings_that_are_offered() {
    for (attach, ring, hop) in
        [("", true, "ring"), ("ring_kib = 4\nring_spin_us = 100", true, "ring"), ("ring_kib = 0", false, "socket")]
    {
        let daemon = daemon_with(attach);
        let mut prefill = StandInEngine::attach(&daemon, "P0");
        let mut decode = StandInEngine::attach(&daemon, "D0");
        for client in [&prefill.worker, &prefill.scheduler, &decode.worker] {
            assert_eq!(client.is_on_ring(), ring, "{attach:?}");
        }
        assert_eq!(hops(&daemon), [hop, hop], "{attach:?}");
        hand_over(&mut prefill, &mut decode);
    }
}

#[test]
fn a_client_may_decline() {
    let daemon = Daemon::start();
    let config = ClientConfig {
        socket: daemon.socket(),
        engine_id: "E0".to_owned(),
        role: Role::Scheduler,
        reply_timeout: Duration::from_secs(5),
    };
    let settings = RingSettings { enabled: false, ..Default::default() };
    let client = Client::start_with(config, settings).expect("start");
    assert!(client.wait_connected(PATIENCE));
    assert!(!client.is_on_ring());
    assert!(client.status().expect("status").contains("engines"));
}

#[test]
fn a_redeem_is_acknowledged_or_refused_and_then_done() {
    let daemon = Daemon::start();
    let mut prefill = StandInEngine::attach(&daemon, "P0");
    let mut decode = StandInEngine::attach(&daemon, "D0");
    let granted = prefill.grant("request", &[1], 20_000);
    let wanted = [WantedBlocks { positions: vec![0], targets: vec![9] }];
    let (key, accepted) = decode.worker.redeem_acknowledged("request", &granted.ticket, &wanted, 10_000, &[]);
    assert_eq!(accepted, Ok(()));
    assert_eq!(decode.outcome(key), None);
    let (key, accepted) = decode.worker.redeem_acknowledged("request", "no ticket", &wanted, 10_000, &[]);
    assert!(accepted.is_err(), "{accepted:?}");
    assert_eq!(decode.outcome(key).as_deref(), Some("ticket"));
    prefill.lease_end(granted.lease_id);
}

/// Both rings at their limit: nobody polls, so the daemon has to ask for room, and the client has to wait for some.
#[test]
fn full_rings_push_back_and_lose_nothing() {
    let daemon = daemon_with("ring_kib = 4");
    let decode = StandInEngine::attach(&daemon, "D0");
    let keys: BTreeSet<u64> = (0..2_000).map(|_| decode.redeem("no ticket", &[1])).collect();
    let mut done = BTreeSet::new();
    wait(
        || format!("{} outcomes", keys.len()),
        || {
            for event in decode.worker.poll() {
                let Event::TransferDone { key, failure, .. } = event else { continue };
                assert_eq!(failure.as_deref(), Some("ticket"));
                assert!(done.insert(key), "{key} twice");
            }
            (done.len() >= keys.len()).then_some(())
        },
    );
    assert_eq!(done, keys);
}

/// What is too long for a record goes over the socket, and keeps its place.
#[test]
fn long_and_short_messages_keep_their_order() {
    let daemon = daemon_with("ring_kib = 4");
    let decode = StandInEngine::attach(&daemon, "D0");
    let long: Vec<u32> = (0..2_000).collect();
    let mut keys = Vec::new();
    for _ in 0..100 {
        keys.push(decode.redeem("no ticket", &long));
        keys.push(decode.redeem("no ticket", &[1]));
    }
    // A reply of four bytes for each block asked for is longer than a record, too.
    let blocks: Vec<u32> = (0..640).map(|block| block % 64).collect();
    assert_eq!(decode.worker.checksums("D0", 0, 0, &blocks).map(|sums| sums.len()), Ok(640));
    let mut done = Vec::new();
    wait(
        || "all outcomes".to_owned(),
        || {
            done.extend(decode.worker.poll().into_iter().filter_map(|event| match event {
                Event::TransferDone { key, .. } => Some(key),
                _ => None,
            }));
            (done.len() >= keys.len()).then_some(())
        },
    );
    assert_eq!(done, keys);
}

#[test]
fn a_daemon_killed_with_records_in_flight_answers_each_once() {
    let mut daemon = daemon_with("ring_kib = 64");
    let mut decode = StandInEngine::attach(&daemon, "D0");
    daemon.signal(Signal::STOP);
    let stopped = || std::fs::read_to_string(daemon.proc("status")).is_ok_and(|status| status.contains("T (stopped)"));
    wait(|| "a daemon that stands still".to_owned(), || stopped().then_some(()));
    let keys: BTreeSet<u64> = (0..50).map(|_| decode.redeem("no ticket", &[1])).collect();
    daemon.kill();
    let mut gone = BTreeSet::new();
    for key in &keys {
        assert_eq!(decode.outcome(*key).as_deref(), Some("daemon_gone"));
        assert!(gone.insert(*key));
    }
    daemon.restart();
    decode.wait_attached_again();
    assert!(decode.worker.is_on_ring());
    let more = decode.rest().into_iter().filter(|event| matches!(event, Event::TransferDone { .. })).count();
    assert_eq!(more, 0, "one outcome each");
}

/// The last words of a daemon are in the ring, and count.
#[test]
fn what_a_daemon_said_before_it_died_is_heard() {
    let mut daemon = Daemon::start();
    let prefill = StandInEngine::attach(&daemon, "P0");
    let mut decode = StandInEngine::attach(&daemon, "D0");
    let granted = prefill.grant("request", &[1], 20_000);
    let key = decode.redeem(&granted.ticket, &[9]);
    daemon.wait_for("the delivery", |status| status["transfers"]["delivered_total"] == 1);
    // The outcome was told before the status that counts it was asked for.
    daemon.wait_quiet();
    daemon.kill();
    wait(|| "the loss".to_owned(), || (!decode.worker.is_connected()).then_some(()));
    assert_eq!(decode.outcome(key), None, "delivered, whatever came after");
}

#[test]
fn lies_in_the_ring_end_the_session_and_nothing_else() {
    let daemon = Daemon::start();
    let honest = StandInEngine::attach(&daemon, "D0");
    let (tail, head) = ("impossible tail", "impossible head");
    type Lie = fn(&std::fs::File);
    let lies: [(Lie, &str); 4] = [
        (|memory| memory.write_all_at(&12_u32.to_ne_bytes(), TAIL_AT).expect("write"), tail),
        (|memory| memory.write_all_at(&u32::MAX.to_ne_bytes(), TAIL_AT).expect("write"), tail),
        (|memory| memory.write_all_at(&(1_u32 << 30).to_ne_bytes(), TAIL_AT).expect("write"), tail),
        // Seen when the ring looks full, so after some answers.
        (|memory| memory.write_all_at(&5_u32.to_ne_bytes(), COMPLETIONS_HEAD_AT).expect("write"), head),
    ];
    for (lie, word) in lies {
        let mut session = Session::greeted(&daemon.socket(), v1::Role::Worker);
        let (memory, doorbell, mut end) = session.open_ring();
        lie(&memory);
        let status = ToDaemon { id: 9, body: Some(to_daemon::Body::Status(v1::StatusQuery {})) }.encode_to_vec();
        if word == head {
            while end.submissions.push(&status) == Ok(Pushed::Done) {}
        }
        ring(&doorbell);
        session.wait_closed();
        daemon.wait_log(word);
    }
    assert!(honest.worker.is_connected());
    assert_eq!(hops(&daemon), ["ring"]);
}

fn ring(doorbell: &impl std::os::fd::AsFd) {
    rustix::io::write(doorbell, &1_u64.to_ne_bytes()).expect("ring the doorbell");
}

#[test]
fn records_that_are_no_messages_end_the_session() {
    let daemon = Daemon::start();
    for record in [vec![0xff; 40], ToDaemon { id: 7, body: None }.encode_to_vec()] {
        let mut session = Session::greeted(&daemon.socket(), v1::Role::Worker);
        let (_memory, doorbell, mut end) = session.open_ring();
        assert_eq!(end.submissions.push(&record), Ok(Pushed::Done));
        ring(&doorbell);
        session.wait_closed();
    }
    // A frame that no record announced.
    let mut session = Session::greeted(&daemon.socket(), v1::Role::Worker);
    let rings = session.open_ring();
    session.send(to_daemon::Body::Status(v1::StatusQuery {}), &[]);
    session.wait_closed();
    drop(rings);
    // Rings twice.
    let mut session = Session::greeted(&daemon.socket(), v1::Role::Worker);
    let (_memory, doorbell, mut end) = session.open_ring();
    let again = ToDaemon { id: 8, body: Some(to_daemon::Body::OpenRing(v1::OpenRing {})) }.encode_to_vec();
    assert_eq!(end.submissions.push(&again), Ok(Pushed::Done));
    ring(&doorbell);
    let mut record = Vec::new();
    wait(
        || "the refusal".to_owned(),
        || {
            end.completions.pop(&mut record).expect("honest");
            String::from_utf8_lossy(&record).contains("has some").then_some(())
        },
    );
    drop(session);
    daemon.wait_empty();
}

/// A process that dies while it writes a record has published nothing; one that dies after it has said something.
#[test]
fn a_process_that_dies_in_the_middle_of_a_record_is_let_go() {
    let daemon = Daemon::start();
    let before = daemon.footprint();
    for published in [false, true] {
        let mut session = Session::greeted(&daemon.socket(), v1::Role::Worker);
        let (memory, doorbell, mut end) = session.open_ring();
        if published {
            // Announces a frame, and writes half of it.
            assert_eq!(end.submissions.push_socket(), Ok(Pushed::Done));
            let half = frame(&ToDaemon { id: 9, body: Some(to_daemon::Body::Status(v1::StatusQuery {})) });
            rustix::io::write(&session.stream, &half[..half.len() - 1]).expect("write");
        } else {
            memory.write_all_at(&[40, 0, 0, 0, 8, 9], BYTES_AT).expect("write");
        }
        ring(&doorbell);
        drop(session);
        daemon.wait_empty();
    }
    daemon.wait_footprint(before);
}

/// Anything, anywhere, at any time, with the doorbell ringing: the daemon goes on serving the others.
#[test]
fn random_writes_and_rings_harm_nobody() {
    let mut dice = Dice::throw("random_writes_and_rings");
    let daemon = Daemon::start();
    let mut prefill = StandInEngine::attach(&daemon, "P0");
    let mut decode = StandInEngine::attach(&daemon, "D0");
    for _ in 0..20 {
        let mut session = Session::greeted(&daemon.socket(), v1::Role::Worker);
        let (memory, doorbell, mut end) = session.open_ring();
        for round in 0..50_u64 {
            // An honest record now and then keeps a session that was not caught yet busy.
            let _ = end.submissions.push(&dice.bytes(24));
            memory.write_all_at(&dice.bytes(64), BYTES_AT + round * 64).expect("write");
            ring(&doorbell);
            if round % 10 == 9 {
                memory.write_all_at(&dice.bytes(4), if round % 20 == 9 { TAIL_AT } else { HEAD_AT }).expect("write");
                ring(&doorbell);
            }
        }
        hand_over(&mut prefill, &mut decode);
    }
    drop((prefill, decode));
    daemon.wait_empty();
}
