//! An hour of requests: read from a file, or made up.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::io::{BufRead as _, BufReader};
use std::path::Path;

const HOUR_MS: u64 = 3_600_000;

/// An hour.
pub(crate) struct Trace {
    pub(crate) requests: Vec<Request>,
}

/// One prompt.
pub(crate) struct Request {
    /// Milliseconds since the hour began.
    pub(crate) at_ms: u64,
    pub(crate) blocks: Vec<u32>,
}

impl Trace {
    /// Reads JSON lines with `timestamp` and `hash_ids`.
    pub(crate) fn read(path: &Path) -> Self {
        let file = std::fs::File::open(path).unwrap_or_else(|error| panic!("open {}: {error}", path.display()));
        let mut numbers = HashMap::new();
        let mut requests = Vec::new();
        for line in BufReader::new(file).lines() {
            let line: serde_json::Value = serde_json::from_str(&line.expect("text")).expect("JSON");
            let at_ms = line["timestamp"].as_u64().expect("a timestamp");
            assert!(at_ms < HOUR_MS, "the trace is of one hour: {at_ms} ms");
            let names = line["hash_ids"].as_array().expect("blocks").iter().map(|id| id.as_u64().expect("a number"));
            let next = |name: u64, numbers: &mut HashMap<u64, u32>| {
                let count = u32::try_from(numbers.len()).expect("fits");
                *numbers.entry(name).or_insert(count)
            };
            requests.push(Request { at_ms, blocks: names.map(|name| next(name, &mut numbers)).collect() });
        }
        assert!(!requests.is_empty(), "no request in {}", path.display());
        Self { requests }
    }

    /// Conversations, two thirds of which end with their first answer, as in the published traces; all begin with the
    /// same block. Every time the same.
    pub(crate) fn make(count: usize) -> Self {
        let mut random = fastrand::Rng::with_seed(7);
        let (mut next, mut requests) = (1_u32, Vec::new());
        let mut open: BinaryHeap<Reverse<(u64, Vec<u32>)>> = BinaryHeap::new();
        let mut more = |blocks: &mut Vec<u32>, count: u32| {
            blocks.extend(next..next + count);
            next += count;
        };
        // So that turns and beginnings come to `count`.
        let beginnings = count as u64 / 2;
        for number in 0..beginnings {
            let mut blocks = vec![0];
            more(&mut blocks, random.u32(3..40));
            open.push(Reverse((number * HOUR_MS / beginnings, blocks)));
        }
        while let Some(Reverse((at_ms, mut blocks))) = open.pop() {
            requests.push(Request { at_ms, blocks: blocks.clone() });
            let is_first = random.u32(0..3) < 2 && blocks.len() < 41;
            // Some think for seconds, some for minutes.
            let again = at_ms + 2_000 * 2_u64.pow(random.u32(0..9)) + random.u64(0..2_000);
            if !is_first && again < HOUR_MS {
                more(&mut blocks, random.u32(1..4));
                open.push(Reverse((again, blocks)));
            }
        }
        Self { requests }
    }

    /// Blocks of all requests.
    pub(crate) fn asked(&self) -> usize {
        self.requests.iter().map(|request| request.blocks.len()).sum()
    }
}
