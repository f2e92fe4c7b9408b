//! Copies between regions that are looked at twice.
//!
//! ```text
//! pieces -> parts of 16 KiB -> copy -> second look, while all is in the first-level cache -> next part
//!    Cached    ordinary stores          target against source, byte for byte
//!    Streamed  non-temporal stores      sum of the source against the sum of what was stored
//! ```
//!
//! A copy on one node has no wire that could damage bytes: the instruction that stores them is the wire. What can go
//! wrong is that somebody writes while we read. A torn mixture of old and new bytes has the same sum on both sides, so
//! no look at the target finds it; a second look at the source does, if the write falls between the two looks. Both kinds
//! of copy look at the source again, and `Cached` at the target too. What keeps a source unchanged for longer than that is its
//! lease (docs/adr/0014).
//!
//! Why not sum, copy, sum: three passes where one and a look into the first-level cache do.

use std::arch::asm;
use std::ptr;

use thiserror::Error;

use crate::{OutOfBounds, RawSlice, Region};

/// Bytes between the two looks: source and target of a part stay in a first-level cache of 48 KiB. Measured against 4,
/// 64 and 256 KiB (docs/adr/0014).
const PART: usize = 16 << 10;

/// Shorter pieces are not streamed: their end costs more than their stores save.
const STREAMED_PIECE_MIN: usize = 1024;

/// Bytes that lie together on both sides of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// First byte in the source region.
    pub source: u64,
    /// First byte in the target region.
    pub target: u64,
    /// Number of bytes.
    pub length: u64,
}

/// How a copy stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stores {
    /// Through the cache, where whoever reads the target next may find it.
    Cached,
    /// Past the cache, where CPU and pieces allow; as `Cached` where they do not.
    Streamed,
}

/// Why a verified copy stopped. The target is partly written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CopyError {
    /// The second look found other bytes than the first.
    #[error("the bytes changed while they were copied")]
    Changed,
    /// A piece is not inside its region; nothing of that piece was touched.
    #[error(transparent)]
    OutOfBounds(#[from] OutOfBounds),
}

impl Region {
    /// Copies pieces of `source`, which may be this very region as long as no piece is read that another has written,
    /// and looks at all of them twice.
    ///
    /// # Errors
    ///
    /// If a piece is not inside its region, or bytes changed between the two looks.
    pub fn copy_verified(&self, source: &Self, pieces: &[Piece], stores: Stores) -> Result<(), CopyError> {
        let mut pieces = pieces.iter();
        let mut next = pieces.next().map(|piece| sides(self, source, piece)).transpose()?;
        while let Some((to, from)) = next {
            next = pieces.next().map(|piece| sides(self, source, piece)).transpose()?;
            let then = next.map_or(ptr::null(), |(_, from)| from.as_mut_ptr().cast_const());
            // SAFETY: both ranges are inside live mappings that `self` and `source` keep for the length of this call.
            let is_same = unsafe { copy_piece(to, from, then, stores, || {}) };
            if !is_same {
                return Err(CopyError::Changed);
            }
        }
        #[cfg(target_arch = "x86_64")]
        if stores == Stores::Streamed {
            crate::stream::settle();
        }
        Ok(())
    }
}

impl Region {
    /// Copies pieces of `source`, another region, and returns the CRC-32C of the bytes that were stored, one piece after
    /// the other: the sum that their target holds, whatever the source holds by then.
    ///
    /// # Errors
    ///
    /// If a piece is not inside its region; those before it were copied.
    pub fn copy_summed(&self, source: &Self, pieces: &[Piece], stores: Stores) -> Result<u32, OutOfBounds> {
        let mut sum = 0;
        let mut pieces = pieces.iter();
        let mut next = pieces.next().map(|piece| sides(self, source, piece)).transpose()?;
        while let Some((to, from)) = next {
            next = pieces.next().map(|piece| sides(self, source, piece)).transpose()?;
            let then = next.map_or(ptr::null(), |(_, from)| from.as_mut_ptr().cast_const());
            // SAFETY: both ranges are inside live mappings that `self` and `source` keep for the length of this call.
            sum = unsafe { sum_piece(sum, to, from, then, stores) };
        }
        #[cfg(target_arch = "x86_64")]
        if stores == Stores::Streamed {
            crate::stream::settle();
        }
        Ok(sum)
    }
}

/// Copies one piece and sums what it stored, going on from `seed`.
///
/// # Safety
///
/// Both slices, of one length, are mapped for the whole call.
unsafe fn sum_piece(seed: u32, to: RawSlice, from: RawSlice, then: *const u8, stores: Stores) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if streams(to, stores) {
        let ahead = crate::stream::Ahead { together: from.len(), then };
        // SAFETY: the caller vouches for the ranges, `streams` for CPU, alignment and length.
        return unsafe { crate::stream::copy(seed, from.as_mut_ptr(), to.as_mut_ptr(), from.len(), ahead) };
    }
    let _ = then;
    let (mut sum, mut done) = (seed, 0);
    while done < from.len() {
        let length = PART.min(from.len() - done);
        // SAFETY: `done` and `length` end inside both slices. Another process or thread may write either meanwhile; bytes
        // have no invalid values. What was stored is summed while it is in the cache.
        unsafe {
            let target = to.as_mut_ptr().add(done);
            ptr::copy(from.as_mut_ptr().cast_const().add(done), target, length);
            sum = crate::sum::crc32c(sum, target, length, ptr::null());
        }
        done += length;
    }
    sum
}

/// Both ranges of a piece; target first.
fn sides(target: &Region, source: &Region, piece: &Piece) -> Result<(RawSlice, RawSlice), OutOfBounds> {
    Ok((target.io_slice(piece.target, piece.length)?, source.io_slice(piece.source, piece.length)?))
}

/// Copies one piece part by part and says whether every part was the same at the second look. `between` runs between the
/// two looks, for tests that change bytes there.
///
/// # Safety
///
/// Both slices, of one length, are mapped for the whole call.
unsafe fn copy_piece(to: RawSlice, from: RawSlice, then: *const u8, stores: Stores, mut between: impl FnMut()) -> bool {
    let is_streamed = streams(to, stores);
    let mut done = 0;
    while done < from.len() {
        let length = PART.min(from.len() - done);
        // SAFETY: `done` and `length` end inside both slices. Another process or thread may write either meanwhile; bytes
        // have no invalid values, so the worst outcome is a mixture of old and new.
        let is_same = unsafe {
            let source = from.as_mut_ptr().cast_const().add(done);
            let target = to.as_mut_ptr().add(done);
            if is_streamed {
                stream_part(target, source, length, from.len() - done, then, &mut between)
            } else {
                ptr::copy(source, target, length);
                between();
                look_again();
                is_same(target, source, length)
            }
        };
        if !is_same {
            return false;
        }
        done += length;
    }
    true
}

/// Whether this piece can be stored past the cache, and shall be.
fn streams(to: RawSlice, stores: Stores) -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        // The last part may be short; a multiple of the step leaves none shorter than a step.
        let fits = to.len() >= STREAMED_PIECE_MIN
            && to.len().is_multiple_of(crate::fold::STEP)
            && to.as_mut_ptr().addr().is_multiple_of(crate::stream::LINE);
        stores == Stores::Streamed && fits && crate::fold::is_here()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (to, stores);
        false
    }
}

/// Copies a part past the cache; says whether the source had the same sum at the second look.
///
/// # Safety
///
/// As for `copy_piece`, and [`streams`] said yes.
unsafe fn stream_part(
    target: *mut u8,
    source: *const u8,
    length: usize,
    together: usize,
    then: *const u8,
    between: &mut impl FnMut(),
) -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        let ahead = crate::stream::Ahead { together, then };
        // SAFETY: the caller vouches for the ranges, `streams` for CPU, alignment and length.
        let stored = unsafe { crate::stream::copy(0, source, target, length, ahead) };
        between();
        look_again();
        // SAFETY: as above.
        stored == unsafe { crate::sum::crc32c(0, source, length, ptr::null()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (target, source, length, together, then, between);
        false
    }
}

/// Makes the compiler forget what it knows of the bytes: without it, it might take the second look for the first.
fn look_again() {
    // SAFETY: no instruction; it counts as one that may have written any memory.
    unsafe { asm!("", options(nostack, preserves_flags)) };
}

/// Whether both ranges hold the same bytes.
///
/// # Safety
///
/// `length` bytes are mapped at both for the whole call. Others may write them meanwhile.
unsafe fn is_same(one: *const u8, other: *const u8, length: usize) -> bool {
    const WORDS: usize = 16;
    // All differences are gathered before they are judged: without a branch the loop becomes wide instructions.
    let mut difference = 0_u64;
    let mut place = 0;
    while length - place >= 8 * WORDS {
        for word in 0..WORDS {
            // SAFETY: inside both ranges; the words need not be aligned.
            unsafe {
                let one = one.add(place + 8 * word).cast::<u64>().read_unaligned();
                let other = other.add(place + 8 * word).cast::<u64>().read_unaligned();
                difference |= one ^ other;
            }
        }
        place += 8 * WORDS;
    }
    while place < length {
        // SAFETY: inside both ranges.
        difference |= unsafe { u64::from(one.add(place).read() ^ other.add(place).read()) };
        place += 1;
    }
    difference == 0
}

#[cfg(test)]
mod tests;
