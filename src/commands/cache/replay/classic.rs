//! The policies that others use, as their papers have them: what ours is held against.
//!
//! Each sees single blocks, one access after the other, as a cache of objects does: chains mean nothing to it.

use super::queues::Queues;
use super::trace::Trace;

/// A cache of single blocks.
pub(super) trait Classic {
    /// The block is asked for, and kept from now on if the policy wishes. Whether it was there.
    fn access(&mut self, block: u32) -> bool;

    /// Whether an access would hit.
    #[cfg(test)]
    fn is_kept(&self, block: u32) -> bool;
}

/// Blocks that hit.
pub(super) fn hits(policy: &mut dyn Classic, trace: &Trace) -> u64 {
    let mut hits = 0;
    for request in &trace.requests {
        let mut whole = true;
        for &block in &request.blocks {
            whole &= policy.access(block);
            hits += u64::from(whole);
        }
    }
    hits
}

/// Least recently used goes first.
pub(super) struct Lru {
    queue: Queues<1>,
    capacity: usize,
}

impl Lru {
    pub(super) fn new(blocks: usize, capacity: usize) -> Self {
        Self { queue: Queues::new(blocks), capacity }
    }
}

impl Classic for Lru {
    fn access(&mut self, block: u32) -> bool {
        let hit = self.queue.queue_of(block).is_some();
        self.queue.push(0, block);
        if self.queue.length(0) > self.capacity {
            self.queue.pop(0);
        }
        hit
    }

    #[cfg(test)]
    fn is_kept(&self, block: u32) -> bool {
        self.queue.queue_of(block).is_some()
    }
}

/// S3-FIFO (Yang and others, SOSP 2023): a small queue that most blocks leave unused, a main one with second chances,
/// and a list of what left the small one.
pub(super) struct S3Fifo {
    queues: Queues<3>,
    uses: Vec<u8>,
    capacity: usize,
    small_capacity: usize,
}

impl S3Fifo {
    const SMALL: usize = 0;
    const MAIN: usize = 1;
    const GHOST: usize = 2;
    const USES_MAX: u8 = 3;

    pub(super) fn new(blocks: usize, capacity: usize) -> Self {
        Self { queues: Queues::new(blocks), uses: vec![0; blocks], capacity, small_capacity: (capacity / 10).max(1) }
    }

    fn evict(&mut self) {
        if self.queues.length(Self::SMALL) >= self.small_capacity {
            while let Some(block) = self.queues.pop(Self::SMALL) {
                if self.uses[block as usize] > 1 {
                    self.uses[block as usize] = 0;
                    self.queues.push(Self::MAIN, block);
                } else {
                    self.queues.push(Self::GHOST, block);
                    if self.queues.length(Self::GHOST) > self.capacity - self.small_capacity {
                        self.queues.pop(Self::GHOST);
                    }
                    return;
                }
            }
        }
        while let Some(block) = self.queues.pop(Self::MAIN) {
            let uses = &mut self.uses[block as usize];
            if *uses == 0 {
                return;
            }
            *uses -= 1;
            self.queues.push(Self::MAIN, block);
        }
    }
}

impl Classic for S3Fifo {
    fn access(&mut self, block: u32) -> bool {
        let place = self.queues.queue_of(block);
        if matches!(place, Some(Self::SMALL | Self::MAIN)) {
            let uses = &mut self.uses[block as usize];
            *uses = (*uses + 1).min(Self::USES_MAX);
            return true;
        }
        let returns = place == Some(Self::GHOST);
        self.queues.remove(block);
        while self.queues.length(Self::SMALL) + self.queues.length(Self::MAIN) >= self.capacity {
            self.evict();
        }
        self.uses[block as usize] = 0;
        self.queues.push(if returns { Self::MAIN } else { Self::SMALL }, block);
        false
    }

    #[cfg(test)]
    fn is_kept(&self, block: u32) -> bool {
        matches!(self.queues.queue_of(block), Some(Self::SMALL | Self::MAIN))
    }
}

/// ARC (Megiddo and Modha, FAST 2003): recent and frequent blocks share the room as lists of what left each advise.
pub(super) struct Adaptive {
    queues: Queues<4>,
    capacity: usize,
    /// How many of the blocks may be of the recent ones.
    recent_target: usize,
}

impl Adaptive {
    const RECENT: usize = 0;
    const FREQUENT: usize = 1;
    const RECENT_GHOST: usize = 2;
    const FREQUENT_GHOST: usize = 3;

    pub(super) fn new(blocks: usize, capacity: usize) -> Self {
        Self { queues: Queues::new(blocks), capacity, recent_target: 0 }
    }

    fn replace(&mut self, was_frequent: bool) {
        let recent = self.queues.length(Self::RECENT);
        let from_recent = recent > 0 && (recent > self.recent_target || (was_frequent && recent == self.recent_target));
        let (from, ghost) =
            if from_recent { (Self::RECENT, Self::RECENT_GHOST) } else { (Self::FREQUENT, Self::FREQUENT_GHOST) };
        if let Some(block) = self.queues.pop(from) {
            self.queues.push(ghost, block);
        }
    }
}

impl Classic for Adaptive {
    fn access(&mut self, block: u32) -> bool {
        let length = |queues: &Queues<4>, queue| queues.length(queue);
        let (recent_ghosts, frequent_ghosts) =
            (length(&self.queues, Self::RECENT_GHOST), length(&self.queues, Self::FREQUENT_GHOST));
        match self.queues.queue_of(block) {
            Some(Self::RECENT | Self::FREQUENT) => {
                self.queues.push(Self::FREQUENT, block);
                return true;
            }
            Some(Self::RECENT_GHOST) => {
                let step = (frequent_ghosts / recent_ghosts).max(1);
                self.recent_target = (self.recent_target + step).min(self.capacity);
                self.replace(false);
                self.queues.push(Self::FREQUENT, block);
                return false;
            }
            Some(_) => {
                let step = (recent_ghosts / frequent_ghosts).max(1);
                self.recent_target = self.recent_target.saturating_sub(step);
                self.replace(true);
                self.queues.push(Self::FREQUENT, block);
                return false;
            }
            None => {}
        }
        let recent = length(&self.queues, Self::RECENT);
        let all: usize = (0..4).map(|queue| length(&self.queues, queue)).sum();
        if recent + recent_ghosts == self.capacity {
            if recent < self.capacity {
                self.queues.pop(Self::RECENT_GHOST);
                self.replace(false);
            } else {
                self.queues.pop(Self::RECENT);
            }
        } else if all >= self.capacity {
            if all == 2 * self.capacity {
                self.queues.pop(Self::FREQUENT_GHOST);
            }
            self.replace(false);
        }
        self.queues.push(Self::RECENT, block);
        false
    }

    #[cfg(test)]
    fn is_kept(&self, block: u32) -> bool {
        matches!(self.queues.queue_of(block), Some(Self::RECENT | Self::FREQUENT))
    }
}

/// W-TinyLFU (Einziger, Friedman and Manes, 2017): a window of recent blocks, and a segmented LRU behind it that takes
/// in only who was asked for more often than who would go.
pub(super) struct TinyLfu {
    queues: Queues<3>,
    /// Accesses of each block, halved from time to time. The paper estimates them by a sketch; these are exact.
    counts: Vec<u8>,
    accesses: usize,
    capacity: usize,
    window_capacity: usize,
    protected_capacity: usize,
}

impl TinyLfu {
    const WINDOW: usize = 0;
    const PROBATION: usize = 1;
    const PROTECTED: usize = 2;
    const COUNT_MAX: u8 = 15;
    /// Accesses between two halvings, for each block of the capacity.
    const SAMPLE: usize = 10;

    pub(super) fn new(blocks: usize, capacity: usize) -> Self {
        let window_capacity = (capacity / 100).max(1);
        Self {
            queues: Queues::new(blocks),
            counts: vec![0; blocks],
            accesses: 0,
            capacity,
            window_capacity,
            protected_capacity: (capacity - window_capacity) * 8 / 10,
        }
    }

    fn count(&mut self, block: u32) {
        let count = &mut self.counts[block as usize];
        *count = (*count + 1).min(Self::COUNT_MAX);
        self.accesses += 1;
        if self.accesses >= self.capacity * Self::SAMPLE {
            self.counts.iter_mut().for_each(|count| *count /= 2);
            self.accesses /= 2;
        }
    }
}

impl Classic for TinyLfu {
    fn access(&mut self, block: u32) -> bool {
        self.count(block);
        match self.queues.queue_of(block) {
            Some(Self::WINDOW) => {
                self.queues.push(Self::WINDOW, block);
                return true;
            }
            Some(_) => {
                self.queues.push(Self::PROTECTED, block);
                if self.queues.length(Self::PROTECTED) > self.protected_capacity
                    && let Some(demoted) = self.queues.pop(Self::PROTECTED)
                {
                    self.queues.push(Self::PROBATION, demoted);
                }
                return true;
            }
            None => self.queues.push(Self::WINDOW, block),
        }
        if self.queues.length(Self::WINDOW) > self.window_capacity
            && let Some(candidate) = self.queues.pop(Self::WINDOW)
        {
            let main = self.queues.length(Self::PROBATION) + self.queues.length(Self::PROTECTED);
            if main < self.capacity - self.window_capacity {
                self.queues.push(Self::PROBATION, candidate);
            } else {
                let from = if self.queues.length(Self::PROBATION) > 0 { Self::PROBATION } else { Self::PROTECTED };
                if let Some(victim) = self.queues.oldest(from)
                    && self.counts[candidate as usize] > self.counts[victim as usize]
                {
                    self.queues.remove(victim);
                    self.queues.push(Self::PROBATION, candidate);
                }
            }
        }
        false
    }

    #[cfg(test)]
    fn is_kept(&self, block: u32) -> bool {
        self.queues.queue_of(block).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which of the accesses hit.
    fn hits(policy: &mut dyn Classic, accesses: &[u32]) -> Vec<bool> {
        accesses.iter().map(|&block| policy.access(block)).collect()
    }

    #[test]
    fn the_least_recently_used_goes() {
        assert_eq!(hits(&mut Lru::new(9, 2), &[1, 2, 1, 3, 1, 2]), [false, false, true, false, true, false]);
    }

    #[test]
    fn one_scan_does_not_wash_out_what_is_used_often() {
        // A block that is asked for before and after a scan of 50, in a store of 20.
        let mut accesses = vec![0; 8];
        accesses.extend(1..=50);
        accesses.push(0);
        let policies: [(&str, Box<dyn Classic>); 3] = [
            ("S3-FIFO", Box::new(S3Fifo::new(60, 20))),
            ("ARC", Box::new(Adaptive::new(60, 20))),
            ("W-TinyLFU", Box::new(TinyLfu::new(60, 20))),
        ];
        for (name, mut policy) in policies {
            assert_eq!(hits(&mut *policy, &accesses).last(), Some(&true), "{name}");
        }
        assert_eq!(hits(&mut Lru::new(60, 20), &accesses).last(), Some(&false));
    }

    #[test]
    fn no_policy_keeps_more_than_fits() {
        let mut random = fastrand::Rng::with_seed(3);
        let accesses: Vec<u32> = (0..20_000).map(|_| random.u32(0..30).min(random.u32(0..400))).collect();
        for capacity in [1, 2, 3, 10, 100] {
            let policies: [(&str, Box<dyn Classic>); 4] = [
                ("LRU", Box::new(Lru::new(400, capacity))),
                ("S3-FIFO", Box::new(S3Fifo::new(400, capacity))),
                ("ARC", Box::new(Adaptive::new(400, capacity))),
                ("W-TinyLFU", Box::new(TinyLfu::new(400, capacity))),
            ];
            for (name, mut policy) in policies {
                hits(&mut *policy, &accesses);
                let kept = (0..400).filter(|&block| policy.is_kept(block)).count();
                assert!(kept <= capacity, "{name} keeps {kept} of {capacity}");
            }
        }
    }
}
