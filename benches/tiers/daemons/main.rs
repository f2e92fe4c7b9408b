//! What real daemons do under load: transfers between two of them beside offload, and what a restart costs.
//!
//! ```text
//! cargo bench --bench daemons -- beside            transfers with and without offload, in turns; half a minute a shape
//! cargo bench --bench daemons -- beside --json --seconds=2 --at=reader      one JSON document
//! cargo bench --bench daemons -- restart           a daemon replaced under load, with 4 GiB in /dev/shm
//! ```
//!
//! Engines are stand-ins, as in `tests/daemons`: real clients over memory of known bytes.

mod beside;
mod floor;
mod restart;
#[expect(dead_code, unused_imports, reason = "tests of the daemon use the rest")]
#[path = "../../../tests/daemons/support/mod.rs"]
mod support;

use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let value = |name: &str| words.iter().find_map(|word| word.strip_prefix(&format!("--{name}=")));
    let has = |name: &str| words.iter().any(|word| word == name);
    if has("beside") {
        let asked = beside::Asked {
            as_json: has("--json"),
            seconds: value("seconds").map_or(3.0, |text| text.parse().expect("a number of seconds")),
            at: value("at").unwrap_or("both").to_owned(),
            limits: value("limits").unwrap_or_default().replace(';', "\n"),
            shapes: value("shapes").unwrap_or("0123").bytes().map(|digit| usize::from(digit - b'0')).collect(),
            turns: value("turns").map_or(2, |text| text.parse().expect("a number of turns")),
        };
        beside::measure(&asked);
        return ExitCode::SUCCESS;
    }
    if has("restart") {
        restart::measure(has("--json"));
        return ExitCode::SUCCESS;
    }
    eprintln!(
        "usage: cargo bench --bench daemons -- beside|restart [--json] [--seconds=N] [--turns=N] [--at=reader|holder|both]"
    );
    ExitCode::FAILURE
}
