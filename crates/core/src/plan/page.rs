//! What one block of a group is made of, the same for every block: pages.
//!
//! Both layouts list a group's layers in the same order but may cut them into spans differently, so the layers are
//! walked one by one on both sides at once. Layers at an equal distance on both sides become one page with a layer axis;
//! pages that continue each other on both sides become one.

use super::grid::{Axis, Course, Goal, Grid};
use super::pairs::{Stretch, number};
use super::{PageShape, PlanError};
use crate::layout::{Layer, Layout};

/// Bytes of one block, on both sides: a grid in block 0, and how far apart the blocks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Page {
    /// First byte in block 0.
    source: u64,
    target: u64,
    source_block_stride: u64,
    target_block_stride: u64,
    grid: Grid,
}

impl Page {
    /// The page as a course through `block_count` neighbouring blocks.
    pub(super) fn course(&self, block_count: u32, goal: Goal) -> Course {
        let mut grid = self.grid;
        grid.push(Axis { count: block_count, source: self.source_block_stride, target: self.target_block_stride });
        grid.fold();
        Course::through(grid, goal)
    }

    /// First bytes of a stretch of blocks.
    pub(super) fn start(&self, stretch: &Stretch) -> (u64, u64) {
        // Cannot overflow: the layouts were checked for every block, and the blocks against the layouts.
        let source = self.source + u64::from(stretch.source.0) * self.source_block_stride;
        let target = self.target + u64::from(stretch.target.0) * self.target_block_stride;
        (source, target)
    }

    /// Takes in the page behind this one where no gap is between them on either side.
    fn join(&mut self, next: &Self) -> bool {
        let joins = self.grid.is_solid()
            && next.grid.is_solid()
            && self.source + self.grid.length() == next.source
            && self.target + self.grid.length() == next.target
            && self.source_block_stride == next.source_block_stride
            && self.target_block_stride == next.target_block_stride;
        if joins {
            self.grid = Grid::solid(self.grid.length() + next.grid.length());
        }
        joins
    }
}

/// The pages of every group.
pub(super) fn of_layouts(source: &Layout, target: &Layout) -> Result<Vec<Vec<Page>>, PlanError> {
    let (source_count, target_count) = (source.groups().len(), target.groups().len());
    if source_count != target_count {
        return Err(PlanError::GroupCount { source_count, target_count });
    }
    (0..source_count).map(|group| of_group(source, target, group)).collect()
}

fn of_group(source: &Layout, target: &Layout, group: usize) -> Result<Vec<Page>, PlanError> {
    let (source_count, target_count) = (source.layers(group).count(), target.layers(group).count());
    if source_count != target_count {
        return Err(PlanError::LayerCount { group: number(group), source_count, target_count });
    }
    let mut pages: Vec<Page> = Vec::new();
    let mut rows: Vec<Row> = Vec::new();
    for (layer, pair) in source.layers(group).zip(target.layers(group)).enumerate() {
        let (source_shape, target_shape) = (shape(&pair.0), shape(&pair.1));
        if source_shape != target_shape {
            return Err(PlanError::PageShape { group: number(group), layer, source_shape, target_shape });
        }
        if !rows.last_mut().is_some_and(|row| row.join(&pair.0, &pair.1)) {
            rows.push(Row { source: pair.0, target: pair.1, layers: Axis { count: 1, source: 0, target: 0 } });
        }
    }
    for row in &rows {
        let page = row.page();
        if !pages.last_mut().is_some_and(|last| last.join(&page)) {
            pages.push(page);
        }
    }
    Ok(pages)
}

const fn shape(layer: &Layer) -> PageShape {
    PageShape { head_count: layer.head.count, token_count: layer.token.count, content_bytes: layer.content_bytes }
}

/// Layers of equal shape at equal distance on both sides.
struct Row {
    /// The first layer.
    source: Layer,
    target: Layer,
    layers: Axis,
}

impl Row {
    /// Takes in the next layer where it continues the row.
    fn join(&mut self, source: &Layer, target: &Layer) -> bool {
        let count = u64::from(self.layers.count);
        let (Some(source_step), Some(target_step)) = (
            step(&self.source, (count - 1) * self.layers.source, source),
            step(&self.target, (count - 1) * self.layers.target, target),
        ) else {
            return false;
        };
        if self.layers.count > 1 && (self.layers.source, self.layers.target) != (source_step, target_step) {
            return false;
        }
        self.layers = Axis { count: self.layers.count + 1, source: source_step, target: target_step };
        true
    }

    fn page(&self) -> Page {
        let (source, target) = (&self.source, &self.target);
        let mut grid = Grid::solid(source.content_bytes);
        grid.push(Axis { count: source.token.count, source: source.token.stride, target: target.token.stride });
        grid.push(Axis { count: source.head.count, source: source.head.stride, target: target.head.stride });
        grid.push(self.layers);
        grid.fold();
        Page {
            source: source.offset,
            target: target.offset,
            source_block_stride: source.block_stride,
            target_block_stride: target.block_stride,
            grid,
        }
    }
}

/// Bytes from the row's last layer to the next one if that is of the same make and further up.
fn step(first: &Layer, last_distance: u64, next: &Layer) -> Option<u64> {
    let alike = shape(first) == shape(next)
        && first.block_stride == next.block_stride
        && first.head == next.head
        && first.token == next.token;
    let step = next.offset.checked_sub(first.offset)?.checked_sub(last_distance)?;
    (alike && step > 0).then_some(step)
}
