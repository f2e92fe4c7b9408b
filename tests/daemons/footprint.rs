//! What a daemon costs that does nothing: processor and memory.

use std::time::Duration;

use crate::support::engine::EngineOptions;
use crate::support::load::Load;
use crate::support::{Daemon, Dice, Shape, StandInEngine};

/// How long an idle daemon is watched.
const WATCHED: Duration = Duration::from_secs(5);
const RESIDENT_KIB_MAX: u64 = 64 << 10;

/// Processor time so far, in ticks.
fn ticks(daemon: &Daemon) -> u64 {
    let stat = std::fs::read_to_string(daemon.proc("stat")).expect("read stat");
    // The name may hold anything, so the fields are counted from its end.
    let (_, fields) = stat.rsplit_once(')').expect("a name");
    let number = |index: usize| fields.split_whitespace().nth(index).and_then(|word| word.parse::<u64>().ok());
    number(11).expect("utime") + number(12).expect("stime")
}

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

    // Engines attached, the link up, nothing to do.
    let before = [ticks(&p), ticks(&d)];
    std::thread::sleep(WATCHED);
    let per_second = rustix::param::clock_ticks_per_second();
    for (daemon, before) in [&p, &d].into_iter().zip(before) {
        let used = ticks(daemon) - before;
        println!("{used} ticks of 1/{per_second} s in {WATCHED:?}");
        assert!(used * 100 < WATCHED.as_secs() * per_second, "{used} ticks of 1/{per_second} s: 1 % of a core or more");
    }
}
