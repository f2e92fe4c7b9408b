//! What a daemon costs that does nothing: processor and memory.

use std::time::Duration;

use crate::support::engine::EngineOptions;
use crate::support::load::Load;
use crate::support::{Daemon, Dice, Shape, StandInEngine};

/// How long an idle daemon is watched.
const WATCHED: Duration = Duration::from_secs(20);
const RESIDENT_KIB_MAX: u64 = 64 << 10;

/// Resident memory that is not engines' regions, KiB.
fn resident(daemon: &Daemon) -> u64 {
    let status = std::fs::read_to_string(daemon.proc("status")).expect("read status");
    let kib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number")
    };
    kib("VmRSS:") - kib("RssShmem:")
}

#[test]
fn an_idle_daemon_costs_next_to_nothing() {
    let mut dice = Dice::throw("an_idle_daemon");
    let (p, d) = (Daemon::start(), Daemon::start());
    let options = EngineOptions { shape: Shape::MEDIUM, ..Default::default() };
    let prefill = StandInEngine::attach_with(&p, "P0", options);
    let mut load = Load::new(prefill, StandInEngine::attach_with(&d, "D0", options));
    while load.delivered < 500 {
        load.begin(&mut dice, 10_000);
        load.collect();
    }
    load.drain();
    for daemon in [&p, &d] {
        daemon.wait_quiet();
        let kib = resident(daemon);
        println!("{kib} KiB resident beyond registered regions, after {} transfers", load.delivered);
        assert!(kib < RESIDENT_KIB_MAX, "{kib} KiB");
    }

    // Engines attached, links up both ways, nothing to do.
    for daemon in [&p, &d] {
        daemon.wait_for("links both ways", |status| {
            let peers = status["peers"].as_array().expect("peers");
            peers.len() == 2 && peers.iter().all(|peer| peer["up"] == true)
        });
    }
    let before = [p.ticks(), d.ticks()];
    std::thread::sleep(WATCHED);
    let per_second = rustix::param::clock_ticks_per_second();
    for (daemon, before) in [&p, &d].into_iter().zip(before) {
        let used = daemon.ticks() - before;
        println!("{used} ticks of 1/{per_second} s in {WATCHED:?}");
        let busy = used * 200 >= WATCHED.as_secs() * per_second;
        assert!(!busy, "{used} ticks of 1/{per_second} s: 0.5 % of a core or more");
    }
}
