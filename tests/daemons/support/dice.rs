//! Random choices that can be made again: every seed is printed, and `KVFERRY_TEST_SEED` sets it.

use std::time::Duration;

pub(crate) struct Dice(u64);

impl Dice {
    /// Dice for the test named `name`.
    #[expect(clippy::disallowed_methods, reason = "for whoever repeats a test, not for the daemon")]
    pub(crate) fn throw(name: &str) -> Self {
        let seed = std::env::var("KVFERRY_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed: u64 = seed.unwrap_or_else(|| u64::from(getrandom::u32().expect("a random number")));
        println!("{name}: KVFERRY_TEST_SEED={seed}");
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        u32::try_from((self.0 >> 32) % u64::from(end)).expect("below a u32")
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| u8::try_from(self.below(256)).expect("a byte")).collect()
    }

    pub(crate) fn up_to(&mut self, longest: Duration) -> Duration {
        longest * self.below(1000) / 1000
    }

    /// Different blocks out of `from`.
    pub(crate) fn blocks(&mut self, count: usize, from: std::ops::Range<u32>) -> Vec<u32> {
        let mut all: Vec<u32> = from.collect();
        (0..count)
            .map(|_| {
                all.swap_remove(usize::try_from(self.below(u32::try_from(all.len()).expect("few"))).expect("an index"))
            })
            .collect()
    }
}
