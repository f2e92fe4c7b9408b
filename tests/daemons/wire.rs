//! A hostile peer: every byte and every answer that could be wrong is wrong once, and nothing of it is delivered.

use std::time::{Duration, Instant};

use kvferry_core::WorkId;
use kvferry_proto::v1;
use kvferry_transport_tcp::frame::{Frame, HEADER_BYTES, Outcome, Tag};

use crate::support::relay::Control;
use crate::support::tricks::Trick;
use crate::support::{Dice, SLACK, Shape, Stage};

const HEADER: u64 = HEADER_BYTES as u64;
/// Bytes of the four blocks that `Stage::hand_over` moves, in one piece.
const PAYLOAD: u64 = 4 * 8192;

/// Plays `trick` on what the holder sends of one transfer, and says how that fares.
fn played(stage: &mut Stage, trick: Trick) -> Option<String> {
    // Over a link that stands, so that the trick's places are the transfer's.
    assert_eq!(stage.hand_over(), None, "before {trick:?}");
    stage.relay.down().set(trick);
    let failure = stage.hand_over();
    stage.relay.down().set(Trick::Pass);
    failure
}

#[test]
fn a_flipped_byte_is_caught() {
    assert_eq!(PAYLOAD, 4 * Shape::SMALL.block_bytes());
    let mut stage = Stage::small();
    let places = [
        (HEADER, "checksum"),
        (HEADER + 12_345, "checksum"),
        (HEADER + PAYLOAD - 1, "checksum"),
        (0, "protocol"),
        (HEADER - 1, "protocol"),
        // The trailer: the lease's last word.
        (HEADER + PAYLOAD + 6, "protocol"),
    ];
    for (at, failure) in places {
        for bits in [0x01, 0x80] {
            let trick = Trick::Flip { at, bits };
            assert_eq!(played(&mut stage, trick).as_deref(), Some(failure), "at {at}");
        }
    }
    stage.end();
}

#[test]
fn a_flipped_byte_of_the_reader_is_caught() {
    let mut stage = Stage::small();
    for at in [0, 20, HEADER - 1] {
        assert_eq!(stage.hand_over(), None);
        stage.relay.up().set(Trick::Flip { at, bits: 0x10 });
        assert_eq!(stage.hand_over().as_deref(), Some("unreachable"), "at {at}");
        stage.relay.up().set(Trick::Pass);
    }
    stage.end();
}

#[test]
fn a_flipped_byte_of_a_key_opens_nothing() {
    let mut stage = Stage::small();
    stage.relay.up().set(Trick::Flip { at: HEADER + 3, bits: 0x01 });
    assert_eq!(stage.hand_over().as_deref(), Some("unreachable"));
    stage.relay.up().set(Trick::Pass);
    stage.end();
}

#[test]
fn a_frame_that_ends_early_is_a_failure() {
    let mut stage = Stage::small();
    for at in [0, 20, HEADER, HEADER + 1000, HEADER + PAYLOAD, HEADER + PAYLOAD + 40] {
        for trick in [Trick::Close { at }, Trick::Reset { at }] {
            assert_eq!(played(&mut stage, trick.clone()).as_deref(), Some("unreachable"), "{trick:?}");
        }
    }
    stage.end();
}

/// The piece's fields, changed by `change`.
macro_rules! forged {
    (|$work:ident, $tag:ident, $sequence:ident, $length:ident, $checksum:ident| $made:expr) => {
        Trick::Forge(|frame| {
            let Frame::Piece { work: $work, tag: $tag, sequence: $sequence, length: $length, checksum: $checksum } =
                frame
            else {
                panic!("{frame:?} is no piece")
            };
            $made
        })
    };
}

#[test]
fn frames_that_lie_are_caught() {
    let mut stage = Stage::small();
    let lies = [
        // 4 GiB, less one byte.
        forged!(|work, tag, sequence, _length, checksum| Frame::Piece {
            work,
            tag,
            sequence,
            length: u32::MAX,
            checksum
        }),
        forged!(|work, tag, sequence, _length, checksum| Frame::Piece { work, tag, sequence, length: 0, checksum }),
        // One byte more than was asked for.
        forged!(|work, tag, sequence, length, checksum| Frame::Piece {
            work,
            tag,
            sequence,
            length: length + 1,
            checksum
        }),
        forged!(|work, tag, sequence, length, checksum| Frame::Piece {
            work,
            tag,
            sequence: sequence + 1,
            length,
            checksum
        }),
        forged!(|work, tag, sequence, length, checksum| Frame::Piece {
            work,
            tag: Tag(tag.0 + (1 << 32)),
            sequence,
            length,
            checksum
        }),
        forged!(|work, tag, sequence, length, checksum| Frame::Piece {
            work: WorkId(work.0 + 1),
            tag,
            sequence,
            length,
            checksum
        }),
        // "All sent, and the lease is live."
        forged!(|work, tag, _sequence, _length, _checksum| Frame::Trailer {
            work,
            tag,
            bytes: PAYLOAD,
            digest: 0,
            outcome: Outcome::Live
        }),
        forged!(|_work, _tag, _sequence, _length, _checksum| Frame::Welcome),
        forged!(|work, tag, _sequence, _length, _checksum| Frame::Cancel { work, tag }),
    ];
    for (number, lie) in lies.into_iter().enumerate() {
        assert_eq!(played(&mut stage, lie).as_deref(), Some("protocol"), "lie {number}");
    }
    // "Nothing to fetch here", and then bytes.
    let lie = forged!(|work, tag, _sequence, _length, _checksum| Frame::Refuse { work, tag });
    assert_eq!(played(&mut stage, lie).as_deref(), Some("lease"));
    // A checksum that fits other bytes.
    let lie = forged!(|work, tag, sequence, length, checksum| Frame::Piece {
        work,
        tag,
        sequence,
        length,
        checksum: checksum.map(|sum| !sum)
    });
    assert_eq!(played(&mut stage, lie).as_deref(), Some("checksum"));
    stage.end();
}

#[test]
fn random_bytes_from_a_holder_are_caught() {
    let mut dice = Dice::throw("random_bytes_from_a_holder");
    let mut stage = Stage::small();
    for at in [0, HEADER, HEADER + PAYLOAD] {
        let trick = Trick::Overwrite { at, bytes: dice.bytes(300) };
        assert!(played(&mut stage, trick).is_some(), "at {at}");
    }
    stage.end();
}

#[test]
fn answers_that_lie_are_caught() {
    let mut stage = Stage::small();
    type Lie = fn(&mut v1::ConfirmReply);
    let lies: [(Lie, &str); 9] = [
        (|reply| reply.plan_digest ^= 1, "protocol"),
        (|reply| reply.blocks.clear(), "protocol"),
        (|reply| reply.blocks.push(v1::BlockList { blocks: vec![1] }), "protocol"),
        (|reply| reply.blocks[0].blocks[0] = 63, "protocol"),
        (|reply| reply.blocks[0].blocks[0] = u32::MAX, "protocol"),
        (|reply| reply.layout = None, "protocol"),
        (|reply| reply.layout.as_mut().expect("layout").groups[0].spans[0].block_stride = u64::MAX, "protocol"),
        (|reply| reply.refusal = v1::Refusal::Limit.into(), "limit"),
        // A name that the holder does not know: it waits for a second, then refuses.
        (|reply| reply.work ^= 1 << 40, "lease"),
    ];
    for (number, (lie, failure)) in lies.into_iter().enumerate() {
        stage.relay.control(Control::Confirm(lie));
        let handover = stage.begin(4, 1_500, 10_000);
        assert_eq!(stage.decode.outcome(handover.key).as_deref(), Some(failure), "lie {number}");
        stage.prefill.lease_end(handover.lease);
    }
    stage.relay.control(Control::Pass);
    stage.end();
}

#[test]
fn endpoints_that_lie_open_nothing() {
    let lies: [fn(&mut v1::OpenEndpointReply); 7] = [
        |reply| reply.keys.clear(),
        |reply| reply.keys[0].truncate(31),
        |reply| reply.keys[0][5] ^= 1,
        |reply| reply.keys.push(vec![0; 32]),
        |reply| reply.endpoint ^= 1,
        |reply| reply.data_port = 0,
        |reply| reply.data_port = 70_000,
    ];
    let mut stage = Stage::small();
    for (number, lie) in lies.into_iter().enumerate() {
        stage.relay.control(Control::Open(lie));
        assert_eq!(stage.hand_over().as_deref(), Some("unreachable"), "lie {number}");
    }
    stage.relay.control(Control::Pass);
    stage.end();
}

#[test]
fn a_holder_that_does_not_answer_costs_the_deadline() {
    for control in [Control::HoldConfirm, Control::HoldConfirmed] {
        let mut stage = Stage::small();
        stage.relay.control(control);
        let since = Instant::now();
        let handover = stage.begin(4, 10_000, 700);
        assert_eq!(stage.decode.outcome(handover.key).as_deref(), Some("deadline"));
        assert!(since.elapsed() < Duration::from_millis(700) + SLACK, "{control:?}: {:?}", since.elapsed());
        // Nobody reads: the holder gets its blocks back long before the lease would end.
        stage.prefill.lease_end(handover.lease);
        assert!(since.elapsed() < Duration::from_secs(5) + SLACK, "{control:?}: {:?}", since.elapsed());
        stage.relay.control(Control::Pass);
        stage.end();
    }
}

#[test]
fn a_data_port_that_does_not_answer_costs_the_time_to_connect() {
    let mut stage = Stage::set(Shape::SMALL, "connect_ms_max = 500");
    stage.relay.down().set(Trick::Hold { at: 0 });
    let since = Instant::now();
    assert_eq!(stage.hand_over().as_deref(), Some("unreachable"));
    assert!(since.elapsed() < Duration::from_millis(500) + SLACK, "{:?}", since.elapsed());
    stage.relay.down().set(Trick::Pass);
    stage.end();
}
