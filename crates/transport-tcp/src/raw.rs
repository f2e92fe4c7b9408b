//! A plain socket over registered memory: what a benchmark holds the transport against.
//!
//! ```text
//! region --sendmsg--> socket ==== socket --readv--> region
//! ```
//!
//! No frames, no sums, no streams beside it, no waiting strategy: one system call a call, and whatever the socket was
//! set to (blocking or not) is what happens. It makes the same system calls over the same memory as the transport, so
//! that a difference between the two is the transport's doing.

use std::net::TcpStream;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use kvferry_core::plan::Slice;
use kvferry_memory::Region;
use kvferry_transport::Fault;

use crate::wire::{Body, Wire};

/// One connected socket and room for its calls.
pub struct RawStream {
    socket: TcpStream,
    wire: Wire,
}

impl RawStream {
    /// Takes a connected socket as it is.
    #[must_use]
    pub fn new(socket: TcpStream) -> Self {
        Self { socket, wire: Wire::new(None) }
    }

    /// The socket.
    #[must_use]
    pub const fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Sends bytes of a region, as many as one call takes; 0 if a non-blocking socket takes none now.
    ///
    /// # Errors
    ///
    /// [`Fault::OutOfBounds`], [`Fault::PeerClosed`], and what the operating system says.
    pub fn send(&mut self, region: &Arc<Region>, offset: u64, length: u64) -> Result<u64, Fault> {
        let slice = [Slice { offset, length }];
        let moved = self.wire.send(self.socket.as_fd(), [&[], &[]], &Body::Region(region, &slice), &[])?;
        Ok(moved.bytes)
    }

    /// Receives bytes into a region, as many as one call brings; 0 if a non-blocking socket has none now.
    ///
    /// # Errors
    ///
    /// As for [`send`](Self::send); the end of the stream is [`Fault::PeerClosed`].
    pub fn receive(&mut self, region: &Arc<Region>, offset: u64, length: u64) -> Result<u64, Fault> {
        let slice = [Slice { offset, length }];
        let moved = self.wire.receive(self.socket.as_fd(), &Body::Region(region, &slice), &mut [])?;
        Ok(moved.bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Shutdown, TcpListener};

    use kvferry_memory::Meter;

    use super::*;

    fn region() -> Arc<Region> {
        let fd = kvferry_memory::create("raw", 8192).expect("a memfd");
        Region::map(fd, 8192, &Meter::new()).expect("a region")
    }

    #[test]
    fn bytes_go_from_region_to_region() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("listen");
        let sender = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
        let receiver = listener.accept().expect("accept").0;
        receiver.set_nonblocking(true).expect("non-blocking");
        let (source, target) = (region(), region());
        source.write(100, b"straight through").expect("write");
        let (mut sender, mut receiver) = (RawStream::new(sender), RawStream::new(receiver));
        assert_eq!(receiver.receive(&target, 0, 16), Ok(0), "nothing was sent yet");
        assert_eq!(sender.send(&source, 100, 16), Ok(16));
        assert_eq!(sender.send(&source, 8190, 16), Err(Fault::OutOfBounds));
        sender.socket().shutdown(Shutdown::Write).expect("no more");
        receiver.socket().set_nonblocking(false).expect("blocking");
        assert_eq!(receiver.receive(&target, 4000, 100), Ok(16));
        assert_eq!(receiver.receive(&target, 4000, 100), Err(Fault::PeerClosed));
        let mut landed = [0; 16];
        target.read(4000, &mut landed).expect("read");
        assert_eq!(&landed, b"straight through");
    }
}
