//! Golden bytes, round trips, and bytes that are no frame.

use proptest::prelude::*;

use super::*;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

const WORK: WorkId = WorkId(0x1122_3344_5566_7788);
const TAG: Tag = Tag(0x99aa_bbcc_ddee_ff00);

#[test]
fn golden_piece() {
    let piece = Frame::Piece { work: WORK, tag: TAG, sequence: 7, length: 0x10_0000, checksum: Some(0xdead_beef) };
    assert_eq!(hex(&piece.encode()), GOLDEN_PIECE);
}

#[test]
fn golden_trailer() {
    let trailer = Frame::Trailer { work: WORK, tag: TAG, bytes: 5, digest: 6, outcome: Outcome::Live };
    assert_eq!(hex(&trailer.encode()), GOLDEN_TRAILER);
}

#[test]
fn golden_push() {
    assert_eq!(hex(&Frame::Offer { work: WORK, digest: 6 }.encode()), GOLDEN_OFFER);
    assert_eq!(hex(&Frame::Receipt { work: WORK, outcome: Outcome::Corrupt }.encode()), GOLDEN_RECEIPT);
}

#[test]
fn golden_hello() {
    assert_eq!(hex(&Frame::hello(EndpointId(3), 2, &[0xa5; 32])), GOLDEN_HELLO);
}

// Made by a program that shares no code with this one.
const GOLDEN_PIECE: &str =
    "4b56464403040000887766554433221100ffeeddccbbaa99000000000000000000000000000000000700000000001000efbeadde45b08ede";
const GOLDEN_TRAILER: &str =
    "4b56464403060100887766554433221100ffeeddccbbaa990500000000000000060000000000000000000000000000000000000021a55dcd";
const GOLDEN_OFFER: &str =
    "4b564644030800008877665544332211ffffffffffffffff0000000000000000060000000000000000000000000000000000000010bb9654";
const GOLDEN_RECEIPT: &str =
    "4b564644030906008877665544332211ffffffffffffffff0000000000000000000000000000000000000000000000000000000057bf9b2d";
const GOLDEN_HELLO: &str = "4b564644030300000300000000000000000000000000000000000000000000000000000000000000020000002000000057d31d9cb0536030a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5";

fn frames() -> Vec<Frame> {
    let mut frames = vec![
        Frame::Cancel { work: WORK, tag: TAG },
        Frame::Fetch { work: WORK, tag: TAG, digest: 9 },
        Frame::Hello { endpoint: EndpointId(4), stream: 1, checksum: 2 },
        Frame::Offer { work: WORK, digest: 9 },
        Frame::Piece { work: WORK, tag: TAG, sequence: u32::MAX, length: u32::MAX, checksum: Some(1) },
        Frame::Piece { work: WORK, tag: Tag::PUSHED, sequence: 0, length: 1, checksum: None },
        Frame::Refuse { work: WORK, tag: TAG },
        Frame::Welcome,
    ];
    for outcome in
        [Outcome::Live, Outcome::LeaseEnded, Outcome::Deadline, Outcome::Withdrawn, Outcome::Stopped, Outcome::Corrupt]
    {
        frames.push(Frame::Trailer { work: WORK, tag: TAG, bytes: u64::MAX, digest: 1, outcome });
        frames.push(Frame::Receipt { work: WORK, outcome });
    }
    frames
}

#[test]
fn every_frame_survives_the_wire() {
    for frame in frames() {
        assert_eq!(Frame::decode(&frame.encode()), Ok(frame));
    }
}

#[test]
fn every_flipped_bit_is_seen() {
    for frame in frames() {
        for bit in 0..HEADER_BYTES * 8 {
            let mut bytes = frame.encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Frame::decode(&bytes).is_err(), "bit {bit} of {frame:?}");
        }
    }
}

#[test]
fn an_unused_field_must_be_zero() {
    let mut header = Header::read_from_bytes(&Frame::Welcome.encode()).unwrap();
    header.bytes = 1.into();
    header.header_checksum = header.checksum().into();
    let mut bytes = [0; HEADER_BYTES];
    bytes.copy_from_slice(header.as_bytes());
    assert_eq!(Frame::decode(&bytes), Err(FrameError::Field));
}

proptest! {
    #[test]
    fn random_bytes_never_panic(mut bytes in proptest::array::uniform32(any::<u8>()), tail in any::<[u8; 24]>()) {
        let mut header = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = VERSION;
        header[..32].copy_from_slice(&bytes);
        header[32..].copy_from_slice(&tail);
        let sum = crc32c::crc32c(&header[..HEADER_BYTES - 4]);
        header[HEADER_BYTES - 4..].copy_from_slice(&sum.to_le_bytes());
        if let Ok(frame) = Frame::decode(&header) {
            prop_assert_eq!(frame.encode(), header);
        }
    }
}
