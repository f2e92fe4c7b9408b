//! The rings in real shared memory: against a plain queue, between threads that sleep, and against a side that lies.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kvferry_client::ring::{
    ClientEnd, Consumer, DaemonEnd, Popped, Producer, Pushed, RING_BYTES_MAX, RING_BYTES_MIN, RingError, Violation,
    create, open,
};
use proptest::collection::vec;
use proptest::prelude::*;
use rustix::fs::{MemfdFlags, SealFlags};

/// Where the words of a lane stand in the file, see `mapping.rs`: tail, head and sleep of submissions, then of
/// completions.
const WORD_STRIDE: u64 = 128;
const BYTES_AT: u64 = 4096;
/// Of submissions, as they are shared.
const TAIL: u64 = 0;
const HEAD: u64 = 1;

fn pair(ring_bytes: u32) -> (File, DaemonEnd, ClientEnd) {
    let (fd, daemon) = create(ring_bytes).expect("create");
    let client = open(&fd, ring_bytes).expect("open");
    (fd.into(), daemon, client)
}

fn scribble(memory: &File, word: u64, value: u32) {
    memory.write_all_at(&value.to_ne_bytes(), word * WORD_STRIDE).expect("write");
}

fn pop(consumer: &mut Consumer) -> Result<Option<Vec<u8>>, Violation> {
    let mut record = Vec::new();
    Ok(match consumer.pop(&mut record)? {
        Popped::Empty => None,
        Popped::Record | Popped::Socket => Some(record),
    })
}

#[derive(Clone, Debug)]
enum Step {
    Push(Vec<u8>),
    PushSocket,
    Pop,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => vec(any::<u8>(), 1..=1024).prop_map(Step::Push),
        1 => vec(any::<u8>(), 1..=16).prop_map(Step::Push),
        1 => Just(Step::PushSocket),
        4 => Just(Step::Pop),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// A ring does what a queue with so much room does, no more and no less.
    #[test]
    fn a_ring_is_a_queue(steps in vec(step(), 1..200)) {
        let (_memory, mut daemon, mut client) = pair(RING_BYTES_MIN);
        let mut model: VecDeque<Vec<u8>> = VecDeque::new();
        let room = |record: &Vec<u8>| (4 + record.len()).next_multiple_of(8);
        for step in steps {
            let record = match step {
                Step::Push(record) => record,
                Step::PushSocket => Vec::new(),
                Step::Pop => {
                    prop_assert_eq!(pop(&mut daemon.submissions), Ok(model.pop_front()));
                    continue;
                }
            };
            let pushed = match record.as_slice() {
                [] => client.submissions.push_socket(),
                bytes => client.submissions.push(bytes),
            };
            let fits = model.iter().map(room).sum::<usize>() + room(&record) <= RING_BYTES_MIN as usize;
            prop_assert_eq!(pushed, Ok(if fits { Pushed::Done } else { Pushed::Full }));
            if fits {
                model.push_back(record);
            }
        }
    }

    /// Whatever stands in the words and in the bytes: a record within limits, nothing, or a violation.
    #[test]
    fn any_memory_is_read_or_refused(
        tail in any::<u32>(), head in any::<u32>(), near in -64_i32..64, bytes in vec(any::<u8>(), 512), seed in 0..4_u8
    ) {
        let (memory, mut daemon, mut client) = pair(RING_BYTES_MIN);
        prop_assert_eq!(client.submissions.push(&[1; 100]), Ok(Pushed::Done));
        let honest = 0_u32.wrapping_sub(4096);
        // Far off, and as close as a lie can be.
        scribble(&memory, TAIL, if seed & 1 == 0 { tail } else { honest.wrapping_add_signed(near) });
        scribble(&memory, HEAD, if seed & 2 == 0 { head } else { honest.wrapping_add_signed(near) });
        memory.write_all_at(&bytes, BYTES_AT).expect("write");
        for _ in 0..2 * RING_BYTES_MIN / 8 {
            match pop(&mut daemon.submissions) {
                Ok(Some(record)) => prop_assert!(record.len() <= RING_BYTES_MIN as usize / 4),
                Ok(None) | Err(_) => break,
            }
        }
        // The producer, too, believes nothing: it ends by being full or by seeing the lie.
        let pushed = (0..RING_BYTES_MIN / 8).map(|_| client.submissions.push(&[2; 8]));
        prop_assert!(pushed.into_iter().any(|pushed| pushed != Ok(Pushed::Done)));
    }
}

#[test]
fn impossible_words_are_told_by_name() {
    let start = 0_u32.wrapping_sub(4096);
    for lie in [start.wrapping_add(RING_BYTES_MIN + 8), start.wrapping_sub(8), start.wrapping_add(4)] {
        let (memory, mut daemon, _client) = pair(RING_BYTES_MIN);
        scribble(&memory, TAIL, lie);
        assert_eq!(pop(&mut daemon.submissions), Err(Violation::Tail { found: lie }));
    }
    for length in [RING_BYTES_MIN / 4 + 1, u32::MAX, u32::MAX - 3, 5] {
        let (memory, mut daemon, mut client) = pair(RING_BYTES_MIN);
        assert_eq!(client.submissions.push(&[1, 2, 3, 4]), Ok(Pushed::Done));
        memory.write_all_at(&length.to_le_bytes(), BYTES_AT).expect("write");
        assert_eq!(pop(&mut daemon.submissions), Err(Violation::Length { found: length }));
    }
    for lie in [start.wrapping_add(RING_BYTES_MIN + 8), start.wrapping_sub(8), start.wrapping_add(4)] {
        let (memory, mut daemon, mut client) = pair(RING_BYTES_MIN);
        let fill = |producer: &mut Producer| {
            (0..RING_BYTES_MIN).map(|_| producer.push(&[9; 60])).find(|p| *p != Ok(Pushed::Done))
        };
        assert_eq!(fill(&mut client.submissions), Some(Ok(Pushed::Full)));
        assert!(matches!(pop(&mut daemon.submissions), Ok(Some(_))));
        scribble(&memory, HEAD, lie);
        assert!(matches!(fill(&mut client.submissions), Some(Err(Violation::Head { .. }))), "{lie}");
    }
}

#[test]
fn what_does_not_fit_takes_the_socket() {
    let (_memory, mut daemon, mut client) = pair(RING_BYTES_MIN);
    let max = RING_BYTES_MIN as usize / 4;
    assert_eq!(client.submissions.push(&vec![1; max + 1]), Ok(Pushed::Unfit));
    assert_eq!(client.submissions.push(&[]), Ok(Pushed::Unfit));
    assert_eq!(client.submissions.push(&vec![1; max]), Ok(Pushed::Done));
    assert_eq!(pop(&mut daemon.submissions), Ok(Some(vec![1; max])));
}

/// Records in order between two threads, each of which sleeps whenever it may.
#[test]
fn threads_that_sleep_lose_nothing() {
    const COUNT: u32 = 50_000;
    let (_memory, mut daemon, mut client) = pair(RING_BYTES_MIN);
    let sleeper = client.completions.sleeper();
    let thread = std::thread::spawn(move || {
        for number in 0..COUNT {
            while daemon.completions.push(&number.to_le_bytes()) != Ok(Pushed::Done) {
                daemon.completions.rouse();
                std::thread::yield_now();
            }
            // Batches of all lengths, so that either side gets ahead.
            if number % 97 < number % 31 {
                daemon.completions.rouse();
            }
        }
        daemon.completions.rouse();
    });
    for number in 0..COUNT {
        let record = loop {
            if let Some(record) = pop(&mut client.completions).expect("honest") {
                break record;
            }
            client.completions.announce();
            if let Some(record) = pop(&mut client.completions).expect("honest") {
                break record;
            }
            sleeper.sleep(Duration::from_secs(60));
        };
        assert_eq!(record, number.to_le_bytes());
    }
    thread.join().expect("the producer");
}

/// A hostile process writes anything anywhere while both ends are in use. Nothing panics, nothing goes on for ever.
#[test]
fn a_racing_liar_harms_nobody() {
    let stop = AtomicBool::new(false);
    let mut violations = 0;
    for round in 0_u32..60 {
        let (memory, mut daemon, mut client) = pair(RING_BYTES_MIN);
        stop.store(false, Ordering::Relaxed);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut state = u64::from(round) * 2 + 1;
                while !stop.load(Ordering::Relaxed) {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    let value = u32::try_from(state & 0xffff_ffff).expect("fits");
                    match state >> 62 {
                        // Indexes as a liar would choose them: multiples of eight, near the truth.
                        0 => scribble(&memory, state >> 32 & 1, 0_u32.wrapping_sub(4096).wrapping_add(value & 0x1ff8)),
                        1 => scribble(&memory, state >> 32 & 1, value),
                        _ => {
                            memory.write_all_at(&value.to_le_bytes(), BYTES_AT + (state >> 32 & 0xffc)).expect("write");
                        }
                    }
                }
            });
            let mut ended = None;
            for _ in 0..20_000 {
                let pushed = client.submissions.push(&[7; 24]);
                let popped = pop(&mut daemon.submissions);
                if let Ok(Some(record)) = &popped {
                    assert!(record.len() <= RING_BYTES_MIN as usize / 4);
                }
                ended = pushed.err().or_else(|| popped.err());
                if ended.is_some() {
                    break;
                }
            }
            violations += u32::from(ended.is_some());
            stop.store(true, Ordering::Relaxed);
        });
    }
    assert!(violations > 0, "a liar that is never seen did not race");
}

#[test]
fn memory_that_could_change_is_not_mapped() {
    let memfd = |bytes: u64, seals: SealFlags| -> OwnedFd {
        let fd = rustix::fs::memfd_create("kvferry-test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING);
        let fd = fd.expect("create a memfd");
        rustix::fs::ftruncate(&fd, bytes).expect("resize");
        rustix::fs::fcntl_add_seals(&fd, seals).expect("seal");
        fd
    };
    let all = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    let bytes = u64::from(4096 + 2 * RING_BYTES_MIN);
    for missing in [SealFlags::SHRINK, SealFlags::GROW, SealFlags::SEAL] {
        assert!(matches!(open(memfd(bytes, all - missing), RING_BYTES_MIN), Err(RingError::Unsealed)), "{missing:?}");
    }
    assert!(matches!(open(memfd(bytes, all | SealFlags::WRITE), RING_BYTES_MIN), Err(RingError::Unsealed)));
    for wrong in [0, bytes - 1, bytes + 1, bytes + 4096] {
        assert!(matches!(open(memfd(wrong, all), RING_BYTES_MIN), Err(RingError::Size { .. })), "{wrong}");
    }
    assert!(matches!(open(File::open("/dev/null").expect("open"), RING_BYTES_MIN), Err(RingError::Unsealed)));
    for length in [0, 1, 4095, 6000, RING_BYTES_MAX * 2, u32::MAX] {
        assert!(matches!(open(memfd(bytes, all), length), Err(RingError::Length(_))), "{length}");
        assert!(matches!(create(length), Err(RingError::Length(_))), "{length}");
    }
    open(memfd(bytes, all), RING_BYTES_MIN).map(drop).expect("a memfd as it should be");
}
