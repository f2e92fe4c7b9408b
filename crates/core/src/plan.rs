//! Which bytes of one region go where in another, as few strided runs.
//!
//! ```text
//! layouts (source, target) -> layers in order -> pages (merged inner axes) --+
//! block lists -> sorted pairs, checked -> stretches (merged neighbours) -----+--> runs -> Plan -> split -> Cursor
//! ```
//!
//! A plan is a pure function of both layouts and the set of block pairs: both daemons compile the same one from the
//! same inputs, so that only the bytes themselves travel, in wire order: run by run, and piece by piece inside a run.
//! The order in which the pairs are listed does not matter. [`Plan::digest`] tells whether both ends agree.
//!
//! Every target byte is written at most once. Limits: [`PAIRS_MAX`], [`RUNS_MAX`].
//!
//! Why not one descriptor for each piece: 4,096 blocks of 80 layers would be 327,680 of them, and compiling, splitting
//! and walking them would cost more than the transfer. Where both ends order a page's axes differently the pieces are
//! small all the same, but a run still holds a whole axis of them.

mod cursor;
mod error;
mod grid;
mod page;
mod pairs;
mod split;

use std::ops::ControlFlow;

pub use self::cursor::{Cursor, Side, Slice};
pub use self::error::{PageShape, PlanError};
use self::grid::{Course, Goal};
use self::page::Page;
use self::pairs::GroupPairs;
use crate::ids::BlockIndex;
use crate::layout::Layout;

/// Most pairs of blocks of one plan; chosen, 16 tokens each make 16 Mi tokens.
pub const PAIRS_MAX: usize = 1 << 20;
/// Most runs of one plan; chosen, they take 48 MiB.
pub const RUNS_MAX: usize = 1 << 20;

/// Blocks of one group to move: the block at each place of `source` goes to the block at the same place of `target`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupBlocks {
    /// The group, counted from zero in both layouts.
    pub group: u32,
    /// Blocks to read; one may be read more than once.
    pub source: Vec<BlockIndex>,
    /// Blocks to write; all different.
    pub target: Vec<BlockIndex>,
}

/// `count` pieces of `length` bytes; piece `i` goes from `source + i * source_stride` to `target + i * target_stride`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Run {
    /// First byte of the first piece in the source region.
    pub source: u64,
    /// First byte of the first piece in the target region.
    pub target: u64,
    /// Bytes of one piece, at least 1.
    pub length: u64,
    /// Number of pieces, at least 1.
    pub count: u32,
    /// Bytes from one piece to the next in the source region; zero where there is one piece.
    pub source_stride: u64,
    /// Bytes from one piece to the next in the target region; zero where there is one piece.
    pub target_stride: u64,
}

impl Run {
    /// Bytes of all pieces.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.length * u64::from(self.count)
    }

    /// `count` pieces of this run, the first one being piece `first`.
    fn pieces(&self, first: u64, count: u32) -> Self {
        Self {
            source: self.source + first * self.source_stride,
            target: self.target + first * self.target_stride,
            ..*self
        }
        .counted(count)
    }

    /// This run with another number of pieces.
    const fn counted(mut self, count: u32) -> Self {
        self.count = count;
        if count == 1 {
            self.source_stride = 0;
            self.target_stride = 0;
        }
        self
    }

    /// `length` bytes of piece `piece`, from byte `within` of it.
    const fn part(&self, piece: u64, within: u64, length: u64) -> Self {
        Self {
            source: self.source + piece * self.source_stride + within,
            target: self.target + piece * self.target_stride + within,
            length,
            count: 1,
            source_stride: 0,
            target_stride: 0,
        }
    }
}

/// The compiled movement of some blocks from one layout to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    runs: Vec<Run>,
    bytes: u64,
    digest: u64,
}

impl Plan {
    /// Compiles the movement of the named blocks. The same group may be named more than once.
    ///
    /// # Errors
    ///
    /// [`PlanError`] where the layouts differ in shape, a group or block is unknown, the lists of a group differ in
    /// length, two pairs would write the same target bytes, or a limit is passed.
    pub fn compile(source: &Layout, target: &Layout, blocks: &[GroupBlocks]) -> Result<Self, PlanError> {
        let group_pages = page::of_layouts(source, target)?;
        let group_pairs = pairs::gather(source, target, blocks)?;
        // Pieces that merge on one side make cheaper transfers than few runs, as long as the runs fit.
        [Goal::FewestSlices, Goal::FewestRuns]
            .into_iter()
            .find_map(|goal| {
                let run_count = count_runs(&group_pages, &group_pairs, goal)?;
                Some(emit(&group_pages, &group_pairs, goal, run_count))
            })
            .ok_or(PlanError::TooManyRuns)
    }

    /// All bytes that the plan moves.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The runs, in wire order.
    #[must_use]
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// A number that differs when the runs do, for both ends to compare. It finds mistakes, not malice.
    #[must_use]
    pub const fn digest(&self) -> u64 {
        self.digest
    }
}

impl Default for Plan {
    /// The plan that moves nothing.
    fn default() -> Self {
        Builder::default().finish()
    }
}

/// Visits the course of every page through every stretch, in wire order, with the course's first bytes.
fn tour(
    group_pages: &[Vec<Page>],
    group_pairs: &[GroupPairs],
    goal: Goal,
    mut visit: impl FnMut(&Course, u64, u64) -> ControlFlow<()>,
) -> ControlFlow<()> {
    for (pages, pairs) in group_pages.iter().zip(group_pairs) {
        let singles: Vec<Course> = pages.iter().map(|page| page.course(1, goal)).collect();
        for stretch in pairs.stretches() {
            for (page, single) in pages.iter().zip(&singles) {
                let (source, target) = page.start(&stretch);
                match stretch.length {
                    1 => visit(single, source, target)?,
                    length => visit(&page.course(length, goal), source, target)?,
                }
            }
        }
    }
    ControlFlow::Continue(())
}

/// How many runs there are before merging, unless there are more than [`RUNS_MAX`].
fn count_runs(group_pages: &[Vec<Page>], group_pairs: &[GroupPairs], goal: Goal) -> Option<usize> {
    let mut run_count = 0_usize;
    let counted = tour(group_pages, group_pairs, goal, |course, _, _| {
        run_count = run_count.saturating_add(course.run_count());
        if run_count > RUNS_MAX { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    counted.is_continue().then_some(run_count)
}

fn emit(group_pages: &[Vec<Page>], group_pairs: &[GroupPairs], goal: Goal, run_count: usize) -> Plan {
    let mut builder = Builder { runs: Vec::with_capacity(run_count) };
    let _: ControlFlow<()> = tour(group_pages, group_pairs, goal, |course, source, target| {
        course.for_each_run(source, target, |run| builder.push(run));
        ControlFlow::Continue(())
    });
    builder.finish()
}

/// Collects runs in wire order.
#[derive(Default)]
struct Builder {
    runs: Vec<Run>,
}

impl Builder {
    fn push(&mut self, run: Run) {
        if let Some(last) = self.runs.last_mut()
            && last.count == 1
            && run.count == 1
            && last.source + last.length == run.source
            && last.target + last.length == run.target
        {
            last.length += run.length;
        } else {
            self.runs.push(run);
        }
    }

    fn finish(self) -> Plan {
        let bytes = self.runs.iter().map(Run::bytes).sum();
        let digest = digest(&self.runs);
        Plan { runs: self.runs, bytes, digest }
    }
}

/// Folds runs into one number. Both daemons must find the same number, so it is part of the wire format.
fn digest(runs: &[Run]) -> u64 {
    // Odd and without pattern: 64 bits of the fractional parts of the roots of 2 (made odd), 3, 5, 7, 11 and 13.
    const FACTORS: [u64; 6] = [
        0x6a09_e667_f3bc_c909,
        0xbb67_ae85_84ca_a73b,
        0x3c6e_f372_fe94_f82b,
        0xa54f_f53a_5f1d_36f1,
        0x510e_527f_ade6_82d1,
        0x9b05_688c_2b3e_6c1f,
    ];
    runs.iter().fold(FACTORS[0], |sum, run| {
        let words = [run.source, run.target, run.length, u64::from(run.count), run.source_stride, run.target_stride];
        let mixed = words
            .iter()
            .zip(FACTORS)
            .fold(0_u64, |mixed, (word, factor)| mixed.wrapping_add(word.wrapping_mul(factor)));
        (sum.rotate_left(29) ^ mixed ^ (mixed >> 32)).wrapping_mul(FACTORS[1])
    })
}

#[cfg(test)]
mod tests;
