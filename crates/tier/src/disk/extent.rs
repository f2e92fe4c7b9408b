//! One file of blocks, and what its slots hold.
//!
//! Memory: [`Slot`] and two bits for each slot, whether it is taken or not.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, StatxFlags};
use rustix::io::Errno;
use zerocopy::IntoBytes as _;

use super::directory::{read_all, write_all};
use super::format::{ALIGN, Cut, Damaged, Header, RECORD_BYTES, Record, Said};
use crate::store::{BlockHash, ClassId};

/// Records are read so many bytes at a time.
const TABLE_READ_BYTES: usize = 1 << 20;

/// A file of blocks, open past the page cache. Whoever has work in flight on it holds it, and with it its lock: so that
/// no other daemon has the file while the disk still writes for this one.
#[derive(Debug)]
pub(super) struct File {
    fd: OwnedFd,
    /// Memory that the disk reads and writes by itself begins on a multiple of this.
    pub(super) memory_align: u64,
}

/// A block's place: an extent of this store's list and a slot of it, in one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub(super) extent: u16,
    pub(super) slot: u32,
}

/// What memory keeps of a slot.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Slot {
    pub(super) hash: BlockHash,
    /// CRC-32C of the block's bytes.
    pub(super) body: u32,
    pub(super) generation: u32,
}

pub(super) struct Extent {
    pub(super) class: ClassId,
    pub(super) number: u32,
    /// What it counts as.
    pub(super) room: u64,
    pub(super) file: Arc<File>,
    /// The same file through the page cache, for records.
    pub(super) records: OwnedFd,
    header: Header,
    pub(super) cut: Cut,
    slots: Box<[Slot]>,
    /// Slots that wait for bytes, hold a block, or cannot be used; and those that hold one.
    taken: Bits,
    sealed: Bits,
    pub(super) taken_count: u32,
    sealed_count: u32,
    /// Blocks that somebody holds.
    pub(super) held_count: u32,
    /// The directory has it no more: what it still holds is this daemon's alone.
    pub(super) is_unlinked: bool,
}

impl File {
    pub(super) fn new(fd: OwnedFd) -> Result<Self, Errno> {
        let stat = rustix::fs::statx(&fd, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)?;
        let is_known = stat.stx_mask & StatxFlags::DIOALIGN.bits() != 0;
        let memory_align = if is_known { u64::from(stat.stx_dio_mem_align) } else { ALIGN };
        let offset_align = if is_known { u64::from(stat.stx_dio_offset_align) } else { ALIGN };
        if memory_align == 0 || offset_align == 0 || !ALIGN.is_multiple_of(offset_align) {
            return Err(Errno::OPNOTSUPP);
        }
        Ok(Self { fd, memory_align })
    }
}

impl AsFd for File {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Place {
    /// As the index keeps it: 4 bytes a block.
    pub(super) const fn to_u32(self) -> u32 {
        (self.extent as u32) << super::format::SLOT_BITS | self.slot
    }

    #[expect(clippy::cast_possible_truncation, reason = "what is left of 32 bits")]
    pub(super) const fn from_u32(number: u32) -> Self {
        let bits = super::format::SLOT_BITS;
        Self { extent: (number >> bits) as u16, slot: number & ((1 << bits) - 1) }
    }
}

impl Extent {
    /// An extent with nothing in it yet, as far as memory knows.
    pub(super) fn new(class: ClassId, room: u64, (file, records): (File, OwnedFd), header: Header) -> Self {
        let cut = header.cut();
        let count = cut.slots as usize;
        Self {
            class,
            number: header.number(),
            room,
            file: Arc::new(file),
            records,
            header,
            cut,
            slots: vec![Slot::default(); count].into_boxed_slice(),
            taken: Bits::new(count),
            sealed: Bits::new(count),
            taken_count: 0,
            sealed_count: 0,
            held_count: 0,
            is_unlinked: false,
        }
    }

    pub(super) const fn is_full(&self) -> bool {
        self.taken_count == self.cut.slots
    }

    /// Whether it has blocks, and all of them may go.
    pub(super) const fn is_idle(&self) -> bool {
        self.taken_count > 0 && self.taken_count == self.sealed_count && self.held_count == 0
    }

    pub(super) fn slot(&self, slot: u32) -> Slot {
        self.slots[slot as usize]
    }

    /// Bytes of memory that the slots take.
    pub(super) fn memory_bytes(&self) -> usize {
        size_of_val(&*self.slots) + size_of_val(&*self.taken.words) + size_of_val(&*self.sealed.words)
    }

    /// Slots that hold a block.
    pub(super) fn sealed(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.cut.slots).filter(|&slot| self.sealed.get(slot))
    }

    pub(super) fn take(&mut self) -> Option<u32> {
        let slot = self.taken.first_unset().filter(|&slot| slot < self.cut.slots)?;
        self.count_taken(slot);
        let kept = &mut self.slots[slot as usize];
        kept.generation = kept.generation.wrapping_add(1);
        Some(slot)
    }

    /// Writes down that the slot holds a block. After an error nobody knows what is written there.
    pub(super) fn seal(&mut self, slot: u32, record: &Record) -> Result<(), Errno> {
        write_all(&self.records, record.as_bytes(), Cut::record(slot))?;
        self.remember(slot, record);
        Ok(())
    }

    fn remember(&mut self, slot: u32, record: &Record) {
        self.slots[slot as usize] =
            Slot { hash: record.hash, body: record.body.get(), generation: record.generation.get() };
        self.sealed_count += u32::from(!self.sealed.get(slot));
        self.sealed.set(slot, true);
    }

    /// The header that records of this extent are made with.
    pub(super) const fn header(&self) -> &Header {
        &self.header
    }

    /// The slot holds no block any more, for whoever reads the disk.
    pub(super) fn unseal(&self, slot: u32) -> Result<(), Errno> {
        if self.is_unlinked {
            return Ok(());
        }
        let generation = self.slots[slot as usize].generation;
        write_all(&self.records, self.header.empty(generation).as_bytes(), Cut::record(slot))
    }

    /// The slot holds no block any more, here.
    pub(super) fn forget(&mut self, slot: u32) {
        self.sealed_count -= u32::from(self.sealed.get(slot));
        self.sealed.set(slot, false);
        self.slots[slot as usize].hash = BlockHash::default();
    }

    /// The slot is free.
    pub(super) fn give(&mut self, slot: u32) {
        debug_assert!(self.taken.get(slot) && !self.sealed.get(slot), "given once, and unsealed before");
        self.taken.set(slot, false);
        self.taken_count -= 1;
    }

    /// Reads all records; returns how many were none: their slots are made room, on the disk as well.
    pub(super) fn recover(&mut self, is_read_only: bool) -> Result<u64, Errno> {
        let mut slots = Vec::new();
        self.scan(|_, said| slots.push(said))?;
        let mut damaged = 0;
        for (slot, said) in (0..).zip(slots) {
            match said {
                Ok(Said::Empty { generation }) => self.slots[slot as usize].generation = generation,
                Ok(Said::Sealed(record)) => {
                    self.count_taken(slot);
                    self.remember(slot, &record);
                }
                Err(Damaged) => {
                    damaged += 1;
                    // Where it cannot be said on the disk, the slot is not used: the record is found again at the next start.
                    if is_read_only || self.unseal(slot).is_err() {
                        self.count_taken(slot);
                    }
                }
            }
        }
        Ok(damaged)
    }

    fn count_taken(&mut self, slot: u32) {
        self.taken.set(slot, true);
        self.taken_count += 1;
    }

    /// What every slot's record says, in order.
    pub(super) fn scan(&self, mut each: impl FnMut(u32, Result<Said, Damaged>)) -> Result<(), Errno> {
        let record_bytes = usize::try_from(RECORD_BYTES).unwrap_or(1);
        let mut bytes = vec![0; TABLE_READ_BYTES.min(self.cut.slots as usize * record_bytes)];
        let mut slot = 0;
        while slot < self.cut.slots {
            let count = ((self.cut.slots - slot) as usize * record_bytes).min(bytes.len());
            let read = read_all(&self.records, &mut bytes[..count], Cut::record(slot))?;
            bytes[read..count].fill(0);
            for record in bytes[..count].chunks_exact(record_bytes) {
                each(slot, self.header.read(record));
                slot += 1;
            }
        }
        Ok(())
    }
}

/// A bit for each slot.
struct Bits {
    words: Box<[u64]>,
    /// No word before this one has an unset bit.
    first: usize,
}

impl Bits {
    fn new(count: usize) -> Self {
        Self { words: vec![0; count.div_ceil(64)].into_boxed_slice(), first: 0 }
    }

    fn get(&self, bit: u32) -> bool {
        self.words[bit as usize / 64] >> (bit % 64) & 1 == 1
    }

    fn set(&mut self, bit: u32, to: bool) {
        let word = bit as usize / 64;
        if to {
            self.words[word] |= 1 << (bit % 64);
        } else {
            self.words[word] &= !(1 << (bit % 64));
            self.first = self.first.min(word);
        }
    }

    fn first_unset(&mut self) -> Option<u32> {
        let word = (self.first..self.words.len()).find(|&word| self.words[word] != u64::MAX)?;
        self.first = word;
        u32::try_from(word * 64).ok().map(|bit| bit + self.words[word].trailing_ones())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_numbers() {
        for (extent, slot) in [(0, 0), (4095, (1 << 20) - 1), (17, 5)] {
            let place = Place { extent, slot };
            assert_eq!(Place::from_u32(place.to_u32()), place);
        }
    }

    #[test]
    fn the_first_bit_that_is_free_is_found() {
        let mut bits = Bits::new(130);
        for bit in 0..130 {
            assert_eq!(bits.first_unset(), Some(bit));
            bits.set(bit, true);
        }
        assert_eq!(bits.first_unset(), Some(130), "beyond the last slot");
        bits.set(70, false);
        bits.set(3, false);
        assert_eq!(bits.first_unset(), Some(3));
        bits.set(3, true);
        assert_eq!((bits.first_unset(), bits.get(3), bits.get(70)), (Some(70), true, false));
    }
}
