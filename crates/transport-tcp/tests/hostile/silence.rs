//! Peers that stop: reading, sending, or answering.

use std::io::{self, Write};
use std::time::Duration;

use kvferry_core::{Time, WorkId};
use kvferry_transport::{Dial, EndpointId, Fault, Role, Transport};
use kvferry_transport_tcp::Settings;
use kvferry_transport_tcp::frame::{Frame, HEADER_BYTES, Outcome, Tag};

use crate::stage::{ENDPOINT, KEY, LOCALHOST, Stage, content, piece, region, trailer, whole};

const WORK: WorkId = WorkId(5);
const LARGE: u32 = 64 << 20;
const SMALL: u32 = 10_000;

#[test]
fn a_reader_that_stops_reading() {
    let settings = Settings::default();
    let mut stage = Stage::new(&settings);
    let (plan, source) = (whole(LARGE), region(LARGE, 0xab));
    let mut socket = stage.play_reader(ENDPOINT);
    let mut neighbour = stage.play_reader(EndpointId(12));
    stage.serve_work(ENDPOINT, WORK, &plan, &source);
    stage.write(&mut socket, &Frame::Fetch { work: WORK, tag: Tag(0), digest: plan.digest() }.encode());
    stage.settle();
    stage.skip(settings.stall_max);
    assert_eq!(stage.down(ENDPOINT), Fault::Stalled);
    assert_eq!(stage.result(WORK), Err(Fault::Stalled));

    // Who is next to it, and has been quiet all the time, notices nothing.
    let small = whole(SMALL);
    stage.serve_work(EndpointId(12), WorkId(6), &small, &source);
    stage.write(&mut neighbour, &Frame::Fetch { work: WorkId(6), tag: Tag(0), digest: small.digest() }.encode());
    assert_eq!(stage.result(WorkId(6)), Ok(u64::from(SMALL)));
}

#[test]
fn a_reader_that_asks_and_never_listens() {
    let settings = Settings { works_max: 4, ..Settings::default() };
    let mut stage = Stage::new(&settings);
    let mut socket = stage.play_reader(ENDPOINT);
    let fetches: Vec<u8> =
        (0..1000).flat_map(|work| Frame::Fetch { work: WorkId(work), tag: Tag(work), digest: 0 }.encode()).collect();
    let mut asked = 0;
    // The answers fill our socket, then the transport's, then it stops to listen and our questions find no room.
    stage.until("the transport to stop listening", |stage| {
        stage.settle();
        loop {
            let at = asked % fetches.len();
            match socket.write(&fetches[at..]) {
                Ok(sent) => asked += sent,
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                    break;
                }
            }
        }
        let before = stage.transport.counters().bytes_received;
        stage.settle();
        (stage.transport.counters().bytes_received == before).then_some(())
    });
    stage.skip(settings.stall_max);
    assert_eq!(stage.down(ENDPOINT), Fault::Stalled);
}

#[test]
fn a_work_that_nobody_fetches() {
    let mut stage = Stage::new(&Settings::default());
    let (plan, source) = (whole(SMALL), region(SMALL, 0xab));
    let _socket = stage.play_reader(ENDPOINT);
    let deadline = stage.now().after(Duration::from_secs(30));
    stage.serve_work_until(ENDPOINT, WORK, &plan, &source, deadline);
    stage.settle();
    stage.skip(Duration::from_secs(30));
    assert_eq!(stage.result(WORK), Err(Fault::Deadline));
    assert!(!stage.is_down(ENDPOINT));
}

#[test]
fn a_holder_that_stops_sending() {
    // Before the answer, in a header, in a piece, before the trailer.
    for sent in [0, HEADER_BYTES / 2, HEADER_BYTES + 5000, HEADER_BYTES + SMALL as usize] {
        let settings = Settings::default();
        let mut stage = Stage::new(&settings);
        let (plan, target) = (whole(SMALL), region(SMALL, 0));
        let mut socket = stage.play_holder(ENDPOINT);
        let tag = stage.read_work(&mut socket, WORK, &plan, &target);
        stage.write(&mut socket, &piece(WORK, tag, 0, &[0xab].repeat(10_000))[..sent]);
        stage.settle();
        stage.skip(settings.stall_max);
        assert_eq!(stage.result(WORK), Err(Fault::Stalled));
        assert_eq!(stage.down(ENDPOINT), Fault::Stalled);
    }
}

/// Few bytes are bytes, although many are waited for.
#[test]
fn a_holder_that_dribbles() {
    let settings = Settings::default();
    let mut stage = Stage::new(&settings);
    let (plan, target) = (whole(SMALL), region(SMALL, 0));
    let mut socket = stage.play_holder(ENDPOINT);
    let tag = stage.read_work(&mut socket, WORK, &plan, &target);
    let bytes = piece(WORK, tag, 0, &[0xab].repeat(10_000));
    for drop in bytes.chunks(2000) {
        stage.write(&mut socket, drop);
        stage.settle();
        stage.skip(settings.stall_max * 4 / 5);
        stage.settle();
    }
    stage.write(&mut socket, &trailer(WORK, tag, &plan, Outcome::Live));
    assert_eq!(stage.result(WORK), Ok(u64::from(SMALL)));
    assert_eq!(content(&target), [0xab].repeat(10_000));
}

#[test]
fn a_holder_that_is_late_but_comes() {
    let mut stage = Stage::new(&Settings::default());
    let (plan, target) = (whole(SMALL), region(SMALL, 0));
    let mut socket = stage.play_holder(ENDPOINT);
    let deadline = stage.now().after(Duration::from_secs(3));
    let tag = stage.read_work_until(&mut socket, WORK, &plan, &target, deadline);
    let bytes = piece(WORK, tag, 0, &[0xab].repeat(10_000));
    stage.write(&mut socket, &bytes[..5000]);
    stage.settle();
    stage.skip(Duration::from_secs(3));
    assert_eq!(stage.result(WORK), Err(Fault::Deadline));
    assert_eq!(stage.read_frame(&mut socket), Frame::Cancel { work: crate::stage::holder_id(WORK), tag });
    let landed = content(&target);
    stage.write(&mut socket, &bytes[5000..]);
    stage.write(&mut socket, &trailer(WORK, tag, &plan, Outcome::Live));
    stage.settle();
    assert_eq!(content(&target), landed, "written after the completion");

    let next = WorkId(6);
    let tag = stage.read_work(&mut socket, next, &plan, &target);
    stage.write(&mut socket, &piece(next, tag, 0, &[0xcd].repeat(10_000)));
    stage.write(&mut socket, &trailer(next, tag, &plan, Outcome::Live));
    assert_eq!(stage.result(next), Ok(u64::from(SMALL)));
    assert_eq!(content(&target), [0xcd].repeat(10_000));
}

#[test]
fn a_holder_that_never_welcomes() {
    let mut stage = Stage::new(&Settings::default());
    let deadline = stage.now().after(Duration::from_secs(10));
    let mut sockets = stage.answer_dial(ENDPOINT, &[KEY], deadline);
    stage.settle();
    stage.skip(Duration::from_secs(10));
    assert_eq!(stage.down(ENDPOINT), Fault::Deadline);
    stage.expect_silent_close(&mut sockets[0]);
}

#[test]
fn a_holder_that_welcomes_one_stream_of_two() {
    let mut stage = Stage::new(&Settings::default());
    let deadline = stage.now().after(Duration::from_secs(10));
    let mut sockets = stage.answer_dial(ENDPOINT, &[KEY, [7; 32]], deadline);
    stage.write(&mut sockets[1], &Frame::Welcome.encode());
    stage.settle();
    assert!(stage.transport.endpoint(ENDPOINT).is_none());
    stage.skip(Duration::from_secs(10));
    assert_eq!(stage.down(ENDPOINT), Fault::Deadline);
}

#[test]
fn nobody_there() {
    let mut stage = Stage::new(&Settings::default());
    // A port that was just given back.
    let address =
        std::net::TcpListener::bind((LOCALHOST, 0)).and_then(|listener| listener.local_addr()).expect("a port");
    let now = stage.now();
    stage
        .transport
        .connect(now, Dial { endpoint: ENDPOINT, role: Role::Reads, address, keys: vec![KEY], deadline: Time::NEVER })
        .expect("dial");
    assert_eq!(stage.down(ENDPOINT), Fault::PeerClosed);
}
