//! How long a transfer takes that is alone: what it costs to ask, to wake up and to answer. Printed, not judged.

use kvferry_client::Event;

use crate::support::engine::EngineOptions;
use crate::support::{Daemon, DaemonOptions, Shape, StandInEngine, wait};

const TRANSFERS: usize = 400;

/// Microseconds from redeem to outcome by the reader's daemon, sorted.
fn times(prefill: &StandInEngine, decode: &mut StandInEngine) -> Vec<u64> {
    let mut times: Vec<u64> = (0..TRANSFERS)
        .map(|_| {
            let key = decode.redeem(&prefill.grant("r1", &[1], 10_000).ticket, &[1]);
            wait(
                || "an outcome".to_owned(),
                || {
                    decode.rest().into_iter().find_map(|event| match event {
                        Event::TransferDone { key: done, failure, micros, .. } if done == key => {
                            assert_eq!(failure, None);
                            Some(micros)
                        }
                        _ => None,
                    })
                },
            )
        })
        .collect();
    times.sort_unstable();
    times
}

#[test]
fn transfers_one_after_another() {
    // Blocks of 8 KiB and of 720 KiB (16 tokens of SmolLM2 make 360 KiB).
    let long = Shape { blocks: 64, layers: 30, heads: 3, tokens: 32, content: 256 };
    for shape in [Shape::SMALL, long] {
        // As an operator would have it: what each transfer logs at the level of the other tests is not free.
        let quiet = DaemonOptions { log: "info", ..Default::default() };
        let (p, d) = (Daemon::start_with(&quiet), Daemon::start_with(&quiet));
        let options = EngineOptions { shape, ..Default::default() };
        let prefill = StandInEngine::attach_with(&p, "P0", options);
        let mut decode = StandInEngine::attach_with(&d, "D0", options);
        prefill.fill(1);
        // Both sides' pages are touched, and the link stands.
        times(&prefill, &mut decode);
        let before = [p.ticks(), d.ticks()];
        let times = times(&prefill, &mut decode);
        let ticks = p.ticks() - before[0] + d.ticks() - before[1];
        let at = |per_mille: usize| times[times.len() * per_mille / 1000];
        println!(
            "{TRANSFERS} transfers of {} KiB: p50 {} us, p90 {} us, p99 {} us; {ticks} ticks of both daemons",
            shape.block_bytes() >> 10,
            at(500),
            at(900),
            at(990)
        );
        d.wait_quiet();
    }
}
