//! The thread that reads and writes blocks on the disk.
//!
//! ```text
//! tier thread -> DiskJob -> [jobs, eventfd] -> Mover: io_uring, or threads -> Done -> tier thread
//! ```
//!
//! It sleeps on the eventfd and on what the disk has to say, for a millisecond where the kernel has refused work; sums of what was read are compared here. In the class of the
//! daemon's other threads: engines wait for reads. Limits: [`DEPTH_MAX`] operations; the tier thread has no more out.
//! Shutdown: when the tier thread has gone, after everything that was begun.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result};
use kvferry_tier::disk::{Done, Io, Mover, Settings};
use kvferry_tier::tiers::DiskJob;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

/// Reads and writes at the disk at once.
pub(super) const DEPTH_MAX: u32 = 64;
/// Where the kernel forbids `io_uring`.
const THREADS: u32 = 4;
/// Memory for blocks that the disk cannot take from where they are.
const BOUNCE_BYTES_MAX: u64 = 64 << 20;

/// The tier thread's end.
pub(super) struct DiskHandle {
    jobs: Option<SyncSender<DiskJob>>,
    wake: Arc<OwnedFd>,
}

impl DiskHandle {
    pub(super) fn send(&self, job: DiskJob) {
        // There is room for all that may be out, and the thread ends only after this handle is dropped.
        if let Some(jobs) = &self.jobs {
            drop(jobs.send(job));
        }
        wake(&self.wake);
    }
}

impl Drop for DiskHandle {
    fn drop(&mut self) {
        // Closed first, so that the woken thread sees it closed.
        self.jobs = None;
        wake(&self.wake);
    }
}

fn wake(eventfd: &OwnedFd) {
    // Fails only when the counter is full, and then it is readable anyway.
    let _ = rustix::io::write(eventfd, &1_u64.to_ne_bytes());
}

/// Starts the thread; what is done goes to `tell`, which is false when nobody listens any more.
pub(super) fn start(tell: impl Fn(Done) -> bool + Send + 'static) -> Result<(DiskHandle, JoinHandle<()>)> {
    let settings =
        Settings { io: Io::Auto, depth_max: DEPTH_MAX, threads: THREADS, bounce_bytes_max: BOUNCE_BYTES_MAX };
    let mover = Mover::open(settings).context("find a way to the disk")?;
    let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).context("create the disk's eventfd")?;
    let wake = Arc::new(wake);
    let (jobs, waiting) = sync_channel(DEPTH_MAX as usize);
    let mut thread = DiskThread { mover, jobs: waiting, wake: Arc::clone(&wake), held: None, done: Vec::new() };
    let thread = std::thread::Builder::new().name("kvferry-disk".to_owned()).spawn(move || thread.run(tell));
    Ok((DiskHandle { jobs: Some(jobs), wake }, thread.context("start the disk's thread")?))
}

struct DiskThread {
    mover: Mover,
    jobs: Receiver<DiskJob>,
    wake: Arc<OwnedFd>,
    /// One that the mover has no room for yet.
    held: Option<DiskJob>,
    done: Vec<Done>,
}

impl DiskThread {
    fn run(&mut self, tell: impl Fn(Done) -> bool) {
        loop {
            let is_over = self.begin();
            self.mover.turn(&mut self.done);
            let was_busy = !self.done.is_empty();
            let mut is_heard = true;
            for done in self.done.drain(..) {
                is_heard &= tell(done);
            }
            if (is_over || !is_heard) && self.mover.in_flight() == 0 {
                return;
            }
            if !was_busy {
                self.sleep(is_over);
            }
        }
    }

    /// Begins what was asked for. True: there is nothing more to come.
    fn begin(&mut self) -> bool {
        loop {
            let job = match self.held.take().map_or_else(|| self.jobs.try_recv(), Ok) {
                Ok(job) => job,
                Err(TryRecvError::Empty) => return false,
                Err(TryRecvError::Disconnected) => return true,
            };
            self.held = match job {
                DiskJob::Read { tag, block, span } => {
                    self.mover.read(tag, block, &span).err().map(|block| DiskJob::Read { tag, block, span })
                }
                DiskJob::Write { tag, filling, span } => {
                    self.mover.write(tag, filling, &span).err().map(|filling| DiskJob::Write { tag, filling, span })
                }
            };
            if self.held.is_some() {
                return false;
            }
        }
    }

    fn sleep(&self, is_over: bool) {
        // When nothing more comes, its closing keeps nobody awake: only the disk has something to say.
        let own = PollFd::new(&self.wake, PollFlags::IN);
        let disk = PollFd::from_borrowed_fd(self.mover.wait_fd(), PollFlags::IN);
        let most = self.mover.wait_max().and_then(|most| Timespec::try_from(most).ok());
        // An interrupted sleep is a short one.
        let _ = if is_over { poll(&mut [disk], most.as_ref()) } else { poll(&mut [own, disk], most.as_ref()) };
        let mut count = [0; 8];
        // Not readable: the disk has woken the thread.
        let _ = rustix::io::read(self.wake.as_fd(), &mut count);
    }
}
