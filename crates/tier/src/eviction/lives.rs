//! Lives of blocks, from one use to the next: those that go on, by the bins of age that they have reached.
//!
//! ```text
//! begin -> starts (a queue, oldest first) -- one cursor for each bin: reached --> Forecast
//!                                         end: the block was used again ------->
//! ```
//!
//! Two blocks of each request are followed, whatever its length: its last one, and one of the others that stands for
//! them all. Limits: [`LIVES_MAX`]; when they are too many, only every second request is followed, then every fourth.

use std::collections::VecDeque;

use kvferry_core::Time;

use super::ages::{BINS, begin_s};
use super::chains::{BlockNumber, Chains, Ended};
use super::forecast::{ClassId, Forecast};

/// Lives that are followed at a time.
const LIVES_MAX: usize = 1 << 18;
/// Lives that are looked at in one step. A request adds two, and each is looked at 51 times in a day: this is forty times
/// what there is to do, but for who comes after a long silence.
const LOOKS_MAX: usize = 4096;

/// A life that began.
#[derive(Clone, Copy)]
pub(super) struct Life {
    pub(super) at: Time,
    pub(super) block: BlockNumber,
    /// Which of the block's lives.
    pub(super) number: u8,
    pub(super) class: ClassId,
    /// How many lives like it it stands for, as a share of its request.
    pub(super) weight: f32,
}

/// Those that are followed.
pub(super) struct Lives {
    starts: VecDeque<Life>,
    /// Lives that left the queue.
    gone: u64,
    /// For each bin: lives that began long enough ago to have been looked at.
    looked_at: [u64; BINS],
    /// Of so many requests one is followed.
    stride: u64,
    requests: u64,
}

/// Which blocks of a request are followed.
#[derive(Clone, Copy)]
pub(super) struct Chosen {
    blocks: usize,
    other: Option<usize>,
}

impl Default for Lives {
    fn default() -> Self {
        Self { starts: VecDeque::new(), gone: 0, looked_at: [0; BINS], stride: 1, requests: 0 }
    }
}

impl Chosen {
    /// The weight of the block at `place`, if it is followed; all of a request's together weigh 1.
    #[expect(clippy::cast_possible_truncation, reason = "a share: seven digits do")]
    pub(super) fn weight(self, place: usize) -> Option<f32> {
        let share = 1.0 / self.blocks as f64;
        if self.other == Some(place) {
            Some((1.0 - share) as f32)
        } else {
            (self.other.is_some() && place + 1 == self.blocks).then_some(share as f32)
        }
    }
}

impl Lives {
    /// Chooses of a request with so many blocks.
    pub(super) fn choose(&mut self, blocks: usize, random: &mut fastrand::Rng) -> Chosen {
        self.requests += 1;
        let follows = blocks > 0 && self.requests.is_multiple_of(self.stride);
        let other = follows.then(|| if blocks == 1 { usize::MAX } else { random.usize(..blocks - 1) });
        Chosen { blocks, other }
    }

    pub(super) fn begin(&mut self, life: Life, forecast: &mut Forecast) {
        if self.starts.len() >= LIVES_MAX {
            self.stride *= 2;
            self.gone += (LIVES_MAX / 2) as u64;
            self.starts.drain(..LIVES_MAX / 2);
            for looked_at in &mut self.looked_at {
                *looked_at = (*looked_at).max(self.gone);
            }
        }
        forecast.reached(life.class, 0, life.weight);
        self.starts.push_back(life);
    }

    pub(super) fn end(&self, ended: &Ended, now: Time, forecast: &mut Forecast) {
        if ended.weight > 0.0 {
            forecast.used(ended.class, now.until(ended.began), ended.weight);
        }
    }

    /// Time has passed: tells the forecast who has reached which bin unused. False: there are more than [`LOOKS_MAX`].
    pub(super) fn age(&mut self, now: Time, chains: &Chains, forecast: &mut Forecast) -> bool {
        let mut left = LOOKS_MAX;
        for (bin, looked_at) in self.looked_at.iter_mut().enumerate().skip(1) {
            let begin_s = begin_s(bin);
            while left > 0 {
                let place = usize::try_from(*looked_at - self.gone).unwrap_or(usize::MAX);
                let Some(life) = self.starts.get(place) else { break };
                if now.until(life.at).as_secs_f64() < begin_s {
                    break;
                }
                left -= 1;
                *looked_at += 1;
                if chains.lives_on(life.block, life.number) {
                    forecast.reached(life.class, bin, life.weight);
                }
            }
        }
        // Who was looked at for the last bin is looked at no more.
        while self.gone < self.looked_at[BINS - 1] {
            self.gone += 1;
            self.starts.pop_front();
        }
        left > 0
    }
}
