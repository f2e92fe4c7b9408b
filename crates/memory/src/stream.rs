//! Copies past the cache and sums what it copies, in one pass over registers.
//!
//! ```text
//! source, 256 bytes -> four registers -> non-temporal stores -> target
//!                                    \-> fold (fold.rs)      -> CRC-32C of exactly the bytes that were stored
//! ```
//!
//! An ordinary store to a line that is not in the cache reads the line first, only to overwrite it. A non-temporal store
//! does not, so that a copy moves two lines through memory where an ordinary one moves three.

use core::arch::x86_64::{
    __m512i, _mm_cvtsi32_si128, _mm_sfence, _mm512_stream_si512, _mm512_xor_si512, _mm512_zextsi128_si512,
};

use crate::fold::{BY_STEP, STEP, everywhere, load, moved, prefetch, reduce};

/// How far ahead of the loads the cache is told, across the end of a piece into the next one. Of 0, 1, 4 and 8 KiB
/// this one measured best (docs/adr/0014).
const AHEAD: usize = 4096;

/// Targets begin on a multiple of this: a non-temporal store fills whole lines.
pub(crate) const LINE: usize = 64;

/// What is read after the bytes of a call, so that it is asked for in time.
#[derive(Clone, Copy)]
pub(crate) struct Ahead {
    /// Bytes that lie behind the source's first, the call's own included.
    pub(crate) together: usize,
    /// Where reading goes on behind them.
    pub(crate) then: *const u8,
}

/// Copies `length` bytes, at least one [`STEP`] and whole ones, and returns their CRC-32C, going on from `seed`.
///
/// The stores may reach memory late: whoever tells somebody else of them calls [`settle`] first.
///
/// # Safety
///
/// [`crate::fold::is_here`] said yes; `length` bytes at `source` and at `target` are mapped for the whole call, and
/// `target` is a multiple of [`LINE`]. Others may write both meanwhile.
#[target_feature(enable = "avx512f,avx512vl,pclmulqdq,sse4.2,vpclmulqdq")]
pub(crate) unsafe fn copy(seed: u32, source: *const u8, target: *mut u8, length: usize, ahead: Ahead) -> u32 {
    debug_assert!(length >= STEP && length.is_multiple_of(STEP) && target.addr().is_multiple_of(LINE));
    let mut done = 0;
    let ask = |done: usize| {
        let reach = done + AHEAD;
        match reach.checked_sub(ahead.together) {
            None => prefetch(source.wrapping_add(reach)),
            Some(beyond) => prefetch(ahead.then.wrapping_add(beyond)),
        }
    };
    ask(0);
    // SAFETY: a step of bytes is there on both sides.
    let mut sums = unsafe {
        let first = load(source);
        store(target, first);
        first
    };
    sums[0] = _mm512_xor_si512(sums[0], _mm512_zextsi128_si512(_mm_cvtsi32_si128(!seed.cast_signed())));
    let onwards = everywhere(BY_STEP);
    done += STEP;
    while done < length {
        ask(done);
        // SAFETY: a step of bytes is left behind the one before, on both sides.
        let next = unsafe {
            let next = load(source.add(done));
            store(target.add(done), next);
            next
        };
        for (sum, next) in sums.iter_mut().zip(next) {
            *sum = moved(*sum, onwards, next);
        }
        done += STEP;
    }
    !reduce(sums)
}

/// Waits until every store of [`copy`] by this thread is seen before any store that follows.
pub(crate) fn settle() {
    // SAFETY: SSE, which every x86-64 CPU has; it orders stores and does nothing else.
    unsafe { _mm_sfence() };
}

/// Stores one step past the cache.
///
/// # Safety
///
/// The step is mapped at `target`, a multiple of [`LINE`].
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store(target: *mut u8, step: [__m512i; 4]) {
    for (place, line) in step.into_iter().enumerate() {
        // SAFETY: within the step.
        unsafe { _mm512_stream_si512(target.add(LINE * place).cast(), line) };
    }
}
