//! A daemon with much in its host memory is replaced under load, by its own end and by `kill -9`.

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::replacing::replace;

/// Of host memory, and chains of 16 blocks of 720 KiB that are in it when the daemon goes: three quarters.
const HOST_MIB: u64 = 4096;
const CHAINS: usize = 273;

/// Measures both, and prints them.
pub(crate) fn measure(as_json: bool) {
    let of = |(how, signal)| -> Value {
        let replaced = replace(signal, HOST_MIB, CHAINS);
        let (gap_us, engine_us) = (replaced.gap.as_micros(), replaced.engine.as_micros());
        json!({
            "how": how, "gap_us": u64::try_from(gap_us).expect("short"), "engine_us": u64::try_from(engine_us).expect("short"),
            "kept": replaced.kept, "found": replaced.found, "whole": replaced.whole,
        })
    };
    let told: Vec<Value> = [("end", Signal::TERM), ("kill", Signal::KILL)].map(of).to_vec();
    if as_json {
        println!("{}", json!({ "restart": told }));
    } else {
        told.iter().for_each(|line| println!("{line:#}"));
    }
}
