//! A hostile process on a ring: every input is a story of pushes, pops, and bytes written anywhere in the shared memory.
//! Nothing may panic, and no record may be longer than one can be.
#![no_main]
#![forbid(unsafe_code)]

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use kvferry_client::ring::{RING_BYTES_MIN, create, open};
use libfuzzer_sys::fuzz_target;

/// The words of both lanes, and then the bytes of both.
const MEMORY_BYTES: u64 = 4096 + 2 * RING_BYTES_MIN as u64;

fuzz_target!(|story: &[u8]| {
    let (memory, mut daemon) = create(RING_BYTES_MIN).expect("create");
    let mut client = open(&memory, RING_BYTES_MIN).expect("open");
    let memory = File::from(memory);
    let mut record = Vec::new();
    for step in story.chunks_exact(8) {
        let [kind, low, high, length, a, b, c, d] = *step else { continue };
        match kind % 6 {
            0 => {
                let _ = client.submissions.push(&vec![a; usize::from(length) * 4]);
            }
            1 => {
                let _ = client.submissions.push_socket();
            }
            2 => {
                let _ = daemon.completions.push(&vec![b; usize::from(length) * 4]);
            }
            3 => {
                let _ = daemon.submissions.pop(&mut record);
                assert!(record.len() <= RING_BYTES_MIN as usize / 4);
                let _ = client.completions.pop(&mut record);
                assert!(record.len() <= RING_BYTES_MIN as usize / 4);
            }
            // One of the words of one lane; then anywhere.
            4 => memory.write_all_at(&[a, b, c, d], u64::from(low % 6) * 128).expect("write"),
            _ => {
                let at = u64::from(u16::from_le_bytes([low, high])) % (MEMORY_BYTES - 4);
                memory.write_all_at(&[a, b, c, d], at).expect("write");
            }
        }
    }
});
