//! Two hosts, as far as the network goes: a network namespace for each daemon, and a cable between them.

use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use crate::support::{Daemon, DaemonOptions, SLACK, Shape, StandInEngine, wait};

static NEXT: AtomicU8 = AtomicU8::new(0);

/// Two namespaces joined by a slow cable; removed when dropped.
struct Hosts {
    names: [String; 2],
    subnet: u8,
}

fn ip(words: &str) -> Result<(), String> {
    let ran = Command::new("ip").args(words.split_whitespace()).output().map_err(|error| format!("ip: {error}"))?;
    if ran.status.success() { Ok(()) } else { Err(format!("ip {words}: {}", String::from_utf8_lossy(&ran.stderr))) }
}

impl Hosts {
    /// `None`, and a line that says why, where one may not make namespaces.
    fn join() -> Option<Self> {
        let subnet = NEXT.fetch_add(1, Ordering::Relaxed);
        let names = ["a", "b"].map(|end| format!("kvf{}{subnet}{end}", std::process::id()));
        let hosts = Self { names, subnet };
        let Err(reason) = hosts.build() else { return Some(hosts) };
        assert!(!rustix::process::geteuid().is_root(), "{reason}");
        println!("SKIPPED, network namespaces need root: {reason}");
        None
    }

    fn build(&self) -> Result<(), String> {
        let [a, b] = &self.names;
        ip(&format!("netns add {a}"))?;
        ip(&format!("netns add {b}"))?;
        ip(&format!("link add {a} netns {a} type veth peer name {b} netns {b}"))?;
        for (name, host) in self.names.iter().zip([1, 2]) {
            ip(&format!("-n {name} address add {}/24 dev {name}", self.address(host)))?;
            ip(&format!("-n {name} link set lo up"))?;
            ip(&format!("-n {name} link set {name} up"))?;
        }
        Ok(())
    }

    fn address(&self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 199, self.subnet, host)
    }

    /// Lets the cable carry so little that a transfer can be caught in the middle.
    fn slow_down(&self) {
        let a = &self.names[0];
        let words = format!("-n {a} qdisc add dev {a} root tbf rate 200mbit burst 256k latency 100ms");
        let ran = Command::new("tc").args(words.split_whitespace()).status().expect("tc");
        assert!(ran.success(), "tc {words}");
    }

    fn set_link(&self, state: &str) {
        let a = &self.names[0];
        ip(&format!("-n {a} link set {a} {state}")).expect("set the link");
    }

    fn daemon(&self, host: u8) -> Daemon {
        let name = &self.names[usize::from(host) - 1];
        let words = "anyone on this network may read and forge KV cache";
        Daemon::start_with(&DaemonOptions {
            host: self.address(host).to_string(),
            peer: format!("plaintext_beyond_loopback = \"{words}\"\nallow = [\"10.199.0.0/16\"]"),
            within: ["ip", "netns", "exec", name].map(str::to_owned).to_vec(),
            ..Default::default()
        })
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for name in &self.names {
            // It may not have come to be; the cable goes with either of its ends.
            let _ = ip(&format!("netns delete {name}"));
        }
    }
}

#[test]
fn two_hosts_hand_over() {
    let Some(hosts) = Hosts::join() else { return };
    let (p, d) = (hosts.daemon(1), hosts.daemon(2));
    let mut prefill = StandInEngine::attach(&p, "P0");
    let mut decode = StandInEngine::attach(&d, "D0");
    prefill.fill(1);
    let granted = prefill.grant("r1", &[1, 2, 3], 10_000);
    assert_eq!(granted.host, hosts.address(1).to_string());
    let key = decode.redeem(&granted.ticket, &[3, 2, 1]);
    assert_eq!(decode.outcome(key), None);
    assert_eq!(prefill.lease_end(granted.lease_id), "read");
    assert_eq!(prefill.sums(&p, &[1, 2, 3]), decode.sums(&d, &[3, 2, 1]));
    drop((prefill, decode));
    p.wait_empty();
    d.wait_empty();
}

#[test]
fn a_cable_that_is_pulled_costs_the_deadline() {
    let Some(hosts) = Hosts::join() else { return };
    hosts.slow_down();
    let (p, d) = (hosts.daemon(1), hosts.daemon(2));
    let mut prefill = StandInEngine::large(&p, "P0");
    let mut decode = StandInEngine::large(&d, "D0");
    prefill.fill(1);
    let blocks: Vec<u32> = (1..Shape::LARGE.blocks).collect();
    decode.scribble(&blocks);

    // 64 MiB at 25 MB/s.
    let since = Instant::now();
    let granted = prefill.grant("r1", &blocks, 1_500);
    let key = decode.redeem_within(&granted.ticket, &blocks, 2_000);
    let first = |engine: &StandInEngine| engine.block(1)[..1024].to_vec();
    wait(|| "the first bytes".to_owned(), || (first(&prefill) == first(&decode)).then_some(()));
    hosts.set_link("down");
    let failure = decode.outcome(key);
    assert!(matches!(failure.as_deref(), Some("deadline" | "unreachable")), "{failure:?}");
    assert_eq!(prefill.lease_end(granted.lease_id), "expired");
    assert!(since.elapsed() < Duration::from_secs(2) + SLACK, "{:?}", since.elapsed());
    p.wait_quiet();
    d.wait_quiet();

    // With the cable back, so is everything else.
    hosts.set_link("up");
    wait(
        || "a hand-over over the mended cable".to_owned(),
        || {
            let key = decode.redeem_within(&prefill.grant("r2", &[1], 5_000).ticket, &[1], 5_000);
            decode.outcome(key).is_none().then_some(())
        },
    );
    assert!(prefill.block(1) == decode.block(1));
    drop((prefill, decode));
    p.wait_empty();
    d.wait_empty();
}
