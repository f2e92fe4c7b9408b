//! CRC-32C of memory by address, by the fastest way that this CPU has.
//!
//! ```text
//! address, length -> AVX-512 and VPCLMULQDQ: fold -> | crc
//!                 -> any other CPU: crate crc32c  -> |
//! ```
//!
//! All ways give the same number; which one runs is found at run time. Programs that run under valgrind take the second,
//! as valgrind shows them a CPU without AVX-512.

#[cfg(target_arch = "x86_64")]
use core::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};

/// CRC-32C of `length` bytes at `source`, going on from `seed` (0 to begin, the last result to continue). `next` says
/// where the sum will go on, null if that is not known: a hint, which is never read.
///
/// # Safety
///
/// `length` bytes at `source` are mapped for the whole call, and no more than `isize::MAX`. Others may write them
/// meanwhile; the result is then the sum of some mixture.
#[inline]
pub(crate) unsafe fn crc32c(seed: u32, source: *const u8, length: usize, next: *const u8) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if crate::fold::is_here() {
        // SAFETY: the CPU can, and the caller vouches for the range.
        return unsafe { crate::fold::crc32c(seed, source, length, next) };
    }
    // JUSTIFICATION: the crc crate takes a slice; copying through a window on the stack first, which needs none, sums
    // 19 GB/s where this sums 30 (256 KiB in the second-level cache, one Xeon core).
    // SAFETY: the range is mapped, aligned and initialised for `u8`, and this one call is all that sees the slice. An
    // engine in another process, or a copy of ours, may write the bytes meanwhile. The crate only loads bytes and folds
    // them into a number; it never branches on them, and its software path indexes tables of 256 by single bytes, so no
    // value can lead it astray. The worst outcome is a wrong checksum: a mismatch, a miss.
    let bytes = unsafe { std::slice::from_raw_parts(source, length) };
    crc32c::crc32c_append(seed, bytes)
}

/// How much of a range [`ask_for_pages`] asks for. Chosen: what a loop over a longer range reads later, the CPU has
/// found out about by itself.
const PAGES_BYTES_MAX: usize = 64 << 10;

/// Asks for one line of each page of a range that is summed soon, so that the translation of its addresses is there when
/// the sum comes to them. A hint: it never faults, and no byte is read. Scattered blocks of 16 KiB are summed 17 % faster
/// from memory by it (docs/adr/0014).
#[inline]
pub(crate) fn ask_for_pages(range: *const u8, length: usize) {
    #[cfg(target_arch = "x86_64")]
    for page in (0..length.min(PAGES_BYTES_MAX)).step_by(4096) {
        // SAFETY: every x86-64 CPU has SSE; any address may be named.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(range.wrapping_add(page).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (range, length);
}

#[cfg(test)]
mod tests {
    /// One bit at a time, as RFC 3720 defines it.
    fn reference(seed: u32, bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!seed, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 0 { crc >> 1 } else { (crc >> 1) ^ 0x82f6_3b78 })
        })
    }

    fn bytes(count: usize) -> Vec<u8> {
        let mut state = 1_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        };
        (0..count).map(|_| next()).collect()
    }

    fn sum(seed: u32, bytes: &[u8]) -> u32 {
        // SAFETY: a slice is mapped for as long as it is borrowed.
        unsafe { super::crc32c(seed, bytes.as_ptr(), bytes.len(), bytes.as_ptr()) }
    }

    #[test]
    fn known_sums() {
        // RFC 3720, appendix B.4, and the usual check string.
        let rising: Vec<u8> = (0..32).collect();
        assert_eq!(sum(0, b""), 0);
        assert_eq!(sum(0, &[0; 32]), 0x8a91_36aa);
        assert_eq!(sum(0, &[0xff; 32]), 0x62a8_ab43);
        assert_eq!(sum(0, &rising), 0x46dd_794e);
        assert_eq!(sum(0, b"123456789"), 0xe306_9283);
    }

    #[test]
    fn every_length_and_place_sums_as_the_definition_says() {
        let all = bytes(4 << 10);
        let lengths = (0..800).chain([1023, 1024, 1025, 2047, 2048, 2303, 2304, 2305, 2560, 4000]);
        for length in lengths {
            for place in [0, 1, 7, 8, 63, 64] {
                let piece = &all[place..place + length];
                let wanted = reference(0xdead_beef, piece);
                assert_eq!(sum(0xdead_beef, piece), wanted, "{length} bytes at {place}");
                assert_eq!(
                    crc32c::crc32c_append(0xdead_beef, piece),
                    wanted,
                    "{length} bytes at {place}, by the crate"
                );
            }
        }
    }

    #[test]
    fn a_sum_goes_on_over_slices() {
        let all = bytes(1 << 20);
        let whole = sum(0, &all);
        for size in [1, 100, 255, 256, 257, 512, 4096, 65_537] {
            assert_eq!(all.chunks(size).fold(0, sum), whole, "slices of {size}");
        }
    }

    #[test]
    fn every_changed_byte_is_seen() {
        let mut all = bytes(3000);
        let whole = sum(0, &all);
        for place in 0..all.len() {
            all[place] ^= 0x10;
            assert_ne!(sum(0, &all), whole, "byte {place}");
            all[place] ^= 0x10;
        }
    }
}
