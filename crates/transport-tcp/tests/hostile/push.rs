//! Pushes: holders who push what nobody expects, readers who vouch for what they cannot have.

use std::net::TcpStream;
use std::sync::Arc;

use kvferry_core::lease::LeaseGate;
use kvferry_core::plan::Plan;
use kvferry_core::{Time, WorkId};
use kvferry_memory::Region;
use kvferry_transport::{Fault, ReadWork, ServeWork, Source, Start, Work};
use kvferry_transport_tcp::Settings;
use kvferry_transport_tcp::frame::{Frame, Outcome, Tag};

use crate::stage::{ENDPOINT, Stage, content, holder_id, piece, region, trailer, whole};

const WORK: WorkId = WorkId(5);
const BYTES: u32 = 10_000;
/// More than the kernel buffers of both ends take.
const LARGE: u32 = 64 << 20;

/// The transport expects a push of ours.
struct Expected {
    stage: Stage,
    socket: TcpStream,
    plan: Arc<Plan>,
    target: Arc<Region>,
}

impl Expected {
    fn new() -> Self {
        let mut stage = Stage::new(&Settings::default());
        let (plan, target) = (whole(BYTES), region(BYTES, 0));
        let socket = stage.play_holder(ENDPOINT);
        let mut expected = Self { stage, socket, plan, target };
        expected.expect(WORK);
        expected
    }

    fn expect(&mut self, id: WorkId) {
        let (plan, target) = (Arc::clone(&self.plan), Arc::clone(&self.target));
        let source = Source::Pushed { work: holder_id(id) };
        let read = ReadWork { id, plan, target, source, deadline: Time::NEVER };
        let now = self.stage.now();
        self.stage.endpoint(ENDPOINT).post(now, Work::Read(read)).expect("post a read");
    }

    fn say(&mut self, bytes: &[u8]) {
        self.stage.write(&mut self.socket, bytes);
    }

    fn offer(&mut self, id: WorkId) {
        let offer = Frame::Offer { work: holder_id(id), digest: self.plan.digest() };
        self.say(&offer.encode());
    }

    /// All of a push, as a good holder sends it.
    fn push(&mut self, id: WorkId, fill: u8) {
        self.offer(id);
        self.say(&piece(id, Tag::PUSHED, 0, &[fill].repeat(10_000)));
        let end = trailer(id, Tag::PUSHED, &self.plan, Outcome::Live);
        self.say(&end);
    }

    fn answer(&mut self) -> Frame {
        self.stage.read_frame(&mut self.socket)
    }

    fn expect_protocol_fault(mut self) {
        assert_eq!(self.stage.result(WORK), Err(Fault::Protocol));
        assert_eq!(self.stage.down(ENDPOINT), Fault::Protocol);
    }

    fn expect_usable(mut self) {
        let next = WorkId(6);
        self.expect(next);
        self.push(next, 0xcd);
        assert_eq!(self.stage.result(next), Ok(u64::from(BYTES)));
        assert_eq!(self.answer(), Frame::Receipt { work: holder_id(next), outcome: Outcome::Live });
        assert_eq!(content(&self.target), [0xcd].repeat(10_000));
        assert!(!self.stage.is_down(ENDPOINT));
    }
}

#[test]
fn a_good_push_for_comparison() {
    let mut expected = Expected::new();
    expected.push(WORK, 0xab);
    assert_eq!(expected.stage.result(WORK), Ok(u64::from(BYTES)));
    assert_eq!(expected.answer(), Frame::Receipt { work: holder_id(WORK), outcome: Outcome::Live });
    expected.expect_usable();
}

#[test]
fn pieces_that_were_not_offered() {
    let mut expected = Expected::new();
    expected.say(&piece(WORK, Tag::PUSHED, 0, &[0xab].repeat(10_000)));
    expected.expect_protocol_fault();
}

#[test]
fn an_offer_made_twice() {
    let mut expected = Expected::new();
    expected.offer(WORK);
    expected.offer(WORK);
    expected.expect_protocol_fault();
}

#[test]
fn a_push_of_another_plan_writes_nothing() {
    let mut expected = Expected::new();
    let offer = Frame::Offer { work: holder_id(WORK), digest: !expected.plan.digest() };
    expected.say(&offer.encode());
    expected.say(&piece(WORK, Tag::PUSHED, 0, &[0xab].repeat(10_000)));
    assert_eq!(expected.stage.result(WORK), Err(Fault::Refused));
    assert_eq!(expected.answer(), Frame::Receipt { work: holder_id(WORK), outcome: Outcome::Withdrawn });
    let end = trailer(WORK, Tag::PUSHED, &expected.plan, Outcome::Stopped);
    expected.say(&end);
    expected.stage.settle();
    assert_eq!(content(&expected.target), [0].repeat(10_000));
    expected.expect_usable();
}

#[test]
fn bytes_that_do_not_match_their_checksum() {
    let mut expected = Expected::new();
    expected.offer(WORK);
    let mut bytes = piece(WORK, Tag::PUSHED, 0, &[0xab].repeat(10_000));
    *bytes.last_mut().expect("a payload") ^= 1;
    expected.say(&bytes);
    let end = trailer(WORK, Tag::PUSHED, &expected.plan, Outcome::Live);
    expected.say(&end);
    assert_eq!(expected.stage.result(WORK), Err(Fault::ChecksumMismatch));
    assert_eq!(expected.answer(), Frame::Receipt { work: holder_id(WORK), outcome: Outcome::Corrupt });
    expected.expect_usable();
}

#[test]
fn bytes_without_a_checksum() {
    let mut expected = Expected::new();
    expected.offer(WORK);
    let head = Frame::Piece { work: holder_id(WORK), tag: Tag::PUSHED, sequence: 0, length: BYTES, checksum: None };
    expected.say(&head.encode());
    expected.expect_protocol_fault();
}

#[test]
fn a_push_that_nobody_expects_goes_nowhere() {
    let mut expected = Expected::new();
    let stranger = WorkId(900);
    expected.push(stranger, 0xab);
    assert_eq!(expected.answer(), Frame::Refuse { work: holder_id(stranger), tag: Tag::PUSHED });
    expected.stage.settle();
    assert_eq!(content(&expected.target), [0].repeat(10_000));
    expected.push(WORK, 0xab);
    assert_eq!(expected.stage.result(WORK), Ok(u64::from(BYTES)));
    assert_eq!(expected.answer(), Frame::Receipt { work: holder_id(WORK), outcome: Outcome::Live });
    expected.expect_usable();
}

#[test]
fn offers_without_end() {
    let mut stage = Stage::new(&Settings { works_max: 8, ..Settings::default() });
    let mut socket = stage.play_holder(ENDPOINT);
    for work in 0..8 * 2 + 1 {
        let offer = Frame::Offer { work: WorkId(work), digest: 0 };
        stage.write(&mut socket, &offer.encode());
    }
    assert_eq!(stage.down(ENDPOINT), Fault::Protocol);
}

#[test]
fn a_cancelled_push_tells_the_holder_and_waits_for_its_end() {
    let mut expected = Expected::new();
    expected.offer(WORK);
    expected.stage.settle();
    expected.stage.cancel(ENDPOINT, WORK);
    assert_eq!(expected.stage.result(WORK), Err(Fault::Cancelled));
    assert_eq!(expected.answer(), Frame::Receipt { work: holder_id(WORK), outcome: Outcome::Withdrawn });
    // What was under way already.
    expected.say(&piece(WORK, Tag::PUSHED, 0, &[0xab].repeat(10_000)));
    let end = trailer(WORK, Tag::PUSHED, &expected.plan, Outcome::Stopped);
    expected.say(&end);
    expected.stage.settle();
    assert_eq!(content(&expected.target), [0].repeat(10_000));
    expected.expect_usable();
}

/// The transport pushes, we read.
struct Pushing {
    stage: Stage,
    socket: TcpStream,
    plan: Arc<Plan>,
}

impl Pushing {
    fn new(bytes: u32) -> Self {
        let mut stage = Stage::new(&Settings::default());
        let socket = stage.play_reader(ENDPOINT);
        let plan = whole(bytes);
        let serve = ServeWork {
            id: WORK,
            plan: Arc::clone(&plan),
            source: region(bytes, 0xab),
            lease: LeaseGate::new(Time::NEVER),
            start: Start::Pushed,
            deadline: Time::NEVER,
        };
        let now = stage.now();
        stage.endpoint(ENDPOINT).post(now, Work::Serve(serve)).expect("post a push");
        let mut pushing = Self { stage, socket, plan };
        let digest = pushing.plan.digest();
        assert_eq!(pushing.hear(), Frame::Offer { work: WORK, digest });
        pushing
    }

    fn hear(&mut self) -> Frame {
        self.stage.read_frame(&mut self.socket)
    }

    fn say(&mut self, frame: Frame) {
        self.stage.write(&mut self.socket, &frame.encode());
    }

    /// Reads the payload to its end: the frame behind it.
    fn drain(&mut self) -> Frame {
        loop {
            match self.hear() {
                Frame::Piece { length, .. } => {
                    self.stage.read(&mut self.socket, usize::try_from(length).expect("fits"));
                }
                end => return end,
            }
        }
    }
}

#[test]
fn a_push_completes_with_the_receipt_and_not_before() {
    let ends = [
        (Outcome::Live, Ok(u64::from(BYTES))),
        (Outcome::Corrupt, Err(Fault::ChecksumMismatch)),
        (Outcome::Deadline, Err(Fault::Deadline)),
        (Outcome::LeaseEnded, Err(Fault::LeaseEnded)),
        (Outcome::Withdrawn, Err(Fault::Cancelled)),
    ];
    for (outcome, result) in ends {
        let mut pushing = Pushing::new(BYTES);
        assert!(matches!(pushing.drain(), Frame::Trailer { outcome: Outcome::Live, .. }));
        pushing.stage.settle();
        assert_eq!(pushing.stage.endpoint(ENDPOINT).in_flight(), 1, "it must wait for the reader's word");
        pushing.say(Frame::Receipt { work: WORK, outcome });
        assert_eq!(pushing.stage.result(WORK), result);
        assert!(!pushing.stage.is_down(ENDPOINT));
    }
}

#[test]
fn a_receipt_for_bytes_that_have_not_left() {
    let mut pushing = Pushing::new(LARGE);
    pushing.say(Frame::Receipt { work: WORK, outcome: Outcome::Live });
    assert_eq!(pushing.stage.result(WORK), Err(Fault::Protocol));
    assert_eq!(pushing.stage.down(ENDPOINT), Fault::Protocol);
}

#[test]
fn a_push_turned_away_midway() {
    let mut pushing = Pushing::new(LARGE);
    pushing.say(Frame::Refuse { work: WORK, tag: Tag::PUSHED });
    assert_eq!(pushing.stage.result(WORK), Err(Fault::Refused));
    assert!(matches!(pushing.drain(), Frame::Trailer { outcome: Outcome::Stopped, .. }));
    assert!(!pushing.stage.is_down(ENDPOINT));
}

#[test]
fn receipts_and_fetches_for_what_is_not_theirs_to_name() {
    let mut pushing = Pushing::new(BYTES);
    // An unknown work: it may have ended a moment ago.
    pushing.say(Frame::Receipt { work: WorkId(77), outcome: Outcome::Live });
    // A push cannot be fetched too.
    let digest = pushing.plan.digest();
    pushing.say(Frame::Fetch { work: WORK, tag: Tag(3), digest });
    assert!(matches!(pushing.drain(), Frame::Trailer { .. } | Frame::Refuse { .. }));
    assert!(matches!(pushing.drain(), Frame::Trailer { .. } | Frame::Refuse { .. }));
    pushing.say(Frame::Receipt { work: WORK, outcome: Outcome::Live });
    assert_eq!(pushing.stage.result(WORK), Ok(u64::from(BYTES)));
    assert!(!pushing.stage.is_down(ENDPOINT));
}
