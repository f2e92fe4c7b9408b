//! What is known of a use when it happens.
//!
//! ```text
//! request: [ shared prefix | an earlier request of the same conversation | new blocks ]
//!                                                 deepest known block ^   -> turn, pause since then, how much is new
//! ```

use std::time::Duration;

use kvferry_core::Time;

use super::ages::bin;
use super::chains::{BlockNumber, Chains};
use super::forecast::{FEATURES, Features, LEVELS};

/// A prefix of this many blocks that other requests use too is where conversations begin, and none of their turns.
const SHARED_PREFIX_MAX: usize = 2;
const TURN_LEVEL_MAX: u8 = 10;
/// Bins of age in one level of a pause: two octaves. Finer levels of this, of lengths and of what is new gained nothing on
/// a trace of 12,000 requests, and each makes classes (docs/adr/0020).
const PAUSE_BINS: usize = 6;

/// One request, before its blocks are used.
pub(super) struct Request {
    blocks: usize,
    known: usize,
    turn: u8,
    /// Levels that all its blocks have in common; the others are 0.
    common: [u8; FEATURES],
}

impl Request {
    pub(super) fn new(now: Time, blocks: &[BlockNumber], chains: &Chains) -> Self {
        let known = blocks.iter().take_while(|&&block| chains.is_known(block)).count();
        let deepest = blocks[..known].last().copied();
        let earlier = deepest.filter(|&block| known > SHARED_PREFIX_MAX || chains.uses(block) <= 2);
        let (turn, pause) = earlier.map_or((0, None), |block| {
            let (turn, last) = chains.last_use(block);
            (turn.saturating_add(1), Some(now.until(last)))
        });
        let new = blocks.len() - known;
        let common = [
            turn.min(TURN_LEVEL_MAX),
            0,
            logarithm(blocks.len(), 2.0),
            pause.map_or(0, |pause: Duration| 1 + level(bin(pause) / PAUSE_BINS)),
            if turn == 0 { 0 } else { 1 + logarithm(new + 1, 1.0) },
            0,
        ];
        Self { blocks: blocks.len(), known, turn, common }
    }

    /// Which of a conversation's requests this is, from 0.
    pub(super) const fn turn(&self) -> u8 {
        self.turn
    }

    /// Of the use of the block at `place`, which was used `uses` times before.
    pub(super) fn features(&self, place: usize, uses: u8) -> Features {
        let mut levels = self.common;
        // What comes last is often not there in the next turn: it was cut, or was the beginning of an answer.
        levels[Features::ALONE] = u8::from(place + 1 != self.blocks);
        // Uses beyond this conversation's own.
        levels[5] = if place >= self.known {
            0
        } else {
            match uses.saturating_sub(self.turn) {
                0..=1 => 0,
                2..=4 => 1,
                5..=20 => 2,
                _ => 3,
            }
        };
        for level in &mut levels {
            *level = (*level).min(TOP);
        }
        Features(levels)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "LEVELS is a small constant")]
const TOP: u8 = (LEVELS - 1) as u8;

fn level(number: usize) -> u8 {
    u8::try_from(number).unwrap_or(u8::MAX).min(TOP - 2)
}

/// So many levels for each doubling.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most 64 times a small number")]
fn logarithm(count: usize, per_octave: f64) -> u8 {
    level(((count.max(1) as f64).log2() * per_octave) as usize)
}
