//! When blocks will be used again, learned from when others were.
//!
//! ```text
//! class (features of the last use) -> chance of a use in each bin of age = base(bin) x effect(feature, level, band) x ...
//!                                  -> worth(age): uses for each second of room, if it goes at the best moment
//! ```
//!
//! A hazard that is a product of effects (Cox, 1972) learns each feature from all blocks that have it, where a table of
//! all combinations would know most of them from a handful. What a block is worth is its Gittins index: over all moments
//! at which it could be given up, the best ratio of the chance of a use by then to the room taken until then. A block
//! that nobody asks for in its first half minute, but then probably, is worth keeping through that half minute; one with
//! the same chance over hours is not.
//!
//! Limits: [`CLASSES_MAX`] classes, 5 MiB of them; what comes beyond is told apart by its first feature alone.

use std::collections::HashMap;
use std::time::Duration;

use super::ages::{BANDS, BINS, band, bin, width_s};

/// Features of a use.
pub(super) const FEATURES: usize = 6;
/// Values that a feature may have.
pub(super) const LEVELS: usize = 32;
const CLASSES_MAX: usize = 8192;
/// Uses that are pretended at every level of a feature, as many as expected: few lives change little.
const PRETENDED: f64 = 1.0;
/// How much a level learns from each of its two neighbours.
const NEIGHBOUR: f64 = 0.5;
/// Nobody is used for certain.
const HAZARD_MAX: f64 = 0.95;
/// Lives that count as much as the newest, roughly, in calls of [`Forecast::learn`]: what users do changes.
const FADE: f32 = 0.999;

/// What is known of a use when it happens, each below [`LEVELS`]. Levels are in an order, but for [`Self::ALONE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Features(pub(super) [u8; FEATURES]);

/// Uses with the same features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ClassId(u16);

impl ClassId {
    /// The first class there is: of blocks that nothing is known of.
    pub(super) const ANY: Self = Self(0);
}

struct Class {
    features: Features,
    /// Lives that ended in a bin because the block was used.
    used: [f32; BINS],
    /// Lives that reached a bin.
    reached: [f32; BINS],
    worth: [f32; BINS],
    /// Of a use at all.
    chance: f32,
}

/// The effect of each level in each band; 1 is none.
type Effects = [[[f64; BANDS]; LEVELS]; FEATURES];

/// See the head of this file.
pub(super) struct Forecast {
    classes: Vec<Class>,
    numbers: HashMap<Features, ClassId>,
    base: [f64; BINS],
    effects: Box<Effects>,
}

impl Features {
    /// The feature whose levels are in no order.
    pub(super) const ALONE: usize = 1;
    /// Of a use that nobody saw.
    pub(super) const UNKNOWN: Self = Self([0; FEATURES]);

    const fn coarse(self) -> Self {
        let mut levels = [0; FEATURES];
        levels[0] = self.0[0];
        Self(levels)
    }
}

impl Forecast {
    /// Knows nothing: all blocks are alike, and the older one is, the later its next use.
    pub(super) fn new() -> Self {
        let base = std::array::from_fn(|bin| 1e-3 / (1.0 + bin as f64));
        Self {
            classes: Vec::new(),
            numbers: HashMap::new(),
            base,
            effects: Box::new([[[1.0; BANDS]; LEVELS]; FEATURES]),
        }
    }

    /// The class of uses with these features.
    pub(super) fn class(&mut self, features: Features) -> ClassId {
        if let Some(&known) = self.numbers.get(&features) {
            return known;
        }
        let features = if self.classes.len() < CLASSES_MAX { features } else { features.coarse() };
        if let Some(&known) = self.numbers.get(&features) {
            return known;
        }
        let Ok(number) = u16::try_from(self.classes.len()) else { return ClassId(0) };
        let mut class = Class { features, used: [0.0; BINS], reached: [0.0; BINS], worth: [0.0; BINS], chance: 0.0 };
        let hazards = hazards(&self.base, &self.effects, features);
        (class.worth, class.chance) = (worth(&hazards), chance(&hazards));
        self.classes.push(class);
        self.numbers.insert(features, ClassId(number));
        ClassId(number)
    }

    /// A life came to a use at this age.
    pub(super) fn used(&mut self, class: ClassId, age: Duration, weight: f32) {
        self.classes[usize::from(class.0)].used[bin(age)] += weight;
    }

    /// A life reached this bin.
    pub(super) fn reached(&mut self, class: ClassId, bin: usize, weight: f32) {
        self.classes[usize::from(class.0)].reached[bin] += weight;
    }

    /// Expected uses for each second of room, of a block that was last used so long ago.
    pub(super) fn worth(&self, class: ClassId, age: Duration) -> f32 {
        self.classes[usize::from(class.0)].worth[bin(age)]
    }

    /// The chance that a block of this class is ever used again, seen from its last use.
    pub(super) fn chance(&self, class: ClassId) -> f32 {
        self.classes[usize::from(class.0)].chance
    }

    /// Fits base and effects to all lives so far. Takes a millisecond for a hundred classes.
    pub(super) fn learn(&mut self) {
        // The effects of one feature depend on those of the others: twice brings them close, and the next call closer.
        for _ in 0..2 {
            self.fit_base();
            for feature in 0..FEATURES {
                self.fit_effects(feature);
            }
        }
        for class in &mut self.classes {
            let hazards = hazards(&self.base, &self.effects, class.features);
            (class.worth, class.chance) = (worth(&hazards), chance(&hazards));
            class.used.iter_mut().chain(&mut class.reached).for_each(|count| *count *= FADE);
        }
    }

    fn fit_base(&mut self) {
        let (mut used, mut expected) = ([0.0; BINS], [0.0; BINS]);
        for class in &self.classes {
            let factors = factors(&self.effects, class.features);
            for bin in 0..BINS {
                used[bin] += f64::from(class.used[bin]);
                expected[bin] += f64::from(class.reached[bin]) * factors[band(bin)];
            }
        }
        for bin in 0..BINS {
            self.base[bin] = (used[bin] + 1e-3) / (expected[bin] + 1.0);
        }
    }

    fn fit_effects(&mut self, feature: usize) {
        let (mut used, mut expected) = ([[0.0; BANDS]; LEVELS], [[0.0; BANDS]; LEVELS]);
        for class in &self.classes {
            let level = usize::from(class.features.0[feature]);
            let hazards = hazards(&self.base, &self.effects, class.features);
            for bin in 0..BINS {
                used[level][band(bin)] += f64::from(class.used[bin]);
                // As if this feature had no effect.
                let effect = self.effects[feature][level][band(bin)];
                expected[level][band(bin)] += f64::from(class.reached[bin]) * hazards[bin] / effect;
            }
        }
        for level in 0..LEVELS {
            // Level 0 stands for "does not apply" in some features: it has no neighbours.
            let near = [level.wrapping_sub(1), level + 1]
                .into_iter()
                .filter(|&other| feature != Features::ALONE && level != 0 && other != 0 && other < LEVELS);
            let near: Vec<usize> = near.collect();
            let sum = |counts: &[[f64; BANDS]; LEVELS], band: usize| {
                counts[level][band] + NEIGHBOUR * near.iter().map(|&other| counts[other][band]).sum::<f64>()
            };
            for band in 0..BANDS {
                self.effects[feature][level][band] =
                    (sum(&used, band) + PRETENDED) / (sum(&expected, band) + PRETENDED);
            }
        }
    }
}

/// The product of all effects, in each band.
fn factors(effects: &Effects, features: Features) -> [f64; BANDS] {
    let mut factors = [1.0; BANDS];
    for (levels, &level) in effects.iter().zip(&features.0) {
        for (factor, effect) in factors.iter_mut().zip(levels[usize::from(level)]) {
            *factor *= effect;
        }
    }
    factors
}

/// The chance that a block which reached a bin is used in it.
fn hazards(base: &[f64; BINS], effects: &Effects, features: Features) -> [f64; BINS] {
    let factors = factors(effects, features);
    std::array::from_fn(|bin| (base[bin] * factors[band(bin)]).min(HAZARD_MAX))
}

/// Of a use in any bin.
fn chance(hazards: &[f64; BINS]) -> f32 {
    let unused: f64 = hazards.iter().map(|hazard| 1.0 - hazard).product();
    #[expect(clippy::cast_possible_truncation, reason = "compared alone: seven digits do")]
    let chance = (1.0 - unused) as f32;
    chance
}

/// From each bin on: the best ratio of the chance of a use to the seconds until it, or until the block is given up.
///
/// Giving up behind a bin is a point: seconds to the right, chance upwards. The best one has the steepest line to it, and
/// so lies on the upper hull of all. From one bin to the one before it all points move alike, and stay a hull.
fn worth(hazards: &[f64; BINS]) -> [f32; BINS] {
    let mut worth = [0.0; BINS];
    // Nearest point last.
    let mut hull: Vec<(f64, f64)> = Vec::with_capacity(BINS);
    for (bin, hazard) in hazards.iter().enumerate().rev() {
        // Who is used in a bin is so in its middle.
        let seconds = width_s(bin) * (1.0 - hazard / 2.0);
        for (right, up) in &mut hull {
            *right = seconds + (1.0 - hazard) * *right;
            *up = hazard + (1.0 - hazard) * *up;
        }
        while let [.., far, near] = hull[..]
            && (near.1 - hazard) * (far.0 - seconds) <= (far.1 - hazard) * (near.0 - seconds)
        {
            hull.pop();
        }
        hull.push((seconds, *hazard));
        let best = hull.iter().map(|(right, up)| up / right).fold(0.0, f64::max);
        #[expect(clippy::cast_possible_truncation, reason = "compared alone: seven digits do")]
        let best = best as f32;
        worth[bin] = best;
    }
    worth
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By trying every moment.
    fn plain_worth(hazards: &[f64; BINS], from: usize) -> f64 {
        let (mut unused, mut chance, mut seconds, mut best) = (1.0, 0.0, 0.0, 0.0_f64);
        for (bin, hazard) in hazards.iter().enumerate().skip(from) {
            chance += unused * hazard;
            seconds += unused * width_s(bin) * (1.0 - hazard / 2.0);
            unused *= 1.0 - hazard;
            best = best.max(chance / seconds);
        }
        best
    }

    #[test]
    fn worth_is_the_best_of_all_moments() {
        let mut random = fastrand::Rng::with_seed(5);
        for round in 0..200 {
            let top = if round % 2 == 0 { HAZARD_MAX } else { 0.1 };
            let hazards: [f64; BINS] =
                std::array::from_fn(|_| if random.bool() { 0.0 } else { random.f64().powi(3) * top });
            for (bin, worth) in worth(&hazards).into_iter().enumerate() {
                let plain = plain_worth(&hazards, bin);
                assert!((f64::from(worth) - plain).abs() <= 1e-6 * plain, "bin {bin}: {worth}, {plain}");
            }
        }
    }

    #[test]
    fn a_block_is_kept_through_a_wait_that_pays() {
        // Nothing for half a minute, then one in five each bin for two minutes, then nothing.
        let hazards = std::array::from_fn(|bin| if (15..21).contains(&bin) { 0.2 } else { 0.0 });
        let worth = worth(&hazards);
        assert!(worth[0] > 0.0 && worth[0] < worth[12] && worth[12] < worth[15], "{worth:?}");
        assert!(worth[21..].iter().all(|&worth| worth == 0.0));
    }

    #[test]
    fn effects_of_two_features_are_told_apart() {
        let mut forecast = Forecast::new();
        let features = |first, third| Features([first, 0, third, 0, 0, 0]);
        // Used within 100 seconds: 2 in 100, twice that with one feature, five times with the other, ten times with both.
        for (first, third, used) in [(0, 1, 2), (1, 1, 4), (0, 4, 10)] {
            let class = forecast.class(features(first, third));
            for life in 0..5000 {
                for reached in 0..19 {
                    forecast.reached(class, reached, 1.0);
                }
                if life % 100 < used {
                    forecast.used(class, Duration::from_secs(75), 1.0);
                }
            }
        }
        for _ in 0..10 {
            forecast.learn();
        }
        // Never seen together, and yet known.
        let both = forecast.class(features(1, 4));
        let age = Duration::from_secs(70);
        let times = |class: ClassId, base: ClassId| forecast.worth(class, age) / forecast.worth(base, age);
        let base = ClassId(0);
        let (once, more, most) = (times(ClassId(1), base), times(ClassId(2), base), times(both, base));
        assert!(
            (1.7..2.3).contains(&once) && (4.2..5.8).contains(&more) && (7.5..12.5).contains(&most),
            "{once} {more} {most}"
        );
    }

    #[test]
    fn classes_have_a_limit() {
        let mut forecast = Forecast::new();
        for number in 0..40_000_u32 {
            let digits = |place: u32| u8::try_from(number / 30_u32.pow(place) % 30).expect("small");
            forecast.class(Features([digits(0), 0, digits(1), digits(2), digits(3), 0]));
        }
        assert!(forecast.classes.len() <= CLASSES_MAX + LEVELS, "{}", forecast.classes.len());
        let coarse = forecast.class(Features([7, 0, 31, 31, 31, 3]));
        assert_eq!(forecast.classes[usize::from(coarse.0)].features, Features([7, 0, 0, 0, 0, 0]));
    }
}
