//! One cell of the benchmark: everything that decides what is moved and how.
//!
//! ```text
//! options -> Cell (checked) -> near end, and as JSON to the far end, which checks it again -> "cell" of the result row
//! ```
//!
//! Limits: the constants below. A cell from a peer is bytes from outside: it goes through [`Cell::check`] before
//! anything is sized by it.

use std::fmt;

use anyhow::{Result, ensure};
use clap::ValueEnum;
use kvferry_transport::COPY_THREADS_MAX;
use kvferry_transport_tcp::{STREAMS_MAX, THREADS_MAX};
use serde::{Deserialize, Serialize};

use super::size;

/// Most transfers in flight, and so most works posted at one end; the TCP transport's default limit is 1,024.
pub(super) const DEPTH_MAX: u32 = 256;
/// Most bytes of one transfer.
pub(super) const TRANSFER_BYTES_MAX: u64 = 64 << 30;
/// Most runs of one transfer, so that its plan can be compiled.
const PIECES_MAX: u64 = 1 << 20;
const LAYERS_MAX: u32 = 1024;
const SPIN_US_MAX: u32 = 1_000_000;

/// How the bytes move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Via {
    /// A copy between two regions of this process.
    Copy,
    /// The TCP transport, between two processes.
    Tcp,
}

/// Which way, seen from the end that starts transfers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Direction {
    /// Bytes come to the end that starts, which fetches them.
    Read,
    /// Bytes go to the far end, pushed unasked.
    Write,
}

/// Whether every piece's checksum is verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verify {
    /// Every byte is summed at both ends.
    Full,
    /// No sums: what a daemon never does, for the price of verification.
    Off,
}

/// How TCP asks the kernel to move bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Asks {
    /// As a daemon would choose here.
    Auto,
    /// epoll, then one call a move.
    Epoll,
    /// Operations on a ring of `io_uring`; refused where the kernel has none for us.
    Uring,
}

/// What one row of the table measures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Cell {
    pub(crate) transport: Via,
    pub(crate) direction: Direction,
    /// Bytes of one block in one layer: the longest stretch that lies in one piece at both ends.
    pub(crate) block_bytes: u32,
    /// Blocks of one transfer.
    pub(crate) blocks: u32,
    pub(crate) layers: u32,
    pub(crate) streams: usize,
    /// Threads that copy; 1 over TCP.
    pub(crate) copy_threads: usize,
    /// Threads that move bytes over TCP, at each end; 1 for a copy.
    pub(crate) data_threads: usize,
    /// Transfers in flight, at most.
    pub(crate) depth: u32,
    pub(crate) verify: Verify,
    /// What both ends use to move bytes over TCP.
    pub(crate) io: Asks,
    /// Whether data connections are encrypted.
    pub(crate) tls: bool,
    /// How long both ends spin after work before they sleep.
    pub(crate) spin_us: u32,
    /// Transfers a second, each counted from its intended start; without it the next starts when one has ended.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) rate: Option<f64>,
    /// Of the measured part of one round.
    pub(crate) duration_ms: u64,
    /// Of the memory at each end that blocks are drawn from.
    pub(crate) region_bytes: u64,
    /// Of the random order of blocks.
    pub(crate) seed: u64,
    /// The model whose shape this is.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) model: Option<String>,
}

impl Cell {
    /// Bytes of one transfer.
    pub(crate) fn transfer_bytes(&self) -> u64 {
        u64::from(self.block_bytes) * self.pieces()
    }

    fn pieces(&self) -> u64 {
        u64::from(self.blocks) * u64::from(self.layers)
    }

    /// Whether every number is within its limits.
    pub(crate) fn check(&self) -> Result<()> {
        ensure!(self.block_bytes > 0, "a block needs at least one byte");
        ensure!(self.blocks > 0, "a transfer needs at least one block");
        ensure!((1..=LAYERS_MAX).contains(&self.layers), "{} layers: 1 to {LAYERS_MAX}", self.layers);
        ensure!(self.pieces() <= PIECES_MAX, "{} blocks in all layers: at most {PIECES_MAX}", self.pieces());
        ensure!(
            self.transfer_bytes() <= TRANSFER_BYTES_MAX,
            "{} bytes a transfer: at most {TRANSFER_BYTES_MAX}",
            self.transfer_bytes()
        );
        ensure!((1..=STREAMS_MAX).contains(&self.streams), "{} streams: 1 to {STREAMS_MAX}", self.streams);
        let threads = self.copy_threads;
        ensure!((1..=COPY_THREADS_MAX).contains(&threads), "{threads} threads that copy: 1 to {COPY_THREADS_MAX}");
        let threads = self.data_threads;
        ensure!((1..=THREADS_MAX).contains(&threads), "{threads} data threads: 1 to {THREADS_MAX}");
        ensure!((1..=DEPTH_MAX).contains(&self.depth), "a depth of {}: 1 to {DEPTH_MAX}", self.depth);
        ensure!(self.spin_us <= SPIN_US_MAX, "{} us of spinning: at most {SPIN_US_MAX}", self.spin_us);
        ensure!(self.region_bytes >= self.transfer_bytes(), "the region is smaller than one transfer");
        ensure!(self.region_bytes <= kvferry_memory::REGION_BYTES_MAX, "the region is too large");
        let rate_is_sane = self.rate.is_none_or(|rate| rate.is_finite() && rate > 0.0 && rate <= 1e7);
        ensure!(rate_is_sane, "a rate of {:?}: above 0 and at most 10,000,000 a second", self.rate);
        Ok(())
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} x {}", self.way(), self.blocks, size::bytes(u64::from(self.block_bytes)))?;
        if self.layers > 1 {
            write!(f, " x {} layers", self.layers)?;
        }
        Ok(())
    }
}

impl Cell {
    /// Transport and direction in one word or two.
    pub(crate) fn way(&self) -> &'static str {
        match (self.transport, self.direction) {
            (Via::Copy, _) => "copy",
            (Via::Tcp, Direction::Read) => "tcp read",
            (Via::Tcp, Direction::Write) => "tcp write",
        }
    }
}

/// A small cell for the tests of the files beside this one.
#[cfg(test)]
pub(super) fn example() -> Cell {
    Cell {
        transport: Via::Tcp,
        direction: Direction::Read,
        block_bytes: 4096,
        blocks: 16,
        layers: 1,
        streams: 2,
        copy_threads: 1,
        data_threads: 1,
        depth: 1,
        verify: Verify::Full,
        io: Asks::Auto,
        tls: false,
        spin_us: 0,
        rate: None,
        duration_ms: 10,
        region_bytes: 1 << 20,
        seed: 1,
        model: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_survives_the_wire() {
        let cell = Cell { rate: Some(100.0), ..example() };
        let text = serde_json::to_string(&cell).expect("JSON");
        assert_eq!(serde_json::from_str::<Cell>(&text).expect("a cell"), cell);
        assert!(serde_json::from_str::<Cell>(&text.replace("\"seed\"", "\"sed\"")).is_err(), "unknown keys");
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        example().check().expect("a good cell");
        let bad: [fn(&mut Cell); 11] = [
            |cell| cell.block_bytes = 0,
            |cell| cell.blocks = 0,
            |cell| cell.layers = 0,
            |cell| cell.layers = 2000,
            |cell| cell.blocks = u32::MAX,
            |cell| cell.streams = 0,
            |cell| cell.streams = 65,
            |cell| cell.depth = 100_000,
            |cell| cell.region_bytes = 1 << 10,
            |cell| cell.region_bytes = u64::MAX,
            |cell| cell.rate = Some(f64::NAN),
        ];
        for (number, spoil) in bad.into_iter().enumerate() {
            let mut cell = example();
            spoil(&mut cell);
            assert!(cell.check().is_err(), "{number}: {cell:?}");
        }
        let huge = Cell { block_bytes: u32::MAX, blocks: u32::MAX, layers: u32::MAX, ..example() };
        assert!(huge.check().is_err(), "nothing wraps");
    }

    #[test]
    fn cells_have_names() {
        assert_eq!(example().to_string(), "tcp read 16 x 4K");
        assert_eq!(Cell { layers: 3, ..example() }.to_string(), "tcp read 16 x 4K x 3 layers");
    }
}
