//! Which way to the disk this kernel lets us go, found out by going it.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};

use kvferry_memory::{Meter, Region};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use super::ring::Ring;
use super::{Backend, Job, Threads, Way};
use crate::disk::extent::File;

/// Turns until a read from memory must have come.
const TURNS_MAX: u32 = 1000;
const WORD: &[u8] = b"ping";

/// How bytes get to the disk and back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Io {
    /// By a ring where that works, by threads where it does not.
    #[default]
    Auto,
    /// By `io_uring`, or not at all.
    Ring,
    /// By threads that read and write.
    Threads,
}

/// What was chosen, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// [`Io::Ring`] or [`Io::Threads`].
    pub io: Io,
    /// For the log.
    pub reason: String,
}

/// What moves the bytes.
pub(in crate::disk) fn choose(io: Io, depth: u32, threads: u32) -> io::Result<(Choice, Box<dyn Backend>)> {
    let choice = |io, reason: &str| Choice { io, reason: reason.to_owned() };
    let by_threads = |reason: &str| -> io::Result<(Choice, Box<dyn Backend>)> {
        Ok((choice(Io::Threads, reason), Box::new(Threads::open(threads, depth)?)))
    };
    match io {
        Io::Threads => by_threads("as configured"),
        Io::Auto => match probe().and_then(|()| Ring::open(depth)) {
            Ok(ring) => Ok((choice(Io::Ring, "io_uring works here"), Box::new(ring))),
            Err(error) => by_threads(&format!("io_uring does not work here: {error}")),
        },
        Io::Ring => {
            let ring = probe().and_then(|()| Ring::open(depth))?;
            Ok((choice(Io::Ring, "as configured, and it works"), Box::new(ring)))
        }
    }
}

/// Writes to a file in memory and reads that again, by a ring: containers forbid the calls by seccomp, kernels by
/// `kernel.io_uring_disabled`, and no version number tells of either.
fn probe() -> io::Result<()> {
    let bytes = WORD.len() as u64;
    let region = || {
        let fd = kvferry_memory::create("kvferry-probe", bytes).map_err(io::Error::other)?;
        Region::map(fd, bytes, &Meter::new()).map_err(io::Error::other)
    };
    let (source, target) = (region()?, region()?);
    source.write(0, WORD).map_err(io::Error::other)?;
    let fd = kvferry_memory::create("kvferry-probe", bytes).map_err(io::Error::other)?;
    let file = Arc::new(File::new(fd)?);
    let mut ring = Ring::open(1)?;
    let length = u32::try_from(bytes).unwrap_or(0);
    for (way, region) in [(Way::Out, &source), (Way::In, &target)] {
        let (file, region) = (Arc::clone(&file), Arc::clone(region));
        let job = Job { id: 0, way, file, at: 0, region, offset: 0, length };
        ring.post(job).map_err(|_| io::Error::from(io::ErrorKind::WouldBlock))?;
        let mut landed = Vec::new();
        for _ in 0..TURNS_MAX {
            ring.submit();
            ring.reap(&mut landed);
            if !landed.is_empty() {
                break;
            }
            wait(&ring, Duration::from_millis(10))?;
        }
        match landed.pop().map(|landed| landed.result) {
            Some(Ok(moved)) if moved == length => {}
            Some(Ok(_)) => return Err(io::ErrorKind::InvalidData.into()),
            Some(Err(errno)) => return Err(errno.into()),
            None => return Err(io::ErrorKind::TimedOut.into()),
        }
    }
    let mut word = [0; WORD.len()];
    target.read(0, &mut word).map_err(io::Error::other)?;
    (word == WORD).then_some(()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Waits until something has landed, or as long as that.
pub(in crate::disk) fn wait(backend: &(impl Backend + ?Sized), most: Duration) -> Result<(), Errno> {
    let fd = backend.wait_fd();
    let timeout = Timespec::try_from(most).map_err(|_| Errno::INVAL)?;
    match rustix::event::poll(&mut [PollFd::new(&fd.as_fd(), PollFlags::IN)], Some(&timeout)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(errno),
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let io = if self.io == Io::Ring { "io_uring" } else { "threads" };
        write!(f, "{io}: {}", self.reason)
    }
}
