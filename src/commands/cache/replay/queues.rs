//! Queues of blocks, for policies that keep each block in one of several.
//!
//! Blocks are numbers below a bound known at the start, so that a queue is links in one table: every step takes the
//! same short time.

/// No block: the end of a queue.
const NONE: u32 = u32::MAX;

/// `N` queues; a block is in one of them or in none.
pub(super) struct Queues<const N: usize> {
    links: Vec<Link>,
    ends: [Ends; N],
}

#[derive(Clone, Copy)]
struct Link {
    newer: u32,
    older: u32,
    /// `N` or more: in none.
    queue: usize,
}

#[derive(Clone, Copy)]
struct Ends {
    newest: u32,
    oldest: u32,
    length: usize,
}

impl<const N: usize> Queues<N> {
    /// Empty queues for blocks below `blocks`.
    pub(super) fn new(blocks: usize) -> Self {
        Self {
            links: vec![Link { newer: NONE, older: NONE, queue: N }; blocks],
            ends: [Ends { newest: NONE, oldest: NONE, length: 0 }; N],
        }
    }

    /// Which queue the block is in.
    pub(super) fn queue_of(&self, block: u32) -> Option<usize> {
        Some(self.links[block as usize].queue).filter(|&queue| queue < N)
    }

    pub(super) const fn length(&self, queue: usize) -> usize {
        self.ends[queue].length
    }

    /// Takes the block out of the queue it may be in, and puts it at the newest end of this one.
    pub(super) fn push(&mut self, queue: usize, block: u32) {
        self.remove(block);
        let ends = &mut self.ends[queue];
        let older = std::mem::replace(&mut ends.newest, block);
        ends.length += 1;
        if older == NONE {
            ends.oldest = block;
        } else {
            self.links[older as usize].newer = block;
        }
        self.links[block as usize] = Link { newer: NONE, older, queue };
    }

    /// The block that has been in this queue for longest.
    pub(super) fn oldest(&self, queue: usize) -> Option<u32> {
        Some(self.ends[queue].oldest).filter(|&block| block != NONE)
    }

    /// Takes the block at the oldest end.
    pub(super) fn pop(&mut self, queue: usize) -> Option<u32> {
        let block = self.oldest(queue)?;
        self.remove(block);
        Some(block)
    }

    /// Takes the block out of its queue, if it is in one.
    pub(super) fn remove(&mut self, block: u32) {
        let Some(queue) = self.queue_of(block) else { return };
        let Link { newer, older, .. } = self.links[block as usize];
        let ends = &mut self.ends[queue];
        ends.length -= 1;
        if newer == NONE {
            ends.newest = older;
        } else {
            self.links[newer as usize].older = older;
        }
        if older == NONE {
            self.ends[queue].oldest = newer;
        } else {
            self.links[older as usize].newer = newer;
        }
        self.links[block as usize].queue = N;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_leave_in_the_order_in_which_they_came() {
        let mut queues = Queues::<2>::new(5);
        for block in [3, 1, 4] {
            queues.push(0, block);
        }
        queues.push(1, 0);
        queues.push(0, 3);
        queues.remove(4);
        assert_eq!((queues.length(0), queues.length(1)), (2, 1));
        assert_eq!((queues.queue_of(3), queues.queue_of(4), queues.queue_of(0)), (Some(0), None, Some(1)));
        assert_eq!((queues.pop(0), queues.pop(0), queues.pop(0)), (Some(1), Some(3), None));
        queues.push(1, 1);
        assert_eq!((queues.oldest(1), queues.pop(1), queues.pop(1), queues.length(1)), (Some(0), Some(0), Some(1), 0));
    }
}
