//! Rooms know only what is below them: an edge between crates that is not on this list fails.
//!
//! ```text
//! core <- memory <- transport <- transport-tcp <- src      memory <- tier <- src
//! proto <- {client, src}      gateway <- src      client <- {python, src}
//! ```
//!
//! `src` is the package `kvferry`: the daemon, its command line and the tests in this folder. A crate that stops using
//! an allowed edge drops it from its manifest; cargo and clippy say so.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;

/// Which of our crates each of our crates may use, in normal, build and test code alike.
const EDGES: &[(&str, &[&str])] = &[
    (
        "kvferry",
        &[
            "kvferry-client",
            "kvferry-core",
            "kvferry-gateway",
            "kvferry-memory",
            "kvferry-proto",
            "kvferry-tier",
            "kvferry-transport",
            "kvferry-transport-tcp",
        ],
    ),
    ("kvferry-client", &["kvferry-proto"]),
    ("kvferry-core", &[]),
    ("kvferry-gateway", &[]),
    ("kvferry-memory", &["kvferry-core"]),
    ("kvferry-proto", &[]),
    ("kvferry-python", &["kvferry-client"]),
    ("kvferry-tier", &["kvferry-core", "kvferry-memory"]),
    ("kvferry-transport", &["kvferry-core", "kvferry-memory"]),
    ("kvferry-transport-tcp", &["kvferry-core", "kvferry-memory", "kvferry-transport"]),
];

/// Rooms in which nothing waits: they are driven, by the daemon's threads and by tests. No runtime, no RPC.
const WITHOUT_RUNTIME: &[&str] =
    &["kvferry-core", "kvferry-memory", "kvferry-tier", "kvferry-transport", "kvferry-transport-tcp"];

/// What brings a runtime along.
const RUNTIMES: &[&str] = &["axum", "futures", "hyper", "hyper-util", "mio", "reqwest", "tokio", "tonic"];

/// Every package of the workspace, as its manifest says.
fn packages() -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1", "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .output()
        .expect("cargo starts");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    metadata["packages"].as_array().expect("a list of packages").clone()
}

fn name(package: &Value) -> &str {
    package["name"].as_str().expect("packages have names")
}

fn dependencies(package: &Value) -> BTreeSet<&str> {
    package["dependencies"].as_array().expect("a list of dependencies").iter().map(name).collect()
}

#[test]
fn every_edge_between_our_crates_is_on_the_list() {
    let packages = packages();
    let ours: BTreeSet<&str> = packages.iter().map(name).collect();
    let listed: BTreeSet<&str> = EDGES.iter().map(|(package, _)| *package).collect();
    assert_eq!(ours, listed, "the crates of the workspace and the crates on the list differ");
    let mut refused = Vec::new();
    for package in &packages {
        let (_, allowed) = EDGES.iter().find(|(listed, _)| *listed == name(package)).expect("listed, as just seen");
        let used = dependencies(package).intersection(&ours).copied().collect::<Vec<_>>();
        refused.extend(
            used.iter().filter(|used| !allowed.contains(used)).map(|used| format!("{} -> {used}", name(package))),
        );
    }
    assert!(refused.is_empty(), "not allowed: {refused:?}; argue for an edge in docs/adr, then list it here");
}

#[test]
fn rooms_that_are_driven_bring_no_runtime() {
    for package in packages().iter().filter(|package| WITHOUT_RUNTIME.contains(&name(package))) {
        let brought: Vec<&str> = dependencies(package).into_iter().filter(|used| RUNTIMES.contains(used)).collect();
        assert!(brought.is_empty(), "{} uses {brought:?}", name(package));
    }
}
