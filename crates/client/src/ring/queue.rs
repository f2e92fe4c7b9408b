//! One direction: records from one producer to one consumer, and who sleeps.
//!
//! ```text
//! push: head checked -> record copied in -> tail published -> take_sleep: true once for each announced sleep
//! pop:  tail checked -> length copied out and checked -> record copied out -> head published
//! sleep: announce -> pop once more -> Empty? sleep until the producer, which took the announcement, wakes us
//! ```
//!
//! Indexes count bytes, wrap at 2^32 and are multiples of 8. A record is a little-endian u32 length, its bytes, and
//! padding to 8. Each side remembers its own index and never reads it back from shared memory.
//!
//! No wake is lost: the consumer announces and then looks, the producer publishes and then looks, and a sequentially
//! consistent fence stands between the two steps of either, so at least one of them sees the other's. `model.rs`
//! includes this very file and shows it under loom.

use super::sync::{Lane, Ordering, fence};

/// Indexes and records are multiples of this.
const ALIGN: u32 = 8;
const HEADER_BYTES: u32 = 4;

/// What the other side wrote and cannot have meant. The ring is of no use any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// The consumer's index is not between its last one and the producer's.
    Head {
        /// What stands there.
        found: u32,
    },
    /// A record is longer than one may be, or than what was published.
    Length {
        /// What stands there.
        found: u32,
    },
    /// The producer's index is not between its last one and a full ring.
    Tail {
        /// What stands there.
        found: u32,
    },
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (what, found) = match self {
            Self::Head { found } => ("head", found),
            Self::Length { found } => ("record length", found),
            Self::Tail { found } => ("tail", found),
        };
        write!(f, "the other side wrote an impossible {what} into the ring: {found}")
    }
}

impl std::error::Error for Violation {}

/// What became of a record that was to be pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It is published.
    Done,
    /// There is no room now.
    Full,
    /// It is empty or longer than a record may be, and never fits.
    Unfit,
}

/// What was popped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Popped {
    /// Nothing is there.
    Empty,
    /// A record, now in the caller's buffer.
    Record,
    /// The next frame is on the socket.
    Socket,
}

/// The writing end.
pub struct Producer {
    pub(super) lane: Lane,
    tail: u32,
    /// The consumer's index as last seen.
    head: u32,
}

/// The reading end.
pub struct Consumer {
    pub(super) lane: Lane,
    head: u32,
    /// The producer's index as last seen.
    tail: u32,
}

const fn record_max(capacity: u32) -> u32 {
    // A quarter: one large record does not keep all others out.
    capacity / 4
}

/// The room that a record of this length takes. The length is at most a quarter of a capacity.
const fn room(length: u32) -> u32 {
    (HEADER_BYTES + length).next_multiple_of(ALIGN)
}

impl Producer {
    /// Of an empty ring whose both indexes are `index`.
    pub(crate) const fn new(lane: Lane, index: u32) -> Self {
        Self { lane, tail: index, head: index }
    }

    /// Publishes one record.
    ///
    /// # Errors
    /// When the other side's index cannot be.
    pub fn push(&mut self, record: &[u8]) -> Result<Pushed, Violation> {
        match u32::try_from(record.len()) {
            Ok(length) if length > 0 && length <= record_max(self.lane.capacity()) => self.append(length, record),
            _ => Ok(Pushed::Unfit),
        }
    }

    /// Publishes that the next frame is on the socket.
    ///
    /// # Errors
    /// When the other side's index cannot be.
    pub fn push_socket(&mut self) -> Result<Pushed, Violation> {
        self.append(0, &[])
    }

    fn append(&mut self, length: u32, record: &[u8]) -> Result<Pushed, Violation> {
        let room = room(length);
        if self.free() < room {
            self.look()?;
            if self.free() < room {
                return Ok(Pushed::Full);
            }
        }
        self.lane.copy_in(self.tail, &length.to_le_bytes());
        self.lane.copy_in(self.tail.wrapping_add(HEADER_BYTES), record);
        self.tail = self.tail.wrapping_add(room);
        self.lane.tail().store(self.tail, Ordering::Release);
        Ok(Pushed::Done)
    }

    const fn free(&self) -> u32 {
        self.lane.capacity() - self.tail.wrapping_sub(self.head)
    }

    fn look(&mut self) -> Result<(), Violation> {
        // Acquire: the consumer has copied out what it frees.
        let found = self.lane.head().load(Ordering::Acquire);
        let moved = found.wrapping_sub(self.head);
        if moved > self.tail.wrapping_sub(self.head) || !found.is_multiple_of(ALIGN) {
            return Err(Violation::Head { found });
        }
        self.head = found;
        Ok(())
    }

    /// Whether the consumer sleeps and is to be woken: once for each time it has announced it, so that a batch of
    /// records costs one wake-up. To be asked after the last push of the batch.
    #[must_use]
    pub fn take_sleep(&self) -> bool {
        fence(Ordering::SeqCst);
        let asleep = self.lane.asleep();
        asleep.load(Ordering::Relaxed) != 0 && asleep.swap(0, Ordering::Relaxed) != 0
    }
}

impl Consumer {
    /// Of an empty ring whose both indexes are `index`.
    pub(crate) const fn new(lane: Lane, index: u32) -> Self {
        Self { lane, head: index, tail: index }
    }

    /// Takes the next record out, in place of what `record` held.
    ///
    /// # Errors
    /// When the other side's index or a length cannot be.
    pub fn pop(&mut self, record: &mut Vec<u8>) -> Result<Popped, Violation> {
        if self.tail == self.head {
            self.look()?;
            if self.tail == self.head {
                return Ok(Popped::Empty);
            }
        }
        let mut length = [0; 4];
        self.lane.copy_out(self.head, &mut length);
        let length = u32::from_le_bytes(length);
        let published = self.tail.wrapping_sub(self.head);
        if length > record_max(self.lane.capacity()) || room(length) > published {
            return Err(Violation::Length { found: length });
        }
        record.clear();
        record.resize(length as usize, 0);
        self.lane.copy_out(self.head.wrapping_add(HEADER_BYTES), record);
        self.head = self.head.wrapping_add(room(length));
        // Release: the record is copied out before its room is free.
        self.lane.head().store(self.head, Ordering::Release);
        Ok(if length == 0 { Popped::Socket } else { Popped::Record })
    }

    fn look(&mut self) -> Result<(), Violation> {
        // Acquire: the records are written before the index that publishes them.
        let found = self.lane.tail().load(Ordering::Acquire);
        if found.wrapping_sub(self.head) > self.lane.capacity() || !found.is_multiple_of(ALIGN) {
            return Err(Violation::Tail { found });
        }
        self.tail = found;
        Ok(())
    }

    /// Whether nothing is there to be popped.
    ///
    /// # Errors
    /// When the other side's index cannot be.
    pub fn is_empty(&mut self) -> Result<bool, Violation> {
        if self.tail == self.head {
            self.look()?;
        }
        Ok(self.tail == self.head)
    }

    /// Says that this side is about to sleep. Look once more before doing so: what was published before is not
    /// announced again. A wake-up that is taken after all comes too often, never too seldom.
    pub fn announce(&self) {
        self.lane.asleep().store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }
}
