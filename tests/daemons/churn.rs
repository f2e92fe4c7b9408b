//! A thousand transfers that are given up at random leave nothing behind.

use crate::support::load::Load;
use crate::support::{Daemon, Dice, StandInEngine};

const TRANSFERS: usize = 1000;

#[test]
fn a_thousand_transfers_with_random_aborts_leave_nothing() {
    let mut dice = Dice::throw("a_thousand_transfers");
    let (p, d) = (Daemon::start(), Daemon::start());
    let start = || {
        let tcp = Load::new(StandInEngine::attach(&p, "P0"), StandInEngine::attach(&d, "D0"));
        let copy = Load::new(StandInEngine::attach(&p, "P1"), StandInEngine::attach(&p, "D1"));
        [tcp, copy]
    };
    let end = |loads: [Load; 2]| {
        let [mut tcp, mut copy] = loads;
        tcp.drain();
        copy.drain();
        let counts = [(tcp.delivered, tcp.failed.clone()), (copy.delivered, copy.failed.clone())];
        drop((tcp, copy));
        p.wait_empty();
        d.wait_empty();
        counts
    };

    // Once around, so that the link and whatever else stays is there.
    let mut loads = start();
    for load in &mut loads {
        load.begin(&mut dice, 10_000).expect("room");
    }
    end(loads);
    for daemon in [&p, &d] {
        daemon.wait_for("links both ways", |status| {
            let peers = status["peers"].as_array().expect("peers");
            peers.len() == 2 && peers.iter().all(|peer| peer["up"] == true)
        });
    }
    let before = [p.footprint(), d.footprint()];

    let mut loads = start();
    let (mut begun, mut rounds) = (0, 0);
    while begun < TRANSFERS {
        rounds += 1;
        let is_tcp = dice.below(2) == 0;
        let load = &mut loads[usize::from(!is_tcp)];
        // Some leases are so short that they end in the middle.
        let lease_ms = if dice.below(4) == 0 { u64::from(1 + dice.below(10)) } else { 10_000 };
        begun += usize::from(load.begin(&mut dice, lease_ms).is_some());
        let any = load.any_open(&mut dice);
        match (dice.below(200), any) {
            (0..30, Some((key, _))) => load.decode.worker.abort(key),
            (30..45, Some((_, ticket))) => load.decode.worker.relinquish(&ticket),
            (45..60, Some((_, ticket))) => load.prefill.scheduler.relinquish(&ticket),
            (60, _) => {
                let daemon = if is_tcp { &d } else { &p };
                load.replace_decode(StandInEngine::attach(daemon, &format!("D-{rounds}")));
            }
            (61, _) => load.replace_prefill(StandInEngine::attach(&p, &format!("P-{rounds}"))),
            _ => {}
        }
        load.collect();
    }
    for (delivered, failed) in end(loads) {
        println!("{delivered} delivered, failed: {failed:?}");
        assert!(delivered > 50 && !failed.is_empty(), "{delivered} delivered, failed: {failed:?}");
    }
    p.wait_footprint(before[0]);
    d.wait_footprint(before[1]);
}
