//! The two system calls that move bytes, straight between sockets and regions.
//!
//! ```text
//! send:    [control][header] [region slice]... or [zeros]... [control] --sendmsg--> socket
//! receive: socket --readv--> [region slice]... or [scratch]... [bytes read ahead]
//! ```
//!
//! Limits: [`SLICES_MAX`] slices a call, [`Wire`] drops none: what did not fit was not asked for. Failure: an errno as
//! a [`Fault`]; "would block" is not one. This is the one place of the room with raw pointers, and none outlives a call.
//!
//! Why not `IoSlice` over `&[u8]`: an engine writes these bytes whenever it likes, so no reference to them may exist.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use kvferry_core::plan::Slice;
use kvferry_memory::Region;
use kvferry_transport::Fault;
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags};

use crate::Counters;
use crate::tls::Pool;
use crate::uring::Ring;

/// Most region slices of one call: the kernel's `UIO_MAXIOV` of 1,024, less what stands before and behind them.
pub(crate) const SLICES_MAX: usize = 1024 - EDGES_MAX;
const EDGES_MAX: usize = 4;
/// Where unwanted bytes go; all streams share it, as nobody looks at it.
const SCRATCH_BYTES: usize = 64 << 10;
/// What stands in for bytes that may not be sent any more.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// What lies between the fixed parts of a message.
pub(crate) enum Body<'a> {
    /// Nothing.
    None,
    /// Bytes of a region.
    Region(&'a Arc<Region>, &'a [Slice]),
    /// This many bytes that mean nothing: zeros out, or read and thrown away.
    Void(u64),
}

/// What a call did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moved {
    /// Bytes moved.
    pub(crate) bytes: u64,
    /// Fewer than asked: the socket has no more (or takes no more) until epoll says so.
    pub(crate) short: bool,
}

/// Scratch for the calls of one transport.
pub(crate) struct Wire {
    /// Empty between calls.
    vectors: Vec<Vector>,
    scratch: Box<[u8]>,
    /// Where plaintext lies between a region and its encryption; empty before the first stream under TLS.
    pub(crate) staging: Vec<u8>,
    /// Records of streams under TLS.
    pub(crate) pool: Pool,
    /// Where operations of streams without TLS are posted, if this transport has one.
    pub(crate) ring: Option<Ring>,
    /// What the calls did.
    pub(crate) counters: Counters,
}

/// Laid out like the system's `iovec`.
#[repr(C)]
pub(crate) struct Vector {
    pointer: *mut u8,
    length: usize,
}

const _: () = assert!(size_of::<Vector>() == size_of::<IoSlice<'_>>());
const _: () = assert!(align_of::<Vector>() == align_of::<IoSlice<'_>>());

// SAFETY: an address and a number; to follow the address is what needs care: `Wire` does that only inside a call that
// borrows what it points to, a lane of the ring keeps what it points to.
unsafe impl Send for Vector {}

impl Wire {
    /// Room for the longest call.
    pub(crate) fn new(ring: Option<Ring>) -> Self {
        Self {
            vectors: Vec::with_capacity(SLICES_MAX + EDGES_MAX),
            scratch: vec![0; SCRATCH_BYTES].into_boxed_slice(),
            staging: Vec::new(),
            pool: Pool::default(),
            ring,
            counters: Counters::default(),
        }
    }

    /// Writes `before`, then `body`, then `after`, as much as the socket takes.
    pub(crate) fn send(
        &mut self,
        socket: BorrowedFd<'_>,
        before: [&[u8]; 2],
        body: &Body<'_>,
        after: &[u8],
    ) -> Result<Moved, Fault> {
        self.vectors.clear();
        let mut asked = 0;
        for bytes in before {
            asked += add_edge(&mut self.vectors, bytes.as_ptr().cast_mut(), bytes.len());
        }
        let mut body_asked = 0;
        let whole = add_zeroable(&mut self.vectors, body, &mut body_asked)?;
        asked += body_asked;
        if whole {
            asked += add_edge(&mut self.vectors, after.as_ptr().cast_mut(), after.len());
        }
        // SAFETY: `IoSlice` is documented to have the layout of `iovec`, as `Vector` has (asserted above). Every vector
        // names bytes that this function's arguments borrow or ZEROS, so they are mapped until the call returns. The
        // slices are only handed to the kernel, which reads them; no `&[u8]` to a region is ever made.
        let vectors: &[IoSlice<'_>] =
            unsafe { std::slice::from_raw_parts(self.vectors.as_ptr().cast(), self.vectors.len()) };
        let result =
            retry(|| rustix::net::sendmsg(socket, vectors, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL));
        self.vectors.clear();
        self.counters.send_calls += 1;
        let moved = moved(result, asked)?;
        self.counters.bytes_sent += moved.bytes;
        Ok(moved)
    }

    /// Reads into `body`, then, if the body can be filled, into `ahead`. The end of the stream is a fault.
    pub(crate) fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        body: &Body<'_>,
        ahead: &mut [u8],
    ) -> Result<Moved, Fault> {
        self.vectors.clear();
        let mut asked = 0;
        let whole = add_body(&mut self.vectors, body, self.scratch.as_mut_ptr(), SCRATCH_BYTES, &mut asked)?;
        if whole {
            asked += add_edge(&mut self.vectors, ahead.as_mut_ptr(), ahead.len());
        }
        // SAFETY: `IoSliceMut` is documented to have the layout of `iovec`, as `Vector` has (asserted above). Every
        // vector names bytes of a region that `body` borrows, of `ahead`, or of the scratch buffer, all mapped until the
        // call returns and, but for the regions that engines write too, borrowed by this function alone. They are only
        // handed to the kernel, which writes them; no `&mut [u8]` to a region is ever made.
        let vectors: &mut [IoSliceMut<'_>] =
            unsafe { std::slice::from_raw_parts_mut(self.vectors.as_mut_ptr().cast(), self.vectors.len()) };
        let result = retry(|| rustix::io::readv(socket, vectors));
        self.vectors.clear();
        self.counters.receive_calls += 1;
        if result == Ok(0) && asked > 0 {
            return Err(Fault::PeerClosed);
        }
        let moved = moved(result, asked)?;
        self.counters.bytes_received += moved.bytes;
        Ok(moved)
    }
}

/// Adds bytes that lie together; returns how many.
pub(crate) fn add_edge(vectors: &mut Vec<Vector>, pointer: *mut u8, length: usize) -> u64 {
    if length > 0 {
        vectors.push(Vector { pointer, length });
    }
    length as u64
}

/// Adds the vectors of a body that goes out, zeros in place of what means nothing.
pub(crate) fn add_zeroable(vectors: &mut Vec<Vector>, body: &Body<'_>, asked: &mut u64) -> Result<bool, Fault> {
    add_body(vectors, body, ZEROS.as_ptr().cast_mut(), ZEROS.len(), asked)
}

/// Adds the body's vectors: how many bytes they name goes into `asked`; true if that is all of it.
pub(crate) fn add_body(
    vectors: &mut Vec<Vector>,
    body: &Body<'_>,
    void: *mut u8,
    void_length: usize,
    asked: &mut u64,
) -> Result<bool, Fault> {
    *asked = 0;
    match *body {
        Body::None => Ok(true),
        Body::Region(region, slices) => {
            for slice in slices.iter().take(SLICES_MAX) {
                let raw = region.io_slice(slice.offset, slice.length).map_err(|_| Fault::OutOfBounds)?;
                *asked += add_edge(vectors, raw.as_mut_ptr(), raw.len());
            }
            Ok(slices.len() <= SLICES_MAX)
        }
        Body::Void(bytes) => {
            for _ in 0..SLICES_MAX {
                let left = usize::try_from(bytes - *asked).unwrap_or(usize::MAX);
                *asked += add_edge(vectors, void, void_length.min(left));
            }
            Ok(*asked == bytes)
        }
    }
}

/// What an errno of a socket means for its endpoint.
pub(crate) const fn fault(errno: Errno) -> Fault {
    match errno {
        Errno::CONNABORTED
        | Errno::CONNREFUSED
        | Errno::CONNRESET
        | Errno::HOSTUNREACH
        | Errno::NETUNREACH
        | Errno::NOTCONN
        | Errno::PIPE
        | Errno::TIMEDOUT => Fault::PeerClosed,
        _ => Fault::Io(errno.raw_os_error()),
    }
}

fn retry(mut call: impl FnMut() -> Result<usize, Errno>) -> Result<usize, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

fn moved(result: Result<usize, Errno>, asked: u64) -> Result<Moved, Fault> {
    match result {
        Ok(bytes) => Ok(Moved { bytes: bytes as u64, short: (bytes as u64) < asked }),
        Err(Errno::AGAIN) => Ok(Moved { bytes: 0, short: true }),
        Err(errno) => Err(fault(errno)),
    }
}
