//! Which congestion control data connections use: what was asked for, or a refusal that says what there is.

use std::process::Command;

use crate::support::{Daemon, DaemonOptions, StandInEngine};

fn daemon(host: &str, name: &str) -> Daemon {
    // Small buffers beside it: pieces then take many calls, and arrive all the same.
    let peer = format!("congestion = \"{name}\"\nsocket_buffer_kib = 128\ndata_port = 0");
    Daemon::start_with(&DaemonOptions { host: host.to_owned(), peer, ..Default::default() })
}

#[test]
fn blocks_move_under_the_one_that_was_asked_for() {
    // Reno: every kernel has it and allows it to everyone. The other end keeps to the system's.
    let (p, d) = (daemon("127.0.0.1", "reno"), daemon("127.0.0.2", "system"));
    p.wait_log("congestion control: reno");
    let prefill = StandInEngine::attach(&p, "P0");
    let mut decode = StandInEngine::attach(&d, "D0");
    prefill.fill(1);
    decode.fill(2);
    let granted = prefill.grant("r1", &[5, 6, 7], 10_000);
    let key = decode.redeem(&granted.ticket, &[3, 2, 9]);
    assert_eq!(decode.outcome(key), None);
    assert_eq!(prefill.sums(&p, &[5, 6, 7]), decode.sums(&d, &[3, 2, 9]));
}

#[test]
fn one_that_the_kernel_does_not_have_ends_the_start() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = directory.path().join("kvferry.toml");
    let attach = directory.path().join("run");
    std::fs::create_dir(&attach).expect("a directory");
    let text = format!(
        "[attach]\ndirectory = {:?}\n[peer]\nlisten = \"127.0.0.1:0\"\ncongestion = \"no-such\"\n[admin]\nlisten = \"127.0.0.1:0\"\n",
        attach.display().to_string()
    );
    std::fs::write(&config, text).expect("a file");
    let ended = Command::new(env!("CARGO_BIN_EXE_kvferry"))
        .args(["serve", "--config"])
        .arg(&config)
        .output()
        .expect("run the daemon");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(!ended.status.success(), "it started: {said}");
    assert!(said.contains("peer.congestion") && said.contains("\"no-such\""), "{said}");
    assert!(said.contains("tcp_available_congestion_control"), "{said}");
}
