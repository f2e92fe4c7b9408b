//! Ages of blocks in bins: a third of an octave each, from one second to a day and more.
//!
//! What a block's next use depends on changes with the logarithm of its age: ten seconds matter at thirty, not at a
//! thousand.

use std::sync::LazyLock;
use std::time::Duration;

/// Bins; the last one is open.
pub(super) const BINS: usize = 52;
/// Bands of bins, in each of which a feature has one effect; about two octaves each, the first and the last wider.
pub(super) const BANDS: usize = 6;

const BINS_PER_OCTAVE: f64 = 3.0;

/// The bin of an age.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 70")]
pub(super) fn bin(age: Duration) -> usize {
    ((age.as_secs_f64().max(1.0).log2() * BINS_PER_OCTAVE) as usize).min(BINS - 1)
}

/// Where each bin begins, in seconds, and where the last one is taken to end.
static BEGINS_S: LazyLock<[f64; BINS + 1]> =
    LazyLock::new(|| std::array::from_fn(|bin| if bin == 0 { 0.0 } else { 2_f64.powf(bin as f64 / BINS_PER_OCTAVE) }));

/// Where a bin begins, in seconds.
pub(super) fn begin_s(bin: usize) -> f64 {
    BEGINS_S[bin]
}

/// Seconds of a bin.
pub(super) fn width_s(bin: usize) -> f64 {
    BEGINS_S[bin + 1] - BEGINS_S[bin]
}

/// The band of a bin: under 16 seconds, under 40, 100, 256, 640, and all that is older.
pub(super) const fn band(bin: usize) -> usize {
    match bin {
        0..12 => 0,
        12..16 => 1,
        16..20 => 2,
        20..24 => 3,
        24..28 => 4,
        _ => 5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_age_is_in_its_bin() {
        for millis in (0..2_000_000).step_by(37).chain([u64::MAX / 2_000_000]) {
            let age = Duration::from_millis(millis);
            let bin = bin(age);
            assert!(begin_s(bin) <= age.as_secs_f64(), "{age:?}");
            assert!(bin == BINS - 1 || age.as_secs_f64() < begin_s(bin + 1), "{age:?}");
        }
        assert!((0..BINS).all(|bin| width_s(bin) > 0.0));
        assert!((1..BINS).all(|bin| band(bin - 1) <= band(bin) && band(bin) < BANDS));
    }
}
