//! The threads that copy beside the data thread.
//!
//! ```text
//! turn: push -> queue -> thread: run -> done -> turn: collect
//!                                         \-> eventfd, if the data thread waits for nothing else
//! ```
//!
//! A thread without work sleeps on a condition; none ever spins. The data thread copies too and takes chunks back that no
//! thread has begun, so that threads that get no core only fail to help. Shutdown: the drop lets running chunks end, at
//! most one a thread, and joins.
//!
//! Why a mutex and no lock-free queue: a chunk takes tens of microseconds, its lock a few dozen nanoseconds.

use std::collections::VecDeque;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use kvferry_core::WorkId;
use rustix::event::{EventfdFlags, eventfd};

use super::chunk::Chunk;

/// Copy threads, the chunks they wait for and those they are done with.
#[derive(Debug)]
pub(super) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Told when there is something in the queue, or nothing will come any more.
    more: Condvar,
    /// Readable when a chunk is done that the data thread sleeps for.
    done: OwnedFd,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Chunk>,
    done: Vec<Chunk>,
    /// Threads in the condition.
    sleeping: usize,
    /// The data thread has nothing to do but to collect.
    is_awaited: bool,
    /// The eventfd has been written and not read since.
    is_signalled: bool,
    is_over: bool,
}

impl Pool {
    /// Starts `count` threads, or as many as the system gives; `None` if that is none.
    pub(super) fn start(count: usize, chunks_max: usize) -> Option<Self> {
        let done = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok()?;
        let queue = VecDeque::with_capacity(chunks_max);
        let state = Mutex::new(State { queue, done: Vec::with_capacity(chunks_max), ..State::default() });
        let shared = Arc::new(Shared { state, more: Condvar::new(), done });
        let start = |number| {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name(format!("kvferry-copy-{number}")).spawn(move || shared.serve()).ok()
        };
        let threads: Vec<_> = (1..=count).map_while(start).collect();
        (!threads.is_empty()).then_some(Self { shared, threads })
    }

    pub(super) fn threads(&self) -> usize {
        self.threads.len()
    }

    pub(super) fn wait_fd(&self) -> BorrowedFd<'_> {
        self.shared.done.as_fd()
    }

    /// Hands a chunk to whichever thread is free first.
    pub(super) fn push(&self, chunk: Chunk) {
        let mut state = self.shared.lock();
        state.queue.push_back(chunk);
        let wakes = state.sleeping > 0;
        drop(state);
        if wakes {
            self.shared.more.notify_one();
        }
    }

    /// A chunk that no thread has begun, the last one first.
    pub(super) fn take_back(&self) -> Option<Chunk> {
        self.shared.lock().queue.pop_back()
    }

    /// All chunks of a job that no thread has begun.
    pub(super) fn withdraw(&self, id: WorkId, into: &mut Vec<Chunk>) {
        let mut state = self.shared.lock();
        for _ in 0..state.queue.len() {
            match state.queue.pop_front() {
                Some(chunk) if chunk.is_of(id) => into.push(chunk),
                Some(chunk) => state.queue.push_back(chunk),
                None => return,
            }
        }
    }

    /// All chunks that ran.
    pub(super) fn collect(&self, into: &mut Vec<Chunk>) {
        let mut state = self.shared.lock();
        into.append(&mut state.done);
        state.is_awaited = false;
        if std::mem::take(&mut state.is_signalled) {
            // Cannot be empty: it was written under this lock.
            let _ = rustix::io::read(&self.shared.done, &mut [0; 8]);
        }
    }

    /// Makes the eventfd readable at the next chunk that is done; false if one is already.
    pub(super) fn wait(&self) -> bool {
        let mut state = self.shared.lock();
        state.is_awaited = state.done.is_empty();
        state.is_awaited
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.is_over = true;
        state.queue.clear();
        drop(state);
        self.shared.more.notify_all();
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock, and every field is sound at any moment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a copy thread does, to the end of the pool.
    fn serve(&self) {
        let mut state = self.lock();
        while !state.is_over {
            let Some(mut chunk) = state.queue.pop_front() else {
                state.sleeping += 1;
                state = self.more.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.sleeping -= 1;
                continue;
            };
            drop(state);
            chunk.run();
            state = self.lock();
            state.done.push(chunk);
            if state.is_awaited && !state.is_signalled {
                // Fails only when the counter is full, and then it is readable anyway.
                let _ = rustix::io::write(&self.done, &1_u64.to_ne_bytes());
                state.is_signalled = true;
            }
        }
    }
}
