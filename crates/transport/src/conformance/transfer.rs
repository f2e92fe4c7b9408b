//! One movement of the suite, and what its bytes must be.

use std::sync::Arc;

use kvferry_core::lease::LeaseGate;
use kvferry_core::plan::Plan;
use kvferry_core::{Time, WorkId};
use kvferry_memory::{Meter, Region};

use super::shape::Shape;
use super::violation::Violation;

/// Two regions of its own, a plan between them, and the ids its works are posted under.
pub(super) struct Transfer {
    pub(super) plan: Arc<Plan>,
    pub(super) source: Arc<Region>,
    pub(super) target: Arc<Region>,
    pub(super) lease: LeaseGate,
    pub(super) deadline: Time,
    pub(super) read: WorkId,
    pub(super) serve: WorkId,
    /// Sum of the whole target when the read completed; from then on nobody may write to it.
    pub(super) settled: Option<u32>,
}

/// Places of a plan looked at to see how far its bytes have come.
const PROBES: u64 = 64;

impl Transfer {
    /// A source of bytes that are never zero, other ones for each transfer, and a target of zeros.
    pub(super) fn new(shape: &Shape, ids: (WorkId, WorkId), meter: &Meter) -> Self {
        let source = region(shape.source_bytes, meter);
        fill(&source, ids.0.0);
        Self {
            plan: Arc::clone(&shape.plan),
            source,
            target: region(shape.target_bytes, meter),
            lease: LeaseGate::new(Time::NEVER),
            deadline: Time::NEVER,
            read: ids.0,
            serve: ids.1,
            settled: None,
        }
    }

    /// Compares the whole target with what the plan's runs say, byte by byte and without the plan's own cursor.
    pub(super) fn check_bytes(&self) -> Result<(), Violation> {
        let source = bytes_of(&self.source);
        let mut expected = vec![0; index(self.target.len())];
        for run in self.plan.runs() {
            for piece in 0..u64::from(run.count) {
                let from = index(run.source + piece * run.source_stride);
                let to = index(run.target + piece * run.target_stride);
                let length = index(run.length);
                expected[to..to + length].copy_from_slice(&source[from..from + length]);
            }
        }
        let landed = bytes_of(&self.target);
        if landed == expected {
            return Ok(());
        }
        let offset = landed.iter().zip(&expected).take_while(|(landed, expected)| landed == expected).count() as u64;
        Err(Violation::WrongBytes { id: self.read, offset })
    }

    /// The sum of all bytes of the target.
    pub(super) fn target_sum(&self) -> u32 {
        self.target.crc32c(0, 0, self.target.len()).expect("the whole region")
    }

    /// How many of [`PROBES`] places, spread evenly over the plan's bytes, have been written.
    pub(super) fn probes_landed(&self) -> u64 {
        let landed = |probe: &u64| {
            let mut byte = [0];
            let offset = self.target_of(probe * self.plan.bytes() / PROBES);
            self.target.read(offset, &mut byte).expect("the plan is inside the target");
            byte[0] != 0
        };
        (0..PROBES).filter(landed).count() as u64
    }

    /// Whether so few bytes have landed that, whatever sockets hold, the end is not near.
    pub(super) fn is_midway(&self) -> bool {
        (1..=PROBES / 2).contains(&self.probes_landed())
    }

    /// Where the plan's byte `at` lands.
    fn target_of(&self, at: u64) -> u64 {
        let mut left = at;
        for run in self.plan.runs() {
            if left < run.bytes() {
                return run.target + left / run.length * run.target_stride + left % run.length;
            }
            left -= run.bytes();
        }
        unreachable!("byte {at} is beyond the plan")
    }
}

/// A fresh region of zeros.
pub(super) fn region(bytes: u64, meter: &Meter) -> Arc<Region> {
    let fd = kvferry_memory::create("kvferry-conformance", bytes).expect("make memory");
    Region::map(fd, bytes, meter).expect("map memory")
}

fn fill(region: &Region, seed: u64) {
    // xorshift64: any bytes will do as long as neighbours and transfers differ.
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = region.len().div_ceil(8);
    let mut bytes = Vec::with_capacity(index(words * 8));
    for _ in 0..words {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&(state | 0x0101_0101_0101_0101).to_le_bytes());
    }
    bytes.truncate(index(region.len()));
    region.write(0, &bytes).expect("the whole region");
}

fn bytes_of(region: &Region) -> Vec<u8> {
    let mut bytes = vec![0; index(region.len())];
    region.read(0, &mut bytes).expect("the whole region");
    bytes
}

fn index(number: u64) -> usize {
    usize::try_from(number).expect("the suite's regions fit an address space")
}
