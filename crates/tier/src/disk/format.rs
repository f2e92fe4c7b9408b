//! What is written on the disk, byte for byte.
//!
//! ```text
//! directory: lock | format | extent-00000001 | extent-00000002 ...
//! extent:    [header, to 4096][a record a slot, to a page][slot][slot]...      blocks of one class
//! ```
//!
//! All numbers are little-endian. A record's checksum goes on from its extent's header, so that a record is one in that
//! file alone, whatever a file system makes of the two after a power loss.

use kvferry_core::Fingerprint;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::store::{BlockHash, Tenant};

/// Slots begin on multiples of this and are whole ones: what any disk takes without going through the page cache.
pub(super) const ALIGN: u64 = 4096;
pub(super) const RECORD_BYTES: u64 = size_of::<Record>() as u64;
/// Of everything in this file.
pub(super) const VERSION: u32 = 1;
/// A slot's number has so many bits.
pub(super) const SLOT_BITS: u32 = 20;

const DIRECTORY_MAGIC: [u8; 8] = *b"KVFSHELF";
const EXTENT_MAGIC: [u8; 8] = *b"KVFEXTNT";
const RECORD_MAGIC: [u8; 2] = *b"KB";

/// The file `format` of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Format {
    magic: [u8; 8],
    version: U32,
    align: U32,
    rest: [u8; 44],
    checksum: U32,
}

/// The first bytes of an extent: whose blocks it holds, and how it is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Header {
    magic: [u8; 8],
    version: U32,
    /// As in the file's name.
    number: U32,
    fingerprint: [u8; 32],
    group: U32,
    slots: U32,
    block_bytes: U64,
    rest: [u8; 60],
    checksum: U32,
}

/// What a slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Record {
    magic: [u8; 2],
    version: u8,
    state: u8,
    /// Counts the blocks that the slot has held.
    pub(super) generation: U32,
    pub(super) hash: BlockHash,
    /// The block before it in its chain; zeros for the first.
    parent: BlockHash,
    fingerprint: [u8; 32],
    bytes: U64,
    /// Whose quota it counts against.
    tenant: U64,
    /// CRC-32C of the block's bytes.
    pub(super) body: U32,
    checksum: U32,
}

const _: () = assert!(size_of::<Format>() == 64);
const _: () = assert!(size_of::<Header>() == 128);
const _: () = assert!(size_of::<Record>() == 128);

const EMPTY: u8 = 1;
const SEALED: u8 = 2;

/// Something whose checksum is not that of its content, or that contradicts itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Damaged;

/// What a record says of its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// It is free, and has held so many blocks.
    Empty { generation: u32 },
    /// It holds this block.
    Sealed(Record),
}

/// How an extent is cut into slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) block_bytes: u64,
    pub(super) slots: u32,
}

impl Cut {
    /// For an extent of at most so many bytes. `None`: not one block fits.
    pub(super) fn new(block_bytes: u64, extent_bytes: u64) -> Option<Self> {
        let slot_bytes = block_bytes.checked_next_multiple_of(ALIGN)?;
        let most = extent_bytes.checked_sub(ALIGN)? / slot_bytes.checked_add(RECORD_BYTES)?;
        let mut slots = u32::try_from(most.min(1 << SLOT_BITS)).ok()?;
        while slots > 0 && (Self { block_bytes, slots }).file_bytes() > extent_bytes {
            slots -= 1;
        }
        (slots > 0).then_some(Self { block_bytes, slots })
    }

    /// A block, and what is left of its last page.
    pub(super) const fn slot_bytes(self) -> u64 {
        self.block_bytes.next_multiple_of(ALIGN)
    }

    /// Where a slot's record is.
    pub(super) const fn record(slot: u32) -> u64 {
        ALIGN + slot as u64 * RECORD_BYTES
    }

    /// Where a slot's bytes are.
    pub(super) const fn body(self, slot: u32) -> u64 {
        Self::record(self.slots).next_multiple_of(ALIGN) + slot as u64 * self.slot_bytes()
    }

    /// Of the whole file.
    pub(super) const fn file_bytes(self) -> u64 {
        self.body(self.slots)
    }

    /// What the file takes of the disk at most: file systems note where its pieces lie, and each slot that is written by
    /// itself may become a piece of its own (ext4: 12 bytes each, a page of 340 at a time).
    pub(super) fn room(self) -> u64 {
        let pieces = 2 * u64::from(self.slots) + 2 * (self.body(0) / ALIGN);
        self.file_bytes() + ALIGN * (2 + pieces.div_ceil(170))
    }
}

impl Format {
    pub(super) fn new() -> Self {
        let mut format = Self {
            magic: DIRECTORY_MAGIC,
            version: U32::new(VERSION),
            align: U32::new(u32::try_from(ALIGN).unwrap_or(0)),
            rest: [0; 44],
            checksum: U32::new(0),
        };
        format.checksum = U32::new(crc32c::crc32c(&format.as_bytes()[..60]));
        format
    }

    /// The version that these bytes tell of.
    pub(super) fn version(bytes: &[u8]) -> Result<u32, Damaged> {
        let (format, _) = Self::read_from_prefix(bytes).map_err(|_| Damaged)?;
        let sum = crc32c::crc32c(&format.as_bytes()[..60]);
        // Of another version only these three places are known.
        let is_whole = format.magic == DIRECTORY_MAGIC && format.checksum.get() == sum;
        let is_ours = format.version.get() != VERSION || u64::from(format.align.get()) == ALIGN;
        (is_whole && is_ours).then_some(format.version.get()).ok_or(Damaged)
    }
}

impl Header {
    pub(super) fn new(number: u32, (fingerprint, group): (Fingerprint, u32), cut: Cut) -> Self {
        let mut header = Self {
            magic: EXTENT_MAGIC,
            version: U32::new(VERSION),
            number: U32::new(number),
            fingerprint: fingerprint.0,
            group: U32::new(group),
            slots: U32::new(cut.slots),
            block_bytes: U64::new(cut.block_bytes),
            rest: [0; 60],
            checksum: U32::new(0),
        };
        header.checksum = U32::new(crc32c::crc32c(&header.as_bytes()[..124]));
        header
    }

    /// The header of the extent of this number and length.
    pub(super) fn parse(bytes: &[u8], number: u32, file_bytes: u64) -> Result<Self, Damaged> {
        let (header, _) = Self::read_from_prefix(bytes).map_err(|_| Damaged)?;
        let (slots, block_bytes) = (header.slots.get(), header.block_bytes.get());
        let is_whole = header.magic == EXTENT_MAGIC
            && header.version.get() == VERSION
            && header.checksum.get() == crc32c::crc32c(&header.as_bytes()[..124]);
        let is_here = header.number.get() == number
            && (1..=1 << SLOT_BITS).contains(&slots)
            && (1..=file_bytes).contains(&block_bytes);
        // Of so many bytes there are not more slots than these; nothing below can overflow.
        let fits = is_here && u64::from(slots) <= file_bytes / block_bytes && header.cut().file_bytes() <= file_bytes;
        (is_whole && fits).then_some(header).ok_or(Damaged)
    }

    pub(super) const fn number(&self) -> u32 {
        self.number.get()
    }

    pub(super) fn class(&self) -> (Fingerprint, u32, u64) {
        (Fingerprint(self.fingerprint), self.group.get(), self.block_bytes.get())
    }

    pub(super) fn cut(&self) -> Cut {
        Cut { block_bytes: self.block_bytes.get(), slots: self.slots.get() }
    }

    /// A record of a block of this extent.
    pub(super) fn sealed(
        &self,
        hash: BlockHash,
        parent: Option<BlockHash>,
        tenant: Tenant,
        (body, generation): (u32, u32),
    ) -> Record {
        let record = Record {
            magic: RECORD_MAGIC,
            version: 1,
            state: SEALED,
            generation: U32::new(generation),
            hash,
            parent: parent.unwrap_or_default(),
            fingerprint: self.fingerprint,
            bytes: self.block_bytes,
            tenant: U64::new(tenant.0),
            body: U32::new(body),
            checksum: U32::new(0),
        };
        self.signed(record)
    }

    /// A record that says that its slot is free.
    pub(super) fn empty(&self, generation: u32) -> Record {
        let mut record = self.sealed(BlockHash::default(), None, Tenant(0), (0, generation));
        record.state = EMPTY;
        self.signed(record)
    }

    fn signed(&self, mut record: Record) -> Record {
        record.checksum = U32::new(self.sum(&record));
        record
    }

    fn sum(&self, record: &Record) -> u32 {
        crc32c::crc32c_append(self.checksum.get(), &record.as_bytes()[..124])
    }

    /// What the record in these bytes says.
    pub(super) fn read(&self, bytes: &[u8]) -> Result<Said, Damaged> {
        let record = Record::read_from_bytes(bytes).map_err(|_| Damaged)?;
        // Never written since the file was made.
        if record.magic == [0; 2] && bytes.iter().all(|&byte| byte == 0) {
            return Ok(Said::Empty { generation: 0 });
        }
        let is_ours = record.magic == RECORD_MAGIC
            && record.version == 1
            && record.checksum.get() == self.sum(&record)
            && record.fingerprint == self.fingerprint
            && record.bytes == self.block_bytes;
        match record.state {
            SEALED if is_ours => Ok(Said::Sealed(record)),
            EMPTY if is_ours => Ok(Said::Empty { generation: record.generation.get() }),
            _ => Err(Damaged),
        }
    }
}

impl Record {
    pub(super) fn parent(&self) -> Option<BlockHash> {
        (self.parent != BlockHash::default()).then_some(self.parent)
    }

    pub(super) const fn tenant(&self) -> Tenant {
        Tenant(self.tenant.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CUT: Cut = Cut { block_bytes: 737_280, slots: 300 };

    fn header() -> Header {
        Header::new(7, (Fingerprint([3; 32]), 2), CUT)
    }

    fn record() -> Record {
        header().sealed([1; 32], Some([2; 32]), Tenant(0x1122_3344_5566_7788), (0xe306_9283, 9))
    }

    #[test]
    fn nothing_overlaps_and_nothing_sticks_out() {
        for extent_bytes in [16_384, 1 << 20, 12_345_678, 256 << 20, 1 << 34] {
            for block_bytes in [1, 4096, 5000, 65_536, 737_280, 3 << 20] {
                let Some(cut) = Cut::new(block_bytes, extent_bytes) else {
                    assert!(extent_bytes < block_bytes + 4 * ALIGN, "{extent_bytes} {block_bytes}");
                    continue;
                };
                assert!(Cut::record(cut.slots) <= cut.body(0) && cut.body(0) % ALIGN == 0);
                assert!(cut.body(1) - cut.body(0) >= block_bytes && cut.slot_bytes() % ALIGN == 0);
                assert!(cut.body(cut.slots - 1) + block_bytes <= cut.file_bytes());
                assert!(cut.file_bytes() <= extent_bytes);
                let one_more = Cut { slots: cut.slots + 1, ..cut };
                assert!(one_more.file_bytes() > extent_bytes || cut.slots == 1 << SLOT_BITS);
            }
        }
        assert_eq!(Cut::new(u64::MAX, u64::MAX), None);
        assert_eq!(Cut::new(1, 4095), None);
    }

    #[test]
    fn every_changed_bit_is_seen() {
        let (header, record) = (header(), record());
        let file_bytes = CUT.file_bytes();
        assert_eq!(Header::parse(header.as_bytes(), 7, file_bytes), Ok(header));
        assert_eq!(header.read(record.as_bytes()), Ok(Said::Sealed(record)));
        let empty = header.empty(9);
        assert_eq!(header.read(empty.as_bytes()), Ok(Said::Empty { generation: 9 }));
        assert_eq!(header.read(&[0; 128]), Ok(Said::Empty { generation: 0 }));
        let format = Format::new();
        assert_eq!(Format::version(format.as_bytes()), Ok(VERSION));
        for bit in 0..128 * 8 {
            let flip = |bytes: &[u8]| {
                let mut changed = bytes.to_vec();
                changed[bit / 8] ^= 1 << (bit % 8);
                changed
            };
            assert_eq!(Header::parse(&flip(header.as_bytes()), 7, file_bytes), Err(Damaged), "bit {bit}");
            assert_eq!(header.read(&flip(record.as_bytes())), Err(Damaged), "bit {bit}");
            assert_eq!(header.read(&flip(empty.as_bytes())), Err(Damaged), "bit {bit}");
            assert_eq!(header.read(&flip(&[0; 128])), Err(Damaged), "bit {bit}");
            if bit < 64 * 8 {
                assert_eq!(Format::version(&flip(format.as_bytes())), Err(Damaged), "bit {bit}");
            }
        }
    }

    #[test]
    fn a_header_or_a_record_of_another_file_counts_for_nothing() {
        let header = header();
        assert_eq!(Header::parse(header.as_bytes(), 8, CUT.file_bytes()), Err(Damaged));
        assert_eq!(Header::parse(header.as_bytes(), 7, CUT.file_bytes() - 1), Err(Damaged), "cut off");
        assert_eq!(Header::parse(&[], 7, CUT.file_bytes()), Err(Damaged));
        for other in [
            Header::new(8, (Fingerprint([3; 32]), 2), CUT),
            Header::new(7, (Fingerprint([4; 32]), 2), CUT),
            Header::new(7, (Fingerprint([3; 32]), 1), CUT),
            Header::new(7, (Fingerprint([3; 32]), 2), Cut { block_bytes: 737_279, ..CUT }),
        ] {
            assert_eq!(other.read(record().as_bytes()), Err(Damaged));
        }
        // Sizes that would overflow, with a checksum that is right.
        for (block_bytes, slots) in [(u64::MAX, 1), (u64::MAX / 2, 1 << 20), (1, 0), (0, 1), (1, u32::MAX)] {
            let absurd = Header::new(7, (Fingerprint([3; 32]), 2), Cut { block_bytes, slots });
            assert_eq!(Header::parse(absurd.as_bytes(), 7, u64::MAX >> 1), Err(Damaged), "{block_bytes} {slots}");
        }
    }

    /// What is on the disk after an update must be understood, or refused: these bytes never change within a version.
    #[test]
    fn the_format_is_what_it_was() {
        let (format, header, record) = (Format::new(), header(), record());
        assert_eq!(&format.as_bytes()[..16], b"KVFSHELF\x01\0\0\0\0\x10\0\0");
        assert_eq!(&header.as_bytes()[..16], b"KVFEXTNT\x01\0\0\0\x07\0\0\0");
        assert_eq!(&record.as_bytes()[..9], b"KB\x01\x02\x09\0\0\0\x01");
        // Of all that stands before them.
        let sums = [format.checksum, header.checksum, record.checksum, header.empty(9).checksum].map(U32::get);
        assert_eq!(sums, [1_229_204_124, 211_986_068, 659_296_987, 1_786_287_337]);
        assert_eq!((CUT.body(0), CUT.body(1), Cut::record(5)), (45_056, 782_336, 4736));
    }
}
