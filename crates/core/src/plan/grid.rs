//! Evenly spaced pieces on both sides, and the way through them.
//!
//! A grid is a piece of `length` bytes repeated along up to four axes (token, head, layer, block), each with its own
//! stride on either side. Folding makes pieces long and axes few. A course then picks the axis that becomes the count
//! of the runs; the others are walked, one run for each step.

use std::cmp::Reverse;

use super::Run;

/// Axes of a grid: token, head, layer, block.
const AXES_MAX: usize = 4;

/// `count` repetitions, and the bytes between two of them on either side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Axis {
    pub(super) count: u32,
    pub(super) source: u64,
    pub(super) target: u64,
}

impl Axis {
    const SINGLE: Self = Self { count: 1, source: 0, target: 0 };

    /// Where each repetition starts when the first one starts here.
    fn starts(self, source: u64, target: u64) -> impl Iterator<Item = (u64, u64)> {
        (0..u64::from(self.count)).map(move |index| (source + index * self.source, target + index * self.target))
    }
}

/// Pieces of `length` bytes along each of the axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Grid {
    length: u64,
    axes: [Axis; AXES_MAX],
    axis_count: usize,
}

impl Grid {
    /// One piece.
    pub(super) const fn solid(length: u64) -> Self {
        Self { length, axes: [Axis::SINGLE; AXES_MAX], axis_count: 0 }
    }

    pub(super) const fn is_solid(&self) -> bool {
        self.axis_count == 0
    }

    pub(super) const fn length(&self) -> u64 {
        self.length
    }

    /// Repeats the whole grid along one more axis. An axis of one changes nothing.
    pub(super) fn push(&mut self, axis: Axis) {
        if axis.count > 1
            && let Some(slot) = self.axes.get_mut(self.axis_count)
        {
            *slot = axis;
            self.axis_count += 1;
        }
    }

    /// Makes pieces as long and axes as few as they can be without changing which byte goes where.
    pub(super) fn fold(&mut self) {
        while self.absorb() || self.fuse() {}
    }

    fn axes(&self) -> &[Axis] {
        &self.axes[..self.axis_count]
    }

    fn remove(&mut self, index: usize) -> Axis {
        let axis = self.axes[index];
        self.axes.copy_within(index + 1..self.axis_count, index);
        self.axis_count -= 1;
        self.axes[self.axis_count] = Axis::SINGLE;
        axis
    }

    /// Lengthens the pieces by an axis along which they touch on both sides.
    fn absorb(&mut self) -> bool {
        let touches = |axis: &Axis| axis.source == self.length && axis.target == self.length;
        let Some(index) = self.axes().iter().position(touches) else { return false };
        // Cannot overflow: the pieces lie side by side within a checked region.
        self.length *= u64::from(self.remove(index).count);
        true
    }

    /// Makes one axis of two where the outer one continues the inner one on both sides.
    fn fuse(&mut self) -> bool {
        for inner in 0..self.axis_count {
            let Axis { count, source, target } = self.axes[inner];
            // Cannot overflow: a stride of a checked layout times its count is below twice REGION_BYTES_MAX.
            let continued = (source * u64::from(count), target * u64::from(count));
            let outer = self.axes().iter().position(|axis| (axis.source, axis.target) == continued);
            let Some(outer) = outer else { continue };
            let Some(count) = count.checked_mul(self.axes[outer].count) else { continue };
            self.axes[inner].count = count;
            self.remove(outer);
            return true;
        }
        false
    }
}

/// What a course makes few of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    /// Memory of the plan: the longest axis is the run.
    FewestRuns,
    /// Work of the transfer: runs plus the slices that a cursor makes of them on both sides.
    FewestSlices,
}

/// The way through a grid: one run along an axis at each step of the other axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Course {
    length: u64,
    run: Axis,
    /// The other axes, outermost first; unused ones have a count of one.
    steps: [Axis; AXES_MAX - 1],
}

impl Course {
    pub(super) fn through(mut grid: Grid, goal: Goal) -> Self {
        // Cannot overflow: pieces do not overlap within a checked region.
        let pieces = grid.axes().iter().fold(1, |pieces, axis| pieces * u64::from(axis.count));
        let cost = |axis: &Axis| {
            let run_count = pieces / u64::from(axis.count);
            let dense_sides = [axis.source, axis.target].into_iter().filter(|stride| *stride == grid.length).count();
            match (goal, dense_sides) {
                (Goal::FewestRuns, _) => run_count,
                // On a dense side a run is one slice, on the other a slice for each piece.
                (Goal::FewestSlices, 0) => run_count + 2 * pieces,
                (Goal::FewestSlices, _) => 2 * run_count + pieces,
            }
        };
        let cheapest = (0..grid.axis_count).min_by_key(|index| cost(&grid.axes[*index]));
        let run = cheapest.map_or(Axis::SINGLE, |index| grid.remove(index));
        let mut steps = [Axis::SINGLE; AXES_MAX - 1];
        for (step, axis) in steps.iter_mut().zip(grid.axes()) {
            *step = *axis;
        }
        // Walk upwards through the side on which runs are dense: there the next run often continues the last one. No two
        // axes have the same stride on one side, as strides nest.
        if run.target == grid.length {
            steps.sort_unstable_by_key(|axis| Reverse(axis.target));
        } else {
            steps.sort_unstable_by_key(|axis| Reverse(axis.source));
        }
        Self { length: grid.length, run, steps }
    }

    /// How many runs [`Course::for_each_run`] makes.
    pub(super) fn run_count(&self) -> usize {
        let run_count = self.steps.iter().fold(1, |runs, axis| runs * u64::from(axis.count));
        usize::try_from(run_count).unwrap_or(usize::MAX)
    }

    /// The runs in wire order, from these first bytes.
    pub(super) fn for_each_run(&self, source: u64, target: u64, mut emit: impl FnMut(Run)) {
        let [outer, middle, inner] = self.steps;
        let Axis { count, source: source_stride, target: target_stride } = self.run;
        for (source, target) in outer.starts(source, target) {
            for (source, target) in middle.starts(source, target) {
                for (source, target) in inner.starts(source, target) {
                    emit(Run { source, target, length: self.length, count, source_stride, target_stride });
                }
            }
        }
    }
}
