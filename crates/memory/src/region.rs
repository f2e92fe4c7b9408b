//! One range of mapped memory, shared with an engine or kept for the next daemon.

use std::fmt;
use std::os::fd::OwnedFd;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use kvferry_core::plan::Slice;
use rustix::fs::{FileType, OFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::keep::HUGETLBFS_MAGIC;
use crate::{MapError, Meter, OutOfBounds, sum};

/// The longest region, 16 TiB: more than any host has, less than an address space, so that sums cannot overflow.
pub const REGION_BYTES_MAX: u64 = 1 << 44;

/// A memfd, or a file in memory ([`Region::keep`]), mapped for reading and writing; unmapped on the last drop of its
/// [`Arc`].
///
/// Every access is checked against the bounds. The bytes may change at any moment, because an engine writes them from
/// another process: nothing here may be believed before a checksum and a lease vouch for it.
pub struct Region {
    /// The first byte; mapped for `length` bytes until the drop.
    base: NonNull<u8>,
    /// At least 1, at most [`REGION_BYTES_MAX`].
    length: usize,
    /// Which file it is: device and inode.
    file: (u64, u64),
    /// Told of the mapping and, on drop, of its end.
    meter: Meter,
    /// Keeps other daemons away from the file while it is mapped; an engine's memfd needs none.
    pub(crate) lock: Option<OwnedFd>,
}

/// A range of a region by address, laid out like the system's `iovec`, for `readv` and `writev`.
///
/// Valid while the region lives: whoever keeps one keeps the [`Arc<Region>`](Region) beside it. To make a Rust
/// reference of it, even briefly, is to promise that no engine writes there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct RawSlice {
    pointer: *mut u8,
    length: usize,
}

impl Region {
    /// Maps the first `bytes` bytes of a memfd. The fd is closed; the mapping keeps the memory.
    ///
    /// # Errors
    ///
    /// For anything that is not a writable memfd of at least that size, sealed against a change of its length: a file
    /// that shrinks under a mapping kills the process that touches it.
    #[expect(clippy::needless_pass_by_value, reason = "the mapping replaces the fd, so the fd is closed here")]
    pub fn map(fd: OwnedFd, bytes: u64, meter: &Meter) -> Result<Arc<Self>, MapError> {
        if bytes == 0 {
            return Err(MapError::Empty);
        }
        if bytes > REGION_BYTES_MAX {
            return Err(MapError::TooLarge { bytes });
        }
        let file = check_file(&fd, bytes)?;
        let mapped = Self::map_checked(&fd, bytes, file, meter);
        mapped.map(Arc::new).map_err(|(step, errno)| MapError::Io { step, errno })
    }

    /// Maps a file whose length does not change: what was tried in vain, and the system's answer, if that fails.
    pub(crate) fn map_checked(
        fd: &OwnedFd,
        bytes: u64,
        file: (u64, u64),
        meter: &Meter,
    ) -> Result<Self, (&'static str, Errno)> {
        let length = usize::try_from(bytes).map_err(|_| ("address so much memory", Errno::NOMEM))?;
        // SAFETY: a new mapping at an address of the kernel's choice overlays nothing of ours.
        let mapped = unsafe {
            rustix::mm::mmap(ptr::null_mut(), length, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, fd, 0)
        };
        let base = mapped
            .ok()
            .and_then(|pointer| NonNull::new(pointer.cast::<u8>()))
            .ok_or_else(|| ("map the file", mapped.err().unwrap_or(Errno::INVAL)))?;
        meter.add(bytes);
        let region = Self { base, length, file, meter: meter.clone(), lock: None };

        // KV cache is made of prompts: it has no place in a core dump.
        // SAFETY: the range is the mapping just made, and the advice changes no byte of it.
        unsafe { rustix::mm::madvise(base.as_ptr().cast(), length, Advice::LinuxDontDump) }
            .map_err(|errno| ("keep the file out of core dumps", errno))?;
        Ok(region)
    }

    /// Bytes mapped.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a region is never empty")]
    pub const fn len(&self) -> u64 {
        self.length as u64
    }

    /// Whether both are mappings of one file, so that the same offset is the same byte.
    #[must_use]
    pub fn shares_memory_with(&self, other: &Self) -> bool {
        self.file == other.file
    }

    /// Copies `length` bytes of `source`, which may be this very region, even overlapping.
    ///
    /// # Errors
    ///
    /// If either range is not inside its region; nothing is copied then.
    pub fn copy_from(&self, offset: u64, source: &Self, source_offset: u64, length: u64) -> Result<(), OutOfBounds> {
        let target = self.io_slice(offset, length)?;
        let source = source.io_slice(source_offset, length)?;
        // SAFETY: both ranges are inside live mappings that `self` and `source` keep for the length of this call, and
        // `copy` allows them to overlap. Another process or thread may write either meanwhile; bytes have no invalid
        // values, so the worst outcome is a mixture of old and new, which the checksum of the transfer must catch.
        unsafe { ptr::copy(source.pointer, target.pointer, target.length) };
        Ok(())
    }

    /// Copies `bytes` into the region.
    ///
    /// # Errors
    ///
    /// If they do not fit at `offset`; nothing is written then.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), OutOfBounds> {
        let target = self.io_slice(offset, bytes.len() as u64)?;
        // SAFETY: the target is inside the live mapping. `bytes` cannot overlap it: no reference to mapped bytes ever
        // leaves this room. A racing write mixes bytes, see `copy_from`.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), target.pointer, target.length) };
        Ok(())
    }

    /// Copies bytes out of the region.
    ///
    /// # Errors
    ///
    /// If `into` is longer than what lies behind `offset`; `into` is unchanged then.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), OutOfBounds> {
        let source = self.io_slice(offset, into.len() as u64)?;
        // SAFETY: the source is inside the live mapping, and `into`, being a unique reference, cannot overlap it. A
        // racing write mixes bytes, see `copy_from`.
        unsafe { ptr::copy_nonoverlapping(source.pointer, into.as_mut_ptr(), source.length) };
        Ok(())
    }

    /// The 8 bytes at `8 * word` as one number: never half of it, and with whatever the writer wrote before it.
    ///
    /// # Errors
    ///
    /// If they are not inside the region.
    pub fn load(&self, word: u64) -> Result<u64, OutOfBounds> {
        Ok(self.word(word)?.load(Ordering::Acquire))
    }

    /// Writes the 8 bytes at `8 * word` at once, after everything that this thread wrote into regions before, and before
    /// everything that it writes later.
    ///
    /// # Errors
    ///
    /// If they are not inside the region; nothing is written then.
    pub fn store(&self, word: u64, value: u64) -> Result<(), OutOfBounds> {
        #[cfg(target_arch = "x86_64")]
        crate::stream::settle();
        self.word(word)?.store(value, Ordering::Release);
        // Nor does anything that follows come before it.
        fence(Ordering::SeqCst);
        Ok(())
    }

    fn word(&self, word: u64) -> Result<&AtomicU64, OutOfBounds> {
        let offset = word.saturating_mul(8);
        let range = self.io_slice(offset, 8)?;
        // SAFETY: eight bytes inside the mapping, which `self` keeps for as long as the reference lives; a mapping begins
        // on a page, so a multiple of 8 behind it is aligned. Plain copies by other methods may race with it as they do
        // with the engine's own writes; every value of a u64 is valid.
        Ok(unsafe { AtomicU64::from_ptr(range.pointer.cast()) })
    }

    /// CRC-32C of a range, going on from `seed` (0 to begin, the last result to continue).
    ///
    /// # Errors
    ///
    /// If the range is not inside the region.
    pub fn crc32c(&self, seed: u32, offset: u64, length: u64) -> Result<u32, OutOfBounds> {
        let range = self.io_slice(offset, length)?;
        // SAFETY: the range is inside the live mapping, which `self` keeps for the length of this call. Another process
        // or thread may write it meanwhile: then the sum is one of mixed bytes, see `copy_from`.
        Ok(unsafe { sum::crc32c(seed, range.pointer, range.length, ptr::null()) })
    }

    /// CRC-32C of ranges in their order, going on from `seed`: the same number as [`crc32c`](Self::crc32c) of one after the
    /// other, and faster where they are scattered and not in the cache.
    ///
    /// # Errors
    ///
    /// If a range is not inside the region.
    pub fn crc32c_of(&self, seed: u32, slices: &[Slice]) -> Result<u32, OutOfBounds> {
        let mut sum = seed;
        if let Some(first) = slices.first() {
            let first = self.io_slice(first.offset, first.length)?;
            sum::ask_for_pages(first.pointer, first.length);
        }
        for (index, slice) in slices.iter().enumerate() {
            let range = self.io_slice(slice.offset, slice.length)?;
            let next = slices.get(index + 1).map(|next| self.io_slice(next.offset, next.length)).transpose()?;
            let next = next.map_or(ptr::null(), |next| {
                sum::ask_for_pages(next.pointer, next.length);
                next.pointer.cast_const()
            });
            // SAFETY: the range is inside the live mapping, which `self` keeps for the length of this call. Another
            // process or thread may write it meanwhile: then the sum is one of mixed bytes, see `copy_from`.
            sum = unsafe { sum::crc32c(sum, range.pointer, range.length, next) };
        }
        Ok(sum)
    }

    /// A range by address, for `iovec`s. Valid while this region lives.
    ///
    /// # Errors
    ///
    /// If the range is not inside the region.
    pub fn io_slice(&self, offset: u64, length: u64) -> Result<RawSlice, OutOfBounds> {
        let outside = OutOfBounds { offset, length, region_bytes: self.len() };
        if offset.checked_add(length).is_none_or(|end| end > self.len()) {
            return Err(outside);
        }
        let start = usize::try_from(offset).map_err(|_| outside)?;
        let length = usize::try_from(length).map_err(|_| outside)?;
        // SAFETY: `start` is at most `self.length`, so the pointer stays inside the mapping or one past its end.
        let pointer = unsafe { self.base.add(start) }.as_ptr();
        Ok(RawSlice { pointer, length })
    }
}

// SAFETY: the mapping belongs to the process and not to a thread, and is unmapped once, by the drop of the last owner.
unsafe impl Send for Region {}

// SAFETY: no method hands out a reference to the bytes that outlives its call; concurrent copies race only as they already do with the
// engine's own writes, and bytes have no invalid values.
unsafe impl Sync for Region {}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: base and length are those of the mapping made by `map`; this is the last owner, and raw slices are
        // documented to end with the region.
        let unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.length) };
        // A mapping of ours at its own address and length cannot fail to unmap; if it does, the meter keeps showing it.
        if unmapped.is_ok() {
            self.meter.subtract(self.len());
        }
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // No address: it would help whoever reads the log of an attacked daemon.
        f.debug_struct("Region").field("bytes", &self.length).finish_non_exhaustive()
    }
}

impl RawSlice {
    /// The first byte.
    #[must_use]
    pub const fn as_mut_ptr(self) -> *mut u8 {
        self.pointer
    }

    /// Bytes behind it.
    #[must_use]
    pub const fn len(self) -> usize {
        self.length
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.length == 0
    }
}

// SAFETY: it is an address and a number; to follow the address is unsafe in itself, wherever it happens.
unsafe impl Send for RawSlice {}

// SAFETY: as for Send; it has no interior to share.
unsafe impl Sync for RawSlice {}

/// Refuses what could bring a SIGBUS or could not be written; says which file it is.
fn check_file(fd: &OwnedFd, bytes: u64) -> Result<(u64, u64), MapError> {
    let step = |step: &'static str| move |errno: Errno| MapError::Io { step, errno };
    let stat = rustix::fs::fstat(fd).map_err(step("examine the file"))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(MapError::NotMemfd);
    }
    // Only files in memory have seals; any other answers EINVAL.
    let seals = match rustix::fs::fcntl_get_seals(fd) {
        Ok(seals) => seals,
        Err(Errno::INVAL) => return Err(MapError::NotMemfd),
        Err(errno) => return Err(MapError::Io { step: "read the file's seals", errno }),
    };
    if !seals.contains(SealFlags::SHRINK | SealFlags::GROW) {
        return Err(MapError::Unsealed);
    }
    // From here on the length is final, so looking at it again is not a race.
    let stat = rustix::fs::fstat(fd).map_err(step("examine the file"))?;
    let file_bytes = u64::try_from(stat.st_size).unwrap_or(0);
    if file_bytes < bytes {
        return Err(MapError::TooShort { bytes, file_bytes });
    }
    let flags = rustix::fs::fcntl_getfl(fd).map_err(step("read the file's flags"))?;
    let writable = flags & OFlags::RWMODE == OFlags::RDWR;
    if !writable || seals.intersects(SealFlags::WRITE | SealFlags::FUTURE_WRITE) {
        return Err(MapError::NotWritable);
    }
    let system = rustix::fs::fstatfs(fd).map_err(step("examine the file system"))?;
    if u64::try_from(system.f_type).is_ok_and(|kind| kind == HUGETLBFS_MAGIC) {
        return Err(MapError::HugePages);
    }
    Ok((stat.st_dev, stat.st_ino))
}
