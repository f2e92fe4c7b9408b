//! The rings' lock-free part under loom: every order in which two threads can meet, with a ring of two records.
//!
//! `queue.rs` is included as it is, a second time; its shim is the one below. Where an ordering is missing, loom hands
//! out an old value, and the record is not the one that was pushed, or notices that one side touches bytes which the
//! other may touch at once. A consumer that nobody wakes is a deadlock, which loom reports.

#[expect(unreachable_pub, reason = "public in the copy that the crate uses")]
#[expect(clippy::duplicate_mod, reason = "the same file over two shims is the point")]
#[path = "queue.rs"]
mod queue;

/// What `src/ring/sync.rs` is to the crate.
mod sync {
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicU32;
    pub(crate) use loom::sync::atomic::{Ordering, fence};

    /// Two records of a header and four bytes.
    const CAPACITY: u32 = 16;

    #[derive(Clone)]
    pub(crate) struct Lane(Arc<Words>);

    struct Words {
        tail: AtomicU32,
        head: AtomicU32,
        asleep: AtomicU32,
        bytes: [AtomicU32; CAPACITY as usize / 4],
        /// For each record's place, who touches it: loom refuses two at once where one of them writes.
        places: [UnsafeCell<()>; CAPACITY as usize / 8],
    }

    // SAFETY: there is nothing inside the cells, and loom watches them.
    unsafe impl Sync for Words {}

    impl Lane {
        pub(crate) fn new(index: u32) -> Self {
            let bytes = std::array::from_fn(|_| AtomicU32::new(0));
            let (tail, head) = (AtomicU32::new(index), AtomicU32::new(index));
            let places = std::array::from_fn(|_| UnsafeCell::new(()));
            Self(Arc::new(Words { tail, head, asleep: AtomicU32::new(0), bytes, places }))
        }

        pub(crate) const fn capacity(&self) -> u32 {
            CAPACITY
        }

        pub(crate) fn tail(&self) -> &AtomicU32 {
            &self.0.tail
        }

        pub(crate) fn head(&self) -> &AtomicU32 {
            &self.0.head
        }

        pub(crate) fn asleep(&self) -> &AtomicU32 {
            &self.0.asleep
        }

        fn word(&self, index: u32) -> &AtomicU32 {
            &self.0.bytes[(index % CAPACITY / 4) as usize]
        }

        fn place(&self, index: u32) -> &UnsafeCell<()> {
            &self.0.places[(index % CAPACITY / 8) as usize]
        }

        /// All copies of these tests are of four bytes, or of none.
        pub(crate) fn copy_in(&self, index: u32, source: &[u8]) {
            if let Ok(word) = source.try_into() {
                self.place(index).with_mut(|_| ());
                self.word(index).store(u32::from_le_bytes(word), Ordering::Relaxed);
            }
        }

        pub(crate) fn copy_out(&self, index: u32, target: &mut [u8]) {
            if !target.is_empty() {
                self.place(index).with(|_| ());
                target.copy_from_slice(&self.word(index).load(Ordering::Relaxed).to_le_bytes());
            }
        }
    }
}

use loom::sync::{Arc, Notify};

use queue::{Consumer, Popped, Producer, Pushed};
use sync::Lane;

/// One record before the index wraps.
const START: u32 = 0_u32.wrapping_sub(8);

fn ring() -> (Producer, Consumer) {
    let lane = Lane::new(START);
    (Producer::new(lane.clone(), START), Consumer::new(lane, START))
}

/// Pushes, however often the ring is full. Yielding lets loom run the consumer.
fn push(producer: &mut Producer, number: u32) {
    loop {
        let pushed = match number {
            0 => producer.push_socket(),
            number => producer.push(&number.to_le_bytes()),
        };
        match pushed.expect("an honest consumer") {
            Pushed::Done => return,
            Pushed::Full => loom::thread::yield_now(),
            Pushed::Unfit => panic!("four bytes fit"),
        }
    }
}

fn pop(consumer: &mut Consumer) -> Option<u32> {
    let mut record = Vec::new();
    match consumer.pop(&mut record).expect("an honest producer") {
        Popped::Empty => None,
        Popped::Record => Some(u32::from_le_bytes(record.try_into().expect("four bytes"))),
        Popped::Socket => Some(0),
    }
}

/// Pops, and sleeps where nothing is there.
fn pop_or_sleep(consumer: &mut Consumer, doorbell: &Notify) -> u32 {
    loop {
        if let Some(number) = pop(consumer) {
            return number;
        }
        consumer.announce();
        if consumer.is_empty().expect("an honest producer") {
            doorbell.wait();
        }
    }
}

#[test]
fn records_come_out_as_they_went_in() {
    loom::model(|| {
        let (mut producer, mut consumer) = ring();
        let thread = loom::thread::spawn(move || {
            for number in [1, 0, 2] {
                push(&mut producer, number);
            }
        });
        let mut popped = Vec::new();
        while popped.len() < 3 {
            match pop(&mut consumer) {
                Some(number) => popped.push(number),
                None => loom::thread::yield_now(),
            }
        }
        assert_eq!(popped, [1, 0, 2]);
        assert_eq!(pop(&mut consumer), None);
        thread.join().expect("the producer");
    });
}

#[test]
fn a_full_ring_pushes_back_and_loses_nothing() {
    loom::model(|| {
        let (mut producer, mut consumer) = ring();
        push(&mut producer, 1);
        push(&mut producer, 2);
        let thread = loom::thread::spawn(move || {
            let first = pop(&mut consumer);
            (first, consumer)
        });
        // Full or not, by the moment of the look; never lost.
        let pushed = producer.push(&3_u32.to_le_bytes()).expect("an honest consumer");
        let (first, mut consumer) = thread.join().expect("the consumer");
        assert_eq!((first, pop(&mut consumer)), (Some(1), Some(2)));
        assert_eq!(pop(&mut consumer), (pushed == Pushed::Done).then_some(3));
    });
}

#[test]
fn who_sleeps_is_woken() {
    loom::model(|| {
        let (mut producer, mut consumer) = ring();
        let doorbell = Arc::new(Notify::new());
        let bell = Arc::clone(&doorbell);
        let thread = loom::thread::spawn(move || {
            for number in [1, 2] {
                push(&mut producer, number);
                if producer.take_sleep() {
                    bell.notify();
                }
            }
        });
        assert_eq!(pop_or_sleep(&mut consumer, &doorbell), 1);
        assert_eq!(pop_or_sleep(&mut consumer, &doorbell), 2);
        thread.join().expect("the producer");
    });
}

#[test]
fn a_batch_costs_one_wake_up() {
    loom::model(|| {
        let (mut producer, mut consumer) = ring();
        let doorbell = Arc::new(Notify::new());
        let bell = Arc::clone(&doorbell);
        let thread = loom::thread::spawn(move || {
            push(&mut producer, 1);
            push(&mut producer, 2);
            if producer.take_sleep() {
                bell.notify();
            }
        });
        // Announces once at most: whatever it finds awake, it waits for the rest without sleeping.
        let first = pop_or_sleep(&mut consumer, &doorbell);
        let second = loop {
            match pop(&mut consumer) {
                Some(number) => break number,
                None => loom::thread::yield_now(),
            }
        };
        assert_eq!((first, second), (1, 2));
        thread.join().expect("the producer");
    });
}
