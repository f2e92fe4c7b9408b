//! The admin port: alive, ready, and metrics that the documentation lists.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use crate::support::{Daemon, DaemonOptions, PATIENCE, StandInEngine};

/// Status line and body of one GET.
fn get(daemon: &Daemon, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(daemon.admin).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").expect("write");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("read");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    (head.lines().next().expect("a status line").to_owned(), body.to_owned())
}

/// One outcome of every kind that a metric counts.
fn busy_daemon() -> (Daemon, [StandInEngine; 2]) {
    let memory = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
    let tables = format!("[tier.host]\nmib = 64\npath = {:?}", memory.path().join("arena"));
    let daemon = Daemon::start_with(&DaemonOptions { tables, ..Default::default() });
    let prefill = StandInEngine::attach(&daemon, "P0");
    let mut decode = StandInEngine::attach(&daemon, "D0");
    let other = Daemon::start();
    let mut remote = StandInEngine::attach(&other, "D1");
    let ticket = prefill.grant("r1", &[1, 2], 10_000).ticket;
    for (reader, failure) in [(&mut remote, None), (&mut decode, Some("lease"))] {
        let key = reader.redeem(&ticket, &[1, 2]);
        assert_eq!(reader.outcome(key).as_deref(), failure);
    }
    let key = decode.redeem(&prefill.grant("r2", &[1, 2], 10_000).ticket, &[1, 2]);
    assert_eq!(decode.outcome(key), None);
    let (stored, _) = decode.store(None, &[[1; 32]], &[1]);
    decode.commit(stored);
    let (claim, _) = decode.lookup(&[[1; 32]]);
    assert_eq!(decode.load(claim, &[[1; 32]], &[2]), None);
    daemon.wait_quiet();
    (daemon, [prefill, decode])
}

#[test]
fn it_says_that_it_is_alive_and_ready() {
    let daemon = Daemon::start();
    assert_eq!(get(&daemon, "/livez"), ("HTTP/1.1 200 OK".to_owned(), "alive\n".to_owned()));
    assert_eq!(get(&daemon, "/readyz"), ("HTTP/1.1 200 OK".to_owned(), "ready\n".to_owned()));
    assert!(get(&daemon, "/nothing").0.contains("404"));
}

#[test]
fn metrics_say_what_happened() {
    let (daemon, _engines) = busy_daemon();
    let (status, text) = get(&daemon, "/metrics");
    assert_eq!(status, "HTTP/1.1 200 OK");
    for line in [
        "kvferry_daemon_engines 2",
        "kvferry_memory_regions 2",
        "kvferry_lease_live 0",
        "kvferry_lease_granted_total 2",
        "kvferry_lease_ended_total{reason=\"read\"} 2",
        "kvferry_ticket_refused_total{reason=\"lease\"} 1",
        "kvferry_transfer_read_total{reason=\"delivered\"} 1",
        "kvferry_transfer_read_total{reason=\"lease\"} 1",
        "kvferry_transfer_read_bytes_total 16384",
        "kvferry_transfer_served_total{reason=\"served\"} 1",
        "kvferry_transfer_served_bytes_total 16384",
        "kvferry_transfer_read_seconds_count 2",
    ] {
        assert!(text.lines().any(|found| found == line), "no {line:?} in\n{text}");
    }
}

#[test]
fn every_metric_is_documented() {
    let (daemon, _engines) = busy_daemon();
    let (_, text) = get(&daemon, "/metrics");
    let mut printed = BTreeSet::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').expect("a name and a type");
        let suffix = if kind == "counter" { "_total" } else { "" };
        assert!(printed.insert((format!("{name}{suffix}"), kind.to_owned())), "{name} twice");
    }
    let page = include_str!("../../docs/metrics.md");
    let listed: BTreeSet<(String, String)> = page
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| `")?.split('|');
            Some((cells.next()?.trim().trim_end_matches('`').to_owned(), cells.next()?.trim().to_owned()))
        })
        .collect();
    assert_eq!(printed, listed, "what /metrics prints and what docs/metrics.md lists");
}
