//! `kill -9` of either daemon under load: engines go on, every redeem has one outcome, the other daemon forgets.

use std::time::{Duration, Instant};

use crate::support::engine::EngineOptions;
use crate::support::load::Load;
use crate::support::{Daemon, Dice, Shape, StandInEngine};

const ROUNDS: usize = 10;
/// What is granted and not redeemed by a dead reader ends so soon.
const LEASE_MS: u64 = 1_000;

#[test]
fn a_daemon_killed_at_any_moment_costs_recompute() {
    let mut dice = Dice::throw("a_daemon_killed_at_any_moment");
    let (mut p, mut d) = (Daemon::start(), Daemon::start());
    let options = EngineOptions { shape: Shape::MEDIUM, ..Default::default() };
    let prefill = StandInEngine::attach_with(&p, "P0", options);
    let mut load = Load::new(prefill, StandInEngine::attach_with(&d, "D0", options));
    for round in 0..ROUNDS {
        let delivered = load.delivered;
        let kills_holder = round % 2 == 0;
        let until = Instant::now() + dice.up_to(Duration::from_millis(100));
        while Instant::now() < until || load.open() == 0 {
            load.begin(&mut dice, LEASE_MS);
            load.collect();
        }
        let (victim, survivor) = if kills_holder { (&mut p, &d) } else { (&mut d, &p) };
        victim.kill();
        // Requests go on, with an outcome for each.
        load.begin(&mut dice, LEASE_MS);
        load.drain();
        survivor.wait_quiet();

        victim.restart_at_its_address();
        if kills_holder {
            load.prefill.wait_attached_again();
            load.forget_leases();
        } else {
            load.decode.wait_attached_again();
        }
        println!("round {round}: {} delivered, failed so far {:?}", load.delivered - delivered, load.failed);
        load.hand_over(&mut dice);
    }
    drop(load);
    p.wait_empty();
    d.wait_empty();
}

#[test]
fn a_daemon_of_two_engines_is_killed_in_the_middle_of_a_copy() {
    let mut dice = Dice::throw("killed_in_the_middle_of_a_copy");
    let mut daemon = Daemon::start();
    let options = EngineOptions { shape: Shape::MEDIUM, ..Default::default() };
    let prefill = StandInEngine::attach_with(&daemon, "P0", options);
    let mut load = Load::new(prefill, StandInEngine::attach_with(&daemon, "D0", options));
    for _ in 0..3 {
        let until = Instant::now() + dice.up_to(Duration::from_millis(50));
        while Instant::now() < until || load.open() == 0 {
            load.begin(&mut dice, LEASE_MS);
            load.collect();
        }
        daemon.kill();
        load.drain();
        daemon.restart_at_its_address();
        load.prefill.wait_attached_again();
        load.decode.wait_attached_again();
        load.forget_leases();
        load.hand_over(&mut dice);
    }
    drop(load);
    daemon.wait_empty();
}
