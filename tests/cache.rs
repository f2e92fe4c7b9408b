//! `kvferry cache`, as a person runs it.

use std::fmt::Write as _;
use std::process::{Command, Output};

use serde_json::Value;

fn replay(trace: &str, options: &[&str]) -> Output {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("trace.jsonl");
    std::fs::write(&path, trace).expect("write the trace");
    Command::new(env!("CARGO_BIN_EXE_kvferry"))
        .args(["cache", "replay"])
        .arg(&path)
        .args(options)
        .output()
        .expect("kvferry starts")
}

/// Conversations that go on after a minute, among single requests that never do.
fn conversations() -> String {
    let (mut text, mut next) = (String::new(), 1_u64);
    let mut open: Vec<Vec<u64>> = Vec::new();
    let mut say = |second: u64, blocks: &[u64]| {
        writeln!(text, r#"{{"timestamp": {}, "hash_ids": {blocks:?}}}"#, second * 1000).expect("a string");
    };
    for second in 0..2000_u64 {
        let mut fresh = |count: u64| {
            next += count;
            (next - count..next).collect::<Vec<_>>()
        };
        say(second, &fresh(5));
        if second % 2 == 0 {
            let mut conversation = fresh(12);
            say(second, &conversation);
            conversation.extend(fresh(1));
            open.push(conversation);
        }
        if second >= 60 && second % 2 == 0 {
            say(second, &open[usize::try_from(second / 2 - 30).expect("small")]);
        }
    }
    text
}

#[test]
fn a_replay_compares_policies() {
    let output = replay(&conversations(), &["--sizes", "3,100", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let rows: Vec<Value> = String::from_utf8(output.stdout)
        .expect("text")
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let share = |row: &Value, name: &str| row["hit"][name].as_f64().unwrap_or_else(|| panic!("no {name} in {row}"));
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[0]["percent"], 3.0);
    for row in &rows {
        let best = share(row, "optimum");
        for name in ["LRU", "S3-FIFO", "ARC", "W-TinyLFU", "KVFerry"] {
            assert!(share(row, name) <= best, "{name} knows the future: {row}");
        }
        assert!(best <= row["most"].as_f64().expect("a share"));
    }
    // Room for 600 blocks of 11 a second: what comes back after a minute is gone under LRU, and is kept by who knows
    // that it comes.
    assert!(share(&rows[0], "LRU") < 0.1 && share(&rows[0], "KVFerry") > 0.3, "{}", rows[0]);
    // Where everything fits, all are as good as any.
    assert_eq!(share(&rows[1], "LRU"), share(&rows[1], "optimum"));
    assert_eq!(share(&rows[1], "KVFerry"), share(&rows[1], "optimum"));
}

#[test]
fn the_table_names_every_policy() {
    let output = replay(&conversations(), &["--sizes", "10"]);
    let text = String::from_utf8(output.stdout).expect("text");
    for word in ["requests", "LRU", "S3-FIFO", "ARC", "W-TinyLFU", "KVFerry", "optimum", "10 %"] {
        assert!(text.contains(word), "no {word} in\n{text}");
    }
}

#[test]
fn what_is_no_trace_is_refused() {
    let good = r#"{"timestamp": 0, "hash_ids": [1]}"#;
    for (trace, options, says) in [
        (format!("{good}\n{{\"timestamp\": 0}}\n"), [].as_slice(), "line 2"),
        (String::new(), &[], "no block"),
        (good.to_owned(), &["--sizes", "0"], "more than 0"),
        (good.to_owned(), &["--sizes", "101"], "100 percent"),
    ] {
        let output = replay(&trace, options);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(says), "{says}: {said}");
    }
}
