//! Links between daemons stand before a transfer needs them, come back by themselves, and go when nothing wants them.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;

use kvferry_proto::v1;
use kvferry_proto::v1::peer_client::PeerClient;
use kvferry_transport::EndpointId;
use kvferry_transport_tcp::frame::Frame;
use serde_json::Value;

use crate::support::{Daemon, DaemonOptions, PATIENCE, StandInEngine, wait};

/// What the daemon of `status` knows of its link to `peer`.
fn link<'a>(status: &'a Value, peer: &str) -> Option<&'a Value> {
    let mut all = status["peers"].as_array().expect("peers").iter();
    all.find(|known| known["direction"] == "out" && known["peer"] == peer)
}

/// Waits until the link to `peer` stands, and returns the peer's epoch.
fn wait_up(daemon: &Daemon, peer: &Daemon) -> u64 {
    let (peer, epoch) = (peer.peer.to_string(), peer.status()["daemon_epoch"].clone());
    let is_up = |status: &Value| link(status, &peer).is_some_and(|link| link["up"] == true && link["epoch"] == epoch);
    daemon.wait_for(&format!("a link to {peer}"), is_up);
    epoch.as_u64().expect("an epoch")
}

fn knowing(peers: &[&Daemon], limits: &str) -> Daemon {
    let known: Vec<String> = peers.iter().map(|peer| peer.peer.to_string()).collect();
    Daemon::start_with(&DaemonOptions {
        peer: format!("known = {known:?}"),
        limits: limits.to_owned(),
        ..Default::default()
    })
}

/// One hand-over; returns how long it took, by the reader's daemon.
fn hand_over(prefill: &StandInEngine, decode: &mut StandInEngine, reader: &Daemon) -> u64 {
    let key = decode.redeem(&prefill.grant("r1", &[1, 2], 10_000).ticket, &[1, 2]);
    assert_eq!(decode.outcome(key), None);
    reader.status()["transfers"]["finished"].as_array().expect("transfers").last().expect("one")["micros"]
        .as_u64()
        .expect("microseconds")
}

/// Calls a daemon as a peer at `address` in the life `epoch` would.
fn call(daemon: &Daemon, address: &str, epoch: u64) -> v1::OpenEndpointReply {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut client = PeerClient::connect(format!("http://{}", daemon.peer)).await.expect("connect");
        let request = v1::OpenEndpointRequest {
            protocol: v1::PROTOCOL,
            stream_count: 1,
            node: "caller".to_owned(),
            address: address.to_owned(),
            daemon_epoch: epoch,
            encrypts_data: false,
        };
        client.open_endpoint(request).await.expect("an answer").into_inner()
    })
}

#[test]
fn a_peer_of_the_config_is_called_before_there_is_a_ticket() {
    let p = Daemon::start();
    let d = knowing(&[&p], "");
    let prefill = StandInEngine::attach(&p, "P0");
    let mut decode = StandInEngine::attach(&d, "D0");
    wait_up(&d, &p);
    let tries = d.metric("kvferry_link_tries_total");
    let first = hand_over(&prefill, &mut decode, &d);
    let next = hand_over(&prefill, &mut decode, &d);
    println!("known from the config: the first transfer took {first} us, the next {next} us");
    assert_eq!(d.metric("kvferry_link_tries_total"), tries, "nothing was connected for a transfer");
    assert_eq!(d.metric("kvferry_link_ups_total"), 1);
}

#[test]
fn a_peer_known_from_its_ticket_or_from_its_call_is_linked() {
    let (p, d) = (Daemon::start(), Daemon::start());
    let mut engines = [StandInEngine::attach(&p, "E0"), StandInEngine::attach(&d, "E1")];
    let [prefill, decode] = &mut engines;
    let first = hand_over(prefill, decode, &d);
    println!("known from its first ticket: the first transfer took {first} us");
    // The holder has linked the reader in its turn, and what comes back finds the link.
    wait_up(&p, &d);
    let tries = p.metric("kvferry_link_tries_total");
    let back = hand_over(decode, prefill, &p);
    println!("known from its call: the first transfer took {back} us");
    assert_eq!(p.metric("kvferry_link_tries_total"), tries, "nothing was connected for a transfer");
}

#[test]
fn a_peer_that_starts_again_says_so_and_is_linked_at_once() {
    // What the reader tries by itself comes too late to be what is seen here.
    let slow = "reconnect_ms_min = 10000\nreconnect_ms_max = 60000";
    let mut p = Daemon::start();
    let d = knowing(&[&p], slow);
    let mut prefill = StandInEngine::attach(&p, "P0");
    let mut decode = StandInEngine::attach(&d, "D0");
    let mut before = wait_up(&d, &p);
    wait_up(&p, &d);
    for round in 0..5 {
        let old = prefill.grant("old", &[1], 60_000).ticket;
        p.kill();
        let peer = p.peer.to_string();
        let is_down = |status: &Value| link(status, &peer).is_some_and(|link| link["up"] == false);
        let down = d.wait_for("a link that is down", is_down);
        assert_ne!(link(&down, &peer).expect("a link")["fault"], "", "{down:#}");
        let marked = d.log_length();
        p.restart_at_its_address();
        let epoch = wait_up(&d, &p);
        assert_ne!(epoch, before);
        let (ready, up) = (p.log_time(0, " ready "), d.log_time(marked, "link is up"));
        println!("round {round}: the link stood {:?} after the peer was ready", up.saturating_sub(ready));
        prefill.wait_attached_again();
        let tries = d.metric("kvferry_link_tries_total");
        let took = hand_over(&prefill, &mut decode, &d);
        println!("round {round}: the first transfer took {took} us");
        assert_eq!(d.metric("kvferry_link_tries_total"), tries, "nothing was connected for a transfer");
        // A ticket of the life that ended moves nothing over the new link.
        let key = decode.redeem(&old, &[3]);
        assert_eq!(decode.outcome(key).as_deref(), Some("ticket"));
        before = epoch;
    }
}

#[test]
fn a_ticket_ends_the_wait_for_a_peer_that_said_nothing() {
    let mut p = Daemon::start();
    let d = Daemon::limited("reconnect_ms_min = 10000\nreconnect_ms_max = 60000");
    let mut prefill = StandInEngine::attach(&p, "P0");
    let mut decode = StandInEngine::attach(&d, "D0");
    hand_over(&prefill, &mut decode, &d);
    for round in 0..3 {
        p.kill();
        let peer = p.peer.to_string();
        d.wait_for("a link that is down", |status| link(status, &peer).is_some_and(|link| link["up"] == false));
        // Without its list of peers it calls nobody.
        std::fs::write(p.directory.path().join("kvferry.peers"), "").expect("write");
        p.restart_at_its_address();
        prefill.wait_attached_again();
        let ups = d.metric("kvferry_link_ups_total");
        let took = hand_over(&prefill, &mut decode, &d);
        println!("round {round}: the first transfer, link and all, took {took} us");
        assert_eq!(d.metric("kvferry_link_ups_total"), ups + 1);
    }
}

#[test]
fn whoever_claims_to_be_a_peer_in_another_life_breaks_no_link() {
    let p = Daemon::start();
    let d = knowing(&[&p], "");
    let prefill = StandInEngine::attach(&p, "P0");
    let mut decode = StandInEngine::attach(&d, "D0");
    let epoch = wait_up(&d, &p);
    let (ups, tries) = (d.metric("kvferry_link_ups_total"), d.metric("kvferry_link_tries_total"));
    call(&d, &p.peer.to_string(), epoch ^ 1);
    // The peer itself is asked, and nothing changes.
    wait(|| "a question to the peer".to_owned(), || (d.metric("kvferry_link_tries_total") == tries + 1).then_some(()));
    hand_over(&prefill, &mut decode, &d);
    assert_eq!((d.metric("kvferry_link_ups_total"), d.metric("kvferry_link_downs_total")), (ups, 0));
    // An address that nobody could call, or must not, is not remembered.
    for address in ["", "no port", "host:0", "192.0.2.1:7405", &"a".repeat(300)] {
        call(&d, address, 1);
    }
    let only_p = |status: &Value| {
        let all = status["peers"].as_array().expect("peers").iter().filter(|known| known["direction"] == "out");
        all.count() == 1
    };
    d.wait_for("nobody but the one peer", only_p);
}

#[test]
fn a_peer_that_nothing_wants_is_forgotten_unless_it_is_configured() {
    let (p, q) = (Daemon::limited("peer_idle_s_max = 1"), Daemon::limited("peer_idle_s_max = 1"));
    let d = knowing(&[&q], "peer_idle_s_max = 1");
    let prefill = StandInEngine::attach(&p, "P0");
    let mut decode = StandInEngine::attach(&d, "D0");
    hand_over(&prefill, &mut decode, &d);
    let none_of = |peer: &str| {
        let peer = peer.to_owned();
        move |status: &Value| {
            status["peers"].as_array().expect("peers").iter().all(|known| known["peer"] != peer.as_str())
        }
    };
    d.wait_for("a forgotten peer", none_of(&p.peer.to_string()));
    p.wait_for("an endpoint that is gone", none_of(&d.peer.to_string()));
    wait_up(&d, &q);
    assert_eq!(link(&d.status(), &q.peer.to_string()).expect("a link")["configured"], true);
    hand_over(&prefill, &mut decode, &d);
}

/// The data connection of an endpoint that a daemon has opened.
fn enter(daemon: &Daemon, opened: &v1::OpenEndpointReply) -> TcpStream {
    let mut stream = TcpStream::connect(daemon.data).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
    let key = opened.keys[0].as_slice().try_into().expect("a key");
    stream.write_all(&Frame::hello(EndpointId(opened.endpoint), 0, &key)).expect("write");
    stream.read_exact(&mut [0; 1]).expect("a welcome");
    stream
}

#[test]
fn peers_long_gone_make_room_and_a_full_house_is_refused_in_words() {
    let p = Daemon::limited("peer_idle_s_max = 2");
    let prefill = StandInEngine::attach(&p, "P0");
    let inside: Vec<TcpStream> = (0..256).map(|_| enter(&p, &call(&p, "", 1))).collect();
    let d = Daemon::start();
    let mut decode = StandInEngine::attach(&d, "D0");
    let (mut refused, mut admitted) = (0, false);
    wait(
        || "room for one more, and for a reader".to_owned(),
        || {
            if !admitted {
                let reply = call(&p, "", 1);
                admitted = reply.refusal() == v1::Refusal::Unspecified;
                if !admitted {
                    assert_eq!(reply.refusal(), v1::Refusal::Limit);
                    assert!(reply.message.contains("all 256 endpoints"), "{}", reply.message);
                    refused += 1;
                }
            }
            // The one place that there was may be taken by the caller above: the next comes when the next is idle.
            let key = decode.redeem(&prefill.grant("r1", &[1], 10_000).ticket, &[1]);
            let outcome = decode.outcome(key);
            assert!(matches!(outcome.as_deref(), None | Some("limit")), "{outcome:?}");
            (admitted && outcome.is_none()).then_some(())
        },
    );
    println!("{refused} callers refused until peers were idle for long enough");
    hand_over(&prefill, &mut decode, &d);
    drop(inside);
}

#[test]
fn people_see_links_and_what_is_wrong_with_them() {
    let (p, gone) = (Daemon::start(), Daemon::start());
    let d = knowing(&[&p, &gone], "reconnect_ms_min = 10000\nreconnect_ms_max = 10000");
    wait_up(&d, &p);
    wait_up(&d, &gone);
    let gone_at = gone.peer.to_string();
    drop(gone);
    d.wait_for("a link that is down", |status| link(status, &gone_at).is_some_and(|link| link["up"] == false));
    let shown = Command::new(env!("CARGO_BIN_EXE_kvferry")).arg("status").arg("--socket").arg(d.socket()).output();
    let shown = String::from_utf8(shown.expect("run").stdout).expect("text");
    let line = |peer: &str| shown.lines().find(|line| line.contains(&format!("out  {peer}  "))).expect("a line");
    assert!(
        line(&p.peer.to_string()).contains("  up for ") && line(&p.peer.to_string()).contains("configured"),
        "{shown}"
    );
    let down = line(&gone_at);
    assert!(down.contains("  down for ") && down.contains("last fault: the peer closed the connection"), "{shown}");
}
