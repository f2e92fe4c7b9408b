//! The client against a daemon that misbehaves, or is not there.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvferry_client::{AttachSpec, ClientError, Event, Role};
use kvferry_proto::v1::{self, from_daemon, to_daemon};

use crate::support::engine::client;
use crate::support::impostor::Impostor;
use crate::support::{PATIENCE, Shape, wait};

#[test]
fn calls_fail_at_once_while_nobody_listens() {
    let client = client(PathBuf::from("/nonexistent/kvferry.sock"), "E0", Role::Worker);
    let since = Instant::now();
    assert!(matches!(client.grant("r", &[vec![1]], 1000, &[]), Err(ClientError::NotConnected(_))));
    assert!(matches!(client.status(), Err(ClientError::NotConnected(_))));
    let key = client.redeem("r", "ticket", &[], 1000, &[]);
    client.abort(key);
    client.relinquish("ticket");
    let events = client.poll();
    assert!(since.elapsed() < Duration::from_millis(500), "{:?}", since.elapsed());
    let [Event::TransferDone { key: done, failure, .. }] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!((*done, failure.as_deref()), (key, Some("daemon_gone")));
    assert!(client.poll().is_empty(), "one outcome");
}

#[test]
fn a_grant_that_comes_too_late_is_given_back() {
    let daemon = Impostor::listen();
    let client = daemon.client(Role::Scheduler, Duration::from_millis(100));
    let mut conversation = daemon.welcome(1);
    assert!(client.wait_connected(PATIENCE));
    let timed_out = client.grant("r", &[vec![1]], 60_000, &[]);
    assert!(matches!(timed_out, Err(ClientError::Timeout(_))), "{timed_out:?}");
    let grant = conversation.read().expect("the grant");
    let ticket = "late".to_owned();
    conversation.answer(grant.id, from_daemon::Body::Granted(v1::Granted { ticket, ..Default::default() }));
    let Some(to_daemon::Body::Relinquish(back)) = conversation.read().expect("an answer").body else {
        panic!("the blocks would stay leased for a request that was never told")
    };
    assert_eq!(back.ticket, "late");
}

#[test]
fn a_lost_connection_is_made_again_with_the_region() {
    let daemon = Impostor::listen();
    let client = daemon.client(Role::Worker, Duration::from_secs(5));
    let region = Arc::new(kvferry_memory::create("kvferry-test", Shape::SMALL.bytes()).expect("create a memfd"));
    client.attach(AttachSpec {
        rank: 0,
        rank_count: 1,
        fingerprint: [7; 32],
        layout: Shape::SMALL.layout("LBHNC"),
        region,
        model: String::new(),
    });
    for life in 1..=3 {
        // One that was made before the region was known may come first, and goes.
        let (mut conversation, attach) = loop {
            let mut conversation = daemon.welcome(life);
            if let Some(attach) = conversation.read() {
                break (conversation, attach);
            }
        };
        let Some(to_daemon::Body::Attach(spec)) = &attach.body else { panic!("{attach:?}") };
        assert_eq!(spec.fingerprint, [7; 32]);
        conversation.answer(attach.id, from_daemon::Body::Attached(v1::Attached { epoch: life }));
        wait(|| "the next life".to_owned(), || client.daemon_epoch().filter(|epoch| *epoch == life));
        // What waits for an outcome when the connection breaks has one.
        let key = client.redeem("r", "ticket", &[], 60_000, &[]);
        let redeem = conversation.read().expect("the redeem");
        assert!(matches!(redeem.body, Some(to_daemon::Body::Redeem(redeem)) if redeem.key == key));
        drop(conversation);
        let mut outcomes = Vec::new();
        wait(
            || "an outcome".to_owned(),
            || {
                outcomes.extend(client.poll());
                outcomes.contains(&Event::Disconnected).then_some(())
            },
        );
        outcomes.retain(|event| matches!(event, Event::TransferDone { .. }));
        let [Event::TransferDone { key: done, failure, .. }] = outcomes.as_slice() else { panic!("{outcomes:?}") };
        assert_eq!((*done, failure.as_deref()), (key, Some("daemon_gone")));
    }
}

#[test]
fn a_daemon_that_hangs_up_is_not_hammered() {
    let daemon = Impostor::listen();
    let since = Instant::now();
    let _client = daemon.client(Role::Operator, Duration::from_secs(5));
    // 20 ms, doubled each time: the seventh connection cannot come sooner.
    for _ in 0..7 {
        drop(daemon.accept());
    }
    assert!(since.elapsed() >= Duration::from_millis(20 + 40 + 80 + 160 + 320 + 640), "{:?}", since.elapsed());
}

#[test]
fn a_refused_region_is_reported() {
    let daemon = Impostor::listen();
    let client = daemon.client(Role::Worker, Duration::from_secs(5));
    let mut conversation = daemon.accept();
    let hello = conversation.read().expect("a greeting");
    let problem = v1::Problem { message: "not you".to_owned() };
    conversation.answer(hello.id, from_daemon::Body::Problem(problem));
    let refused = Event::Refused { message: "not you".to_owned() };
    wait(|| "the reason".to_owned(), || client.poll().contains(&refused).then_some(()));
    assert!(!client.is_connected());
}
