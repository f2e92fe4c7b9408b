//! Tickets that must move nothing: of another life, another daemon, another kind, made up, or used up.

use crate::support::engine::EngineOptions;
use crate::support::relay::Control;
use crate::support::tricks::Trick;
use crate::support::{Daemon, DaemonOptions, Dice, Stage, StandInEngine};

fn refused(decode: &mut StandInEngine, ticket: &str) -> Option<String> {
    decode.scribble(&[1, 2]);
    let before = [decode.block(1), decode.block(2)];
    let key = decode.redeem(ticket, &[1, 2]);
    let failure = decode.outcome(key);
    assert!(before == [decode.block(1), decode.block(2)], "bytes moved for a refused ticket");
    failure
}

#[test]
fn a_ticket_from_before_a_restart_is_refused() {
    let (mut p, d) = (Daemon::start(), Daemon::start());
    let mut prefill = StandInEngine::attach(&p, "P0");
    let mut decode = StandInEngine::attach(&d, "D0");
    prefill.fill(1);
    let old = prefill.grant("r1", &[1, 2], 60_000).ticket;
    p.restart_at_its_address();
    prefill.wait_attached_again();
    assert_eq!(refused(&mut decode, &old).as_deref(), Some("ticket"));
    let key = decode.redeem(&prefill.grant("r2", &[1, 2], 10_000).ticket, &[1, 2]);
    assert_eq!(decode.outcome(key), None, "the new daemon's own tickets work");

    // The reader's restart is none of the ticket's business.
    let mut d = d;
    let granted = prefill.grant("r3", &[1, 2], 30_000);
    d.restart_at_its_address();
    decode.wait_attached_again();
    let key = decode.redeem(&granted.ticket, &[1, 2]);
    assert_eq!(decode.outcome(key), None);
}

#[test]
fn a_ticket_from_before_an_engine_came_back_is_refused() {
    let (p, d) = (Daemon::start(), Daemon::start());
    let mut decode = StandInEngine::attach(&d, "D0");
    let prefill = StandInEngine::attach(&p, "P0");
    let old = prefill.grant("r1", &[1, 2], 60_000).ticket;
    drop(prefill);
    p.wait_empty();
    let prefill = StandInEngine::attach(&p, "P0");
    assert_eq!(refused(&mut decode, &old).as_deref(), Some("lease"), "it ended with the engine");
    drop(prefill);

    // Its scheduler alone came back: it has forgotten which blocks it leased.
    let mut prefill = StandInEngine::attach(&p, "P0");
    let granted = prefill.grant("r2", &[1, 2], 60_000);
    let socket = p.socket();
    prefill.scheduler = crate::support::engine::client(socket, "P0", kvferry_client::Role::Scheduler);
    assert_eq!(prefill.lease_end(granted.lease_id), "engine_gone");
    assert_eq!(refused(&mut decode, &granted.ticket).as_deref(), Some("lease"));
}

#[test]
fn a_ticket_of_another_daemon_is_refused() {
    let (p, d) = (Daemon::start(), Daemon::start());
    let other =
        Daemon::start_with(&DaemonOptions { peer: format!("advertise = \"{}\"", p.peer), ..Default::default() });
    let prefill = StandInEngine::attach(&p, "P0");
    let same_name = StandInEngine::attach(&other, "P0");
    let mut decode = StandInEngine::attach(&d, "D0");
    assert_eq!(refused(&mut decode, &same_name.grant("r1", &[1, 2], 60_000).ticket).as_deref(), Some("ticket"));
    assert_eq!(p.status()["transfers"]["serving"].as_array().map(Vec::len), Some(0));
    let key = decode.redeem(&prefill.grant("r2", &[1, 2], 10_000).ticket, &[1, 2]);
    assert_eq!(decode.outcome(key), None);
}

#[test]
fn engines_that_are_not_alike_exchange_nothing() {
    let (p, d) = (Daemon::start(), Daemon::start());
    let prefill = StandInEngine::attach(&p, "P0");
    let stranger = EngineOptions { fingerprint: [8; 32], ..Default::default() };
    for daemon in [&p, &d] {
        let mut decode = StandInEngine::attach_with(daemon, "D0", stranger);
        let ticket = prefill.grant("r1", &[1, 2], 60_000).ticket;
        assert_eq!(refused(&mut decode, &ticket).as_deref(), Some("fingerprint"));
        // Whom it was meant for may still have it.
        let mut alike = StandInEngine::attach(daemon, "D1");
        let key = alike.redeem(&ticket, &[1, 2]);
        assert_eq!(alike.outcome(key), None);
    }
}

#[test]
fn made_up_tickets_are_refused() {
    let mut dice = Dice::throw("made_up_tickets");
    let (p, d) = (Daemon::start(), Daemon::start());
    let prefill = StandInEngine::attach(&p, "P0");
    let mut decode = StandInEngine::attach(&d, "D0");
    let good = prefill.grant("r1", &[1, 2], 60_000).ticket;
    // A letter of the fixed part, of the seal, and one too few or many. (A letter of the address would lead elsewhere.)
    for at in [8, 30, good.len() - 8] {
        let mut letters = good.clone().into_bytes();
        letters[at] = if letters[at] == b'A' { b'B' } else { b'A' };
        let forged = String::from_utf8(letters).expect("letters");
        assert_eq!(refused(&mut decode, &forged).as_deref(), Some("ticket"), "letter {at}");
    }
    for other in [&good[1..], &good[..good.len() - 1], "", "no ticket", "AQ", &"A".repeat(1 << 20)] {
        assert_eq!(refused(&mut decode, other).as_deref(), Some("ticket"));
    }
    for _ in 0..50 {
        let count = usize::try_from(dice.below(400)).expect("few");
        let text: String = dice.bytes(count).into_iter().map(char::from).collect();
        assert_eq!(refused(&mut decode, &text).as_deref(), Some("ticket"), "{text:?}");
    }
    let key = decode.redeem(&good, &[1, 2]);
    assert_eq!(decode.outcome(key), None, "the good one is still good");
}

#[test]
fn a_ticket_that_leads_elsewhere_is_not_followed() {
    // Whom a daemon may call is its config's word, not a ticket's.
    let p =
        Daemon::start_with(&DaemonOptions { peer: "advertise = \"192.0.2.1:7405\"".to_owned(), ..Default::default() });
    let d = Daemon::start();
    let prefill = StandInEngine::attach(&p, "P0");
    let mut decode = StandInEngine::attach(&d, "D0");
    let ticket = prefill.grant("r1", &[1, 2], 60_000).ticket;
    assert_eq!(refused(&mut decode, &ticket).as_deref(), Some("forbidden"));
}

#[test]
fn one_ticket_moves_its_blocks_once() {
    let (p, d) = (Daemon::start(), Daemon::start());
    let prefill = StandInEngine::attach(&p, "P0");
    prefill.fill(1);
    // Over TCP, and by copy.
    for daemon in [&d, &p] {
        let mut readers = [StandInEngine::attach(daemon, "D0"), StandInEngine::attach(daemon, "D1")];
        for _ in 0..20 {
            let ticket = prefill.grant("r1", &[1, 2], 10_000).ticket;
            let keys = readers.each_ref().map(|reader| reader.redeem(&ticket, &[3, 4]));
            let mut outcomes: Vec<_> = readers.iter_mut().zip(keys).map(|(reader, key)| reader.outcome(key)).collect();
            outcomes.sort();
            assert_eq!(outcomes, [None, Some("lease".to_owned())]);
        }
    }
}

#[test]
fn a_second_reader_does_not_harm_the_first() {
    let mut stage = Stage::large();
    let mut second = StandInEngine::large(&stage.d, "D1");
    assert_eq!(stage.hand_over(), None);
    stage.relay.down().set(Trick::Hold { at: 1 << 20 });
    let first = stage.begin(8, 20_000, 20_000);
    stage.wait_moving();

    let key = second.redeem(&first.ticket, &[1]);
    assert_eq!(second.outcome(key).as_deref(), Some("lease"));
    // One that is given up before the holder has answered, and takes its ticket back.
    stage.relay.control(Control::HoldConfirm);
    let key = second.redeem(&first.ticket, &[1]);
    second.worker.abort(key);
    assert_eq!(second.outcome(key).as_deref(), Some("aborted"));
    second.worker.relinquish(&first.ticket);
    stage.relay.control(Control::Pass);

    stage.relay.down().set(Trick::Pass);
    assert_eq!(stage.decode.outcome(first.key), None);
    stage.check(&first);
    drop(second);
    stage.end();
}

#[test]
fn a_ticket_for_another_prompt_moves_nothing() {
    let (p, d) = (Daemon::start(), Daemon::start());
    let prefill = StandInEngine::attach(&p, "P0");
    for daemon in [&d, &p] {
        let mut decode = StandInEngine::attach(daemon, "D0");
        let granted = prefill.scheduler.grant("r1", &[vec![1]], 10_000, b"one prompt").expect("grant");
        let wanted = [kvferry_client::WantedBlocks { positions: vec![0], targets: vec![2] }];
        for other in [&b"another prompt"[..], b""] {
            let key = decode.worker.redeem("r1", &granted.ticket, &wanted, 10_000, other);
            assert_eq!(decode.outcome(key).as_deref(), Some("ticket"));
        }
        // Neither has used it up.
        let key = decode.worker.redeem("r1", &granted.ticket, &wanted, 10_000, b"one prompt");
        assert_eq!(decode.outcome(key), None);
    }
}
