//! The transport reads; holders who send what was not asked for, or leave.

use std::net::TcpStream;
use std::sync::Arc;

use kvferry_core::WorkId;
use kvferry_core::plan::Plan;
use kvferry_memory::Region;
use kvferry_transport::Fault;
use kvferry_transport_tcp::Settings;
use kvferry_transport_tcp::frame::{Frame, HEADER_BYTES, Outcome, Tag};

use crate::stage::{ENDPOINT, KEY, Stage, content, holder_id, piece, region, reset, trailer, whole};

const WORK: WorkId = WorkId(5);
const BYTES: u32 = 10_000;

/// A read of which the Fetch has come.
struct Asked {
    stage: Stage,
    socket: TcpStream,
    plan: Arc<Plan>,
    target: Arc<Region>,
    tag: Tag,
}

impl Asked {
    fn new() -> Self {
        let mut stage = Stage::new(&Settings::default());
        let (plan, target) = (whole(BYTES), region(BYTES, 0));
        let mut socket = stage.play_holder(ENDPOINT);
        let tag = stage.read_work(&mut socket, WORK, &plan, &target);
        Self { stage, socket, plan, target, tag }
    }

    fn say(&mut self, bytes: &[u8]) {
        self.stage.write(&mut self.socket, bytes);
    }

    /// What was said broke the protocol.
    fn expect_protocol_fault(mut self) {
        assert_eq!(self.stage.result(WORK), Err(Fault::Protocol));
        assert_eq!(self.stage.down(ENDPOINT), Fault::Protocol);
        self.stage.expect_silent_close(&mut self.socket);
    }

    /// The endpoint goes on: the next read works.
    fn expect_usable(mut self) {
        let next = WorkId(6);
        let tag = self.stage.read_work(&mut self.socket, next, &self.plan, &self.target);
        self.say(&piece(next, tag, 0, &[0xcd].repeat(10_000)));
        let end = trailer(next, tag, &self.plan, Outcome::Live);
        self.say(&end);
        assert_eq!(self.stage.result(next), Ok(u64::from(BYTES)));
        assert_eq!(content(&self.target), [0xcd].repeat(10_000));
        assert!(!self.stage.is_down(ENDPOINT));
    }
}

#[test]
fn a_good_holder_a_byte_at_a_time() {
    let mut asked = Asked::new();
    let payload: Vec<u8> = (0..BYTES).map(|byte| (byte % 251).to_le_bytes()[0]).collect();
    let mut bytes = piece(WORK, asked.tag, 0, &payload[..100]);
    bytes.extend(piece(WORK, asked.tag, 1, &payload[100..200]));
    for byte in bytes {
        asked.say(&[byte]);
        asked.stage.settle();
    }
    let rest = piece(WORK, asked.tag, 2, &payload[200..]);
    asked.say(&rest);
    let end = trailer(WORK, asked.tag, &asked.plan, Outcome::Live);
    asked.say(&end);
    assert_eq!(asked.stage.result(WORK), Ok(u64::from(BYTES)));
    assert_eq!(content(&asked.target), payload);
    asked.expect_usable();
}

#[test]
fn bytes_that_do_not_match_their_checksum() {
    let mut asked = Asked::new();
    let mut bytes = piece(WORK, asked.tag, 0, &[0xab].repeat(10_000));
    bytes[HEADER_BYTES + 5000] ^= 1;
    asked.say(&bytes);
    let end = trailer(WORK, asked.tag, &asked.plan, Outcome::Live);
    asked.say(&end);
    assert_eq!(asked.stage.result(WORK), Err(Fault::ChecksumMismatch));
    asked.expect_usable();
}

#[test]
fn all_bytes_and_a_trailer_that_does_not_vouch_for_them() {
    let ends = [
        (Outcome::LeaseEnded, Fault::LeaseEnded),
        (Outcome::Deadline, Fault::Deadline),
        (Outcome::Withdrawn, Fault::Cancelled),
    ];
    for (outcome, fault) in ends {
        let mut asked = Asked::new();
        let bytes = piece(WORK, asked.tag, 0, &[0xab].repeat(10_000));
        asked.say(&bytes);
        let end = trailer(WORK, asked.tag, &asked.plan, outcome);
        asked.say(&end);
        assert_eq!(asked.stage.result(WORK), Err(fault));
        asked.expect_usable();
    }
}

#[test]
fn a_lease_that_ended_explains_a_piece_cut_short() {
    let mut asked = Asked::new();
    let mut bytes = piece(WORK, asked.tag, 0, &[0xab].repeat(10_000));
    bytes[HEADER_BYTES + 5000..].fill(0);
    asked.say(&bytes);
    let end = trailer(WORK, asked.tag, &asked.plan, Outcome::LeaseEnded);
    asked.say(&end);
    assert_eq!(asked.stage.result(WORK), Err(Fault::LeaseEnded));
    asked.expect_usable();
}

#[test]
fn a_refusal() {
    let mut asked = Asked::new();
    let refuse = Frame::Refuse { work: holder_id(WORK), tag: asked.tag }.encode();
    asked.say(&refuse);
    assert_eq!(asked.stage.result(WORK), Err(Fault::Refused));
    asked.expect_usable();
}

#[test]
fn lengths_that_were_not_asked_for() {
    for length in [0, BYTES + 1, 1 << 31, u32::MAX] {
        let mut asked = Asked::new();
        let head = Frame::Piece { work: holder_id(WORK), tag: asked.tag, sequence: 0, length, checksum: Some(0) };
        asked.say(&head.encode());
        asked.expect_protocol_fault();
    }
    // One byte too many, when all had come.
    let mut asked = Asked::new();
    let mut bytes = piece(WORK, asked.tag, 0, &[0xab].repeat(10_000));
    bytes.extend(piece(WORK, asked.tag, 1, &[0xab]));
    asked.say(&bytes);
    asked.expect_protocol_fault();
}

#[test]
fn frames_out_of_order() {
    for sequence in [1, u32::MAX] {
        let mut asked = Asked::new();
        let bytes = piece(WORK, asked.tag, sequence, &[0xab; 100]);
        asked.say(&bytes);
        asked.expect_protocol_fault();
    }
    let mut asked = Asked::new();
    let twice = piece(WORK, asked.tag, 0, &[0xab; 100]).repeat(2);
    asked.say(&twice);
    asked.expect_protocol_fault();
}

#[test]
fn trailers_that_contradict_what_was_sent() {
    let good = |asked: &Asked| (asked.plan.bytes(), asked.plan.digest());
    let all = [0xab].repeat(10_000);
    type Lie = fn((u64, u64)) -> (u64, u64);
    let cases: [(usize, Lie); 4] = [
        // Before the bytes came, before the last one came, another count, another plan.
        (0, |good| good),
        (9_999, |good| good),
        (10_000, |(bytes, digest)| (bytes - 1, digest)),
        (10_000, |(bytes, digest)| (bytes, digest ^ 1)),
    ];
    for (sent, lie) in cases {
        let mut asked = Asked::new();
        if sent > 0 {
            let bytes = piece(WORK, asked.tag, 0, &all[..sent]);
            asked.say(&bytes);
        }
        let (bytes, digest) = lie(good(&asked));
        let end = Frame::Trailer { work: holder_id(WORK), tag: asked.tag, bytes, digest, outcome: Outcome::Live };
        asked.say(&end.encode());
        asked.expect_protocol_fault();
    }
}

#[test]
fn frames_about_nothing_we_asked_for() {
    let tags: [fn(Tag) -> Tag; 4] =
        [|tag| Tag(tag.0 + 1), |tag| Tag(tag.0 ^ 1 << 32), |_| Tag(u64::MAX), |tag| Tag(tag.0 | 0xffff_ffff)];
    for change in tags {
        let mut asked = Asked::new();
        let bytes = piece(WORK, change(asked.tag), 0, &[0xab; 100]);
        asked.say(&bytes);
        asked.expect_protocol_fault();
    }
    // The right tag with another work's name.
    let mut asked = Asked::new();
    let bytes = piece(WorkId(WORK.0 + 1), asked.tag, 0, &[0xab; 100]);
    asked.say(&bytes);
    asked.expect_protocol_fault();
    // What only a reader says, a second welcome, and noise.
    let digest = 0;
    for frame in [
        Frame::Fetch { work: WORK, tag: Tag(0), digest }.encode(),
        Frame::Cancel { work: WORK, tag: Tag(0) }.encode(),
        Frame::Welcome.encode(),
        [0xff; HEADER_BYTES],
    ] {
        let mut asked = Asked::new();
        asked.say(&frame);
        asked.expect_protocol_fault();
    }
    // Nobody asked it to stop.
    let mut asked = Asked::new();
    let end = trailer(WORK, asked.tag, &asked.plan, Outcome::Stopped);
    asked.say(&end);
    asked.expect_protocol_fault();
}

#[test]
fn a_part_that_ends_twice() {
    let mut asked = Asked::new();
    let mut bytes = piece(WORK, asked.tag, 0, &[0xab].repeat(10_000));
    let end = trailer(WORK, asked.tag, &asked.plan, Outcome::Live);
    bytes.extend_from_slice(&end);
    bytes.extend_from_slice(&end);
    asked.say(&bytes);
    assert_eq!(asked.stage.down(ENDPOINT), Fault::Protocol);
    assert_eq!(asked.stage.result(WORK), Ok(u64::from(BYTES)));
}

/// The other stream's part is still open, so the read is too.
#[test]
fn a_part_of_two_that_ends_twice() {
    let mut stage = Stage::new(&Settings::default());
    let (plan, target) = (whole(1 << 20), region(1 << 20, 0));
    let mut sockets = stage.play_holder_of(ENDPOINT, &[KEY, [7; 32]]);
    let tag = stage.read_work(&mut sockets[0], WORK, &plan, &target);
    let half = plan.bytes() / 2;
    let mut bytes = piece(WORK, tag, 0, &[0xab].repeat(1 << 19));
    let outcome = Outcome::Live;
    let end = Frame::Trailer { work: holder_id(WORK), tag, bytes: half, digest: plan.digest(), outcome }.encode();
    bytes.extend_from_slice(&end);
    stage.write(&mut sockets[0], &bytes);
    stage.settle();
    assert_eq!(stage.endpoint(ENDPOINT).in_flight(), 1, "half of it is not all of it");
    stage.write(&mut sockets[0], &end);
    assert_eq!(stage.result(WORK), Err(Fault::Protocol));
    assert_eq!(stage.down(ENDPOINT), Fault::Protocol);
}

#[test]
fn bytes_that_come_after_a_cancel() {
    let mut asked = Asked::new();
    let bytes = piece(WORK, asked.tag, 0, &[0xab].repeat(6000));
    asked.say(&bytes[..3000]);
    asked.stage.settle();
    asked.stage.cancel(ENDPOINT, WORK);
    assert_eq!(asked.stage.result(WORK), Err(Fault::Cancelled));
    let landed = content(&asked.target);
    asked.say(&bytes[3000..]);
    let more = piece(WORK, asked.tag, 1, &[0xab].repeat(4000));
    asked.say(&more);
    let end = trailer(WORK, asked.tag, &asked.plan, Outcome::Stopped);
    asked.say(&end);
    let cancel = Frame::Cancel { work: holder_id(WORK), tag: asked.tag };
    assert_eq!(asked.stage.read_frame(&mut asked.socket), cancel);
    asked.stage.settle();
    assert_eq!(content(&asked.target), landed, "written after the completion");
    asked.expect_usable();
}

#[test]
fn more_than_was_asked_for_after_a_cancel() {
    let mut asked = Asked::new();
    asked.stage.cancel(ENDPOINT, WORK);
    let bytes = piece(WORK, asked.tag, 0, &[0xab].repeat(10_001));
    asked.say(&bytes);
    assert_eq!(asked.stage.down(ENDPOINT), Fault::Protocol);
    assert_eq!(asked.stage.result(WORK), Err(Fault::Cancelled));
}

#[test]
fn a_holder_that_vanishes_midway() {
    for by_reset in [false, true] {
        for sent in [0, 10, HEADER_BYTES, HEADER_BYTES + 5000, HEADER_BYTES + 10_000] {
            let mut asked = Asked::new();
            let bytes = piece(WORK, asked.tag, 0, &[0xab].repeat(10_000));
            asked.say(&bytes[..sent]);
            if by_reset {
                reset(asked.socket);
            } else {
                drop(asked.socket);
            }
            assert_eq!(asked.stage.result(WORK), Err(Fault::PeerClosed));
            assert_eq!(asked.stage.down(ENDPOINT), Fault::PeerClosed);
        }
    }
}

#[test]
fn all_of_it_and_gone() {
    let mut asked = Asked::new();
    let mut bytes = piece(WORK, asked.tag, 0, &[0xab].repeat(10_000));
    bytes.extend(trailer(WORK, asked.tag, &asked.plan, Outcome::Live));
    asked.say(&bytes);
    drop(asked.socket);
    assert_eq!(asked.stage.result(WORK), Ok(u64::from(BYTES)));
    assert_eq!(asked.stage.down(ENDPOINT), Fault::PeerClosed);
    assert_eq!(content(&asked.target), [0xab].repeat(10_000));
}

#[test]
fn noise_instead_of_a_welcome() {
    let mut stage = Stage::new(&Settings::default());
    let mut sockets = stage.answer_dial(ENDPOINT, &[KEY], kvferry_core::Time::NEVER);
    stage.write(&mut sockets[0], &[0x20; 500]);
    assert_eq!(stage.down(ENDPOINT), Fault::Protocol);
}
