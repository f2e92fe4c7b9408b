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
//! Limits: [`CLASSES_MAX`] classes, 12 MiB of them; what comes beyond is told apart by its first feature alone.

use std::collections::HashMap;
use std::time::Duration;

use super::ages::{BANDS, BINS, band, bin, width_s};
use super::fit::{Fit, Fitted};

/// Features of a use.
pub(super) const FEATURES: usize = 6;
/// Values that a feature may have.
pub(super) const LEVELS: usize = 32;
const CLASSES_MAX: usize = 8192;
/// Nobody is used for certain.
const HAZARD_MAX: f64 = 0.95;

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

/// Lives of one class.
#[derive(Clone)]
pub(super) struct Lived {
    /// That ended in a bin because the block was used.
    pub(super) used: [f32; BINS],
    /// That reached a bin.
    pub(super) reached: [f32; BINS],
}

/// What blocks of one class are worth.
pub(super) struct Worth {
    by_bin: [f32; BINS],
    /// Of a use at all.
    chance: f32,
}

/// The effect of each level in each band; 1 is none.
pub(super) type Effects = [[[f64; BANDS]; LEVELS]; FEATURES];

/// What all classes have in common.
#[derive(Clone)]
pub(super) struct Effected {
    pub(super) base: [f64; BINS],
    pub(super) effects: Effects,
}

/// See the head of this file.
pub(super) struct Forecast {
    numbers: HashMap<Features, ClassId>,
    /// By class, as the next three.
    features: Vec<Features>,
    worth: Vec<Worth>,
    /// Since the last fit began.
    lived: Vec<Lived>,
    /// Empty, for the next fit.
    spare: Vec<Lived>,
    /// Of the last fit: what new classes are taken for.
    effected: Box<Effected>,
    /// Lives before the last fit, by class; none while a fit is under way.
    learned: Option<Vec<Lived>>,
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

impl Lived {
    pub(super) const NONE: Self = Self { used: [0.0; BINS], reached: [0.0; BINS] };
}

impl Forecast {
    /// Knows nothing: all blocks are alike, and the older one is, the later its next use.
    pub(super) fn new() -> Self {
        let base = std::array::from_fn(|bin| 1e-3 / (1.0 + bin as f64));
        Self {
            numbers: HashMap::new(),
            features: Vec::new(),
            worth: Vec::new(),
            lived: Vec::new(),
            spare: Vec::new(),
            effected: Box::new(Effected { base, effects: [[[1.0; BANDS]; LEVELS]; FEATURES] }),
            learned: Some(Vec::new()),
        }
    }

    /// The class of uses with these features.
    pub(super) fn class(&mut self, features: Features) -> ClassId {
        if let Some(&known) = self.numbers.get(&features) {
            return known;
        }
        let features = if self.features.len() < CLASSES_MAX { features } else { features.coarse() };
        if let Some(&known) = self.numbers.get(&features) {
            return known;
        }
        let Ok(number) = u16::try_from(self.features.len()) else { return ClassId(0) };
        self.features.push(features);
        self.worth.push(self.effected.worth(features));
        self.lived.push(Lived::NONE);
        self.numbers.insert(features, ClassId(number));
        ClassId(number)
    }

    /// A life came to a use at this age.
    pub(super) fn used(&mut self, class: ClassId, age: Duration, weight: f32) {
        self.lived[usize::from(class.0)].used[bin(age)] += weight;
    }

    /// A life reached this bin.
    pub(super) fn reached(&mut self, class: ClassId, bin: usize, weight: f32) {
        self.lived[usize::from(class.0)].reached[bin] += weight;
    }

    /// Expected uses for each second of room, of a block that was last used so long ago.
    pub(super) fn worth(&self, class: ClassId, age: Duration) -> f32 {
        self.worth[usize::from(class.0)].by_bin[bin(age)]
    }

    /// The chance that a block of this class is ever used again, seen from its last use.
    pub(super) fn chance(&self, class: ClassId) -> f32 {
        self.worth[usize::from(class.0)].chance
    }

    /// A fit to all lives so far, to be given back to [`fitted`](Self::fitted); none while one is under way. Nothing is
    /// copied but what base and effects are.
    pub(super) fn fit(&mut self) -> Option<Fit> {
        let learned = self.learned.take()?;
        let mut spare = std::mem::take(&mut self.spare);
        spare.resize(self.features.len(), Lived::NONE);
        let lived = std::mem::replace(&mut self.lived, spare);
        Some(Fit { features: self.features.clone(), learned, lived, effected: self.effected.clone() })
    }

    /// From now on blocks are worth what was found.
    pub(super) fn fitted(&mut self, fitted: Fitted) {
        let Fitted { learned, spare, effected, mut worth } = fitted;
        // Classes that came meanwhile.
        worth.extend(self.features.iter().skip(worth.len()).map(|&features| effected.worth(features)));
        (self.worth, self.effected, self.spare, self.learned) = (worth, effected, spare, Some(learned));
    }
}

impl Effected {
    /// The chance that a block which reached a bin is used in it.
    pub(super) fn hazards(&self, features: Features) -> [f64; BINS] {
        let factors = factors(&self.effects, features);
        std::array::from_fn(|bin| (self.base[bin] * factors[band(bin)]).min(HAZARD_MAX))
    }

    pub(super) fn worth(&self, features: Features) -> Worth {
        let hazards = self.hazards(features);
        Worth { by_bin: worth(&hazards), chance: chance(&hazards) }
    }
}

/// The product of all effects, in each band.
pub(super) fn factors(effects: &Effects, features: Features) -> [f64; BANDS] {
    let mut factors = [1.0; BANDS];
    for (levels, &level) in effects.iter().zip(&features.0) {
        for (factor, effect) in factors.iter_mut().zip(levels[usize::from(level)]) {
            *factor *= effect;
        }
    }
    factors
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
    use super::super::fit::FADE;
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

    fn learn(forecast: &mut Forecast) {
        let fit = forecast.fit().expect("none is under way");
        forecast.fitted(fit.run());
    }

    #[test]
    fn the_old_forecast_serves_while_another_is_made_and_nothing_is_lost() {
        let features = |first| Features([first, 0, 0, 0, 0, 0]);
        let live = |forecast: &mut Forecast, first: u8| {
            let class = forecast.class(features(first));
            (0..10).for_each(|bin| forecast.reached(class, bin, 20.0));
            forecast.used(class, Duration::from_secs(9), 10.0);
        };
        let worth = |forecast: &mut Forecast, first: u8| {
            let class = forecast.class(features(first));
            forecast.worth(class, Duration::from_secs(1))
        };
        let mut forecast = Forecast::new();
        live(&mut forecast, 0);
        let before = worth(&mut forecast, 0);
        let fit = forecast.fit().expect("none is under way");
        assert!(forecast.fit().is_none(), "one at a time");
        // Another kind comes meanwhile, and another use of the first.
        live(&mut forecast, 0);
        live(&mut forecast, 1);
        assert_eq!(worth(&mut forecast, 0), before);
        forecast.fitted(fit.run());
        let once = worth(&mut forecast, 0);
        assert!(once > 2.0 * before, "{before} {once}");
        let like_all = worth(&mut forecast, 1);
        assert!(like_all > 2.0 * before, "{before} {like_all}: what all kinds have in common");
        learn(&mut forecast);
        let sum = |forecast: &Forecast, class: usize| forecast.learned.as_ref().expect("back")[class].used[9];
        assert!((sum(&forecast, 0) - 10.0 * FADE * (1.0 + FADE)).abs() < 1e-3, "{}", sum(&forecast, 0));
        assert!((sum(&forecast, 1) - 10.0 * FADE).abs() < 1e-3, "{}", sum(&forecast, 1));
        learn(&mut forecast);
        assert!(sum(&forecast, 0) < 20.0 && sum(&forecast, 1) < 10.0, "each life is counted once");
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
            learn(&mut forecast);
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
        assert!(forecast.features.len() <= CLASSES_MAX + LEVELS, "{}", forecast.features.len());
        let coarse = forecast.class(Features([7, 0, 31, 31, 31, 3]));
        assert_eq!(forecast.features[usize::from(coarse.0)], Features([7, 0, 0, 0, 0, 0]));
    }
}
