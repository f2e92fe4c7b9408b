//! Room for records, lent to the streams that have some.

/// Plaintext of one record, at most (RFC 8446, 5.1).
pub(crate) const RECORD_PLAIN_MAX: usize = 1 << 14;
/// What a record adds to its plaintext: header, content type, tag. Padding is not sent by us.
pub(crate) const RECORD_OVERHEAD: usize = 5 + 1 + 16;
/// Records of one call. Chosen: a piece of 512 KiB is 33 records, its header included.
const RECORDS_PER_CALL: usize = 33;
/// Bytes of a lent buffer: a call's worth of records, and a key update or an alert between them.
pub(crate) const RECORDS_BYTES: usize = RECORDS_PER_CALL * (RECORD_PLAIN_MAX + RECORD_OVERHEAD) + 512;
/// Buffers kept for the next who needs one. Chosen: both directions of eight busy streams.
const KEPT_MAX: usize = 16;

/// Buffers of [`RECORDS_BYTES`] that nobody uses at the moment.
#[derive(Default)]
pub(crate) struct Pool {
    free: Vec<Box<[u8]>>,
}

/// A line of bytes: they join at the end and leave at the front.
#[derive(Default)]
pub(crate) struct Buffer {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Pool {
    fn take(&mut self) -> Box<[u8]> {
        self.free.pop().unwrap_or_else(|| vec![0; RECORDS_BYTES].into_boxed_slice())
    }

    fn put(&mut self, bytes: Box<[u8]>) {
        if self.free.len() < KEPT_MAX {
            self.free.push(bytes);
        }
    }
}

impl Buffer {
    pub(crate) fn filled(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    pub(crate) fn filled_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.end]
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Where the next bytes join.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        &mut self.bytes[self.end..]
    }

    /// `length` bytes were written into the room.
    pub(crate) fn added(&mut self, length: usize) {
        self.end = (self.end + length).min(self.bytes.len());
    }

    /// `length` bytes leave.
    pub(crate) fn taken(&mut self, length: usize) {
        self.start = (self.start + length).min(self.end);
        if self.is_empty() {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Moves what there is to the front.
    pub(crate) fn compact(&mut self) {
        self.bytes.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
    }

    /// Makes room for `length` bytes in all, in a buffer of its own.
    pub(crate) fn grow(&mut self, length: usize) {
        self.compact();
        if self.bytes.len() < length {
            self.replace(vec![0; length].into_boxed_slice());
        }
    }

    /// Makes room for [`RECORDS_BYTES`] in all, in a buffer of the pool.
    pub(crate) fn borrow(&mut self, pool: &mut Pool) {
        if self.bytes.len() < RECORDS_BYTES {
            self.compact();
            self.replace(pool.take());
        }
    }

    /// Gives the buffer back if there is nothing in it.
    pub(crate) fn give_back(&mut self, pool: &mut Pool) {
        if self.is_empty() {
            let bytes = std::mem::take(self).bytes;
            if bytes.len() == RECORDS_BYTES {
                pool.put(bytes);
            }
        }
    }

    fn replace(&mut self, mut bytes: Box<[u8]>) {
        bytes[..self.end].copy_from_slice(&self.bytes[..self.end]);
        self.bytes = bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_leave_in_the_order_in_which_they_joined() {
        let (mut pool, mut buffer) = (Pool::default(), Buffer::default());
        assert!(buffer.room().is_empty(), "an idle stream costs no buffer");
        buffer.grow(4);
        buffer.room().copy_from_slice(b"abcd");
        buffer.added(4);
        buffer.taken(2);
        buffer.borrow(&mut pool);
        buffer.room()[..2].copy_from_slice(b"ef");
        buffer.added(2);
        assert_eq!(buffer.filled(), b"cdef");
        buffer.give_back(&mut pool);
        assert!(pool.free.is_empty(), "what is full is not lent on");
        buffer.taken(4);
        buffer.give_back(&mut pool);
        assert_eq!((pool.free.len(), buffer.bytes.len()), (1, 0));
    }

    #[test]
    fn the_pool_keeps_no_more_than_its_limit() {
        let mut pool = Pool::default();
        for _ in 0..=KEPT_MAX {
            pool.put(Box::default());
        }
        assert_eq!(pool.free.len(), KEPT_MAX);
    }
}
