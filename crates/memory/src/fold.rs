//! CRC-32C by carry-less multiplication, 256 bytes a step, on CPUs with AVX-512 and VPCLMULQDQ.
//!
//! ```text
//! 4 x 64 bytes -> four accumulators -- each step: accumulator * x^2048 + the next 256 bytes --> one of 64 -> one of 16 -> crc32
//! ```
//!
//! A CRC is a remainder, and a remainder may be taken late: what was read so far is multiplied by the distance to what
//! comes next and added to it. At the end 16 bytes are left that have the CRC of all of them.
//!
//! Works on addresses and never makes a reference, because the bytes may change while they are read (`region.rs`).
//!
//! Why not the crate `crc-fast`, which folds too: it needs a slice, brings a second version of two crates of ours, and
//! takes twice as long for pieces of 512 bytes (docs/adr/0014). Why not AVX2 alone: without VPCLMULQDQ a fold is no faster
//! than the CPU's crc32 instruction in three lanes, which the crate `crc32c` has.

use core::arch::x86_64::{
    __m128i, __m512i, _MM_HINT_T0, _mm_crc32_u8, _mm_crc32_u64, _mm_cvtsi32_si128, _mm_extract_epi64, _mm_prefetch,
    _mm_set_epi64x, _mm_xor_si128, _mm512_broadcast_i32x4, _mm512_clmulepi64_epi128, _mm512_extracti32x4_epi32,
    _mm512_loadu_si512, _mm512_set_epi64, _mm512_ternarylogic_epi64, _mm512_xor_si512, _mm512_zextsi128_si512,
};

/// Bytes of one step; shorter pieces are summed by the crc32 instruction alone.
pub(crate) const STEP: usize = 256;

/// How far ahead of the loads the cache is told, at least and at most: half of the range between the two. From memory,
/// with all cores at it, 8 KiB sums 5 % more than 2 KiB; more than half of a short range would tell of bytes that
/// nobody asked for (docs/adr/0014).
const AHEAD_MIN: usize = 2 << 10;
const AHEAD_MAX: usize = 8 << 10;

/// CRC-32C's polynomial with its bits reversed, as in RFC 3720.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// `x^exponent` modulo the polynomial, bits reversed.
const fn power(exponent: u32) -> u32 {
    let mut value = 0x8000_0000;
    let mut done = 0;
    while done < exponent {
        value = if value & 1 == 0 { value >> 1 } else { (value >> 1) ^ POLYNOMIAL };
        done += 1;
    }
    value
}

/// The two factors that move 16 bytes `bits` onwards: one for the low half, one for the high half. Carry-less products
/// of reversed numbers come out one bit short, hence the shift.
const fn factors(bits: u32) -> [i64; 2] {
    [(power(bits + 32) as i64) << 1, (power(bits - 32) as i64) << 1]
}

pub(crate) const BY_STEP: [i64; 2] = factors(2048);
const BY_512: [i64; 2] = factors(512);
const BY_384: [i64; 2] = factors(384);
const BY_256: [i64; 2] = factors(256);
const BY_128: [i64; 2] = factors(128);

/// Whether this CPU can; the answer is looked up once for each process.
#[inline]
pub(crate) fn is_here() -> bool {
    std::arch::is_x86_feature_detected!("vpclmulqdq")
        && std::arch::is_x86_feature_detected!("avx512f")
        && std::arch::is_x86_feature_detected!("avx512vl")
        && std::arch::is_x86_feature_detected!("pclmulqdq")
        && std::arch::is_x86_feature_detected!("sse4.2")
}

/// CRC-32C of `length` bytes at `source`, going on from `seed`. `next` is what will be summed after them, or null: its
/// first lines are asked for at the end of these, which a sum of scattered blocks would otherwise wait for each time.
///
/// # Safety
///
/// [`is_here`] said yes, and `length` bytes at `source` are mapped for the whole call. Others may write them meanwhile.
/// `next` is never read.
#[target_feature(enable = "avx512f,avx512vl,pclmulqdq,sse4.2,vpclmulqdq")]
pub(crate) unsafe fn crc32c(seed: u32, mut source: *const u8, mut length: usize, next: *const u8) -> u32 {
    let mut crc = !seed;
    if length >= STEP {
        // SAFETY: a step of bytes is there.
        let mut sums = unsafe { load(source) };
        sums[0] = _mm512_xor_si512(sums[0], _mm512_zextsi128_si512(_mm_cvtsi32_si128(crc.cast_signed())));
        let onwards = everywhere(BY_STEP);
        let mut left = length - STEP;
        let ahead = (length / 2).clamp(AHEAD_MIN, AHEAD_MAX);
        while left >= STEP {
            // SAFETY: a step of bytes is left behind the one before.
            let step = unsafe {
                source = source.add(STEP);
                load(source)
            };
            if left > ahead {
                prefetch(source.wrapping_add(ahead));
            } else if !next.is_null() {
                prefetch(next.wrapping_add(ahead - left));
            }
            for (sum, step) in sums.iter_mut().zip(step) {
                *sum = moved(*sum, onwards, step);
            }
            left -= STEP;
        }
        // SAFETY: the end of the last step, at most one past the range.
        source = unsafe { source.add(STEP) };
        length = left;
        crc = reduce(sums);
    }
    while length >= 8 {
        // SAFETY: eight bytes are left; they need not be aligned.
        crc = unsafe {
            let word = source.cast::<u64>().read_unaligned();
            source = source.add(8);
            word_onto(crc, word)
        };
        length -= 8;
    }
    while length > 0 {
        // SAFETY: a byte is left.
        crc = unsafe {
            let byte = source.read();
            source = source.add(1);
            _mm_crc32_u8(crc, byte)
        };
        length -= 1;
    }
    !crc
}

/// The bytes of one step.
///
/// # Safety
///
/// They are mapped.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn load(source: *const u8) -> [__m512i; 4] {
    // SAFETY: within the step; unaligned loads.
    unsafe {
        [
            _mm512_loadu_si512(source.cast()),
            _mm512_loadu_si512(source.add(64).cast()),
            _mm512_loadu_si512(source.add(128).cast()),
            _mm512_loadu_si512(source.add(192).cast()),
        ]
    }
}

/// Asks for the lines of one step. A hint: any address may be named, it never faults, and no byte is read.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn prefetch(source: *const u8) {
    for line in 0..4 {
        _mm_prefetch::<_MM_HINT_T0>(source.wrapping_add(64 * line).cast());
    }
}

/// A pair of factors in each of the four 16-byte lanes.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn everywhere([low, high]: [i64; 2]) -> __m512i {
    _mm512_broadcast_i32x4(_mm_set_epi64x(high, low))
}

/// `sum` moved onwards by `factors`, plus `next`.
#[inline]
#[target_feature(enable = "avx512f,vpclmulqdq")]
pub(crate) fn moved(sum: __m512i, factors: __m512i, next: __m512i) -> __m512i {
    let low = _mm512_clmulepi64_epi128::<0x00>(sum, factors);
    let high = _mm512_clmulepi64_epi128::<0x11>(sum, factors);
    // 0x96: exclusive or of all three.
    _mm512_ternarylogic_epi64::<0x96>(low, high, next)
}

/// The CRC register after the bytes that four accumulators stand for.
#[inline]
#[target_feature(enable = "avx512f,avx512vl,pclmulqdq,sse4.2,vpclmulqdq")]
pub(crate) fn reduce([first, second, third, last]: [__m512i; 4]) -> u32 {
    let onwards = everywhere(BY_512);
    let sum = moved(moved(moved(first, onwards, second), onwards, third), onwards, last);
    // Three of the four lanes move to the place of the last, each its own distance.
    let distances = _mm512_set_epi64(0, 0, BY_128[1], BY_128[0], BY_256[1], BY_256[0], BY_384[1], BY_384[0]);
    let low = _mm512_clmulepi64_epi128::<0x00>(sum, distances);
    let high = _mm512_clmulepi64_epi128::<0x11>(sum, distances);
    let three = _mm512_xor_si512(low, high);
    let pair = |a: __m128i, b: __m128i| _mm_xor_si128(a, b);
    let sixteen = pair(
        pair(_mm512_extracti32x4_epi32::<0>(three), _mm512_extracti32x4_epi32::<1>(three)),
        pair(_mm512_extracti32x4_epi32::<2>(three), _mm512_extracti32x4_epi32::<3>(sum)),
    );
    let crc = word_onto(0, _mm_extract_epi64::<0>(sixteen).cast_unsigned());
    word_onto(crc, _mm_extract_epi64::<1>(sixteen).cast_unsigned())
}

/// The CRC register after eight more bytes.
#[inline]
#[target_feature(enable = "sse4.2")]
#[expect(clippy::cast_possible_truncation, reason = "the instruction leaves the upper half zero")]
fn word_onto(crc: u32, word: u64) -> u32 {
    _mm_crc32_u64(u64::from(crc), word) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_are_those_of_the_literature() {
        // RFC 3720's polynomial; the same numbers stand in tables of other programs that fold CRC-32C.
        assert_eq!(BY_128, [0x0_f20c_0dfe, 0x1_4cd0_0bd6]);
        assert_eq!(BY_512, [0x0_740e_ef02, 0x0_9e4a_ddf8]);
    }
}
