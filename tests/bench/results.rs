//! What is printed of cells that went well.

use serde_json::Value;

use crate::process::{TINY, parse, rows, stdout};

fn number(row: &Value, key: &str) -> f64 {
    row[key].as_f64().unwrap_or_else(|| panic!("no number {key} in {row}"))
}

#[test]
fn every_way_moves_verified_bytes() {
    let rows = rows(TINY);
    let ways: Vec<_> = rows
        .iter()
        .map(|row| (row["cell"]["transport"].as_str().expect("text"), row["cell"]["direction"].as_str().expect("text")))
        .collect();
    assert_eq!(ways, [("tcp", "read"), ("tcp", "write"), ("copy", "read")]);
    for row in &rows {
        assert_eq!(row["peer"], "kvferry");
        assert_eq!(row["verified"], true, "{row}");
        assert_eq!(row["rounds"].as_array().expect("rounds").len(), 2);
        let rates: Vec<_> =
            row["rounds"].as_array().expect("rounds").iter().map(|round| number(round, "gbps")).collect();
        assert!(rates.iter().all(|&rate| rate > 0.0), "{row}");
        assert!((number(row, "gbps") - f64::midpoint(rates[0], rates[1])).abs() < 1e-9, "{row}");
        assert!(number(row, "gbps_min") <= number(row, "gbps") && number(row, "gbps") <= number(row, "gbps_max"));
        let latencies = ["p50_us", "p99_us", "p999_us", "max_us"].map(|key| number(row, key));
        assert!(latencies[0] > 0.0 && latencies.is_sorted(), "{row}");
        assert!(number(row, "cpu_s_per_gb") > 0.0, "{row}");
        assert!(row["transfers"].as_u64().expect("a count") >= 2, "{row}");
        let cell = &row["cell"];
        assert_eq!((cell["block_bytes"].as_u64(), cell["blocks"].as_u64()), (Some(4096), Some(8)));
        assert_eq!(cell["verify"], "full");
    }
}

#[test]
fn an_open_loop_starts_what_its_rate_says() {
    let rows =
        rows("--no-ceilings --region 4M --blocks 8 --block-size 4K --duration 100ms --rounds 1 --rate 500 --spin-us 0");
    for row in &rows {
        assert_eq!(row["transfers"].as_u64().expect("a count") + row["unstarted"].as_u64().expect("a count"), 50);
        assert_eq!(number(&row["cell"], "rate"), 500.0);
    }
}

#[test]
fn transfers_in_flight_and_streams_and_sums_are_choices() {
    let rows = rows(&format!("{TINY} --transport tcp --depth 1,8 --streams 1,4 --verify off"));
    assert_eq!(rows.len(), 8);
    assert!(rows.iter().all(|row| row["verified"] == true && row["cell"]["verify"] == "off"), "{rows:?}");
}

#[test]
fn encrypted_bytes_arrive_too() {
    let rows = rows(&format!("{TINY} --tls --verify off"));
    let told: Vec<_> = rows.iter().map(|row| (row["verified"] == true, row["cell"]["tls"] == true)).collect();
    assert_eq!(told, [(true, true), (true, true), (true, false)], "a copy has nothing to encrypt");
    assert_eq!(rows[2]["cell"]["verify"], "full");
}

#[test]
fn copies_may_have_several_threads() {
    let rows = rows(&format!("{TINY} --transport copy --copy-threads 1,2 --verify off"));
    let told: Vec<_> =
        rows.iter().map(|row| (row["cell"]["copy_threads"].as_u64(), row["cell"]["verify"].as_str())).collect();
    assert_eq!(told, [(Some(1), Some("full")), (Some(2), Some("full"))], "a copy always looks");
    assert!(rows.iter().all(|row| row["verified"] == true), "{rows:?}");
}

#[test]
fn the_way_to_ask_the_kernel_is_a_choice() {
    let rows = rows(&format!("{TINY} --transport tcp --io epoll"));
    assert!(rows.iter().all(|row| row["verified"] == true && row["cell"]["io"] == "epoll"), "{rows:?}");
    // What was chosen is told, also where the choice was left to it.
    let by = |row: &Value| row["moved_by"].as_str().expect("who moved it").to_owned();
    assert!(rows.iter().all(|row| by(row).starts_with("epoll, ") && !by(row).contains("bbr")), "{rows:?}");
    // Container runtimes often forbid rings: then it says so instead of using something else.
    let output = crate::process::output(&format!("{TINY} --transport tcp --io uring --json"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() {
        let rows = parse(&String::from_utf8(output.stdout).expect("UTF-8"));
        assert!(rows.iter().all(|row| row["verified"] == true && row["cell"]["io"] == "uring"), "{rows:?}");
    } else {
        eprintln!("skipped: no ring of io_uring here: {said}");
        assert!(said.contains("transport") || said.contains("data connections"), "{said}");
    }
}

#[test]
fn a_model_has_its_shape() {
    let rows = rows("--model smollm2-135m --tokens 64 --tp 3 --no-ceilings --region 4M --rounds 1 --duration 5ms");
    for row in &rows {
        // 4 blocks of 16 tokens; one of three heads: 16 x 2 x 64 values of 2 bytes; 30 layers.
        let cell = &row["cell"];
        let shape = ["blocks", "block_bytes", "layers"].map(|key| cell[key].as_u64().expect("a count"));
        assert_eq!(shape, [4, 4096, 30]);
        assert!(cell["model"].as_str().expect("a name").contains("smollm2-135m"));
        assert_eq!(row["verified"], true);
    }
}

#[test]
fn ceilings_stand_beside_the_rows() {
    let arguments = "--region 4M --rounds 2 --duration 20ms --blocks 1,64 --block-size 4K --spin-us 20";
    let has_iperf3 = std::process::Command::new("iperf3").arg("--version").output().is_ok();
    if !has_iperf3 {
        eprintln!("skipped: iperf3 is not installed, its ceiling is not looked at");
    }
    for row in &rows(arguments) {
        let is_copy = row["cell"]["transport"] == "copy";
        let is_small = row["cell"]["blocks"] == 1;
        let mut wanted = vec!["memcpy_blocks_gbps", "memcpy_blocks_2_cores_gbps", "futex_round_trip_p50_us"];
        wanted.extend(["uds_ping_pong_p50_us", "uds_ping_pong_p99_us", "tcp_ping_pong_p50_us"]);
        if !is_copy {
            wanted.extend(["raw_tcp_gbps", "raw_tcp_512K_sleep_1_gbps"]);
            wanted.extend(has_iperf3.then_some("iperf3_gbps"));
        }
        let ceilings = &row["ceilings"];
        assert!(wanted.iter().all(|&name| number(ceilings, name) > 0.0), "{row}");
        let held = &row["ceiling"];
        let bound = match (is_copy, is_small) {
            (true, _) => "memcpy_blocks_gbps",
            (false, true) => "tcp_ping_pong_p50_us",
            (false, false) if number(ceilings, "raw_tcp_gbps") >= ceilings["iperf3_gbps"].as_f64().unwrap_or(0.0) => {
                "raw_tcp_gbps"
            }
            (false, false) => "iperf3_gbps",
        };
        assert_eq!(held["name"], bound, "{row}");
        assert_eq!(number(held, "value"), number(ceilings, bound), "{row}");
        assert!(number(held, "ratio") > 0.0, "{row}");
    }
}

#[test]
fn a_file_collects_the_rows_beside_the_table() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("rows.jsonl");
    for run in 1..=2 {
        let table = stdout(&format!("{TINY} --transport copy --out {}", file.display()));
        assert!(table.contains("copy 8 x 4K"), "{table}");
        let rows = parse(&std::fs::read_to_string(&file).expect("the file"));
        assert_eq!(rows.len(), run, "one row is added by each run");
    }
}
