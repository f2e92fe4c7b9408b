//! One result: a cell, what was measured, and the ceilings of the same run. One JSON object a line.

use std::collections::BTreeMap;

use serde::Serialize;

use super::cell::Cell;
use super::measure::Summary;

/// Medians over the rounds, by name; the unit ends each name.
pub(super) type Ceilings = BTreeMap<String, f64>;

/// What a row is held against.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Held {
    /// One of the row's ceilings.
    pub(super) name: String,
    pub(super) value: f64,
    /// The median of the rounds' own ratios: GB/s to the ceiling's, or, where the ceiling is a latency, p50 to the
    /// ceiling's.
    pub(super) ratio: f64,
}

/// A line of `--json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Row {
    /// Who moved the bytes; rivals' rows name themselves.
    pub(super) peer: &'static str,
    pub(super) version: &'static str,
    pub(super) cell: Cell,
    #[serde(flatten)]
    pub(super) summary: Summary,
    pub(super) ceilings: Ceilings,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ceiling: Option<Held>,
}
