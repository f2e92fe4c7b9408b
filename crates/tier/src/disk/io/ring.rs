//! Jobs on a ring of `io_uring`.
//!
//! ```text
//! post -> slot (the job: region, file) -> submission queue --one enter for all--> kernel -> completion queue -> Landed
//! ```
//!
//! A job stays in its slot until its one completion; the completion's generation must be the slot's. The ring is a plain
//! one, so that any thread may drive and drop it: a block takes hundreds of microseconds, and what deferred task work would
//! save is less than one of them.
//!
//! Failure: a ring that cannot be entered any more fails what the kernel has not seen, and every new job; what the kernel
//! has is waited for. Shutdown: waits for all of it, since nothing calls back a disk; a ring that cannot be entered leaks its
//! slots instead, so that what they name stays mapped.
//!
//! Why not registered files and buffers: measured, docs/adr/0022.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use io_uring::{IoUring, opcode, types};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use slab::Slab;

use super::{Backend, Job, Landed, Way, drain};

pub(super) struct Ring {
    ring: IoUring,
    eventfd: OwnedFd,
    slots: Slab<Slot>,
    depth: usize,
    /// Slots whose entries the kernel has not taken yet, in their order.
    queued: VecDeque<usize>,
    /// What landed without the kernel.
    refused: Vec<Landed>,
    generation: u32,
    broken: Option<Errno>,
    /// Completions that matched nothing.
    stale: u64,
    /// How often the kernel has no memory yet.
    #[cfg(test)]
    short_of_memory: u32,
}

struct Slot {
    job: Job,
    generation: u32,
}

impl Ring {
    pub(super) fn open(depth: u32) -> io::Result<Self> {
        let mut builder = IoUring::builder();
        builder.setup_clamp().dontfork();
        let ring: IoUring = builder.build(depth.max(1))?;
        if !ring.params().is_feature_nodrop() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let eventfd = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        ring.submitter().register_eventfd(eventfd.as_raw_fd())?;
        // Fewer, where the kernel clamps them.
        let depth = depth.min(ring.params().sq_entries()) as usize;
        Ok(Self {
            ring,
            eventfd,
            slots: Slab::with_capacity(depth),
            depth,
            queued: VecDeque::with_capacity(depth),
            refused: Vec::new(),
            generation: 0,
            broken: None,
            stale: 0,
            #[cfg(test)]
            short_of_memory: 0,
        })
    }

    /// Hands over what is queued, and waits for as many completions.
    fn enter(&mut self, wanted: usize) {
        #[cfg(test)]
        if self.short_of_memory > 0 {
            self.short_of_memory -= 1;
            return self.handle_entered(Err(Errno::NOMEM.into()));
        }
        let taken = self.ring.submitter().submit_and_wait(wanted);
        self.handle_entered(taken);
    }

    fn handle_entered(&mut self, taken: io::Result<usize>) {
        match taken {
            Ok(taken) => {
                self.queued.drain(..taken.min(self.queued.len()));
            }
            Err(error) => {
                let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
                // These ask for another try.
                if !matches!(errno, Errno::AGAIN | Errno::BUSY | Errno::INTR | Errno::NOMEM) {
                    self.fail(errno);
                }
            }
        }
    }

    /// Nothing is handed over any more, so the kernel will never see what is queued.
    fn fail(&mut self, errno: Errno) {
        self.broken = Some(errno);
        for key in std::mem::take(&mut self.queued) {
            let Slot { job, .. } = self.slots.remove(key);
            self.refuse(Landed { id: job.id, result: Err(errno) });
        }
    }

    /// A job that the kernel does not see.
    fn refuse(&mut self, landed: Landed) {
        self.refused.push(landed);
        // Full: it is readable, which is all that is wanted.
        let _ = rustix::io::write(&self.eventfd, &1_u64.to_ne_bytes());
    }

    fn take_completions(&mut self, landed: &mut Vec<Landed>) {
        let Self { ring, slots, stale, .. } = self;
        for done in ring.completion() {
            let (key, generation) = split(done.user_data());
            if slots.get(key).is_none_or(|slot| slot.generation != generation) {
                *stale += 1;
                continue;
            }
            let Slot { job, .. } = slots.remove(key);
            let result = u32::try_from(done.result());
            let result = result.map_err(|_| Errno::from_raw_os_error(done.result().saturating_neg()));
            landed.push(Landed { id: job.id, result });
        }
    }
}

impl Backend for Ring {
    fn post(&mut self, job: Job) -> Result<(), Job> {
        if self.slots.len() >= self.depth {
            return Err(job);
        }
        let named = job.region.io_slice(job.offset, job.length.into());
        let (id, refusal) = (job.id, self.broken.or_else(|| named.is_err().then_some(Errno::FAULT)));
        let (Ok(slice), None) = (named, refusal) else {
            self.refuse(Landed { id, result: Err(refusal.unwrap_or(Errno::FAULT)) });
            return Ok(());
        };
        let fd = types::Fd(job.file.as_fd().as_raw_fd());
        let entry = match job.way {
            Way::In => opcode::Read::new(fd, slice.as_mut_ptr(), job.length).offset(job.at).build(),
            Way::Out => opcode::Write::new(fd, slice.as_mut_ptr(), job.length).offset(job.at).build(),
        };
        self.generation = self.generation.wrapping_add(1);
        let key = self.slots.insert(Slot { job, generation: self.generation });
        let entry = entry.user_data(join(key, self.generation));
        // SAFETY: the entry names a file and memory of a region, and the slot holds the Arcs of both until the completion
        // was reaped; the ring waits for all completions before its slots are dropped, or leaks them.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        match pushed {
            Ok(()) => {
                self.queued.push_back(key);
                Ok(())
            }
            Err(_) => Err(self.slots.remove(key).job),
        }
    }

    fn submit(&mut self) {
        if self.broken.is_none() && !self.queued.is_empty() {
            self.enter(0);
        }
    }

    fn has_unsubmitted(&self) -> bool {
        self.broken.is_none() && !self.queued.is_empty()
    }

    fn reap(&mut self, landed: &mut Vec<Landed>) {
        drain(self.eventfd.as_fd());
        self.take_completions(landed);
        landed.append(&mut self.refused);
    }

    fn wait_fd(&self) -> BorrowedFd<'_> {
        self.eventfd.as_fd()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let mut landed = Vec::new();
        while !self.slots.is_empty() {
            if self.broken.is_some() {
                std::mem::forget(std::mem::take(&mut self.slots));
                return;
            }
            self.enter(1);
            self.take_completions(&mut landed);
        }
    }
}

const fn join(key: usize, generation: u32) -> u64 {
    (generation as u64) << 32 | key as u64
}

#[expect(clippy::cast_possible_truncation, reason = "the two halves")]
const fn split(user_data: u64) -> (usize, u32) {
    (user_data as u32 as usize, (user_data >> 32) as u32)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kvferry_memory::{Meter, Region};

    use super::*;
    use crate::disk::extent::File;

    fn memory(bytes: u64, meter: &Meter) -> Arc<Region> {
        Region::map(kvferry_memory::create("kvferry-ring", bytes).expect("memory"), bytes, meter).expect("a region")
    }

    fn job(id: u64, way: Way, file: &Arc<File>, region: &Arc<Region>, length: u32) -> Job {
        Job { id, way, file: Arc::clone(file), at: 0, region: Arc::clone(region), offset: 0, length }
    }

    #[test]
    fn a_dropped_ring_waits_and_gives_everything_back() {
        let meter = Meter::new();
        let file =
            Arc::new(File::new(kvferry_memory::create("kvferry-ring", 1 << 20).expect("memory")).expect("a file"));
        let mut ring = Ring::open(4).expect("a ring");
        for id in 0..4 {
            let region = memory(1 << 20, &meter);
            region.write(0, &[7; 100]).expect("inside");
            ring.post(job(id, Way::Out, &file, &region, 1 << 20)).expect("room");
        }
        let fifth = memory(1 << 20, &meter);
        assert_eq!(ring.post(job(4, Way::Out, &file, &fifth, 1)).expect_err("full").id, 4);
        assert_eq!((meter.regions(), Arc::strong_count(&file)), (5, 5), "the ring holds what it was given");
        drop(ring);
        assert_eq!((meter.regions(), Arc::strong_count(&file)), (1, 1));
        // What was only queued has been written.
        let (mut ring, mut landed) = (Ring::open(4).expect("a ring"), Vec::new());
        ring.post(job(9, Way::In, &file, &fifth, 1 << 20)).expect("room");
        while landed.is_empty() {
            ring.submit();
            ring.reap(&mut landed);
        }
        let mut bytes = [0; 100];
        fifth.read(0, &mut bytes).expect("inside");
        assert_eq!((landed, bytes), (vec![Landed { id: 9, result: Ok(1 << 20) }], [7; 100]));
    }

    #[test]
    fn a_broken_ring_fails_what_the_kernel_has_not_seen() {
        let meter = Meter::new();
        let file = Arc::new(File::new(kvferry_memory::create("kvferry-ring", 4096).expect("memory")).expect("a file"));
        let (mut ring, mut landed) = (Ring::open(4).expect("a ring"), Vec::new());
        let region = memory(4096, &meter);
        ring.post(job(1, Way::Out, &file, &region, 4096)).expect("room");
        ring.fail(Errno::BADF);
        ring.post(job(2, Way::Out, &file, &region, 4096)).expect("an answer");
        ring.reap(&mut landed);
        let failed = |id| Landed { id, result: Err(Errno::BADF) };
        assert_eq!((landed, Arc::strong_count(&region)), (vec![failed(1), failed(2)], 1));
    }

    #[test]
    fn what_the_kernel_refuses_for_now_is_handed_over_later() {
        let meter = Meter::new();
        let file = Arc::new(File::new(kvferry_memory::create("kvferry-ring", 4096).expect("memory")).expect("a file"));
        let (mut ring, mut landed) = (Ring::open(4).expect("a ring"), Vec::new());
        let region = memory(4096, &meter);
        ring.short_of_memory = 2;
        ring.post(job(1, Way::Out, &file, &region, 4096)).expect("room");
        for _ in 0..2 {
            ring.submit();
            assert!(ring.has_unsubmitted(), "nothing is in flight that would wake anybody");
        }
        ring.submit();
        assert!(!ring.has_unsubmitted());
        while landed.is_empty() {
            ring.reap(&mut landed);
        }
        assert_eq!(landed, [Landed { id: 1, result: Ok(4096) }]);
    }

    #[test]
    fn a_stale_completion_matches_nothing() {
        let meter = Meter::new();
        let file = Arc::new(File::new(kvferry_memory::create("kvferry-ring", 4096).expect("memory")).expect("a file"));
        let (mut ring, mut landed) = (Ring::open(4).expect("a ring"), Vec::new());
        let region = memory(4096, &meter);
        ring.post(job(1, Way::Out, &file, &region, 4096)).expect("room");
        ring.slots[0].generation += 1;
        while ring.stale == 0 {
            ring.submit();
            ring.reap(&mut landed);
        }
        assert!(landed.is_empty() && Arc::strong_count(&region) == 2);
        ring.slots.clear();
    }
}
