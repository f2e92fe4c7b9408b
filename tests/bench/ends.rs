//! Ends that go before their time.

use rustix::process::{Signal, kill_process};

use crate::process::{Running, wait_gone};

/// Long enough to be interrupted, on any machine.
const LONG: &str = "--no-ceilings --transport tcp --region 4M --block-size 4K --blocks 8 --duration 10m --rounds 1";

#[test]
fn nothing_is_left_when_it_is_interrupted() {
    for signal in [Signal::INT, Signal::TERM, Signal::KILL] {
        let near = Running::start(LONG);
        let far = near.far_end();
        Running::wait_busy(far);
        near.signal(signal);
        let (well, _) = near.finish();
        assert!(!well, "{signal:?}");
        wait_gone(far);
    }
}

#[test]
fn a_far_end_that_dies_ends_the_run() {
    // Listening for data connections, with the first of them, with all of them: the near end may be anywhere.
    for sockets in [3, 4, 5] {
        let near = Running::start(LONG);
        let far = near.far_end();
        Running::wait_sockets(far, sockets);
        kill_process(far, Signal::KILL).expect("kill the far end");
        let (well, said) = near.finish();
        assert!(!well);
        assert!(said.contains("tcp read 8 x 4K") && said.contains("the far end"), "{said}");
    }
}

#[test]
fn a_far_end_outlives_a_near_end_that_dies() {
    let mut far = Running::start("listen --address 127.0.0.1:0");
    let line = far.first_line();
    let address = line.strip_prefix("listening on ").expect("its address").to_owned();
    for _ in 0..2 {
        let near = Running::start(&format!("--connect {address} {LONG}"));
        Running::wait_busy(rustix::process::Pid::from_child(&far.0));
        near.signal(Signal::KILL);
        near.finish();
    }
    let rows = crate::process::rows(&format!("--connect {address} {}", crate::process::TINY));
    assert_eq!(rows.len(), 2);
}
