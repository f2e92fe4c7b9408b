//! The data port where connections are encrypted: callers without TLS, with half of it, or with the wrong papers.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use kvferry_core::{Time, WorkId};
use kvferry_transport::{Dial, Fault, ReadWork, Role, Source, Transport as _, Work};
use kvferry_transport_tcp::frame::{Frame, MAGIC};
use kvferry_transport_tcp::{Pem, Settings, Tls};

use crate::certificates::{Authority, NAME};
use crate::stage::{ENDPOINT, KEY, LOCALHOST, Stage, content, holder_id, region, whole};

const ID: WorkId = WorkId(1);
const BLOCK_BYTES: u32 = 100_000;

fn tls_of(authority: &Authority, name: &str, last_year: i32) -> Arc<Tls> {
    let (certificate, key) = authority.identity(name, last_year);
    let (certificate, key, authority) = (certificate.as_bytes(), key.as_bytes(), authority.pem());
    Arc::new(Tls::new(&Pem { certificate, key, authority: authority.as_bytes(), name: NAME }).expect("usable"))
}

fn encrypted(tls: &Arc<Tls>) -> Settings {
    Settings { tls: Some(Arc::clone(tls)), ..Settings::default() }
}

fn dial_address(stage: &mut Stage, address: SocketAddr, deadline: Time) {
    let now = stage.now();
    let dial = Dial { endpoint: ENDPOINT, role: Role::Reads, address, keys: vec![KEY], deadline };
    stage.transport.connect(now, dial).expect("connect");
}

fn dial(stage: &mut Stage, listener: &TcpListener, deadline: Time) {
    dial_address(stage, listener.local_addr().expect("ask for the address"), deadline);
}

/// Two transports, turned in turn: the one dials the other.
struct Two {
    dials: Stage,
    admits: Stage,
}

impl Two {
    fn new(dials: &Settings, admits: &Settings) -> Self {
        let mut two = Self { dials: Stage::new(dials), admits: Stage::new(admits) };
        two.admits.admit(ENDPOINT, &[KEY], Time::NEVER);
        two.dial();
        two
    }

    fn dial(&mut self) {
        dial_address(&mut self.dials, self.admits.address(), Time::NEVER);
    }

    /// What the dialler makes of it.
    fn fault(&mut self) -> Fault {
        let admits = &mut self.admits;
        self.dials.until("the endpoint to go down", |dials| {
            admits.settle();
            dials.is_down(ENDPOINT).then_some(())
        });
        self.dials.down(ENDPOINT)
    }

    fn wait_up(&mut self) {
        let admits = &mut self.admits;
        self.dials.until("the endpoint to come up", |dials| {
            admits.settle();
            dials.is_up(ENDPOINT).then_some(())
        });
    }
}

#[test]
fn one_end_in_the_clear() {
    let tls = tls_of(&Authority::new(), NAME, 4000);
    let mut two = Two::new(&Settings::default(), &encrypted(&tls));
    assert_eq!(two.fault(), Fault::Untrusted);
    assert_eq!(two.admits.transport.counters().hellos_refused, 1);
    let mut two = Two::new(&encrypted(&tls), &Settings::default());
    assert_eq!(two.fault(), Fault::Untrusted);
    assert_eq!(two.admits.transport.counters().hellos_refused, 1);
}

#[test]
fn papers_that_are_not_good() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let good = encrypted(&tls_of(&ours, NAME, 4000));
    for bad in [tls_of(&theirs, NAME, 4000), tls_of(&ours, NAME, 2001)] {
        assert_eq!(Two::new(&encrypted(&bad), &good).fault(), Fault::Untrusted);
        assert_eq!(Two::new(&good, &encrypted(&bad)).fault(), Fault::Untrusted);
    }
    let other_name = encrypted(&tls_of(&ours, "other.test", 4000));
    assert_eq!(Two::new(&good, &other_name).fault(), Fault::Untrusted, "who is called must carry the name");
    Two::new(&other_name, &good).wait_up();
}

#[test]
fn a_good_certificate_does_not_replace_the_key() {
    let settings = encrypted(&tls_of(&Authority::new(), NAME, 4000));
    let mut two = Two::new(&settings, &settings);
    two.wait_up();
    assert_eq!(two.admits.transport.counters().hellos_refused, 0);
    // The key was used.
    let mut again = Stage::new(&settings);
    std::mem::swap(&mut two.dials, &mut again);
    two.dial();
    assert_eq!(two.fault(), Fault::PeerClosed);
    assert_eq!(two.admits.transport.counters().hellos_refused, 1);
}

#[test]
fn noise_instead_of_a_handshake() {
    let settings = encrypted(&tls_of(&Authority::new(), NAME, 4000));
    let mut stage = Stage::new(&settings);
    stage.admit(ENDPOINT, &[KEY], Time::NEVER);
    let hello = Frame::hello(ENDPOINT, 0, &KEY);
    let endless = [[22, 3, 1, 0x40, 0].as_slice(), &[1; 1 << 16]].concat();
    for noise in [[0; 64].as_slice(), b"GET / HTTP/1.1\r\n\r\n", &hello, &endless] {
        let before = stage.transport.counters().hellos_refused;
        let mut caller = stage.call();
        stage.write(&mut caller, noise);
        stage.until("a refusal", |stage| (stage.transport.counters().hellos_refused > before).then_some(()));
    }
    let mut two = Two { dials: Stage::new(&settings), admits: stage };
    two.dial();
    two.wait_up();
}

#[test]
fn half_a_handshake_and_then_silence() {
    let settings = Settings { half_open_max: 2, ..encrypted(&tls_of(&Authority::new(), NAME, 4000)) };
    // A real first flight, caught by a listener of ours.
    let listener = TcpListener::bind((LOCALHOST, 0)).expect("listen");
    let mut dials = Stage::new(&settings);
    dial(&mut dials, &listener, Time::NEVER);
    let mut caught = listener.accept().expect("accept").0;
    caught.set_nonblocking(true).expect("set");
    let first = dials.read(&mut caught, 100);

    let mut stage = Stage::new(&settings);
    let mut silent: Vec<TcpStream> = (0..3).map(|_| stage.call()).collect();
    for caller in &mut silent {
        caller.write_all(&first).expect("write");
    }
    stage.settle();
    assert_eq!(stage.transport.counters().connections_accepted, 2, "a handshake does not make room for more");
    stage.skip(settings.hello_max);
    stage.until("the third to be let in", |stage| (stage.transport.counters().connections_accepted == 3).then_some(()));
    assert_eq!(stage.transport.counters().hellos_late, 2);
    stage.skip(settings.hello_max);
    stage.until("the third to be late", |stage| (stage.transport.counters().hellos_late == 3).then_some(()));
    // And whom they dial may be as silent.
    drop(caught);
    assert_eq!(dials.down(ENDPOINT), Fault::Untrusted, "hung up on a handshake");
}

#[test]
fn a_peer_that_never_answers_the_dial() {
    let settings = encrypted(&tls_of(&Authority::new(), NAME, 4000));
    let listener = TcpListener::bind((LOCALHOST, 0)).expect("listen");
    let mut dials = Stage::new(&settings);
    let deadline = dials.now().after(Duration::from_secs(3));
    dial(&mut dials, &listener, deadline);
    dials.settle();
    assert!(!dials.is_down(ENDPOINT));
    dials.skip(Duration::from_secs(3));
    assert_eq!(dials.down(ENDPOINT), Fault::Deadline);
}

/// Carries bytes between two sockets and keeps them.
fn carry(from: &mut TcpStream, to: &mut TcpStream, seen: &mut Vec<u8>) {
    let mut bytes = vec![0; 1 << 16];
    while let Ok(length @ 1..) = from.read(&mut bytes) {
        seen.extend_from_slice(&bytes[..length]);
        to.set_nonblocking(false).expect("set");
        to.write_all(&bytes[..length]).expect("write");
        to.set_nonblocking(true).expect("set");
    }
}

/// What went over the wire while one block was read, and what came of it.
struct Tapped {
    block: Vec<u8>,
    to_holder: Vec<u8>,
    to_reader: Vec<u8>,
    result: Result<u64, Fault>,
    landed: Vec<u8>,
}

/// Reads a block through a tap that may hang up in the middle of it.
fn tapped(settings: &Settings, hangs_up: bool) -> Tapped {
    let (plan, source, target) = (whole(BLOCK_BYTES), region(BLOCK_BYTES, 0), region(BLOCK_BYTES, 0));
    let block: Vec<u8> = (0..BLOCK_BYTES).map(|place| place.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    source.write(0, &block).expect("write");

    let listener = TcpListener::bind((LOCALHOST, 0)).expect("listen");
    let (mut reads, mut serves) = (Stage::new(settings), Stage::new(settings));
    serves.admit(ENDPOINT, &[KEY], Time::NEVER);
    dial(&mut reads, &listener, Time::NEVER);
    let (mut reader, mut holder) = (listener.accept().expect("accept").0, serves.call());
    reader.set_nonblocking(true).expect("set");
    let (mut to_holder, mut to_reader) = (Vec::new(), Vec::new());
    let (mut posted, mut cut) = (false, false);
    let result = reads.until("the block to land", |reads| {
        serves.settle();
        reads.settle();
        carry(&mut reader, &mut holder, &mut to_holder);
        if hangs_up && posted && !cut {
            let mut bytes = [0; 1000];
            if let Ok(length @ 1..) = holder.read(&mut bytes) {
                reader.write_all(&bytes[..length - 1]).expect("write");
                reader.shutdown(Shutdown::Write).expect("hang up");
                cut = true;
            }
        } else if !cut {
            carry(&mut holder, &mut reader, &mut to_reader);
        }
        if !posted && reads.is_up(ENDPOINT) && serves.is_up(ENDPOINT) {
            posted = true;
            serves.serve_work(ENDPOINT, holder_id(ID), &plan, &source);
            let source = Source::Peer { work: holder_id(ID) };
            let (plan, target) = (Arc::clone(&plan), Arc::clone(&target));
            let read = ReadWork { id: ID, plan, target, source, deadline: Time::NEVER };
            let now = reads.now();
            reads.endpoint(ENDPOINT).post(now, Work::Read(read)).expect("post a read");
        }
        reads.outcome(ID)
    });
    Tapped { block, to_holder, to_reader, result, landed: content(&target) }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[test]
fn nothing_readable_is_on_the_wire() {
    let tls = tls_of(&Authority::new(), NAME, 4000);
    // In the clear the tap sees it all, so it looks in the right place.
    for (settings, is_readable) in [(Settings::default(), true), (encrypted(&tls), false)] {
        let tapped = tapped(&settings, false);
        assert_eq!(tapped.result, Ok(u64::from(BLOCK_BYTES)));
        assert!(tapped.landed == tapped.block);
        assert!(tapped.to_reader.len() > tapped.block.len(), "the tap saw {} bytes", tapped.to_reader.len());
        for part in [0, 20_000, tapped.block.len() - 16] {
            assert_eq!(contains(&tapped.to_reader, &tapped.block[part..part + 16]), is_readable, "the block");
        }
        assert_eq!(contains(&tapped.to_holder, &KEY), is_readable, "the one-time key");
        assert_eq!(contains(&tapped.to_holder, &MAGIC), is_readable, "frames");
    }
}

#[test]
fn a_connection_that_is_cut_delivers_nothing() {
    let tls = tls_of(&Authority::new(), NAME, 4000);
    for settings in [Settings::default(), encrypted(&tls)] {
        assert_eq!(tapped(&settings, true).result, Err(Fault::PeerClosed));
    }
}
