//! Scattered memory, and one connection's way through it.

use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use kvferry_memory::{Meter, Region};
use rustix::time::{ClockId, clock_gettime};

use crate::Failure;

pub(crate) const BLOCK_BYTES: u64 = 64 << 10;
pub(crate) const GATHER_BYTES: u64 = 512 << 10;

/// A region whose blocks are visited in an order that no prefetcher guesses.
pub(crate) struct Field {
    pub(crate) region: Arc<Region>,
    order: Vec<u64>,
}

/// What one end used up.
pub(crate) struct Spent {
    pub(crate) calls: u64,
    pub(crate) cpu: Duration,
}

pub(crate) fn cpu_time() -> Duration {
    let spent = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(spent.tv_sec.unsigned_abs(), u32::try_from(spent.tv_nsec).unwrap_or(0))
}

impl Field {
    pub(crate) fn new(bytes: u64, source: bool) -> Result<Self, Failure> {
        let region = Region::map(kvferry_memory::create("rings", bytes)?, bytes, &Meter::new())?;
        let count = bytes / BLOCK_BYTES;
        // Odd factors visit each of a power of two once.
        let factor = if source { 389 } else { 613 };
        let order: Vec<u64> = (0..count).map(|place| place * factor % count).collect();
        let field = Self { region, order };
        for place in 0..count {
            let fill = if source { vec![u8::try_from(place % 251)?; 64 << 10] } else { vec![0; 64 << 10] };
            field.region.write(field.order[usize::try_from(place)?] * BLOCK_BYTES, &fill)?;
        }
        Ok(field)
    }

    pub(crate) fn wipe(&self) -> Result<(), Failure> {
        let zeros = vec![0; 64 << 10];
        for block in &self.order {
            self.region.write(block * BLOCK_BYTES, &zeros)?;
        }
        Ok(())
    }

    /// Compares every block that a flow of `each` bytes has gone over.
    pub(crate) fn check(&self, landed: &Self, each: u64, streams: usize) -> Result<(), Failure> {
        let (mut left, mut right) = (vec![0; 64 << 10], vec![0; 64 << 10]);
        let laps_whole = each * streams as u64 >= self.region.len();
        for place in 0..self.order.len() {
            self.region.read(self.order[place] * BLOCK_BYTES, &mut left)?;
            landed.region.read(landed.order[place] * BLOCK_BYTES, &mut right)?;
            if laps_whole && left != right {
                return Err(format!("block {place} differs").into());
            }
        }
        Ok(())
    }
}

/// One connection: a share of the field, over and over.
pub(crate) struct Flow {
    pub(crate) socket: TcpStream,
    pub(crate) field: Arc<Field>,
    first: u64,
    blocks: u64,
    pub(crate) done: u64,
    pub(crate) total: u64,
    pub(crate) vectors: Vec<libc::iovec>,
}

// SAFETY: the vectors point into the region that `field` keeps mapped; a mapping belongs to the process.
unsafe impl Send for Flow {}

impl Flow {
    pub(crate) fn new(socket: TcpStream, field: Arc<Field>, index: usize, count: usize, total: u64) -> Self {
        let blocks = field.order.len() as u64 / count as u64;
        let vectors = Vec::with_capacity(32);
        Self { socket, field, first: index as u64 * blocks, blocks, done: 0, total, vectors }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.done >= self.total
    }

    /// The address of the next byte, and how many lie there together.
    pub(crate) fn spot(&self, position: u64) -> Result<(*mut u8, usize), Failure> {
        let place = self.first + position / BLOCK_BYTES % self.blocks;
        let block = self.field.order[usize::try_from(place)?];
        let inside = position % BLOCK_BYTES;
        let raw = self.field.region.io_slice(block * BLOCK_BYTES + inside, BLOCK_BYTES - inside)?;
        Ok((raw.as_mut_ptr(), raw.len()))
    }

    /// Names the rest of the gather that is under way; returns its bytes.
    pub(crate) fn gather(&mut self) -> Result<u64, Failure> {
        self.vectors.clear();
        let end = (self.done / GATHER_BYTES + 1) * GATHER_BYTES;
        let (mut position, end) = (self.done, end.min(self.total));
        while position < end {
            let (base, length) = self.spot(position)?;
            self.vectors.push(libc::iovec { iov_base: base.cast(), iov_len: length });
            position += length as u64;
        }
        Ok(end - self.done)
    }

    pub(crate) fn message(&mut self) -> libc::msghdr {
        // SAFETY: all zeros is an empty message.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = self.vectors.as_mut_ptr();
        message.msg_iovlen = self.vectors.len();
        message
    }
}
