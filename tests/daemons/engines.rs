//! Engines that die: `kill -9` in the middle of a transfer, on either side. Their daemon lets go within a second.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::relay::Relay;
use crate::support::tricks::Trick;
use crate::support::{Daemon, DaemonOptions, PATIENCE, Shape, StandInEngine, wait};

/// What the design promises: when an engine's connection closes, its region unmaps and its leases end. Each of several
/// rounds may be delayed by a busy machine, all of them only by the daemon.
const LET_GO_MAX: Duration = Duration::from_secs(1);
const SOCKET: &str = "KVFERRY_TEST_SOCKET";
const TICKET: &str = "KVFERRY_TEST_TICKET";
/// What stands before the lines that are meant for the test.
const MARK: &str = "engine says ";

/// No test: what the tests below run as a process of its own, to kill it.
#[test]
#[ignore = "run by the tests of this file, as a process of its own"]
#[expect(clippy::disallowed_methods, reason = "what a test tells the process that it starts")]
fn engine_process() {
    let Ok(socket) = std::env::var(SOCKET) else { return };
    let options = crate::support::engine::EngineOptions { shape: Shape::LARGE, ..Default::default() };
    let name = format!("E{}", std::process::id());
    let engine = StandInEngine::attach_at(socket.into(), &name, options);
    let blocks: Vec<u32> = (1..Shape::LARGE.blocks).collect();
    match std::env::var(TICKET) {
        Ok(ticket) => println!("{MARK}{}", engine.redeem(&ticket, &blocks)),
        Err(_) => {
            engine.fill(1);
            println!("{MARK}{}", engine.grant("request", &blocks, 60_000).ticket);
        }
    }
    // Until the test closes the pipe, should it not kill this process.
    let _ = std::io::stdin().read(&mut [0]);
}

struct EngineProcess {
    child: Child,
    said: BufReader<ChildStdout>,
}

impl EngineProcess {
    fn start(socket: &Path, ticket: Option<&str>) -> (Self, String) {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["--exact", "engines::engine_process", "--ignored", "--nocapture"]).env(SOCKET, socket);
        if let Some(ticket) = ticket {
            command.env(TICKET, ticket);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("start an engine");
        let said = BufReader::new(child.stdout.take().expect("stdout"));
        let mut engine = Self { child, said };
        let said = engine.said.by_ref().lines().map_while(Result::ok);
        let word = said.filter_map(|line| line.split_once(MARK).map(|(_, word)| word.to_owned())).next();
        (engine, word.expect("an engine that attaches"))
    }

    fn kill(&mut self) -> Instant {
        // Gone already is just as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
        Instant::now()
    }
}

impl Drop for EngineProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

fn stage() -> (Relay, Daemon, Daemon) {
    let relay = Relay::start();
    let p = relay.holder("");
    let d = Daemon::start_with(&DaemonOptions { peer: "streams = 1".to_owned(), ..Default::default() });
    (relay, p, d)
}

fn wait_bytes(relay: &Relay) {
    wait(|| "the first bytes".to_owned(), || (relay.down().passed() >= 2 << 20).then_some(()));
}

#[test]
fn a_prefill_engine_killed_in_the_middle_is_let_go() {
    let (relay, p, d) = stage();
    let mut decode = StandInEngine::large(&d, "D0");
    let blocks: Vec<u32> = (1..Shape::LARGE.blocks).collect();
    let mut fastest = PATIENCE;
    for _ in 0..3 {
        let (mut prefill, ticket) = EngineProcess::start(&p.socket(), None);
        relay.down().set(Trick::Hold { at: 2 << 20 });
        let key = decode.redeem(&ticket, &blocks);
        wait_bytes(&relay);
        let killed = prefill.kill();
        p.wait_empty();
        fastest = fastest.min(killed.elapsed());
        relay.down().set(Trick::Pass);
        assert_eq!(decode.outcome(key).as_deref(), Some("lease"));
    }
    assert!(fastest < LET_GO_MAX, "{fastest:?}");
    let (_prefill, ticket) = EngineProcess::start(&p.socket(), None);
    let key = decode.redeem(&ticket, &blocks);
    assert_eq!(decode.outcome(key), None, "the next engine's blocks arrive");
}

#[test]
fn a_decode_engine_killed_in_the_middle_is_let_go() {
    let (relay, p, d) = stage();
    let mut prefill = StandInEngine::large(&p, "P0");
    let blocks: Vec<u32> = (1..Shape::LARGE.blocks).collect();
    let mut fastest = PATIENCE;
    for _ in 0..3 {
        relay.down().set(Trick::Hold { at: 2 << 20 });
        let granted = prefill.grant("request", &blocks, 60_000);
        let (mut decode, _) = EngineProcess::start(&d.socket(), Some(&granted.ticket));
        wait_bytes(&relay);
        let killed = decode.kill();
        d.wait_empty();
        assert_eq!(prefill.lease_end(granted.lease_id), "read");
        fastest = fastest.min(killed.elapsed());
        // What still comes on the stream is thrown away, and the next transfer's bytes come behind it.
        relay.down().set(Trick::Pass);
        let mut next = StandInEngine::large(&d, "D0");
        let key = next.redeem(&prefill.grant("next", &[1], 10_000).ticket, &[1]);
        assert_eq!(next.outcome(key), None, "the next engine's blocks arrive");
        drop(next);
        d.wait_empty();
    }
    assert!(fastest < LET_GO_MAX, "{fastest:?}");
}

#[test]
fn status_says_whether_an_engine_s_scheduler_is_there() {
    let daemon = Daemon::start();
    let StandInEngine { scheduler, worker, .. } = StandInEngine::attach(&daemon, "P0");
    let is = |connected: bool| {
        daemon.wait_for("the scheduler's coming or going", |status| {
            let engine = &status["engines"][0];
            engine["scheduler"] == connected && engine["workers"][0]["rank"] == 0
        })
    };
    is(true);
    drop(scheduler);
    is(false);
    let _scheduler = crate::support::engine::client(daemon.socket(), "P0", kvferry_client::Role::Scheduler);
    is(true);
    drop(worker);
}
