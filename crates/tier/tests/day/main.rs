//! A day of requests through host memory and a disk: memory flat, files flat, every byte that is read held against what it
//! must be.
//!
//! ```text
//! trace (an hour, 24 times, with other names each hour) -> look up -> load, compare -> store what was not there -> commit
//! every ten minutes of the trace: memory of this process, files, bytes on the disk
//! ```
//!
//! Time is the trace's: nobody sleeps. Blocks are small, since nothing here depends on their size but how long it takes.
//!
//! ```text
//! cargo test -p kvferry-tier --test day                                             a made-up trace, six short hours
//! KVFERRY_DAY=1 cargo test --release -p kvferry-tier --test day -- --nocapture      a made-up day of 290,000 requests
//! KVFERRY_DAY=1 KVFERRY_TRACE=FILE cargo test --release ...                         24 times the hour in FILE
//! ```
//!
//! FILE is as `kvferry cache replay` takes it.

mod footprint;
mod node;
mod trace;

use kvferry_core::Time;
use kvferry_tier::disk::Limits;

use self::footprint::Footprint;
use self::node::{Node, Read};
use self::trace::Trace;

/// How large the world is.
struct Scale {
    hours: u64,
    /// Until then tables grow to their limits, and files are made.
    warm_up_hours: u64,
    host_bytes: u64,
    disk: Limits,
}

/// Seconds, beside other tests.
const SHORT: Scale = Scale {
    hours: 6,
    warm_up_hours: 3,
    host_bytes: 2 << 20,
    disk: Limits { bytes_max: 4 << 20, files_max: 12, extent_bytes: 512 << 10, free_bytes_min: 0, write_errors_max: 1 },
};
/// Host memory for 16,000 blocks and a disk for 160,000, of 180,000 that an hour of the published trace asks for. The
/// disk's tables remember 320,000 blocks, which are as many as came after 2 to 3 hours;
/// what grows with them is within 2 % of its size after 8.
const DAY: Scale = Scale {
    hours: 24,
    warm_up_hours: 8,
    host_bytes: 64 << 20,
    disk: Limits {
        bytes_max: 640 << 20,
        files_max: 100,
        extent_bytes: 16 << 20,
        free_bytes_min: 0,
        write_errors_max: 1,
    },
};
const SAMPLE_MS: u64 = 600_000;
/// What the allocator may keep beside tables: chosen.
const SLACK_KIB: u64 = 1 << 10;
/// Of a table's entries, with the byte that the table has for each: in a cache 34 bytes of name and 4 of number, aligned, for
/// a block that it knows, and 4 of number, 8 of tenant and 8 of bytes for one that is stored; in the disk's index its place.
const KNOWN_BYTES: u64 = 41;
const STORED_BYTES: u64 = 25 + 5;

/// What memory may grow by after the warm-up. Tables that hold as many entries as they may still double once, when they are
/// full of traces of what they have removed: seen until hour 15, each in 512 parts at different times. Nothing else does.
fn growth_kib_max(scale: &Scale) -> u64 {
    let doubled = |entries: u64, bytes: u64| (entries * 8 / 7).next_power_of_two() * bytes;
    let of_tier =
        |bytes: u64| doubled(node::known_max(bytes), KNOWN_BYTES) + doubled(node::stored_max(bytes), STORED_BYTES);
    (of_tier(scale.host_bytes) + of_tier(scale.disk.bytes_max)) / 1024 + SLACK_KIB
}

#[expect(clippy::disallowed_methods, reason = "for whoever runs a whole day")]
fn told(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|word| !word.is_empty())
}

#[test]
fn a_day_leaves_memory_and_files_as_they_are_and_every_read_is_right() {
    let (scale, made_up) = if told("KVFERRY_DAY").is_some() { (DAY, 12_000) } else { (SHORT, 1_000) };
    let trace = match told("KVFERRY_TRACE") {
        Some(path) => Trace::read(path.as_ref()),
        None => Trace::make(made_up),
    };
    println!("an hour: {} requests for {} blocks; {} times", trace.requests.len(), trace.asked(), scale.hours);
    let mut node = Node::new(scale.host_bytes, scale.disk);
    let (mut warm, mut after) = (Footprint::default(), Footprint::default());
    let (mut next_sample, mut all) = (0, Read::default());
    for hour in 0..scale.hours {
        let mut read = Read::default();
        for request in &trace.requests {
            let at_ms = hour * 3_600_000 + request.at_ms;
            // Names of this hour alone.
            let names: Vec<u64> = request.blocks.iter().map(|block| hour << 32 | u64::from(*block)).collect();
            read += node.serve(Time::from_nanos(at_ms * 1_000_000), &names);
            if hour < scale.warm_up_hours {
                // The disk has all its files before the warm-up ends, however slow it is: the trace's clock does not wait.
                node.wait_for_disk(Time::from_nanos(at_ms * 1_000_000));
            }
            if at_ms >= next_sample {
                next_sample = at_ms + SAMPLE_MS;
                let sample = Footprint::now(&node.store());
                assert!(sample.bytes <= scale.disk.bytes_max, "{sample:?}");
                assert!(sample.files <= u64::from(scale.disk.files_max), "{sample:?}");
                if hour < scale.warm_up_hours { &mut warm } else { &mut after }.raise(sample);
            }
        }
        all += read;
        println!("hour {}: {read}; {}", hour + 1, Footprint::now(&node.store()));
    }
    println!("all: {all}");
    println!("at most until hour {}: {warm}; after it: {after}", scale.warm_up_hours);
    node.check();
    assert_eq!(all.damaged, 0);
    assert!(all.from_host > 0 && all.from_disk > 0, "a tier was of no use: {all}");
    assert!(after.files <= warm.files && after.lengths <= warm.lengths, "files grow: {warm} -> {after}");
    assert!(after.descriptors <= warm.descriptors, "descriptors grow: {warm} -> {after}");
    let may_be = warm.memory_kib + growth_kib_max(&scale);
    assert!(after.memory_kib <= may_be, "memory grows: {warm} -> {after}, {} MiB at most", may_be >> 10);
}
