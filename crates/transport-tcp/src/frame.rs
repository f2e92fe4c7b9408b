//! What travels on a data connection: fixed headers, little-endian, each with its own checksum.
//!
//! ```text
//! dialler                                  admitter
//!   Hello + key      --------------------->           first bytes of each stream
//!                    <---------------------  Welcome
//!
//! reader                                   holder, fetched
//!   Fetch            --------------------->           on each stream that carries a part of the plan
//!                    <---------------------  Piece + bytes, Piece + bytes, ...
//!                    <---------------------  Trailer  lease live after the last byte? how many bytes? which plan?
//!   Cancel           --------------------->           at any time; the Trailer still comes
//!                    <---------------------  Refuse   instead of everything after Fetch
//!
//! reader                                   holder, pushing
//!                    <---------------------  Offer    on each stream that carries a part of the plan, then at once
//!                    <---------------------  Piece + bytes, Piece + bytes, ..., Trailer
//!   Receipt          --------------------->           for each part: landed and verified; or why not, at any time
//!   Refuse           --------------------->           instead: nobody here waits for this; the Trailer still comes
//! ```
//!
//! Every fetched part ends in exactly one Trailer or Refuse, every offered one in a Trailer, so both ends always know
//! where the next frame starts.
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
pub const VERSION: u8 = 3;

const _: () = assert!(size_of::<Header>() == HEADER_BYTES);

/// The reader's name for one fetch; opaque to the holder, echoed in everything it sends for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag(pub u64);

impl Tag {
    /// What stands in for the tag where nothing was fetched: in the frames of a push, the holder's work is its name.
    pub const PUSHED: Self = Self(u64::MAX);
}

/// How one end's side of a part ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Outcome {
    /// The lease was live after the last byte had left. In a Receipt: every byte landed and was verified.
    Live = 1,
    /// The lease had ended by then, or earlier.
    LeaseEnded = 2,
    /// The sender's deadline passed first.
    Deadline = 3,
    /// The sender withdrew the work.
    Withdrawn = 4,
    /// The receiver of this asked to stop.
    Stopped = 5,
    /// Receipt only: bytes did not match their checksum.
    Corrupt = 6,
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
    /// Dialler: who this stream is; the key follows.
    Hello {
        /// The endpoint.
        endpoint: EndpointId,
        /// Which of its streams.
        stream: u32,
        /// Checksum of the key.
        checksum: u32,
    },
    /// Holder: this stream's part of a push follows, unasked.
    Offer {
        /// The holder's work.
        work: WorkId,
        /// Digest of the plan the holder compiled.
        digest: u64,
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
        /// Checksum of the bytes that follow; none if the holder was told not to sum them.
        checksum: Option<u32>,
    },
    /// Reader: how a push ended here.
    Receipt {
        /// The holder's work.
        work: WorkId,
        /// Whether it was delivered.
        outcome: Outcome,
    },
    /// Holder: this will not be sent. Ends the part. Reader: nobody waits for what is offered.
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
    /// Admitter: the key was good.
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
const OFFER: u8 = 8;
const RECEIPT: u8 = 9;

/// A flag of a Piece: nobody summed its bytes.
const UNSUMMED: u8 = 1;

/// The bytes of a header. Fields that a kind does not use are zero.
#[derive(Clone, Copy, Default, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 4],
    version: u8,
    kind: u8,
    /// An [`Outcome`], or the flags of a Piece.
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
            Self::Offer { work, digest } => {
                header.kind = OFFER;
                header.name(work, Tag::PUSHED);
                header.digest = digest.into();
            }
            Self::Piece { work, tag, sequence, length, checksum } => {
                header.kind = PIECE;
                header.name(work, tag);
                header.sequence = sequence.into();
                header.length = length.into();
                header.payload_checksum = checksum.unwrap_or(0).into();
                header.outcome = if checksum.is_none() { UNSUMMED } else { 0 };
            }
            Self::Receipt { work, outcome } => {
                header.kind = RECEIPT;
                header.name(work, Tag::PUSHED);
                header.outcome = outcome as u8;
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
            OFFER => Self::Offer { work, digest: header.digest.get() },
            PIECE => Self::Piece {
                work,
                tag,
                sequence: header.sequence.get(),
                length: header.length.get(),
                checksum: (header.outcome != UNSUMMED).then_some(header.payload_checksum.get()),
            },
            RECEIPT => Self::Receipt { work, outcome: Outcome::from_byte(header.outcome)? },
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
            6 => Self::Corrupt,
            _ => return Err(FrameError::Field),
        })
    }
}

#[cfg(test)]
mod tests;
