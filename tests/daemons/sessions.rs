//! The attach socket against processes that say anything at all.

use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use kvferry_proto::v1::{self, Role, from_daemon, to_daemon};
use rustix::fs::{MemfdFlags, SealFlags};

use crate::support::session::{Session, attach, hello};
use crate::support::{Daemon, SLACK, Shape, StandInEngine};

const STATUS: to_daemon::Body = to_daemon::Body::Status(v1::StatusQuery {});

fn region(bytes: u64) -> OwnedFd {
    kvferry_memory::create("kvferry-test", bytes).expect("create a memfd")
}

fn memfd(bytes: u64, seals: SealFlags) -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = rustix::fs::memfd_create("kvferry-test", flags).expect("create a memfd");
    rustix::fs::ftruncate(&fd, bytes).expect("resize");
    rustix::fs::fcntl_add_seals(&fd, seals).expect("seal");
    fd
}

/// The daemon is as empty as before, and serves whoever behaves.
fn assert_unharmed(daemon: &Daemon) {
    daemon.wait_empty();
    drop(StandInEngine::attach(daemon, "well-behaved"));
    daemon.wait_empty();
}

#[test]
fn regions_that_do_not_hold_what_they_claim_are_refused() {
    let daemon = Daemon::start();
    let bytes = Shape::SMALL.bytes();
    let file = tempfile::tempfile().expect("create a file");
    file.set_len(bytes).expect("resize");
    let read_only = File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&region(bytes)))).ok();
    let (both, grow) = (SealFlags::SHRINK | SealFlags::GROW, SealFlags::GROW);
    let pipe = std::io::pipe().expect("a pipe").0;
    let mut wrong: Vec<(OwnedFd, &str)> = vec![
        (region(bytes / 2), "was claimed, but the memfd has"),
        (region(4096), "was claimed, but the memfd has"),
        (memfd(bytes, SealFlags::empty()), "seal it"),
        (memfd(bytes, grow), "seal it"),
        (memfd(0, both), "was claimed, but the memfd has"),
        (memfd(bytes, both | SealFlags::WRITE), "cannot be written"),
        (file.into(), "not a memfd"),
        (pipe.into(), "not a memfd"),
        (File::open("/dev/null").expect("open").into(), "not a memfd"),
    ];
    wrong.extend(read_only.map(|file| (file.into(), "cannot be written")));
    for (fd, reason) in wrong {
        let mut session = Session::greeted(&daemon.socket(), Role::Worker);
        let said = session.refusal(to_daemon::Body::Attach(attach()), &[fd.as_fd()]);
        assert!(said.contains(reason), "{said:?} does not say {reason:?}");
        assert!(matches!(session.ask(STATUS), Some(from_daemon::Body::Status(_))), "the session goes on");
    }
    assert_unharmed(&daemon);
}

#[test]
fn attach_comes_with_one_descriptor() {
    let daemon = Daemon::start();
    let fds: Vec<OwnedFd> = (0..16).map(|_| region(Shape::SMALL.bytes())).collect();
    let before = daemon.footprint();
    for count in [0, 2, 4] {
        let fds: Vec<BorrowedFd<'_>> = fds[..count].iter().map(|fd| fd.as_fd()).collect();
        let mut session = Session::greeted(&daemon.socket(), Role::Worker);
        let said = session.refusal(to_daemon::Body::Attach(attach()), &fds);
        assert!(said.contains("exactly one file descriptor"), "{said}");
    }
    // More than a frame may bring along ends the session.
    let mut session = Session::greeted(&daemon.socket(), Role::Worker);
    let many: Vec<BorrowedFd<'_>> = fds.iter().map(|fd| fd.as_fd()).collect();
    session.send(to_daemon::Body::Attach(attach()), &many);
    session.wait_closed();
    // So does a heap of them, a few with each question.
    let mut session = Session::greeted(&daemon.socket(), Role::Worker);
    for _ in 0..100 {
        session.send(STATUS, &many[..4]);
        assert!(matches!(session.read().and_then(|message| message.body), Some(from_daemon::Body::Status(_))));
    }
    drop(session);
    daemon.wait_footprint(before);
    assert_unharmed(&daemon);
}

#[test]
fn layouts_that_do_not_fit_are_refused() {
    let daemon = Daemon::start();
    let fd = region(Shape::SMALL.bytes());
    type Change = fn(&mut v1::Attach);
    let changes: [(Change, &str); 13] = [
        (|attach| attach.layout = None, "layout"),
        (|attach| layout(attach).order = "XYZ".to_owned(), "LBHNC"),
        (|attach| layout(attach).block_count = 0, "layout"),
        (|attach| layout(attach).block_count = u32::MAX, "layout"),
        (|attach| layout(attach).region_bytes = u64::MAX, "layout"),
        (|attach| layout(attach).region_bytes = 4096, "layout"),
        (|attach| layout(attach).groups.clear(), "layout"),
        (|attach| span(attach).offset = 1, "layout"),
        (|attach| span(attach).layer_stride = u64::MAX, "layout"),
        (|attach| span(attach).block_stride = 1, "layout"),
        (|attach| span(attach).content_bytes = u32::MAX, "layout"),
        (|attach| attach.fingerprint = vec![7; 31], "32 bytes"),
        (|attach| attach.rank = 1, "rank"),
    ];
    for (number, (change, reason)) in changes.into_iter().enumerate() {
        let mut attach = attach();
        change(&mut attach);
        let mut session = Session::greeted(&daemon.socket(), Role::Worker);
        let said = session.refusal(to_daemon::Body::Attach(attach), &[fd.as_fd()]);
        assert!(said.contains(reason), "change {number}: {said:?} does not say {reason:?}");
    }
    assert_unharmed(&daemon);
}

fn layout(attach: &mut v1::Attach) -> &mut v1::Layout {
    attach.layout.as_mut().expect("a layout")
}

fn span(attach: &mut v1::Attach) -> &mut v1::LayerSpan {
    &mut layout(attach).groups[0].spans[0]
}

#[test]
fn each_role_may_ask_its_own_questions_only() {
    let daemon = Daemon::start();
    let grant = to_daemon::Body::Grant(v1::Grant { lease_ms: 1000, ..Default::default() });
    let redeem = to_daemon::Body::Redeem(v1::Redeem { key: 5, ..Default::default() });
    let relinquish = to_daemon::Body::Relinquish(v1::Relinquish::default());
    let attach = to_daemon::Body::Attach(attach());
    for (role, wrong) in [
        (Role::Operator, vec![attach.clone(), grant.clone(), redeem.clone(), relinquish]),
        (Role::Scheduler, vec![attach, redeem, hello(Role::Scheduler, 1)]),
        (Role::Worker, vec![grant, hello(Role::Worker, 1)]),
    ] {
        let mut session = Session::greeted(&daemon.socket(), role);
        for body in wrong {
            let said = session.refusal(body, &[]);
            assert!(said.contains("not for this role"), "{role:?}: {said}");
        }
    }
    // A worker that has no region can have nothing fetched into it.
    let mut session = Session::greeted(&daemon.socket(), Role::Worker);
    let redeem = to_daemon::Body::Redeem(v1::Redeem { key: 5, ..Default::default() });
    let Some(from_daemon::Body::TransferDone(done)) = session.ask(redeem) else { panic!("no outcome") };
    assert_eq!((done.key, done.delivered, done.failure.as_str()), (5, false, "aborted"));
    assert_unharmed(&daemon);
}

#[test]
fn a_greeting_must_come_and_fit() {
    let daemon = Daemon::start();
    let silent = Instant::now();
    let mut quiet = Session::open(&daemon.socket());
    for wrong in [hello(Role::Worker, 2), hello(Role::Unspecified, v1::PROTOCOL), STATUS] {
        let mut session = Session::open(&daemon.socket());
        session.refusal(wrong, &[]);
        session.wait_closed();
    }
    for engine_id in [String::new(), "a\nb".to_owned(), "x".repeat(1000)] {
        let mut session = Session::open(&daemon.socket());
        let hello = v1::Hello { protocol: v1::PROTOCOL, role: Role::Worker.into(), engine_id };
        assert!(session.refusal(to_daemon::Body::Hello(hello), &[]).contains("engine_id"));
        session.wait_closed();
    }
    quiet.wait_closed();
    let took = silent.elapsed();
    assert!(took > Duration::from_secs(1) && took < Duration::from_secs(2) + SLACK, "{took:?}");
    assert_unharmed(&daemon);
}

#[test]
fn one_rank_is_attached_once() {
    let daemon = Daemon::start();
    let engine = StandInEngine::attach(&daemon, "raw");
    let fd = region(Shape::SMALL.bytes());
    let mut session = Session::greeted(&daemon.socket(), Role::Worker);
    let said = session.refusal(to_daemon::Body::Attach(attach()), &[fd.as_fd()]);
    assert!(said.contains("has rank 0 attached by process"), "{said}");
    let other = v1::Attach { rank: 1, rank_count: 2, ..attach() };
    let said = session.refusal(to_daemon::Body::Attach(other), &[fd.as_fd()]);
    assert!(said.contains("has 1 ranks, not 2"), "{said}");
    drop((session, engine));

    // An engine of two ranks leases nothing before both are there.
    daemon.wait_empty();
    let mut first = Session::greeted(&daemon.socket(), Role::Worker);
    let first_of_two = v1::Attach { rank_count: 2, ..attach() };
    let attached = first.ask_with(to_daemon::Body::Attach(first_of_two), &[fd.as_fd()]);
    assert!(matches!(attached, Some(from_daemon::Body::Attached(_))));
    let mut scheduler = Session::greeted(&daemon.socket(), Role::Scheduler);
    let blocks = vec![v1::BlockList { blocks: vec![1] }];
    let grant = v1::Grant { request_id: "r".to_owned(), groups: blocks, lease_ms: 1000, ..Default::default() };
    let said = scheduler.refusal(to_daemon::Body::Grant(grant), &[]);
    assert!(said.contains("not attached all its workers"), "{said}");
    drop((first, scheduler));
    assert_unharmed(&daemon);
}

#[test]
fn a_process_that_never_reads_loses_its_session_alone() {
    let daemon = Daemon::start();
    let engine = StandInEngine::attach(&daemon, "P0");
    let before = daemon.footprint();
    let mut deaf = Session::greeted(&daemon.socket(), Role::Operator);
    deaf.stream.set_nonblocking(true).expect("nonblocking");
    let question = crate::support::session::frame(&v1::ToDaemon { id: 9, body: Some(STATUS) });
    // Asks until the daemon has had enough.
    crate::support::wait(
        || "the end of a session".to_owned(),
        || {
            let asked = std::io::Write::write(&mut deaf.stream, &question);
            asked.is_err_and(|error| error.kind() != std::io::ErrorKind::WouldBlock).then_some(())
        },
    );
    drop(deaf);
    daemon.wait_footprint(before);
    assert_eq!(engine.grant("r1", &[1], 1000).daemon_epoch, engine.worker.daemon_epoch().expect("still there"));
}
