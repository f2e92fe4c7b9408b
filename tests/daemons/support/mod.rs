//! What the tests stand on: real daemons, stand-in engines, a hostile relay, raw sessions.

pub(crate) mod daemon;
pub(crate) mod dice;
pub(crate) mod engine;
pub(crate) mod impostor;
pub(crate) mod load;
pub(crate) mod relay;
pub(crate) mod session;
pub(crate) mod stage;
pub(crate) mod tricks;

use std::time::{Duration, Instant};

pub(crate) use daemon::{Daemon, DaemonOptions};
pub(crate) use dice::Dice;
pub(crate) use engine::{Shape, StandInEngine};
pub(crate) use stage::Stage;

/// Longer than anything here may take; a test that waits this long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// What a bound may be overrun by because the machine is busy with other tests.
pub(crate) const SLACK: Duration = Duration::from_secs(10);

/// Asks `ready` again and again until it has an answer, or fails with what `what` says.
pub(crate) fn wait<T>(what: impl Fn() -> String, mut ready: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(answer) = ready() {
            return answer;
        }
        assert!(started.elapsed() < PATIENCE, "waited in vain for {}", what());
        // Leaves the processor to those who are waited for; what is waited for is always the condition.
        std::thread::sleep(Duration::from_millis(1));
    }
}
