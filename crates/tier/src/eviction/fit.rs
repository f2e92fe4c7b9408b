//! Base and effects of a forecast, fitted to how long blocks have lived.
//!
//! ```text
//! lives of each class, before and since the last fit -> base, then each feature's effects, twice -> what classes are worth
//! ```

use std::fmt;

use super::ages::{BANDS, BINS, band};
use super::forecast::{Effected, FEATURES, Features, LEVELS, Lived, Worth, factors};

/// Uses that are pretended at every level of a feature, as many as expected: few lives change little.
const PRETENDED: f64 = 1.0;
/// How much a level learns from each of its two neighbours.
const NEIGHBOUR: f64 = 0.5;
/// What a life still counts after another fit: what users do changes.
pub(super) const FADE: f32 = 0.999;

/// Base and effects are to be fitted to all lives so far: work for a thread that nobody waits for, some 2 ms for a thousand
/// classes. Meanwhile the old forecast serves.
pub struct Fit {
    pub(super) learned: Vec<Lived>,
    pub(super) features: Vec<Features>,
    pub(super) lived: Vec<Lived>,
    pub(super) effected: Box<Effected>,
}

/// What came of a [`Fit`].
pub struct Fitted {
    pub(super) learned: Vec<Lived>,
    pub(super) spare: Vec<Lived>,
    pub(super) effected: Box<Effected>,
    pub(super) worth: Vec<Worth>,
}

impl Fit {
    /// Fits, on the caller's thread.
    #[must_use]
    pub fn run(mut self) -> Fitted {
        self.learned.resize(self.features.len(), Lived::NONE);
        for (learned, lived) in self.learned.iter_mut().zip(&mut self.lived) {
            let all = learned.used.iter_mut().chain(&mut learned.reached);
            all.zip(lived.used.iter().chain(&lived.reached)).for_each(|(sum, count)| *sum += count);
            *lived = Lived::NONE;
        }
        // The effects of one feature depend on those of the others: twice brings them close, and the next fit closer.
        for _ in 0..2 {
            self.fit_base();
            for feature in 0..FEATURES {
                self.fit_effects(feature);
            }
        }
        let worth = self.features.iter().map(|&features| self.effected.worth(features)).collect();
        for learned in &mut self.learned {
            learned.used.iter_mut().chain(&mut learned.reached).for_each(|count| *count *= FADE);
        }
        Fitted { learned: self.learned, spare: self.lived, effected: self.effected, worth }
    }

    fn fit_base(&mut self) {
        let (mut used, mut expected) = ([0.0; BINS], [0.0; BINS]);
        for (learned, &features) in self.learned.iter().zip(&self.features) {
            let factors = factors(&self.effected.effects, features);
            for bin in 0..BINS {
                used[bin] += f64::from(learned.used[bin]);
                expected[bin] += f64::from(learned.reached[bin]) * factors[band(bin)];
            }
        }
        for bin in 0..BINS {
            self.effected.base[bin] = (used[bin] + 1e-3) / (expected[bin] + 1.0);
        }
    }

    fn fit_effects(&mut self, feature: usize) {
        let (mut used, mut expected) = ([[0.0; BANDS]; LEVELS], [[0.0; BANDS]; LEVELS]);
        for (learned, &features) in self.learned.iter().zip(&self.features) {
            let level = usize::from(features.0[feature]);
            let hazards = self.effected.hazards(features);
            for bin in 0..BINS {
                used[level][band(bin)] += f64::from(learned.used[bin]);
                // As if this feature had no effect.
                let effect = self.effected.effects[feature][level][band(bin)];
                expected[level][band(bin)] += f64::from(learned.reached[bin]) * hazards[bin] / effect;
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
                self.effected.effects[feature][level][band] =
                    (sum(&used, band) + PRETENDED) / (sum(&expected, band) + PRETENDED);
            }
        }
    }
}

impl fmt::Debug for Fit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fit").field("classes", &self.features.len()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Fitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fitted").field("classes", &self.worth.len()).finish_non_exhaustive()
    }
}
