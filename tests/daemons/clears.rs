//! What was cleared is found by nobody, whatever happens to the order, the daemon, or some of the engine's processes.

use std::time::Duration;

use kvferry_client::{BlockHash, Client, Event, Role};
use kvferry_proto::v1::{self, from_daemon, to_daemon};
use rustix::process::Signal;

use crate::support::engine::{EngineOptions, client};
use crate::support::impostor::{Conversation, Impostor};
use crate::support::{PATIENCE, StandInEngine, wait};
use crate::tiers::Node;

const BLOCKS: [u32; 4] = [1, 2, 3, 4];

fn names() -> Vec<BlockHash> {
    (1..5).map(|number| [number; 32]).collect()
}

/// Stores four blocks: how many of them were new.
fn store(engine: &mut StandInEngine) -> u64 {
    let (key, failure) = engine.store(None, &names(), &BLOCKS);
    assert_eq!(failure, None);
    engine.commit(key)
}

/// The answer to one lookup: how many are held, or why nobody says.
fn look(scheduler: &Client) -> Result<u32, String> {
    let key = scheduler.lookup("request", &[names()]);
    let answer = |event| match event {
        Event::Found { key: of, held, failure, .. } if of == key => Some((held, failure)),
        _ => None,
    };
    let (held, failure) =
        wait(|| "the answer to a lookup".to_owned(), || scheduler.poll().into_iter().find_map(answer));
    failure.map_or_else(|| Ok(held.first().copied().unwrap_or(0)), Err)
}

/// As [`look`], once there is an answer.
fn look_until_answered(scheduler: &Client) -> u32 {
    wait(|| format!("held blocks: {:?}", look(scheduler)), || look(scheduler).ok())
}

#[test]
fn a_clear_that_comes_before_its_engine_is_carried_out_before_its_first_lookup() {
    let mut node = Node::start();
    store(&mut StandInEngine::attach(&node.daemon, "E0"));
    node.daemon.restart();
    let scheduler = client(node.daemon.socket(), "E0", Role::Scheduler);
    assert!(scheduler.wait_connected(PATIENCE));
    scheduler.clear();
    assert_eq!(look(&scheduler), Err("engine".to_owned()));
    let other = StandInEngine::attach(&node.daemon, "E0");
    assert_eq!(look_until_answered(&scheduler), 0, "of before the order");
    assert_eq!(look_until_answered(&other.scheduler), 0);
}

#[test]
fn one_rank_that_is_away_keeps_nothing_of_before() {
    let node = Node::start();
    let rank = |rank| EngineOptions { rank, rank_count: 2, ..Default::default() };
    let mut first = StandInEngine::attach_with(&node.daemon, "E0", rank(0));
    let mut second = StandInEngine::attach_with(&node.daemon, "E0", rank(1));
    assert_eq!((store(&mut first), store(&mut second), look(&first.scheduler)), (4, 4, Ok(4)));
    drop(second);
    wait(|| "a rank to go".to_owned(), || look(&first.scheduler).is_err().then_some(()));
    first.scheduler.clear();
    let mut second = StandInEngine::attach_with(&node.daemon, "E0", rank(1));
    assert_eq!(look_until_answered(&first.scheduler), 0);
    // Under the names of before there is something else now, on every rank.
    assert_eq!((store(&mut first), store(&mut second)), (4, 4), "new on both");
    assert_eq!(look(&first.scheduler), Ok(4));
}

#[test]
fn a_clear_is_not_lost_with_a_daemon_that_was_away_or_did_not_read_it() {
    let mut node = Node::start();
    let mut engine = StandInEngine::attach(&node.daemon, "E0");
    for does_hang in [false, true] {
        assert_eq!(store(&mut engine), 4);
        if does_hang {
            node.daemon.signal(Signal::STOP);
            engine.scheduler.clear();
        } else {
            node.daemon.kill();
            engine.wait_gone();
            engine.scheduler.clear();
        }
        node.daemon.restart();
        engine.wait_attached_again();
        assert_eq!(look_until_answered(&engine.scheduler), 0, "hangs: {does_hang}");
    }
    // Who has cleared once keeps what it stores from then on.
    assert_eq!(store(&mut engine), 4);
    node.daemon.restart();
    engine.wait_attached_again();
    assert_eq!(look_until_answered(&engine.scheduler), 4);
}

/// The next thing that a client says.
fn said(conversation: &mut Conversation) -> to_daemon::Body {
    conversation.read().and_then(|message| message.body).expect("a message")
}

/// Takes a lookup and answers it.
fn answer(conversation: &mut Conversation, failure: &str) {
    let to_daemon::Body::Lookup(lookup) = said(conversation) else { panic!("no lookup") };
    let found = v1::Found { key: lookup.key, held: vec![0], on_disk: vec![0], failure: failure.to_owned() };
    conversation.answer(0, from_daemon::Body::Found(found));
}

fn found(client: &Client) {
    let is_found = |event: &Event| matches!(event, Event::Found { .. });
    wait(|| "an answer".to_owned(), || client.poll().iter().any(is_found).then_some(()));
}

#[test]
fn each_daemon_is_told_once_until_one_has_answered_a_lookup_behind_it() {
    let impostor = Impostor::listen();
    let client = impostor.client(Role::Scheduler, Duration::from_secs(5));
    let groups = [names()];
    let mut daemon = impostor.welcome(1);
    assert!(client.wait_connected(PATIENCE));
    // What was asked before the order says nothing of it.
    client.lookup("before", &groups);
    client.clear();
    answer(&mut daemon, "");
    found(&client);
    assert!(matches!(said(&mut daemon), to_daemon::Body::Clear(_)));
    for (life, failure) in ["cleared", "engine", "limit", "no_tier"].into_iter().enumerate() {
        for _ in 0..2 {
            client.lookup("behind", &groups);
            answer(&mut daemon, failure);
            found(&client);
        }
        drop(daemon);
        wait(|| "the end of a connection".to_owned(), || (!client.is_connected()).then_some(()));
        daemon = impostor.welcome(2 + life as u64);
        assert!(matches!(said(&mut daemon), to_daemon::Body::Clear(_)), "after {failure}");
        assert!(client.wait_connected(PATIENCE));
    }
    client.lookup("behind", &groups);
    answer(&mut daemon, "");
    found(&client);
    drop(daemon);
    wait(|| "the end of a connection".to_owned(), || (!client.is_connected()).then_some(()));
    daemon = impostor.welcome(10);
    assert!(client.wait_connected(PATIENCE));
    client.lookup("after", &groups);
    answer(&mut daemon, "");
}
