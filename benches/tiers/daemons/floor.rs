//! What cannot be avoided: the same bytes copied on the same machine by threads that run when nobody else wants to.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvferry_memory::{Meter, Piece, Region, Stores};
use thread_priority::{
    NormalThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy, set_thread_priority_and_policy, thread_native_id,
};

const REGION_BYTES: u64 = 512 << 20;
/// As a job of the tiers is.
const SLICE_BYTES: u64 = 2 << 20;
const THREADS: u64 = 2;

/// Copies at a rate at most, while it lives.
pub(crate) struct Floor {
    ends: Arc<AtomicBool>,
    bytes: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Floor {
    pub(crate) fn start(bytes_per_second: f64) -> Self {
        let (ends, bytes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let thread = |_| {
            let (ends, bytes) = (Arc::clone(&ends), Arc::clone(&bytes));
            let made = Arc::new(AtomicBool::new(false));
            let is_made = Arc::clone(&made);
            let rate = bytes_per_second / 2.0;
            let thread = std::thread::spawn(move || {
                let [source, target] = [(); 2].map(|()| region());
                is_made.store(true, Ordering::SeqCst);
                stand_back();
                copy(&source, &target, rate, &ends, &bytes);
            });
            crate::support::wait(|| "memory".to_owned(), || made.load(Ordering::SeqCst).then_some(()));
            thread
        };
        let threads = (0..THREADS).map(thread).collect();
        Self { ends, bytes, threads }
    }

    /// Copied so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            // A panic has been printed.
            drop(thread.join());
        }
    }
}

fn region() -> Arc<Region> {
    let fd = kvferry_memory::create("kvferry-bench", REGION_BYTES).expect("memory");
    let region = Region::map(fd, REGION_BYTES, &Meter::new()).expect("a region");
    let page = [1; 4096];
    (0..REGION_BYTES).step_by(4096).for_each(|offset| region.write(offset, &page).expect("inside"));
    region
}

/// The lowest class that there is.
fn stand_back() {
    let idle = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
    set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, idle).expect("allowed to everybody");
}

fn copy(source: &Region, target: &Region, rate: f64, ends: &AtomicBool, bytes: &AtomicU64) {
    let (begun, mut offset, mut copied) = (Instant::now(), 0, 0_u64);
    while !ends.load(Ordering::SeqCst) {
        let piece = Piece { source: offset, target: offset, length: SLICE_BYTES };
        target.copy_summed(source, &[piece], Stores::Streamed).expect("inside");
        offset = (offset + SLICE_BYTES) % REGION_BYTES;
        copied += SLICE_BYTES;
        bytes.fetch_add(SLICE_BYTES, Ordering::Relaxed);
        let due = Duration::from_secs_f64(copied as f64 / rate);
        // What was missed while others ran is not made up for, as a saturated daemon does not either.
        if let Some(early) = due.checked_sub(begun.elapsed()) {
            std::thread::sleep(early);
        }
    }
}
