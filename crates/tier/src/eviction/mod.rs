//! Which block goes when there is no room for all.
//!
//! ```text
//! request(chain) -> features of the use -> Forecast (learns when such uses were followed by another)
//! store(block)   -> Chains: parents, children, leaves
//! victim()       -> of some leaves, the one whose worth (Forecast) is least; the newest block is always among them
//! ```
//!
//! An engine can use a block only where it has all blocks before it, so that only the last blocks of chains, the leaves,
//! may go. Blocks that went are remembered for a while: a block that comes back tells how long others like it will take.
//!
//! Every call is short but for a fit of the forecast, which is somebody else's ([`Eviction::poll_fit`]); the old one serves
//! meanwhile.
//!
//! Limits: as many blocks that went are remembered as are stored, or [`Settings::known_min`] blocks in all; whoever was forgotten last is told by
//! [`Eviction::next_forgotten`], so that its number can be used again. Why not LRU, S3-FIFO, ARC or W-TinyLFU: they see
//! single blocks and no time, and what decides is when a user answers and whether at all (docs/adr/0020).

mod ages;
mod chains;
mod features;
mod fit;
mod forecast;
mod lives;

use std::collections::VecDeque;

use kvferry_core::Time;

pub use self::chains::BlockNumber;
use self::chains::Chains;
use self::features::Request;
pub use self::fit::{Fit, Fitted};
use self::forecast::{Features, Forecast};
use self::lives::{Life, Lives};

/// Leaves that are looked at for each victim: of 64, the least worth is among the worst 5 % in 96 of 100 cases.
const LOOKED_AT: usize = 64;
/// Leaves that are passed over because they may not go, at most: of a kind that has a hundredth of all leaves, one is
/// found but in 3 of 100,000 cases.
const LOOKS_MAX: usize = 1024;
/// Requests between two fits of the forecast.
const LEARN_EVERY: u32 = 256;
/// Known blocks for each that is stored: one that went, or was never taken in, for each that stays (docs/adr/0020).
const KNOWN_PER_STORED: usize = 2;
/// Blocks that are looked at to be forgotten, in one step, beside four for each that is new. What is stored may become
/// less by millions at once, as when a model is cleared.
const FADING_LOOKS: usize = 1024;

/// Limits of an [`Eviction`].
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Blocks that are known, stored or not, also where few are stored.
    pub known_min: usize,
    /// Of the random choice of blocks that are looked at.
    pub seed: u64,
}

/// Decides which block goes; holds no bytes.
pub struct Eviction {
    settings: Settings,
    chains: Chains,
    forecast: Forecast,
    lives: Lives,
    random: fastrand::Rng,
    /// Known blocks in the order in which they are looked at to be forgotten.
    fading: VecDeque<BlockNumber>,
    forgotten: VecDeque<BlockNumber>,
    unlearned: u32,
    /// Not everybody's age has been looked at.
    is_behind: bool,
}

impl Eviction {
    /// Knows no block.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            chains: Chains::default(),
            forecast: Forecast::new(),
            lives: Lives::default(),
            random: fastrand::Rng::with_seed(settings.seed),
            fading: VecDeque::new(),
            forgotten: VecDeque::new(),
            unlearned: 0,
            is_behind: false,
        }
    }

    /// How many of the request's first blocks are stored.
    #[must_use]
    pub fn stored_prefix(&self, blocks: &[BlockNumber]) -> usize {
        blocks.iter().take_while(|&&block| self.chains.is_stored(block)).count()
    }

    /// A request came for these blocks, in the order of the prompt: each is used now. Those that were not known are, from
    /// now on. `now` never goes back.
    pub fn request(&mut self, now: Time, blocks: &[BlockNumber]) {
        self.is_behind = !self.lives.age(now, &self.chains, &mut self.forecast);
        let request = Request::new(now, blocks, &self.chains);
        let chosen = self.lives.choose(blocks.len(), &mut self.random);
        let mut new = 0;
        for (place, &block) in blocks.iter().enumerate() {
            let class = self.forecast.class(request.features(place, self.chains.uses(block)));
            if let Some(ended) = self.chains.used(block, now, class, request.turn()) {
                self.lives.end(&ended, now, &mut self.forecast);
            } else {
                self.fading.push_back(block);
                new += 1;
            }
            if let Some(weight) = chosen.weight(place) {
                let number = self.chains.learn_from(block, weight);
                self.lives.begin(Life { at: now, block, number, class, weight }, &mut self.forecast);
            }
        }
        self.forget(new);
        self.unlearned += 1;
    }

    /// A fit of the forecast to what was learned since the last one, to be given back to [`handle_fit`](Self::handle_fit);
    /// a thread that nobody waits for has the time. Who never asks learns nothing.
    pub fn poll_fit(&mut self) -> Option<Fit> {
        if self.unlearned < LEARN_EVERY {
            return None;
        }
        let fit = self.forecast.fit()?;
        self.unlearned = 0;
        Some(fit)
    }

    /// The forecast from now on.
    pub fn handle_fit(&mut self, fitted: Fitted) {
        self.forecast.fitted(fitted);
    }

    /// Looks after some more blocks that have grown older unused, where a request came after a long silence. True: there
    /// are others.
    pub fn catch_up(&mut self, now: Time) -> bool {
        self.is_behind = self.is_behind && !self.lives.age(now, &self.chains, &mut self.forecast);
        self.is_behind
    }

    /// A block that a request has made behind `parent`, as answers do: of the parent's kind, until it is used. Nothing
    /// changes for one that is known.
    pub fn grow(&mut self, now: Time, block: BlockNumber, parent: Option<BlockNumber>) {
        if self.chains.is_known(block) {
            return;
        }
        let unknown = (self.forecast.class(Features::UNKNOWN), 0);
        let (class, turn) = parent.map_or(unknown, |parent| self.chains.kind(parent));
        self.chains.used(block, now, class, turn);
        self.fading.push_back(block);
        self.forget(1);
    }

    /// The block is stored from now on; it was in a request, and so was `parent`, the block before it. False, and nothing
    /// changes, where the parent is not stored.
    #[must_use]
    pub fn store(&mut self, block: BlockNumber, parent: Option<BlockNumber>) -> bool {
        self.chains.store(block, parent)
    }

    /// A block that a tier had before this one knew of it: stored, and nothing is learned from it before its next use.
    /// False where the parent is not stored.
    #[must_use]
    pub fn found(&mut self, now: Time, block: BlockNumber, parent: Option<BlockNumber>) -> bool {
        let class = self.forecast.class(Features::UNKNOWN);
        if self.chains.used(block, now, class, 0).is_none() {
            self.fading.push_back(block);
        }
        self.store(block, parent)
    }

    /// The block is not stored after all, or no more; what stands behind it is of use once it comes back.
    pub fn lose(&mut self, block: BlockNumber) {
        self.chains.remove(block);
    }

    /// Whether the block is more likely to be used again than not.
    #[must_use]
    pub fn is_likely(&self, block: BlockNumber) -> bool {
        self.chains.is_known(block) && self.forecast.chance(self.chains.kind(block).0) > 0.5
    }

    /// The block that a stored one was stored behind.
    #[must_use]
    pub fn parent(&self, block: BlockNumber) -> Option<BlockNumber> {
        self.chains.parent(block)
    }

    /// Blocks that are stored.
    #[must_use]
    pub fn stored(&self) -> usize {
        self.chains.stored()
    }

    /// The block that should go, which is stored no more; `newest`, stored just now, may be it. `None`: none that may go
    /// was found.
    pub fn victim(
        &mut self,
        now: Time,
        newest: BlockNumber,
        may_go: impl Fn(BlockNumber) -> bool,
    ) -> Option<BlockNumber> {
        let mut least: Option<(f32, BlockNumber)> = None;
        let mut look = |block: BlockNumber, chains: &Chains, forecast: &Forecast| {
            if !may_go(block) {
                return false;
            }
            let worth = chains.worth(block, now, forecast);
            if least.is_none_or(|(so_far, _)| worth < so_far) {
                least = Some((worth, block));
            }
            true
        };
        let leaves = self.chains.leaves();
        if leaves.len() <= LOOKED_AT {
            for &leaf in leaves {
                look(leaf, &self.chains, &self.forecast);
            }
        } else {
            if self.chains.is_leaf(newest) {
                look(newest, &self.chains, &self.forecast);
            }
            let mut left = LOOKED_AT;
            for _ in 0..LOOKS_MAX {
                left -= usize::from(look(leaves[self.random.usize(..leaves.len())], &self.chains, &self.forecast));
                if left == 0 {
                    break;
                }
            }
        }
        let (_, victim) = least?;
        self.chains.remove(victim);
        Some(victim)
    }

    /// Whether the block is stored, and none behind it is.
    #[must_use]
    pub fn is_leaf(&self, block: BlockNumber) -> bool {
        self.chains.is_leaf(block)
    }

    /// The leaves of which this is true, from the one that is worth least on. Looks at all of them.
    pub fn least_first(&self, now: Time, is_meant: impl Fn(BlockNumber) -> bool) -> Vec<BlockNumber> {
        let mut leaves: Vec<_> = self.chains.leaves().iter().copied().filter(|&leaf| is_meant(leaf)).collect();
        leaves.sort_by(|&one, &other| {
            let worth = |block| self.chains.worth(block, now, &self.forecast);
            worth(one).total_cmp(&worth(other))
        });
        leaves
    }

    /// A block that is known no more, and whose number may be given to another.
    pub fn next_forgotten(&mut self) -> Option<BlockNumber> {
        self.forgotten.pop_front()
    }

    fn known_max(&self) -> usize {
        self.settings.known_min.max(KNOWN_PER_STORED * self.chains.stored())
    }

    /// Forgets what is too much, after so many that are new.
    fn forget(&mut self, new: usize) {
        // The first look at a block that was used since the last one spares it, the second does not. What is too much after
        // so many looks is so until the next ones.
        let (known_max, mut looks) = (self.known_max(), FADING_LOOKS + 4 * new);
        while self.chains.known() > known_max && looks > 0 {
            looks -= 1;
            let Some(block) = self.fading.pop_front() else { return };
            if self.chains.fades(block) {
                self.forgotten.push_back(block);
            } else {
                self.fading.push_back(block);
            }
        }
    }
}

#[cfg(test)]
mod tests;
