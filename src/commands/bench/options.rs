//! What is measured, as the command line says it, made into cells.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};
use kvferry_transport_tcp::STREAMS_MAX;

use super::cell::{Asks, Cell, DEPTH_MAX, Direction, Verify, Via};
use super::{arena, size};
use crate::models::Model;

/// Blocks of a transfer and bytes of a block, where neither is asked for: one small transfer for its latency, and
/// what engines move, from many small pieces to few large ones.
const DEFAULT_SHAPES: [(u32, u32); 4] = [(1, 64), (8192, 16 << 10), (1024, 64 << 10), (512, 1 << 20)];
/// In flight in an open loop, where transfers wait for no other.
const OPEN_LOOP_DEPTH: u32 = 64;
const DEFAULT_BLOCKS: u32 = 1024;

/// Which way bytes go, seen from this end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Ways {
    /// This end fetches.
    Read,
    /// This end pushes.
    Write,
    /// Each cell once each way.
    Both,
}

/// Options of the near end.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// The far end on another host: what its `kvferry bench listen` printed. Without it, a child process.
    #[arg(long, value_name = "A:PORT")]
    pub(super) connect: Option<SocketAddr>,
    /// How bytes move; copy is between two regions of this process and has no far end [default: tcp,copy here, tcp
    /// between hosts].
    #[arg(long, value_delimiter = ',', value_name = "NAME,...")]
    transport: Vec<Via>,
    /// Which way, seen from this end: read fetches, write pushes.
    #[arg(long, default_value = "both")]
    direction: Ways,
    /// Bytes of one block in one layer, such as 64K, or with blocks of its own, such as 8192x16K [default: a set of
    /// cells from 1 x 64 to 512 x 1M].
    #[arg(long, value_delimiter = ',', value_name = "SIZE,...", conflicts_with = "model")]
    block_size: Vec<String>,
    /// Blocks of one transfer, for sizes that do not say [default: 1024].
    #[arg(long, value_delimiter = ',', value_name = "N,...", conflicts_with = "model")]
    blocks: Vec<u32>,
    /// Layers of one block, each of which lies elsewhere.
    #[arg(long, default_value_t = 1, value_name = "N", conflicts_with = "model")]
    layers: u32,
    /// A model by name: its shape in place of raw sizes. An unknown name lists the known ones.
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Tokens whose KV is one transfer, with --model.
    #[arg(long, default_value_t = 4096, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 22))]
    tokens: u32,
    /// Ranks that share the model's KV heads, with --model; a transfer is one rank's part.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    tp: u32,
    /// Tokens of a block, with --model.
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    block_tokens: u32,
    /// TCP connections.
    #[arg(long, value_delimiter = ',', default_value = "2", value_name = "N,...")]
    streams: Vec<usize>,
    /// Threads that share the streams, at each end; a daemon's is `limits.data_threads`.
    #[arg(long, default_value_t = 2, value_name = "N")]
    data_threads: usize,
    /// Threads that copy, with --transport copy.
    #[arg(long, value_delimiter = ',', default_value = "1", value_name = "N,...")]
    copy_threads: Vec<usize>,
    /// Transfers in flight [default: 1, and 64 with --rate].
    #[arg(long, value_delimiter = ',', value_name = "N,...")]
    depth: Vec<u32>,
    /// Checksums of every byte at both ends, or none, for their price.
    #[arg(long, default_value = "full")]
    verify: Verify,
    /// What TCP uses to move bytes; auto is what a daemon would choose here.
    #[arg(long, default_value = "auto", value_name = "NAME")]
    io: Asks,
    /// Encrypts data connections, with a certificate made for this run.
    #[arg(long)]
    tls: bool,
    /// How long both ends spin before they sleep; a daemon's is `limits.spin_us`, 0 unless set.
    #[arg(long, value_delimiter = ',', default_value = "50", value_name = "US,...")]
    spin_us: Vec<u32>,
    /// Open loop: so many transfers a second, and latency from when each was due. Without it, the next starts when one
    /// has ended.
    #[arg(long, value_name = "PER_SECOND")]
    rate: Option<f64>,
    /// Measured time of one round of a cell.
    #[arg(long, default_value = "400ms", value_name = "TIME", value_parser = parse_duration)]
    duration: Duration,
    /// Rounds; each goes through all cells and ceilings once.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(super) rounds: u32,
    /// Memory at each end that blocks are drawn from; less where it does not fit, more where a transfer needs it.
    #[arg(long, default_value = "512M", value_name = "SIZE")]
    region: String,
    /// Seed of the random order of blocks.
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
    /// Leaves out what the machine could do: memcpy, raw sockets, iperf3, ping-pongs.
    #[arg(long)]
    pub(super) no_ceilings: bool,
    /// Prints one JSON object a cell, one a line, instead of the table.
    #[arg(long)]
    pub(super) json: bool,
    /// Adds the JSON lines to this file too, for `kvferry bench report`.
    #[arg(long, value_name = "FILE")]
    pub(super) out: Option<PathBuf>,
}

fn parse_duration(text: &str) -> Result<Duration> {
    size::parse_duration(text)
}

/// `64K`, or `8192x16K` for that many blocks of it.
fn parse_size(text: &str) -> Result<(Option<u32>, u32)> {
    let (blocks, size) = match text.split_once('x') {
        Some((blocks, size)) => {
            let blocks = blocks.parse().with_context(|| format!("--block-size {text}: {blocks:?} is no count"))?;
            (Some(blocks), size)
        }
        None => (None, text),
    };
    let bytes = size::parse_bytes(size).context("--block-size")?;
    let bytes = u32::try_from(bytes).with_context(|| format!("a block of {size} is too large: less than 4G"))?;
    Ok((blocks, bytes))
}

/// What one transfer moves.
#[derive(Clone, Debug)]
struct Shape {
    blocks: u32,
    block_bytes: u32,
    layers: u32,
    model: Option<String>,
}

impl Options {
    /// All cells, in the order of the table. `available` is this machine's memory in bytes.
    pub(super) fn cells(&self, available: u64) -> Result<Vec<Cell>> {
        let shapes = self.shapes()?;
        let ways = self.ways()?;
        let depths = if self.depth.is_empty() {
            vec![if self.rate.is_some() { OPEN_LOOP_DEPTH } else { 1 }]
        } else {
            self.depth.clone()
        };
        let mut cells = Vec::new();
        for shape in &shapes {
            for &(transport, direction) in &ways {
                // A copy has threads where TCP has streams, and checks by itself.
                let (lanes, is_copy) = match transport {
                    Via::Copy => (&self.copy_threads, true),
                    Via::Tcp => (&self.streams, false),
                };
                for (lanes, depth, spin_us) in product(lanes, &depths, &self.spin_us) {
                    cells.push(Cell {
                        transport,
                        direction,
                        block_bytes: shape.block_bytes,
                        blocks: shape.blocks,
                        layers: shape.layers,
                        streams: if is_copy { 1 } else { lanes },
                        copy_threads: if is_copy { lanes } else { 1 },
                        data_threads: if is_copy { 1 } else { self.data_threads },
                        depth,
                        verify: if is_copy { Verify::Full } else { self.verify },
                        io: if is_copy { Asks::Auto } else { self.io },
                        tls: self.tls && !is_copy,
                        spin_us,
                        rate: self.rate,
                        duration_ms: u64::try_from(self.duration.as_millis())?,
                        region_bytes: kvferry_memory::REGION_BYTES_MAX,
                        seed: self.seed,
                        model: shape.model.clone(),
                    });
                }
            }
        }
        // Numbers first, so that what is sized by them is sane.
        cells.iter().try_for_each(|cell| cell.check().with_context(|| cell.to_string()))?;
        let region_bytes = self.region_bytes(&cells, available)?;
        cells.iter_mut().for_each(|cell| cell.region_bytes = region_bytes);
        Ok(cells)
    }

    /// Room for what is in flight, so that no two transfers share a block.
    fn region_bytes(&self, cells: &[Cell], available: u64) -> Result<u64> {
        let wished = size::parse_bytes(&self.region).context("--region")?;
        let largest = cells.iter().map(Cell::transfer_bytes).max().unwrap_or(0);
        let in_flight = cells.iter().map(|cell| cell.transfer_bytes().saturating_mul(u64::from(cell.depth))).max();
        // A source and a target here, and for TCP at the far end too, which may be this machine.
        let regions = if cells.iter().all(|cell| cell.transport == Via::Copy) { 2 } else { 4 };
        arena::region_bytes(wished.max(in_flight.unwrap_or(0)), largest, regions, available)
    }

    fn ways(&self) -> Result<Vec<(Via, Direction)>> {
        let transports = match (self.transport.is_empty(), self.connect) {
            (false, _) => self.transport.clone(),
            (true, Some(_)) => vec![Via::Tcp],
            (true, None) => vec![Via::Tcp, Via::Copy],
        };
        let remote_copy = self.connect.is_some() && transports.contains(&Via::Copy);
        ensure!(!remote_copy, "a copy has no far end: leave --connect or --transport copy out");
        let directions: &[Direction] = match self.direction {
            Ways::Read => &[Direction::Read],
            Ways::Write => &[Direction::Write],
            Ways::Both => &[Direction::Read, Direction::Write],
        };
        let tcp = || directions.iter().map(|&direction| (Via::Tcp, direction)).collect();
        let of = |via: &Via| match via {
            Via::Copy => vec![(Via::Copy, Direction::Read)],
            Via::Tcp => tcp(),
        };
        Ok(transports.iter().flat_map(of).collect())
    }

    fn shapes(&self) -> Result<Vec<Shape>> {
        if let Some(name) = &self.model {
            return Ok(vec![self.model_shape(Model::named(name)?)?]);
        }
        let plain = |blocks, block_bytes| Shape { blocks, block_bytes, layers: self.layers, model: None };
        if self.block_size.is_empty() && self.blocks.is_empty() {
            return Ok(DEFAULT_SHAPES.iter().map(|&(blocks, block_bytes)| plain(blocks, block_bytes)).collect());
        }
        let sizes = self.block_size.iter().map(|text| parse_size(text)).collect::<Result<Vec<_>>>()?;
        let sizes = if sizes.is_empty() { vec![(None, 64 << 10)] } else { sizes };
        let counts = if self.blocks.is_empty() { vec![DEFAULT_BLOCKS] } else { self.blocks.clone() };
        let of = |(own, bytes): (Option<u32>, u32)| {
            let counts = own.map_or_else(|| counts.clone(), |count| vec![count]);
            counts.into_iter().map(move |blocks| plain(blocks, bytes))
        };
        Ok(sizes.into_iter().flat_map(of).collect())
    }

    fn model_shape(&self, model: Model) -> Result<Shape> {
        let page = model.shared_by(self.tp)?.page_bytes(self.block_tokens);
        Ok(Shape {
            blocks: self.tokens.div_ceil(self.block_tokens),
            block_bytes: u32::try_from(page).with_context(|| format!("a block of {page} bytes is too large"))?,
            layers: model.layers,
            model: Some(format!("{} {} tokens tp {}", model.name, self.tokens, self.tp)),
        })
    }
}

fn product<'a>(
    streams: &'a [usize],
    depths: &'a [u32],
    spins: &'a [u32],
) -> impl Iterator<Item = (usize, u32, u32)> + 'a {
    let rest = move |&streams: &usize| {
        depths.iter().flat_map(move |&depth| spins.iter().map(move |&spin| (streams, depth, spin)))
    };
    streams.iter().flat_map(rest)
}

const _: () = assert!(STREAMS_MAX <= 64 && DEPTH_MAX >= OPEN_LOOP_DEPTH);

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser, Debug)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    const MEMORY: u64 = 16 << 30;

    fn cells(arguments: &str) -> Result<Vec<Cell>> {
        let words = std::iter::once("bench").chain(arguments.split_whitespace());
        Line::try_parse_from(words)?.options.cells(MEMORY)
    }

    fn names(arguments: &str) -> Vec<String> {
        cells(arguments).expect("cells").iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_default_set_goes_every_way() {
        let names = names("");
        assert_eq!(names.len(), 12, "{names:?}");
        assert_eq!(names[..3], ["tcp read 1 x 64", "tcp write 1 x 64", "copy 1 x 64"]);
        assert!(cells("").expect("cells").iter().all(|cell| cell.region_bytes == 512 << 20));
    }

    #[test]
    fn sizes_and_counts_multiply() {
        assert_eq!(
            names("--transport tcp --direction read --block-size 64K,1M --blocks 1,4 --layers 2"),
            [
                "tcp read 1 x 64K x 2 layers",
                "tcp read 4 x 64K x 2 layers",
                "tcp read 1 x 1M x 2 layers",
                "tcp read 4 x 1M x 2 layers"
            ]
        );
        assert_eq!(
            names("--transport copy --block-size 8192x16K,64K --blocks 1,4"),
            ["copy 8192 x 16K", "copy 1 x 64K", "copy 4 x 64K"]
        );
        assert_eq!(names("--transport copy --block-size 64K --streams 1,2,4").len(), 1);
        assert_eq!(names("--block-size 64K --copy-threads 1,2").len(), 4);
        assert_eq!(names("--transport tcp --block-size 64K --streams 1,2 --depth 1,4 --spin-us 0,50").len(), 16);
    }

    #[test]
    fn a_model_has_a_shape() {
        let cell = cells("--model llama-3.1-70b --tokens 4096 --tp 8 --transport copy").expect("cells").remove(0);
        // One of 8 heads: 16 tokens of 128 values, K and V, 2 bytes each.
        assert_eq!((cell.blocks, cell.block_bytes, cell.layers), (256, 16 * 128 * 2 * 2, 80));
        assert_eq!(cell.transfer_bytes(), (320 << 10) * 4096 / 8);
        let said = cells("--model gpt-5").expect_err("unknown").to_string();
        assert!(said.contains("llama-3.1-8b"), "{said}");
        cells("--model llama-3.1-8b --block-size 64K").expect_err("both");
        cells("--model llama-3.1-8b --tp 3").expect_err("3 ranks cannot share 8 heads");
    }

    #[test]
    fn an_open_loop_has_room_in_flight() {
        let cell = cells("--rate 1000 --block-size 4K --blocks 1 --transport copy").expect("cells").remove(0);
        assert_eq!((cell.depth, cell.rate), (OPEN_LOOP_DEPTH, Some(1000.0)));
    }

    #[test]
    fn regions_hold_what_is_in_flight() {
        let cell = cells("--block-size 1M --blocks 512 --depth 3 --transport copy").expect("cells").remove(0);
        assert_eq!(cell.region_bytes, 3 * (512 << 20));
        let said = cells("--block-size 1G --blocks 16").expect_err("16 GiB of 16").to_string();
        assert!(said.contains("do not fit"), "{said}");
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            "--block-size 64KB",
            "--block-size 0",
            "--block-size x64K",
            "--block-size 0x64K",
            "--block-size 4x",
            "--block-size 4x4x4K",
            "--block-size 8G",
            "--blocks 0",
            "--blocks x",
            "--layers 0",
            "--streams 0",
            "--streams 100",
            "--copy-threads 0",
            "--copy-threads 65",
            "--data-threads 0",
            "--data-threads 17",
            "--depth 0",
            "--depth 100000",
            "--spin-us 99999999",
            "--rate -1",
            "--rate nan",
            "--rounds 0",
            "--duration 5",
            "--region 1.5G",
            "--transport rdma",
            "--direction sideways",
            "--verify maybe",
            "--io kqueue",
            "--tp 0 --model llama-3.1-8b",
            "--connect nowhere",
            "--connect 127.0.0.1:1 --transport copy",
        ] {
            let error = cells(bad).expect_err(bad);
            assert!(!format!("{error:#}").is_empty(), "{bad}");
        }
    }
}
