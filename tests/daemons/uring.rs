//! Data connections on a ring of `io_uring`, where this kernel allows it.

use kvferry_transport_tcp::probe_uring;

use crate::support::{Daemon, DaemonOptions, StandInEngine};

#[test]
fn two_daemons_hand_over_blocks_on_rings() {
    if let Err(missing) = probe_uring() {
        eprintln!("skipped: two_daemons_hand_over_blocks_on_rings: {missing}");
        return;
    }
    let on_a_ring = |host: &str| {
        let peer = "io = \"io_uring\"\ndata_port = 0".to_owned();
        Daemon::start_with(&DaemonOptions { host: host.to_owned(), peer, ..Default::default() })
    };
    let (p, d) = (on_a_ring("127.0.0.1"), on_a_ring("127.0.0.2"));
    p.wait_log("data connections by io_uring");
    let mut prefill = StandInEngine::attach(&p, "P0");
    let mut decode = StandInEngine::attach(&d, "D0");
    prefill.fill(1);
    decode.fill(2);
    for (request, source, target) in [("r1", [5, 6, 7], [3, 2, 9]), ("r2", [1, 2, 3], [9, 8, 7])] {
        let granted = prefill.grant(request, &source, 10_000);
        let key = decode.redeem(&granted.ticket, &target);
        assert_eq!(decode.outcome(key), None);
        assert_eq!(prefill.lease_end(granted.lease_id), "read");
        assert_eq!(prefill.sums(&p, &source), decode.sums(&d, &target));
    }
    assert_eq!(d.status()["transfers"]["finished"][0]["via"], "tcp");
    drop((prefill, decode));
    p.wait_empty();
    d.wait_empty();
}
