//! Jobs on a few threads that wait for the disk: the way where `io_uring` is forbidden.
//!
//! Limits: as many jobs as the backend was made for, queued or under way. Shutdown: what is queued is done first.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use super::{Backend, Job, Landed, Way, drain};

pub(in crate::disk) struct Threads {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    in_flight: usize,
    depth: usize,
}

struct Shared {
    queue: Mutex<Queue>,
    /// Something was queued, or the end has come.
    posted: Condvar,
    landed: Mutex<Vec<Landed>>,
    eventfd: OwnedFd,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    is_over: bool,
}

impl Threads {
    pub(in crate::disk) fn open(threads: u32, depth: u32) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            posted: Condvar::new(),
            landed: Mutex::default(),
            eventfd: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
        });
        let mut backend = Self { shared, threads: Vec::new(), in_flight: 0, depth: depth.max(1) as usize };
        for _ in 0..threads.max(1) {
            let shared = Arc::clone(&backend.shared);
            let thread = std::thread::Builder::new().name("kvferry-disk".to_owned()).spawn(move || shared.run())?;
            backend.threads.push(thread);
        }
        Ok(backend)
    }
}

impl Backend for Threads {
    fn post(&mut self, job: Job) -> Result<(), Job> {
        if self.in_flight >= self.depth {
            return Err(job);
        }
        self.in_flight += 1;
        lock(&self.shared.queue).jobs.push_back(job);
        self.shared.posted.notify_one();
        Ok(())
    }

    fn submit(&mut self) {}

    fn reap(&mut self, landed: &mut Vec<Landed>) {
        drain(self.shared.eventfd.as_fd());
        let new = std::mem::take(&mut *lock(&self.shared.landed));
        self.in_flight -= new.len();
        landed.extend(new);
    }

    fn wait_fd(&self) -> BorrowedFd<'_> {
        self.shared.eventfd.as_fd()
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        lock(&self.shared.queue).is_over = true;
        self.shared.posted.notify_all();
        for thread in self.threads.drain(..) {
            // It says nothing that the landed jobs do not.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self) {
        while let Some(job) = self.next() {
            let (id, result) = (job.id, carry(&job));
            // The region goes before anybody is told.
            drop(job);
            lock(&self.landed).push(Landed { id, result });
            // Full: it is readable, which is all that is wanted.
            let _ = rustix::io::write(&self.eventfd, &1_u64.to_ne_bytes());
        }
    }

    fn next(&self) -> Option<Job> {
        let mut queue = lock(&self.queue);
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                return Some(job);
            }
            if queue.is_over {
                return None;
            }
            queue = self.posted.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn carry(job: &Job) -> Result<u32, Errno> {
    let slice = job.region.io_slice(job.offset, job.length.into()).map_err(|_| Errno::FAULT)?;
    let at = libc::off_t::try_from(job.at).map_err(|_| Errno::INVAL)?;
    let fd = job.file.as_fd().as_raw_fd();
    loop {
        let memory = slice.as_mut_ptr().cast::<libc::c_void>();
        // SAFETY: the slice is inside the region, which the job holds for the length of this call, and so it does the file.
        // Others may write the memory meanwhile; the kernel copies bytes, which have no invalid values.
        let moved = unsafe {
            match job.way {
                Way::In => libc::pread(fd, memory, slice.len(), at),
                Way::Out => libc::pwrite(fd, memory.cast_const(), slice.len(), at),
            }
        };
        match u32::try_from(moved) {
            Ok(moved) => return Ok(moved),
            Err(_) => match Errno::from_io_error(&io::Error::last_os_error()) {
                Some(Errno::INTR) => {}
                errno => return Err(errno.unwrap_or(Errno::IO)),
            },
        }
    }
}
