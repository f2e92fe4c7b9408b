//! What the machine itself needs: a byte to and fro over a Unix socket, and waking one thread, once.
//!
//! Awake, both ends look again and again without blocking; asleep, they block. Threads of one process stand for two
//! processes: the kernel does the same work for both, less a change of address space that cores of their own spare.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::thread::futex;

use super::cores::Cores;

/// A byte to another thread and back.
pub(super) struct SocketPair {
    near: UnixStream,
    echo: Option<JoinHandle<()>>,
}

impl SocketPair {
    /// `awake`: nobody ever blocks.
    pub(super) fn start(awake: bool, cores: Cores) -> Result<Self> {
        let (near, far) = UnixStream::pair().context("create a socket pair")?;
        near.set_nonblocking(awake)?;
        far.set_nonblocking(awake)?;
        let echo = std::thread::spawn(move || {
            cores.move_over();
            while pass_one(&far).is_ok_and(|()| (&far).write_all(&[1]).is_ok()) {}
        });
        Ok(Self { near, echo: Some(echo) })
    }

    pub(super) fn round(&mut self) -> Result<Duration> {
        let since = Instant::now();
        (&self.near).write_all(&[1]).context("send a byte")?;
        pass_one(&self.near)?;
        Ok(since.elapsed())
    }
}

/// Takes one byte, however long it takes.
fn pass_one(mut stream: &UnixStream) -> Result<()> {
    loop {
        match stream.read(&mut [0]) {
            Ok(count) => {
                ensure!(count == 1, "the other end is gone");
                return Ok(());
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(error) => return Err(error).context("receive a byte"),
        }
    }
}

impl Drop for SocketPair {
    fn drop(&mut self) {
        let _ = self.near.shutdown(std::net::Shutdown::Both);
        if let Some(echo) = self.echo.take() {
            let _ = echo.join();
        }
    }
}

/// The thread's state, in a word that both share.
const ASLEEP: u32 = 0;
const CALLED: u32 = 1;
const ENDED: u32 = 2;

/// What a thread sleeps on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bed {
    /// An eventfd among others in an epoll, as the daemon does, which has sockets to watch as well.
    Epoll,
    /// The word itself.
    Futex,
}

/// A thread that sleeps until it is called, and answers in the word.
pub(super) struct Sleeper {
    bed: Bed,
    word: Arc<AtomicU32>,
    bell: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Sleeper {
    pub(super) fn start(bed: Bed, cores: Cores) -> Result<Self> {
        let word = Arc::new(AtomicU32::new(ASLEEP));
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).context("create an eventfd")?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).context("create an epoll")?;
        epoll::add(&epoll, &bell, epoll::EventData::new_u64(0), epoll::EventFlags::IN | epoll::EventFlags::ET)
            .context("watch an eventfd")?;
        let shared = Arc::clone(&word);
        let thread = std::thread::Builder::new().spawn(move || {
            cores.move_over();
            let mut events = Vec::with_capacity(1);
            loop {
                // Woken for nothing is asleep again.
                match bed {
                    Bed::Epoll => {
                        events.clear();
                        let _ = epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), None);
                    }
                    Bed::Futex => {
                        let _ = futex::wait(&shared, futex::Flags::empty(), ASLEEP, None);
                    }
                }
                if let Err(ENDED) = shared.compare_exchange(CALLED, ASLEEP, Ordering::AcqRel, Ordering::Acquire) {
                    return;
                }
            }
        })?;
        Ok(Self { bed, word, bell, thread: Some(thread) })
    }

    /// From the call to the answer, for which this side looks without sleeping.
    pub(super) fn wake(&self) -> Result<Duration> {
        let since = Instant::now();
        self.call(CALLED).context("wake a thread")?;
        while self.word.load(Ordering::Acquire) == CALLED {
            std::hint::spin_loop();
        }
        Ok(since.elapsed())
    }

    fn call(&self, word: u32) -> rustix::io::Result<usize> {
        self.word.store(word, Ordering::Release);
        match self.bed {
            Bed::Epoll => rustix::io::write(&self.bell, &1_u64.to_ne_bytes()),
            Bed::Futex => futex::wake(&self.word, futex::Flags::empty(), 1),
        }
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.call(ENDED);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
