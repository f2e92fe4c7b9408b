//! A daemon that is replaced while engines store, look up and load: a pause and a few misses, and nothing is lost.

use rustix::process::Signal;

use crate::support::replacing::replace;

#[test]
fn a_daemon_replaced_under_load_has_all_that_was_acknowledged() {
    for signal in [Signal::TERM, Signal::KILL] {
        let replaced = replace(signal, 512, 24);
        let [gap, engine] = [replaced.gap, replaced.engine].map(|time| time.as_millis());
        println!("{signal:?}: no answer for {gap} ms; another engine had its first after {engine} ms");
        assert!(replaced.loaded[0] > 0 && replaced.loaded[1] > 0, "{signal:?}: loads go on: {replaced:?}");
        assert_eq!((replaced.found, replaced.whole), (replaced.kept, replaced.kept), "{signal:?}");
    }
}
