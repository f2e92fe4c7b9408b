//! What travels on a data connection: fixed headers, little-endian, each with its own checksum.
//!
//! ```text
//! reader                                   holder
//!   Hello + key      --------------------->           first bytes of each stream
//!                    <---------------------  Welcome
//!   Fetch            --------------------->           on each stream that carries a part of the plan
//!                    <---------------------  Piece + bytes, Piece + bytes, ...
//!                    <---------------------  Trailer  lease live after the last byte? how many bytes? which plan?
//!   Cancel           --------------------->           at any time; the Trailer still comes
//!                    <---------------------  Refuse   instead of everything after Fetch
//! ```
//!
//! Every fetched part ends in exactly one Trailer or Refuse, so both ends always know where the next frame starts.
//! Limits: a header is [`HEADER_BYTES`] long; only Hello and Piece have a payload. The receiver checks a length
//! against what it asked for before it reads on. Failure: [`FrameError`]; the connection is closed, never resynced.
//!
//! Why not prost: these bytes are parsed once for each piece on the data thread, without allocation.

use kvferry_core::WorkId;
use kvferry_transport::{EndpointId, Key};
use thiserror::Error;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of every header.
pub const HEADER_BYTES: usize = 56;
/// Bytes of a Hello with its key.
pub const HELLO_BYTES: usize = HEADER_BYTES + size_of::<Key>();
/// First bytes of every frame.
pub const MAGIC: [u8; 4] = *b"KVFD";
/// Raised whenever the bytes or their meaning change.
pub const VERSION: u8 = 1;

const _: () = assert!(size_of::<Header>() == HEADER_BYTES);

/// The reader's name for one fetch; opaque to the holder, echoed in everything it sends for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag(pub u64);

/// How the holder's side of one part ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Outcome {
    /// The lease was live after the last byte had left.
    Live = 1,
    /// The lease had ended by then, or earlier.
    LeaseEnded = 2,
    /// The holder's deadline passed first.
    Deadline = 3,
    /// The holder withdrew the work.
    Withdrawn = 4,
    /// The reader asked to stop.
    Stopped = 5,
}

/// One frame's header, understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Reader: send no more of this fetch.
    Cancel {
        /// The holder's work.
        work: WorkId,
        /// The fetch.
        tag: Tag,
    },
    /// Reader: send this stream's part of the work.
    Fetch {
        /// The holder's work.
        work: WorkId,
        /// What to call it in answers.
        tag: Tag,
        /// Digest of the plan the reader compiled.
        digest: u64,
    },
    /// Reader: who this stream is; the key follows.
    Hello {
        /// The endpoint.
        endpoint: EndpointId,
        /// Which of its streams.
        stream: u32,
        /// Checksum of the key.
        checksum: u32,
    },
    /// Holder: the next bytes of a part follow.
    Piece {
        /// The holder's work.
        work: WorkId,
        /// The fetch.
        tag: Tag,
        /// Counts the pieces of this part from zero.
        sequence: u32,
        /// Bytes that follow.
        length: u32,
        /// Checksum of the bytes that follow.
        checksum: u32,
    },
    /// Holder: this will not be sent. Ends the part.
    Refuse {
        /// The work that was asked for.
        work: WorkId,
        /// The fetch.
        tag: Tag,
    },
    /// Holder: ends the part.
    Trailer {
        /// The holder's work.
        work: WorkId,
        /// The fetch.
        tag: Tag,
        /// Bytes of this part that were sent.
        bytes: u64,
        /// Digest of the whole plan the holder compiled.
        digest: u64,
        /// Whether they may be used.
        outcome: Outcome,
    },
    /// Holder: the key was good.
    Welcome,
}

/// Why bytes are not a frame. The connection they came on is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    /// The header's checksum does not match.
    #[error("header checksum does not match")]
    Checksum,
    /// A kind, an outcome or a length that this version does not have.
    #[error("a field has a value that does not exist")]
    Field,
    /// Not our magic.
    #[error("not a KVFerry data connection")]
    Magic,
    /// A version this build does not speak.
    #[error("protocol version {0}, this build speaks {VERSION}")]
    Version(u8),
}

const CANCEL: u8 = 1;
const FETCH: u8 = 2;
const HELLO: u8 = 3;
const PIECE: u8 = 4;
const REFUSE: u8 = 5;
const TRAILER: u8 = 6;
const WELCOME: u8 = 7;

/// The bytes of a header. Fields that a kind does not use are zero.
#[derive(Clone, Copy, Default, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 4],
    version: u8,
    kind: u8,
    outcome: u8,
    reserved: u8,
    work: U64,
    tag: U64,
    bytes: U64,
    digest: U64,
    sequence: U32,
    length: U32,
    payload_checksum: U32,
    header_checksum: U32,
}

impl Frame {
    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut header = Header { magic: MAGIC, version: VERSION, ..Header::default() };
        match *self {
            Self::Cancel { work, tag } => {
                header.kind = CANCEL;
                header.name(work, tag);
            }
            Self::Fetch { work, tag, digest } => {
                header.kind = FETCH;
                header.name(work, tag);
                header.digest = digest.into();
            }
            Self::Hello { endpoint, stream, checksum } => {
                header.kind = HELLO;
                header.work = endpoint.0.into();
                header.sequence = stream.into();
                header.length = KEY_BYTES.into();
                header.payload_checksum = checksum.into();
            }
            Self::Piece { work, tag, sequence, length, checksum } => {
                header.kind = PIECE;
                header.name(work, tag);
                header.sequence = sequence.into();
                header.length = length.into();
                header.payload_checksum = checksum.into();
            }
            Self::Refuse { work, tag } => {
                header.kind = REFUSE;
                header.name(work, tag);
            }
            Self::Trailer { work, tag, bytes, digest, outcome } => {
                header.kind = TRAILER;
                header.name(work, tag);
                header.bytes = bytes.into();
                header.digest = digest.into();
                header.outcome = outcome as u8;
            }
            Self::Welcome => header.kind = WELCOME,
        }
        header.header_checksum = header.checksum().into();
        let mut bytes = [0; HEADER_BYTES];
        bytes.copy_from_slice(header.as_bytes());
        bytes
    }

    /// Understands a header.
    ///
    /// # Errors
    ///
    /// [`FrameError`] for anything that [`encode`](Self::encode) would not have made.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, FrameError> {
        let header = Header::read_from_bytes(bytes).map_err(|_| FrameError::Magic)?;
        if header.magic != MAGIC {
            return Err(FrameError::Magic);
        }
        if header.version != VERSION {
            return Err(FrameError::Version(header.version));
        }
        if header.header_checksum.get() != header.checksum() {
            return Err(FrameError::Checksum);
        }
        let (work, tag) = (WorkId(header.work.get()), Tag(header.tag.get()));
        let frame = match header.kind {
            CANCEL => Self::Cancel { work, tag },
            FETCH => Self::Fetch { work, tag, digest: header.digest.get() },
            HELLO => Self::Hello {
                endpoint: EndpointId(header.work.get()),
                stream: header.sequence.get(),
                checksum: header.payload_checksum.get(),
            },
            PIECE => Self::Piece {
                work,
                tag,
                sequence: header.sequence.get(),
                length: header.length.get(),
                checksum: header.payload_checksum.get(),
            },
            REFUSE => Self::Refuse { work, tag },
            TRAILER => Self::Trailer {
                work,
                tag,
                bytes: header.bytes.get(),
                digest: header.digest.get(),
                outcome: Outcome::from_byte(header.outcome)?,
            },
            WELCOME => Self::Welcome,
            _ => return Err(FrameError::Field),
        };
        // One value, one encoding: a field that this kind does not use may not smuggle anything.
        if frame.encode() == *bytes { Ok(frame) } else { Err(FrameError::Field) }
    }

    /// The first bytes of a stream.
    #[must_use]
    pub fn hello(endpoint: EndpointId, stream: u32, key: &Key) -> [u8; HELLO_BYTES] {
        let mut bytes = [0; HELLO_BYTES];
        let header = Self::Hello { endpoint, stream, checksum: crc32c::crc32c(key) }.encode();
        bytes[..HEADER_BYTES].copy_from_slice(&header);
        bytes[HEADER_BYTES..].copy_from_slice(key);
        bytes
    }
}

const KEY_BYTES: u32 = 32;

impl Header {
    fn name(&mut self, work: WorkId, tag: Tag) {
        self.work = work.0.into();
        self.tag = tag.0.into();
    }

    fn checksum(&self) -> u32 {
        crc32c::crc32c(&self.as_bytes()[..HEADER_BYTES - size_of::<U32>()])
    }
}

impl Outcome {
    const fn from_byte(byte: u8) -> Result<Self, FrameError> {
        Ok(match byte {
            1 => Self::Live,
            2 => Self::LeaseEnded,
            3 => Self::Deadline,
            4 => Self::Withdrawn,
            5 => Self::Stopped,
            _ => return Err(FrameError::Field),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    const WORK: WorkId = WorkId(0x1122_3344_5566_7788);
    const TAG: Tag = Tag(0x99aa_bbcc_ddee_ff00);

    #[test]
    fn golden_piece() {
        let piece = Frame::Piece { work: WORK, tag: TAG, sequence: 7, length: 0x10_0000, checksum: 0xdead_beef };
        assert_eq!(hex(&piece.encode()), GOLDEN_PIECE);
    }

    #[test]
    fn golden_trailer() {
        let trailer = Frame::Trailer { work: WORK, tag: TAG, bytes: 5, digest: 6, outcome: Outcome::Live };
        assert_eq!(hex(&trailer.encode()), GOLDEN_TRAILER);
    }

    #[test]
    fn golden_hello() {
        assert_eq!(hex(&Frame::hello(EndpointId(3), 2, &[0xa5; 32])), GOLDEN_HELLO);
    }

    // Made by a program that shares no code with this one.
    const GOLDEN_PIECE: &str = "4b56464401040000887766554433221100ffeeddccbbaa99000000000000000000000000000000000700000000001000efbeadde4d8adce6";
    const GOLDEN_TRAILER: &str = "4b56464401060100887766554433221100ffeeddccbbaa9905000000000000000600000000000000000000000000000000000000299f0ff5";
    const GOLDEN_HELLO: &str = "4b564644010300000300000000000000000000000000000000000000000000000000000000000000020000002000000057d31d9cb8693208a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5";

    fn frames() -> Vec<Frame> {
        let mut frames = vec![
            Frame::Cancel { work: WORK, tag: TAG },
            Frame::Fetch { work: WORK, tag: TAG, digest: 9 },
            Frame::Hello { endpoint: EndpointId(4), stream: 1, checksum: 2 },
            Frame::Piece { work: WORK, tag: TAG, sequence: u32::MAX, length: u32::MAX, checksum: 1 },
            Frame::Refuse { work: WORK, tag: TAG },
            Frame::Welcome,
        ];
        for outcome in [Outcome::Live, Outcome::LeaseEnded, Outcome::Deadline, Outcome::Withdrawn, Outcome::Stopped] {
            frames.push(Frame::Trailer { work: WORK, tag: TAG, bytes: u64::MAX, digest: 1, outcome });
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
}
