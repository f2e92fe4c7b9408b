//! The shared memory behind both rings, and the only unsafe code of this crate.
//!
//! ```text
//! memfd, sealed -> check -> mmap -> Lane (submissions), Lane (completions) ... last drop -> munmap
//! page 0: the words of both lanes, each on cache lines of its own; then the bytes of one lane, then of the other
//! ```
//!
//! No Rust reference to the bytes exists: they are copied in and out by address, as regions are, because another
//! process writes them at any time. The words are atomics, which may be shared.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use rustix::fs::{MemfdFlags, OFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};
use thiserror::Error;

/// One page for the words of both lanes.
const WORDS_BYTES: usize = 4096;
/// Two cache lines: processors fetch them in pairs.
const WORD_STRIDE: usize = 128;
const WORDS_OF_A_LANE: usize = 3;

/// Why a memfd cannot hold rings.
#[derive(Debug, Error)]
pub enum RingError {
    /// A ring's length is a power of two within limits.
    #[error("a ring of {0} bytes: a power of two from 4096 to 1048576 is needed")]
    Length(u64),
    /// It could change its length under the mapping.
    #[error("the ring's memory is not a memfd sealed against shrinking, growing and other seals")]
    Unsealed,
    /// It is not of the length that was told.
    #[error("the ring's memory has {found} bytes, not {expected}")]
    Size {
        /// What it has.
        found: u64,
        /// What was told.
        expected: u64,
    },
    /// The operating system refused.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl From<rustix::io::Errno> for RingError {
    fn from(errno: rustix::io::Errno) -> Self {
        Self::Io(errno.into())
    }
}

/// A mapping of both rings, for as long as one lane of it lives.
struct Mapping {
    base: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping belongs to the process and not to a thread, and is unmapped once, by the drop of its last owner.
unsafe impl Send for Mapping {}
// SAFETY: what is shared are atomics, and bytes that are copied by address; racing copies mix bytes, and bytes have no
// invalid values. No reference to them exists.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: base and length are those of the mapping made by `lanes`, and this is the last owner: every lane keeps
        // the Arc. A mapping of our own cannot fail to unmap.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.length) };
    }
}

/// The words and bytes of one direction.
#[derive(Clone)]
pub(crate) struct Lane {
    mapping: Arc<Mapping>,
    /// The first of its words, counted from the mapping's start.
    words: usize,
    /// The first of its bytes, counted likewise.
    bytes: usize,
    /// A power of two.
    capacity: u32,
}

impl Lane {
    pub(crate) const fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Where the producer is.
    pub(crate) fn tail(&self) -> &AtomicU32 {
        self.word(0)
    }

    /// Where the consumer is.
    pub(crate) fn head(&self) -> &AtomicU32 {
        self.word(1)
    }

    /// Not 0 while the consumer wants to be woken; the word that it sleeps on.
    pub(crate) fn asleep(&self) -> &AtomicU32 {
        self.word(2)
    }

    fn word(&self, number: usize) -> &AtomicU32 {
        let at = self.words + number * WORD_STRIDE;
        assert!(number < WORDS_OF_A_LANE && at + size_of::<AtomicU32>() <= WORDS_BYTES, "a word of this lane");
        // SAFETY: the words lie in the first page of a live mapping, whose length cannot change (seals); `at` is a
        // multiple of 128, so aligned. Both processes touch them as atomics only, any value is valid, and the reference
        // cannot outlive `self`, which keeps the mapping.
        unsafe { self.mapping.base.add(at).cast::<AtomicU32>().as_ref() }
    }

    /// Copies `source` to `index`, wrapping at the end. It is at most as long as the capacity.
    pub(crate) fn copy_in(&self, index: u32, source: &[u8]) {
        let (at, first) = self.split(index, source.len());
        let (front, back) = source.split_at(first);
        // SAFETY: `split` has checked that `at + first` and `back.len()` are inside this lane's bytes, which are inside
        // the live mapping. `source` is memory of ours and no mapped byte: no reference to those exists. The other
        // process may read or write meanwhile, which mixes bytes.
        unsafe {
            ptr::copy_nonoverlapping(front.as_ptr(), self.mapping.base.add(self.bytes + at).as_ptr(), front.len());
            ptr::copy_nonoverlapping(back.as_ptr(), self.mapping.base.add(self.bytes).as_ptr(), back.len());
        }
    }

    /// Copies from `index` into `target`, wrapping at the end. It is at most as long as the capacity.
    pub(crate) fn copy_out(&self, index: u32, target: &mut [u8]) {
        let (at, first) = self.split(index, target.len());
        let (front, back) = target.split_at_mut(first);
        // SAFETY: as for `copy_in`; the targets are unique references to memory of ours.
        unsafe {
            ptr::copy_nonoverlapping(self.mapping.base.add(self.bytes + at).as_ptr(), front.as_mut_ptr(), front.len());
            ptr::copy_nonoverlapping(self.mapping.base.add(self.bytes).as_ptr(), back.as_mut_ptr(), back.len());
        }
    }

    /// Where an index lies, and how many of `length` bytes lie before the end. The rest lies at the start.
    fn split(&self, index: u32, length: usize) -> (usize, usize) {
        let capacity = self.capacity as usize;
        let at = (index & (self.capacity - 1)) as usize;
        assert!(length <= capacity && at < capacity, "a copy of at most one round");
        (at, length.min(capacity - at))
    }
}

fn file_bytes(ring_bytes: u32) -> u64 {
    WORDS_BYTES as u64 + 2 * u64::from(ring_bytes)
}

/// A sealed memfd for two rings of `ring_bytes` each.
pub(super) fn memfd(ring_bytes: u32) -> Result<OwnedFd, RingError> {
    let fd = rustix::fs::memfd_create("kvferry-ring", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&fd, file_bytes(ring_bytes))?;
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(fd)
}

/// Maps a memfd made by [`memfd`], wherever that was: the lanes of submissions and of completions.
pub(super) fn lanes(fd: impl AsFd, ring_bytes: u32) -> Result<(Lane, Lane), RingError> {
    let demanded = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    let seals = rustix::fs::fcntl_get_seals(&fd).map_err(|_| RingError::Unsealed)?;
    if !seals.contains(demanded) || seals.intersects(SealFlags::WRITE | SealFlags::FUTURE_WRITE) {
        return Err(RingError::Unsealed);
    }
    // Final, because of the seals.
    let found = u64::try_from(rustix::fs::fstat(&fd)?.st_size).unwrap_or_default();
    let expected = file_bytes(ring_bytes);
    if found != expected {
        return Err(RingError::Size { found, expected });
    }
    if rustix::fs::fcntl_getfl(&fd)? & OFlags::RWMODE != OFlags::RDWR {
        return Err(RingError::Io(io::Error::new(io::ErrorKind::PermissionDenied, "the ring's memory is read-only")));
    }
    let length = usize::try_from(expected).map_err(io::Error::other)?;
    // SAFETY: a new mapping at an address of the kernel's choice overlays nothing of ours. Its file cannot shrink.
    let base = unsafe {
        rustix::mm::mmap(ptr::null_mut(), length, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, &fd, 0)
    }?;
    let base = NonNull::new(base.cast::<u8>()).ok_or(RingError::Unsealed)?;
    let mapping = Arc::new(Mapping { base, length });
    let lane = |number: usize| Lane {
        mapping: Arc::clone(&mapping),
        words: number * WORDS_OF_A_LANE * WORD_STRIDE,
        bytes: WORDS_BYTES + number * ring_bytes as usize,
        capacity: ring_bytes,
    };
    Ok((lane(0), lane(1)))
}
