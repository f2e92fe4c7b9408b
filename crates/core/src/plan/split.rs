//! One plan as several, for streams that carry it side by side.

use super::{Builder, Plan, Run};

/// Cuts fall on multiples of this many bytes in wire order, so that a part does not start with a few bytes of a page.
const CUT_BYTES: u64 = 4096;

impl Plan {
    /// Cuts the plan into as many parts as there are streams (at least one), equal in bytes but for the rounding of
    /// each cut to 4 KiB of wire order. The parts one after another are the plan. Parts of small plans may be empty.
    #[must_use]
    pub fn split(&self, stream_count: usize) -> Vec<Self> {
        let part_count = stream_count.max(1);
        let mut rest = Rest { runs: &self.runs, skipped: 0 };
        let mut start = 0;
        (1..=part_count)
            .map(|number| {
                let end = if number == part_count { self.bytes } else { cut(self.bytes, number, part_count) };
                let part = rest.take(end - start);
                start = end;
                part
            })
            .collect()
    }
}

/// Where part `number`, counted from one, ends.
fn cut(bytes: u64, number: usize, part_count: usize) -> u64 {
    let exact = u128::from(bytes) * number as u128 / part_count as u128;
    // No larger than `bytes`, as number <= part_count.
    let exact = u64::try_from(exact).unwrap_or(bytes);
    exact - exact % CUT_BYTES
}

/// The runs that are not yet in a part.
struct Rest<'a> {
    runs: &'a [Run],
    /// Bytes of the first run that already are.
    skipped: u64,
}

impl Rest<'_> {
    fn take(&mut self, bytes: u64) -> Plan {
        let mut builder = Builder::default();
        let mut wanted = bytes;
        while wanted > 0 {
            let Some((run, later)) = self.runs.split_first() else { break };
            let left = run.bytes() - self.skipped;
            let length = left.min(wanted);
            push_range(&mut builder, run, self.skipped, length);
            wanted -= length;
            if length == left {
                self.runs = later;
                self.skipped = 0;
            } else {
                self.skipped += length;
            }
        }
        builder.finish()
    }
}

/// Pushes `length` bytes of a run from byte `skipped` of its wire order: the end of a piece, whole pieces, the start of a
/// piece, each where there is one.
fn push_range(builder: &mut Builder, run: &Run, skipped: u64, length: u64) {
    let (mut piece, within) = (skipped / run.length, skipped % run.length);
    let mut wanted = length;
    if within > 0 {
        let part = (run.length - within).min(wanted);
        builder.push(run.part(piece, within, part));
        piece += 1;
        wanted -= part;
    }
    // No more than the run's own count, which has 32 bits.
    if let Ok(whole) = u32::try_from(wanted / run.length)
        && whole > 0
    {
        builder.push(run.pieces(piece, whole));
        piece += u64::from(whole);
    }
    let part = wanted % run.length;
    if part > 0 {
        builder.push(run.part(piece, 0, part));
    }
}
