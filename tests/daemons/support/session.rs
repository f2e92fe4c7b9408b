//! A raw connection to an attach socket: says whatever a test wants to say.

use std::fs::File;
use std::io::{ErrorKind, IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use kvferry_client::ring::{self, ClientEnd};
use kvferry_proto::v1::{self, FromDaemon, Role, ToDaemon, from_daemon, to_daemon};
use prost::Message as _;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

use super::{PATIENCE, Shape};

pub(crate) struct Session {
    pub(crate) stream: UnixStream,
    next: u64,
}

impl Session {
    /// A connection that has said nothing.
    pub(crate) fn open(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).expect("connect");
        stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
        Self { stream, next: 1 }
    }

    /// A greeted session.
    pub(crate) fn greeted(socket: &Path, role: Role) -> Self {
        let mut session = Self::open(socket);
        let answer = session.ask(hello(role, v1::PROTOCOL));
        assert!(matches!(answer, Some(from_daemon::Body::Welcome(_))), "{answer:?}");
        session
    }

    pub(crate) fn send(&mut self, body: to_daemon::Body, fds: &[BorrowedFd<'_>]) {
        let frame = frame(&ToDaemon { id: self.next, body: Some(body) });
        self.next += 1;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(fds)), "room for descriptors");
        }
        let sent = sendmsg(self.stream.as_fd(), &[IoSlice::new(&frame)], &mut ancillary, SendFlags::NOSIGNAL);
        // A daemon may have closed it by now; what it said before is there to be read.
        let _ = sent.map(|sent| (&self.stream).write_all(&frame[sent..]));
    }

    /// The next message; `None` when the daemon has closed the connection.
    pub(crate) fn read(&mut self) -> Option<FromDaemon> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).ok()?;
        let mut body = vec![0; usize::try_from(u32::from_le_bytes(length)).expect("fits")];
        self.stream.read_exact(&mut body).ok()?;
        Some(FromDaemon::decode(body.as_slice()).expect("a message"))
    }

    /// Sends and reads one answer.
    pub(crate) fn ask(&mut self, body: to_daemon::Body) -> Option<from_daemon::Body> {
        self.ask_with(body, &[])
    }

    pub(crate) fn ask_with(&mut self, body: to_daemon::Body, fds: &[BorrowedFd<'_>]) -> Option<from_daemon::Body> {
        self.send(body, fds);
        self.read()?.body
    }

    /// Opens the rings of this session: their memory, the doorbell, and the client's end.
    pub(crate) fn open_ring(&mut self) -> (File, OwnedFd, ClientEnd) {
        self.send(to_daemon::Body::OpenRing(v1::OpenRing {}), &[]);
        let mut bytes = [0; 256];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let into = &mut [IoSliceMut::new(&mut bytes)];
        let received = recvmsg(&self.stream, into, &mut ancillary, RecvFlags::CMSG_CLOEXEC).expect("an answer");
        let message = FromDaemon::decode(&bytes[4..received.bytes]).expect("a message");
        let Some(from_daemon::Body::RingOpened(opened)) = message.body else { panic!("no rings: {message:?}") };
        let fds = ancillary.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        });
        let [memory, doorbell]: [OwnedFd; 2] = fds.flatten().collect::<Vec<_>>().try_into().expect("two descriptors");
        let end = ring::open(&memory, opened.ring_bytes).expect("map the rings");
        (memory.into(), doorbell, end)
    }

    /// Sends what must be refused, and returns why it was.
    pub(crate) fn refusal(&mut self, body: to_daemon::Body, fds: &[BorrowedFd<'_>]) -> String {
        match self.ask_with(body, fds) {
            Some(from_daemon::Body::Problem(problem)) => problem.message,
            other => panic!("not refused: {other:?}"),
        }
    }

    /// Waits until the daemon has closed the connection, whatever it still says before.
    pub(crate) fn wait_closed(&mut self) {
        loop {
            match (&self.stream).read(&mut [0; 4096]) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) => {
                    assert!(error.kind() != ErrorKind::WouldBlock, "the daemon keeps the connection open");
                    return;
                }
            }
        }
    }
}

/// A frame's bytes.
pub(crate) fn frame(message: &ToDaemon) -> Vec<u8> {
    let body = message.encode_to_vec();
    let mut frame = u32::try_from(body.len()).expect("fits").to_le_bytes().to_vec();
    frame.extend(body);
    frame
}

pub(crate) fn hello(role: Role, protocol: u32) -> to_daemon::Body {
    to_daemon::Body::Hello(v1::Hello { protocol, role: role.into(), engine_id: "raw".to_owned() })
}

/// An attach that fits a region of [`Shape::SMALL`].
pub(crate) fn attach() -> v1::Attach {
    let layout = Shape::SMALL.layout("LBHNC");
    let (fingerprint, layout) = (vec![7; 32], Some((&layout).into()));
    v1::Attach { rank: 0, rank_count: 1, fingerprint, layout, model: String::new() }
}
