//! Traces of requests: what was asked for, and when.
//!
//! ```text
//! {"timestamp": 12000, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1, 2]}
//! ```
//!
//! One request a line, as the traces that Mooncake published have them: milliseconds since the beginning, and the
//! prompt's blocks in order, each named by a number that stands for its content and all that came before it. Other
//! members are not looked at. Limits: [`BLOCKS_MAX`], [`LINE_BYTES_MAX`]. Failure: the line that is not understood, by
//! its number.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

/// Most blocks of all requests together: 4 GiB of memory for a replay.
const BLOCKS_MAX: usize = 1 << 28;
/// Longest line: a prompt of a million blocks.
const LINE_BYTES_MAX: u64 = 16 << 20;

/// A trace in memory.
#[derive(Debug)]
pub(super) struct Trace {
    pub(super) requests: Vec<Request>,
    /// How many blocks there are; each is a number below this.
    pub(super) unique: usize,
    /// How often a block was asked for.
    pub(super) accesses: usize,
}

/// One prompt.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// Milliseconds since the trace began.
    pub(super) at_ms: u64,
    /// Its blocks, from the first.
    pub(super) blocks: Vec<u32>,
}

#[derive(Deserialize)]
struct Line {
    timestamp: u64,
    hash_ids: Vec<u64>,
}

impl Trace {
    /// Reads a file.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let file = std::fs::File::open(path).with_context(|| format!("open {}", path.display()))?;
        Self::parse(BufReader::new(file)).with_context(|| format!("{} is no trace", path.display()))
    }

    fn parse(mut text: impl std::io::BufRead) -> Result<Self> {
        let mut numbers = HashMap::new();
        let mut trace = Self { requests: Vec::new(), unique: 0, accesses: 0 };
        let mut line = String::new();
        for number in 1_usize.. {
            line.clear();
            let read = (&mut text).take(LINE_BYTES_MAX).read_line(&mut line);
            if read.with_context(|| format!("line {number}"))? == 0 {
                break;
            }
            ensure!(
                line.len() < usize::try_from(LINE_BYTES_MAX)?,
                "line {number} is longer than {LINE_BYTES_MAX} bytes"
            );
            if line.trim().is_empty() {
                continue;
            }
            let parsed: Line = serde_json::from_str(&line).with_context(|| format!("line {number}"))?;
            let at_ms = parsed.timestamp;
            let before = trace.requests.last().map_or(0, |request| request.at_ms);
            ensure!(at_ms >= before, "line {number} is of {at_ms} ms, earlier than the line before it ({before} ms)");
            trace.accesses += parsed.hash_ids.len();
            ensure!(trace.accesses <= BLOCKS_MAX, "line {number}: more than {BLOCKS_MAX} blocks in all");
            let mut blocks = Vec::with_capacity(parsed.hash_ids.len());
            for id in parsed.hash_ids {
                let next = u32::try_from(numbers.len())?;
                blocks.push(*numbers.entry(id).or_insert(next));
            }
            trace.requests.push(Request { at_ms, blocks });
        }
        trace.unique = numbers.len();
        ensure!(trace.unique > 0, "there is no block in it");
        Ok(trace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Trace> {
        Trace::parse(text.as_bytes())
    }

    #[test]
    fn blocks_become_small_numbers() {
        let text = r#"{"timestamp": 0, "input_length": 9, "hash_ids": [7, 18446744073709551615]}

            {"timestamp": 5, "hash_ids": [7, 9]}"#;
        let trace = parse(text).expect("a trace");
        let request = |at_ms, blocks: [u32; 2]| Request { at_ms, blocks: blocks.to_vec() };
        assert_eq!(trace.requests, [request(0, [0, 1]), request(5, [0, 2])]);
        assert_eq!((trace.unique, trace.accesses), (3, 4));
    }

    #[test]
    fn what_is_no_trace_is_refused_with_its_line() {
        let good = r#"{"timestamp": 5, "hash_ids": [7]}"#;
        for (bad, says) in [
            ("", "no block"),
            ("{}", "timestamp"),
            ("7", "expected struct"),
            (r#"{"timestamp": -1, "hash_ids": []}"#, "invalid value"),
            (r#"{"timestamp": 1, "hash_ids": [-1]}"#, "invalid value"),
            (r#"{"timestamp": 4, "hash_ids": [1]}"#, "earlier"),
            (r#"{"timestamp": 4, "hash_ids": [1"#, "EOF"),
        ] {
            let text = if bad.is_empty() { String::new() } else { format!("{good}\n{bad}\n") };
            let said = format!("{:#}", parse(&text).expect_err(bad));
            assert!(said.contains(says), "{bad}: {said}");
            assert!(bad.is_empty() || said.contains("line 2"), "{bad}: {said}");
        }
    }
}
