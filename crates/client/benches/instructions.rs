//! Small, always equal pieces of work for counting instructions: the rings between client and daemon.
//!
//! `python3 benches/instructions` runs it under callgrind, once for each name, and compares (docs/adr/0017). By itself:
//! `cargo bench --profile instructions -p kvferry-client --bench instructions -- NAME`. Only what [`measured`] calls is
//! counted; what a work needs is made before.

use std::hint::black_box;

use kvferry_client::ring::{self, Popped, Pushed};

const NAMES: [&str; 2] = ["ring-push", "ring-pop"];
/// Bytes of the ring, and of a record: about what a redeem of a dozen blocks takes.
const RING_BYTES: u32 = 64 << 10;
const RECORD: [u8; 120] = [7; 120];
const RECORDS: usize = 256;

fn main() {
    // cargo adds an argument of its own.
    let name = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let (fd, mut daemon) = ring::create(RING_BYTES).expect("make rings");
    let mut client = ring::open(&fd, RING_BYTES).expect("map rings");
    let mut record = Vec::with_capacity(RECORD.len());
    let mut push = || {
        for _ in 0..RECORDS {
            assert!(matches!(client.submissions.push(black_box(&RECORD)), Ok(Pushed::Done)));
        }
        black_box(client.submissions.take_sleep());
    };
    let mut pop = || {
        for _ in 0..RECORDS {
            assert!(matches!(daemon.submissions.pop(&mut record), Ok(Popped::Record)));
            black_box(&record);
        }
    };
    match name.as_deref() {
        Some("ring-push") => {
            measured(&mut push);
            pop();
        }
        Some("ring-pop") => {
            push();
            measured(&mut pop);
        }
        _ => NAMES.iter().for_each(|name| println!("{name}")),
    }
}

/// What callgrind counts, with all that it calls.
#[inline(never)]
fn measured(work: impl FnOnce()) {
    work();
    // Something behind the call, or it would be a jump and this function not be there when it returns.
    black_box(());
}
