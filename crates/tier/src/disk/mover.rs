//! Carries blocks between the disk and regions.
//!
//! ```text
//! write(Filling, Span) -> bytes past the page cache -> Done::Written(Filling) -> Shelf::seal
//! read(Block, Span)    -> bytes -> checksum         -> Done::Read(Block)      -> use, Store::unpin
//! ```
//!
//! Who has a span keeps its bytes as they are until the operation is done, and gives room to the next page: a span that is
//! shorter, or that begins where the disk cannot, goes through memory of the mover's own ([`Counts::bounced`]), which costs
//! a copy.
//!
//! Memory: an operation holds the region, and the filling or the block, until the disk has let go of them. A mover that is
//! dropped waits for the disk. Limits: [`Settings`]. Failure: each operation is done once, well or with a [`DiskError`].

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use kvferry_memory::{Meter, Region};
use rustix::io::Errno;
use slab::Slab;

use super::error::DiskError;
use super::format::ALIGN;
use super::io::{Backend, Choice, Io, Job, Landed, Way, choose, wait};
use super::shelf::{At, Block, Filling, Progress};

/// No read or write asks for more at once; the rest follows. Linux moves 2 GiB less a page at most.
const JOB_BYTES_MAX: u64 = 1 << 30;

/// Operations that one turn tells of: while their checksums are reckoned, the disk is not given new work. Measured with blocks
/// of 64 KiB, 32 at once (docs/adr/0022).
const LANDED_PER_TURN: usize = 3;

/// Until what the system has refused for now is handed over again: chosen, short beside a read and long beside a turn.
const UNSUBMITTED_WAIT: Duration = Duration::from_millis(1);

/// How a mover works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The way to the disk.
    pub io: Io,
    /// Operations at once.
    pub depth_max: u32,
    /// Threads, where those go that way.
    pub threads: u32,
    /// Memory for spans that the disk cannot take as they are.
    pub bounce_bytes_max: u64,
}

/// Where a block's bytes are, or go, in memory.
#[derive(Clone, Debug)]
pub struct Span {
    /// The memory.
    pub region: Arc<Region>,
    /// Where the block begins in it.
    pub offset: u64,
    /// Bytes from there on that are the caller's: at least the block's. What lies behind the block, up to the next multiple of
    /// 4096 of its length, is written to the disk as it is, and overwritten by a read.
    pub room: u64,
}

/// An operation has come to its end; nothing touches its span any more.
#[derive(Debug)]
pub enum Done {
    /// Of [`Mover::read`].
    Read {
        /// The caller's.
        tag: u64,
        /// As it was given.
        block: Block,
        /// Whether the span holds the block. If not, it may hold anything.
        outcome: Result<(), DiskError>,
    },
    /// Of [`Mover::write`].
    Written {
        /// The caller's.
        tag: u64,
        /// To be sealed, or abandoned.
        filling: Filling,
        /// Whether the disk has the block. If not, the filling cannot be sealed.
        outcome: Result<(), DiskError>,
    },
}

/// What a mover has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Operations that went through the mover's own memory.
    pub bounced: u64,
    /// Blocks that the disk gave back with another checksum, or not whole.
    pub damaged: u64,
    /// Operations that the operating system refused.
    pub failed: u64,
    /// Completions of operations that there are not.
    pub stale: u64,
}

/// See the head of this file.
pub struct Mover {
    backend: Box<dyn Backend>,
    choice: Choice,
    operations: Slab<Operation>,
    depth: usize,
    generation: u32,
    /// Operations that ended before they began.
    ended: Vec<Done>,
    bounce: Bounce,
    /// What the disk has done with, and nobody was told of yet.
    landed: VecDeque<Landed>,
    unsorted: Vec<Landed>,
    counts: Counts,
}

struct Operation {
    tag: u64,
    generation: u32,
    what: What,
    span: Span,
    /// What the disk sees in place of the span.
    bounce: Option<Arc<Region>>,
    moved: u64,
}

enum What {
    Read(Block),
    Write(Filling),
}

impl Mover {
    /// Finds out which way there is to the disk.
    ///
    /// # Errors
    ///
    /// Where [`Io::Ring`] was asked for and does not work, or no thread can be started.
    pub fn open(settings: Settings) -> io::Result<Self> {
        let (choice, backend) = choose(settings.io, settings.depth_max, settings.threads)?;
        Ok(Self::over(backend, choice, settings))
    }

    pub(super) fn over(backend: Box<dyn Backend>, choice: Choice, settings: Settings) -> Self {
        let depth = settings.depth_max.max(1) as usize;
        Self {
            backend,
            choice,
            operations: Slab::with_capacity(depth),
            depth,
            generation: 0,
            ended: Vec::new(),
            bounce: Bounce { bytes_max: settings.bounce_bytes_max, bytes: 0, free: Vec::new(), meter: Meter::new() },
            landed: VecDeque::with_capacity(depth),
            unsorted: Vec::with_capacity(depth),
            counts: Counts::default(),
        }
    }

    /// Which way bytes go, and why.
    #[must_use]
    pub const fn choice(&self) -> &Choice {
        &self.choice
    }

    /// What was done so far.
    #[must_use]
    pub const fn counts(&self) -> Counts {
        self.counts
    }

    /// Operations that are not done.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.operations.len() + self.ended.len()
    }

    /// Readable when the disk has something to say to the next [`turn`](Self::turn). What was begun since the last turn needs one
    /// in any case, and so does what that turn has left; the next one must come after [`wait_max`](Self::wait_max).
    #[must_use]
    pub fn wait_fd(&self) -> BorrowedFd<'_> {
        self.backend.wait_fd()
    }

    /// When the next turn must come though the disk says nothing: the system may have refused for now what was handed over, as
    /// it does when it is short of memory, and nothing tells when it would take it.
    #[must_use]
    pub fn wait_max(&self) -> Option<Duration> {
        self.backend.has_unsubmitted().then_some(UNSUBMITTED_WAIT)
    }

    /// Writes a block to the place that waits for it, out of the span; begins with the next turn.
    ///
    /// # Errors
    ///
    /// The filling comes back where there are as many operations as there may be.
    pub fn write(&mut self, tag: u64, filling: Filling, span: &Span) -> Result<(), Filling> {
        self.begin(tag, What::Write(filling), span).map_err(|what| match what {
            What::Write(filling) => filling,
            What::Read(_) => unreachable!("what comes back is what was given"),
        })
    }

    /// Reads a block into the span; begins with the next turn.
    ///
    /// # Errors
    ///
    /// The block comes back where there are as many operations as there may be.
    pub fn read(&mut self, tag: u64, block: Block, span: &Span) -> Result<(), Block> {
        self.begin(tag, What::Read(block), span).map_err(|what| match what {
            What::Read(block) => block,
            What::Write(_) => unreachable!("what comes back is what was given"),
        })
    }

    fn begin(&mut self, tag: u64, what: What, span: &Span) -> Result<(), What> {
        if self.in_flight() >= self.depth {
            return Err(what);
        }
        self.generation = self.generation.wrapping_add(1);
        let at = what.at();
        let bytes = at.bytes;
        let is_inside =
            span.room >= bytes && span.offset.checked_add(span.room).is_some_and(|end| end <= span.region.len());
        let is_straight = span.room >= at.whole() && span.offset.is_multiple_of(at.file.memory_align);
        let bounce = match () {
            () if !is_inside => Err(DiskError::Outside),
            () if is_straight => Ok(None),
            () => match self.bounce.take(at.whole()) {
                Ok(Some(region)) => Ok(Some(region)),
                // Others have it, and give it back.
                Ok(None) => return Err(what),
                Err(errno) => Err(DiskError::Io(errno)),
            },
        };
        let operation =
            Operation { tag, generation: self.generation, what, span: span.clone(), bounce: None, moved: 0 };
        match bounce {
            Err(error) => self.end(operation, Err(error)),
            Ok(bounce) => self.start(Operation { bounce, ..operation }),
        }
        Ok(())
    }

    fn start(&mut self, operation: Operation) {
        self.counts.bounced += u64::from(operation.bounce.is_some());
        if let (Some(bounce), What::Write(filling)) = (&operation.bounce, &operation.what) {
            let copied = bounce.copy_from(0, &operation.span.region, operation.span.offset, filling.at.bytes);
            if copied.is_err() {
                return self.end(operation, Err(DiskError::Outside));
            }
        }
        let key = self.operations.insert(operation);
        self.post(key);
    }

    /// Posts what is left of an operation.
    fn post(&mut self, key: usize) {
        let Operation { what, span, bounce, moved, generation, .. } = &self.operations[key];
        let at = what.at();
        let left = at.whole() - moved;
        let (region, offset) = bounce.as_ref().map_or((&span.region, span.offset), |bounce| (bounce, 0));
        let job = Job {
            id: u64::from(*generation) << 32 | key as u64,
            way: what.way(),
            file: Arc::clone(&at.file),
            at: at.offset + moved,
            region: Arc::clone(region),
            offset: offset + moved,
            length: u32::try_from(left.min(JOB_BYTES_MAX)).unwrap_or(u32::MAX),
        };
        if self.backend.post(job).is_err() {
            let operation = self.operations.remove(key);
            self.end(operation, Err(DiskError::Io(Errno::AGAIN)));
        }
    }

    /// Hands over what was begun, and tells what is done: eight operations at most. True: another turn has more to
    /// tell at once. Waits for nothing.
    pub fn turn(&mut self, done: &mut Vec<Done>) -> bool {
        self.backend.submit();
        if self.landed.is_empty() {
            self.backend.reap(&mut self.unsorted);
            self.landed.extend(self.unsorted.drain(..));
        }
        for _ in 0..LANDED_PER_TURN {
            let Some(Landed { id, result }) = self.landed.pop_front() else { break };
            self.land(id, result);
        }
        // What the disk has moved in part goes on at once.
        self.backend.submit();
        done.append(&mut self.ended);
        !self.landed.is_empty()
    }

    /// Hands over what was begun, and waits until a turn would find something, or as long as that.
    pub fn wait(&mut self, most: Duration) {
        self.backend.submit();
        if self.ended.is_empty() && self.landed.is_empty() && !self.operations.is_empty() {
            // Whatever it was, the next turn looks.
            let _ = wait(&*self.backend, self.wait_max().map_or(most, |max| max.min(most)));
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "the two halves")]
    fn land(&mut self, id: u64, result: Result<u32, Errno>) {
        let (key, generation) = (id as u32 as usize, (id >> 32) as u32);
        let Some(operation) = self.operations.get_mut(key).filter(|operation| operation.generation == generation)
        else {
            self.counts.stale += 1;
            return;
        };
        let at = operation.what.at();
        let whole = at.whole();
        let outcome = match result {
            Err(errno) => Err(DiskError::Io(errno)),
            // Nothing more comes, or goes.
            Ok(0) => Err(DiskError::Short),
            Ok(moved) => {
                operation.moved += u64::from(moved);
                match operation.moved {
                    so_far if so_far == whole => Ok(()),
                    // The disk goes on where it stopped, if it can.
                    so_far if so_far < whole && so_far.is_multiple_of(ALIGN) => return self.post(key),
                    _ => Err(DiskError::Short),
                }
            }
        };
        let operation = self.operations.remove(key);
        let outcome = outcome.and_then(|()| operation.check());
        self.end(operation, outcome);
    }

    fn end(&mut self, operation: Operation, outcome: Result<(), DiskError>) {
        let Operation { tag, what, bounce, .. } = operation;
        if let Some(bounce) = bounce {
            self.bounce.give(bounce);
        }
        let is_read = matches!(what, What::Read(_));
        match outcome {
            Err(DiskError::Damaged) => self.counts.damaged += 1,
            Err(DiskError::Short) if is_read => self.counts.damaged += 1,
            Err(_) => self.counts.failed += 1,
            Ok(()) => {}
        }
        self.ended.push(match what {
            What::Read(block) => Done::Read { tag, block, outcome },
            What::Write(mut filling) => {
                filling.progress = outcome.map_or_else(Progress::Failed, |()| Progress::Written);
                Done::Written { tag, filling, outcome }
            }
        });
    }
}

impl Operation {
    /// All bytes were moved: of a read, whether they are the block's.
    fn check(&self) -> Result<(), DiskError> {
        let What::Read(block) = &self.what else { return Ok(()) };
        let (region, offset) = self.bounce.as_ref().map_or((&self.span.region, self.span.offset), |bounce| (bounce, 0));
        let sum = region.crc32c(0, offset, block.at.bytes).map_err(|_| DiskError::Outside)?;
        if sum != block.checksum {
            return Err(DiskError::Damaged);
        }
        if let Some(bounce) = &self.bounce {
            let Span { region, offset, .. } = &self.span;
            region.copy_from(*offset, bounce, 0, block.at.bytes).map_err(|_| DiskError::Outside)?;
        }
        Ok(())
    }
}

impl What {
    const fn at(&self) -> &At {
        match self {
            Self::Read(block) => &block.at,
            Self::Write(filling) => &filling.at,
        }
    }

    const fn way(&self) -> Way {
        match self {
            Self::Read(_) => Way::In,
            Self::Write(_) => Way::Out,
        }
    }
}

impl At {
    /// Bytes that the disk moves.
    const fn whole(&self) -> u64 {
        self.bytes.next_multiple_of(ALIGN)
    }
}

/// Memory that any disk takes as it is, used again and again.
struct Bounce {
    bytes_max: u64,
    /// Of all of it, lent or not.
    bytes: u64,
    free: Vec<Arc<Region>>,
    meter: Meter,
}

impl Bounce {
    /// `None`: others have it.
    fn take(&mut self, bytes: u64) -> Result<Option<Arc<Region>>, Errno> {
        if let Some(place) = self.free.iter().position(|region| region.len() == bytes) {
            return Ok(Some(self.free.swap_remove(place)));
        }
        while self.bytes.saturating_add(bytes) > self.bytes_max {
            match self.free.pop() {
                Some(region) => self.bytes -= region.len(),
                None if self.bytes > 0 => return Ok(None),
                None => return Err(Errno::NOMEM),
            }
        }
        let fd = kvferry_memory::create("kvferry-bounce", bytes).map_err(|_| Errno::NOMEM)?;
        let region = Region::map(fd, bytes, &self.meter).map_err(|_| Errno::NOMEM)?;
        self.bytes += bytes;
        Ok(Some(region))
    }

    fn give(&mut self, region: Arc<Region>) {
        self.free.push(region);
    }
}
