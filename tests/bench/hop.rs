//! `kvferry bench hop`: a row for every way of asking, and both sides on the cores that they were told.

use std::process::Command;

use crate::process::rows;

const SHORT: &str = "hop --awake 100 --asleep 100 --idle-s 1";

/// The cores that a process may use, in the words of the kernel.
fn cores(process: u32) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).map(|list| list.trim().to_owned())
}

#[test]
fn every_way_of_asking_has_a_row() {
    let rows = rows(SHORT);
    let told = |what: &str, waiting: &str| {
        let row = rows.iter().find(|row| row["what"] == what && row["waiting"] == waiting);
        let row = row.unwrap_or_else(|| panic!("no {what}, {waiting}: {rows:?}"));
        assert!(row["p50_us"].as_f64() > Some(0.0) && row["samples"].as_u64() >= Some(100), "{row}");
    };
    for what in ["submit to accept, ring", "submit to accept, socket", "ping-pong, Unix socket"] {
        for waiting in ["awake", "apart", "asleep"] {
            told(what, waiting);
        }
    }
    for what in ["wake a thread, futex", "wake a thread, epoll"] {
        told(what, "asleep");
    }
    assert!(rows.last().is_some_and(|row| row["core_share"].is_f64()), "{rows:?}");
}

#[test]
fn both_sides_have_a_core_of_their_own() {
    if cores(std::process::id()).is_some_and(|list| list.parse::<u32>().is_ok()) {
        eprintln!("skipped: both_sides_have_a_core_of_their_own: there is one core only");
        return;
    }
    let rows = rows(&format!("{SHORT} --pin"));
    let told = rows.iter().find(|row| row["what"] == "cores").expect("the cores of both, as the kernel says");
    let [here, daemon] = ["here", "daemon"].map(|side| told[side].as_array().expect("cores").clone());
    assert_eq!((here.len(), daemon.len()), (1, 1), "one core each, for every thread: {told}");
    assert_ne!(here, daemon);
}

#[test]
fn one_core_is_too_few_to_keep_sides_apart() {
    let all = cores(std::process::id()).expect("the cores of this process");
    let first = all.split([',', '-']).next().expect("a core").to_owned();
    let output = Command::new("taskset")
        .args(["-c", &first, env!("CARGO_BIN_EXE_kvferry"), "bench", "hop", "--pin"])
        .output()
        .expect("run taskset (util-linux)");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("--pin needs two cores"), "{said}");
}
