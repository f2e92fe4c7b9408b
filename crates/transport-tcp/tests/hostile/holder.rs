//! The transport holds; readers who ask for what is not theirs, babble, or leave.

use std::time::Duration;

use kvferry_core::{Time, WorkId};
use kvferry_transport::{EndpointId, Fault};
use kvferry_transport_tcp::Settings;
use kvferry_transport_tcp::frame::{Frame, HEADER_BYTES, Outcome, Tag};

use crate::stage::{ENDPOINT, Stage, refill, region, reset, whole};

const WORK: WorkId = WorkId(5);
const TAG: Tag = Tag(77);
/// More than the kernel buffers of both ends take.
const LARGE: u32 = 64 << 20;
/// More than a holder copies.
const MEDIUM: u32 = 40_000;
const SMALL: u32 = 10_000;

/// What a reader got for one fetch: the payload, and how it ended.
fn drain(stage: &mut Stage, socket: &mut std::net::TcpStream, verified: &mut bool) -> (Vec<u8>, Frame) {
    let mut payload = Vec::new();
    loop {
        match stage.read_frame(socket) {
            Frame::Piece { length, checksum, .. } => {
                let bytes = stage.read(socket, usize::try_from(length).expect("fits"));
                *verified &= crc32c::crc32c(&bytes) == checksum.expect("a sum");
                payload.extend_from_slice(&bytes);
            }
            end => return (payload, end),
        }
    }
}

fn trailer(plan_bytes: u64, digest: u64, outcome: Outcome) -> Frame {
    Frame::Trailer { work: WORK, tag: TAG, bytes: plan_bytes, digest, outcome }
}

#[test]
fn a_good_reader_for_comparison() {
    let mut stage = Stage::new(&Settings::default());
    let (plan, source) = (whole(SMALL), region(SMALL, 0xab));
    let mut socket = stage.play_reader(ENDPOINT);
    stage.serve_work(ENDPOINT, WORK, &plan, &source);
    stage.write(&mut socket, &Frame::Fetch { work: WORK, tag: TAG, digest: plan.digest() }.encode());
    let mut verified = true;
    let (payload, end) = drain(&mut stage, &mut socket, &mut verified);
    assert!(verified && payload == [0xab].repeat(10_000));
    assert_eq!(end, trailer(u64::from(SMALL), plan.digest(), Outcome::Live));
    assert_eq!(stage.result(WORK), Ok(u64::from(SMALL)));
}

#[test]
fn a_fetch_for_another_endpoints_work() {
    let settings = Settings::default();
    let mut stage = Stage::new(&settings);
    let (plan, source) = (whole(SMALL), region(SMALL, 0xab));
    let other = EndpointId(12);
    let mut owner = stage.play_reader(ENDPOINT);
    let mut thief = stage.play_reader(other);
    stage.serve_work(ENDPOINT, WORK, &plan, &source);
    let fetch = Frame::Fetch { work: WORK, tag: TAG, digest: plan.digest() }.encode();
    stage.write(&mut thief, &fetch);
    stage.settle();
    stage.skip(settings.fetch_ahead_max);
    assert_eq!(stage.read_frame(&mut thief), Frame::Refuse { work: WORK, tag: TAG });
    stage.write(&mut owner, &fetch);
    let (payload, _) = drain(&mut stage, &mut owner, &mut true);
    assert_eq!(payload.len(), 10_000);
    assert_eq!(stage.result(WORK), Ok(u64::from(SMALL)));
}

#[test]
fn a_fetch_of_another_plan_or_twice() {
    let mut stage = Stage::new(&Settings::default());
    let (plan, source) = (whole(SMALL), region(SMALL, 0xab));
    let mut socket = stage.play_reader(ENDPOINT);
    stage.serve_work(ENDPOINT, WORK, &plan, &source);
    stage.write(&mut socket, &Frame::Fetch { work: WORK, tag: Tag(1), digest: plan.digest() ^ 1 }.encode());
    assert_eq!(stage.read_frame(&mut socket), Frame::Refuse { work: WORK, tag: Tag(1) });
    let mut twice = Frame::Fetch { work: WORK, tag: TAG, digest: plan.digest() }.encode().to_vec();
    twice.extend_from_slice(&Frame::Fetch { work: WORK, tag: Tag(2), digest: plan.digest() }.encode());
    stage.write(&mut socket, &twice);
    let mut ends = Vec::new();
    while ends.len() < 2 {
        let (_, end) = drain(&mut stage, &mut socket, &mut true);
        ends.push(end);
    }
    assert!(ends.contains(&Frame::Refuse { work: WORK, tag: Tag(2) }), "{ends:?}");
    assert!(ends.contains(&trailer(u64::from(SMALL), plan.digest(), Outcome::Live)), "{ends:?}");
}

#[test]
fn babble_and_frames_that_are_not_a_readers() {
    let piece = Frame::Piece { work: WORK, tag: TAG, sequence: 0, length: 1, checksum: Some(0) };
    let mut bad_header = Frame::Cancel { work: WORK, tag: TAG }.encode();
    bad_header[20] ^= 1;
    for bytes in [piece.encode(), Frame::Welcome.encode(), bad_header, [0xff; HEADER_BYTES], [0; HEADER_BYTES]] {
        let mut stage = Stage::new(&Settings::default());
        let (plan, source) = (whole(SMALL), region(SMALL, 0xab));
        let mut socket = stage.play_reader(ENDPOINT);
        stage.serve_work(ENDPOINT, WORK, &plan, &source);
        stage.write(&mut socket, &bytes);
        assert_eq!(stage.down(ENDPOINT), Fault::Protocol);
        assert_eq!(stage.result(WORK), Err(Fault::Protocol));
        stage.expect_silent_close(&mut socket);
    }
}

#[test]
fn a_reader_that_vanishes_midway() {
    for by_reset in [false, true] {
        let mut stage = Stage::new(&Settings::default());
        let (plan, source) = (whole(LARGE), region(LARGE, 0xab));
        let mut socket = stage.play_reader(ENDPOINT);
        stage.serve_work(ENDPOINT, WORK, &plan, &source);
        stage.write(&mut socket, &Frame::Fetch { work: WORK, tag: TAG, digest: plan.digest() }.encode());
        stage.read(&mut socket, 100_000);
        if by_reset {
            reset(socket);
        } else {
            drop(socket);
        }
        assert_eq!(stage.down(ENDPOINT), Fault::PeerClosed);
        assert_eq!(stage.result(WORK), Err(Fault::PeerClosed));
    }
}

#[test]
fn a_frame_cut_short_by_the_end() {
    let mut stage = Stage::new(&Settings::default());
    let mut socket = stage.play_reader(ENDPOINT);
    stage.write(&mut socket, &Frame::Fetch { work: WORK, tag: TAG, digest: 0 }.encode()[..HEADER_BYTES - 1]);
    stage.settle();
    assert!(!stage.is_down(ENDPOINT));
    drop(socket);
    assert_eq!(stage.down(ENDPOINT), Fault::PeerClosed);
}

#[test]
fn a_reader_that_stops_us_midway_and_goes_on() {
    let mut stage = Stage::new(&Settings::default());
    let (plan, source) = (whole(LARGE), region(LARGE, 0xab));
    let mut socket = stage.play_reader(ENDPOINT);
    stage.serve_work(ENDPOINT, WORK, &plan, &source);
    stage.write(&mut socket, &Frame::Fetch { work: WORK, tag: TAG, digest: plan.digest() }.encode());
    stage.settle();
    // Two of them, and one for a work that never was: the second and third have nothing left to stop.
    for work in [WORK, WORK, WorkId(999)] {
        stage.write(&mut socket, &Frame::Cancel { work, tag: TAG }.encode());
    }
    assert_eq!(stage.result(WORK), Err(Fault::Cancelled));
    let (payload, end) = drain(&mut stage, &mut socket, &mut true);
    assert!(payload.len() < LARGE as usize);
    assert!(matches!(end, Frame::Trailer { outcome: Outcome::Stopped, .. }), "{end:?}");

    let (plan, next) = (whole(SMALL), WorkId(6));
    stage.serve_work(ENDPOINT, next, &plan, &source);
    stage.write(&mut socket, &Frame::Fetch { work: next, tag: TAG, digest: plan.digest() }.encode());
    let mut verified = true;
    let (payload, _) = drain(&mut stage, &mut socket, &mut verified);
    assert!(verified && payload.len() == 10_000);
    assert_eq!(stage.result(next), Ok(u64::from(SMALL)));
}

#[test]
fn a_cancel_of_a_fetch_that_came_too_early() {
    let mut stage = Stage::new(&Settings::default());
    let mut socket = stage.play_reader(ENDPOINT);
    stage.write(&mut socket, &Frame::Fetch { work: WORK, tag: TAG, digest: 0 }.encode());
    stage.write(&mut socket, &Frame::Cancel { work: WORK, tag: TAG }.encode());
    assert_eq!(stage.read_frame(&mut socket), Frame::Refuse { work: WORK, tag: TAG });
}

/// How a work can end under a reader that is slow to read.
enum Ending {
    Cancel,
    Deadline,
    LeaseEnd,
}

/// From the completion on, not one byte of the region leaves: what is overwritten then never shows up at the reader.
#[test]
fn memory_is_not_read_after_the_completion() {
    for ending in [Ending::Cancel, Ending::Deadline, Ending::LeaseEnd] {
        let mut stage = Stage::new(&Settings::default());
        let (plan, source) = (whole(LARGE), region(LARGE, 0xab));
        let mut socket = stage.play_reader(ENDPOINT);
        let deadline = match ending {
            Ending::Deadline => stage.now().after(Duration::from_secs(3)),
            Ending::Cancel | Ending::LeaseEnd => Time::NEVER,
        };
        let lease = stage.serve_work_until(ENDPOINT, WORK, &plan, &source, deadline);
        stage.write(&mut socket, &Frame::Fetch { work: WORK, tag: TAG, digest: plan.digest() }.encode());
        stage.settle();
        let (fault, outcome) = match ending {
            Ending::Cancel => {
                stage.cancel(ENDPOINT, WORK);
                (Fault::Cancelled, Outcome::Withdrawn)
            }
            Ending::Deadline => {
                stage.skip(Duration::from_secs(3));
                (Fault::Deadline, Outcome::Deadline)
            }
            Ending::LeaseEnd => {
                lease.close();
                // A lease is asked before each call, and the next call needs room in the socket.
                stage.read(&mut socket, HEADER_BYTES);
                (Fault::LeaseEnded, Outcome::LeaseEnded)
            }
        };
        if matches!(ending, Ending::LeaseEnd) {
            // The rest of the first piece, whose header is gone.
            stage.read(&mut socket, Settings::default().piece_bytes as usize);
        } else {
            assert_eq!(stage.result(WORK), Err(fault));
            refill(&source, 0xcd);
        }
        let (payload, end) = drain(&mut stage, &mut socket, &mut true);
        assert_eq!(stage.result(WORK), Err(fault));
        assert!(matches!(end, Frame::Trailer { outcome: found, .. } if found == outcome), "{end:?}");
        assert!(payload.len() < LARGE as usize, "all of it was sent");
        assert!(payload.iter().all(|&byte| byte == 0xab || byte == 0), "bytes from after the completion");
        assert!(!stage.is_down(ENDPOINT));
    }
}

#[test]
fn a_lease_that_ended_before_the_fetch() {
    let mut stage = Stage::new(&Settings::default());
    let (plan, source) = (whole(SMALL), region(SMALL, 0xab));
    let mut socket = stage.play_reader(ENDPOINT);
    let lease = stage.serve_work(ENDPOINT, WORK, &plan, &source);
    lease.close();
    stage.write(&mut socket, &Frame::Fetch { work: WORK, tag: TAG, digest: plan.digest() }.encode());
    let (payload, end) = drain(&mut stage, &mut socket, &mut true);
    assert!(payload.is_empty());
    assert_eq!(end, trailer(0, plan.digest(), Outcome::LeaseEnded));
    assert_eq!(stage.result(WORK), Err(Fault::LeaseEnded));
}

#[test]
fn a_lease_that_ends_between_the_last_byte_and_the_trailer() {
    let mut stage = Stage::new(&Settings::default());
    let (plan, source) = (whole(MEDIUM), region(MEDIUM, 0xab));
    let mut socket = stage.play_reader(ENDPOINT);
    let lease = stage.serve_work(ENDPOINT, WORK, &plan, &source);
    let before = stage.transport.counters().bytes_sent;
    stage.write(&mut socket, &Frame::Fetch { work: WORK, tag: TAG, digest: plan.digest() }.encode());
    stage.until("the last byte to leave", |stage| {
        (stage.transport.counters().bytes_sent - before >= u64::from(MEDIUM)).then_some(())
    });
    lease.close();
    let mut verified = true;
    let (payload, end) = drain(&mut stage, &mut socket, &mut verified);
    assert!(verified && payload.len() == 40_000);
    assert_eq!(end, trailer(u64::from(MEDIUM), plan.digest(), Outcome::LeaseEnded));
    assert_eq!(stage.result(WORK), Err(Fault::LeaseEnded));
}

#[test]
fn a_lease_that_ends_between_the_copy_and_the_send_of_a_small_part() {
    let mut stage = Stage::new(&Settings::default());
    let (plan, source) = (whole(SMALL), region(SMALL, 0xab));
    let mut socket = stage.play_reader(ENDPOINT);
    let lease = stage.serve_work(ENDPOINT, WORK, &plan, &source);
    stage.settle();
    stage.write(&mut socket, &Frame::Fetch { work: WORK, tag: TAG, digest: plan.digest() }.encode());
    stage.turn_once_readable();
    lease.close();
    let (payload, end) = drain(&mut stage, &mut socket, &mut true);
    assert!(payload.is_empty(), "bytes of an ended lease have left");
    assert_eq!(end, trailer(0, plan.digest(), Outcome::LeaseEnded));
    assert_eq!(stage.result(WORK), Err(Fault::LeaseEnded));
}

#[test]
fn more_early_fetches_than_there_may_be_works() {
    let mut stage = Stage::new(&Settings { works_max: 4, ..Settings::default() });
    let mut socket = stage.play_reader(ENDPOINT);
    for work in 0..5 {
        stage.write(&mut socket, &Frame::Fetch { work: WorkId(work), tag: Tag(work), digest: 0 }.encode());
    }
    // At once; the others still have their second.
    assert_eq!(stage.read_frame(&mut socket), Frame::Refuse { work: WorkId(4), tag: Tag(4) });
}
