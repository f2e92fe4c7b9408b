//! Frames of the attach socket: a little-endian u32 length and one message, file descriptors beside the first byte.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use kvferry_proto::v1::{FromDaemon, LOCAL_FRAME_MAX, ToDaemon};
use prost::Message as _;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

/// Descriptors beside one frame from the daemon: a ring's memory and its doorbell.
const FDS_MAX: usize = 2;

/// Writes one frame whole, with `fd` beside its first byte.
///
/// # Errors
/// Of the socket, among them a write timeout. Part of the frame may be gone then: close the connection.
pub(crate) fn write(mut stream: &UnixStream, message: &ToDaemon, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let body = message.encode_to_vec();
    if body.len() > LOCAL_FRAME_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "request is longer than a frame may be"));
    }
    let length = u32::try_from(body.len()).map_err(io::Error::other)?.to_le_bytes();
    let mut frame = Vec::with_capacity(length.len() + body.len());
    frame.extend_from_slice(&length);
    frame.extend_from_slice(&body);
    let Some(fd) = fd else { return stream.write_all(&frame) };

    let fds = [fd];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::Error::other("no room for one file descriptor"));
    }
    let sent = sendmsg(stream.as_fd(), &[IoSlice::new(&frame)], &mut ancillary, SendFlags::NOSIGNAL)?;
    stream.write_all(frame.get(sent..).unwrap_or_default())
}

/// Reads one frame.
///
/// # Errors
/// Of the socket; `UnexpectedEof` when the daemon closed it; `InvalidData` for what is no frame.
pub(crate) fn read(stream: &UnixStream) -> io::Result<FromDaemon> {
    read_from(stream)
}

/// Reads one frame and the descriptors beside it.
///
/// # Errors
/// As [`read`].
pub(crate) fn read_with_fds(stream: &UnixStream) -> io::Result<(FromDaemon, Vec<OwnedFd>)> {
    let mut reader = FdReader { stream, fds: Vec::new() };
    let message = read_from(&mut reader)?;
    Ok((message, reader.fds))
}

/// Reads bytes, and keeps the descriptors that come beside them, which `read(2)` would lose.
struct FdReader<'a> {
    stream: &'a UnixStream,
    fds: Vec<OwnedFd>,
}

impl Read for FdReader<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let into = &mut [IoSliceMut::new(into)];
        let received = recvmsg(self.stream, into, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds);
            }
        }
        Ok(received.bytes)
    }
}

fn read_from(mut stream: impl Read) -> io::Result<FromDaemon> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = usize::try_from(u32::from_le_bytes(length)).map_err(io::Error::other)?;
    if length > LOCAL_FRAME_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "frame is longer than one may be"));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    FromDaemon::decode(body.as_slice()).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}
