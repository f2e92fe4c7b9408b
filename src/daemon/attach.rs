//! The attach socket: engines' processes connect, and their connection is their liveness.
//!
//! ```text
//! accept -> SO_PEERCRED allowed? -> Hello within 2 s -> SessionOpened -> frames -> SessionSaid ... EOF -> SessionClosed
//! ```
//!
//! A process that asks for rings (`hop.rs`) says the rest through them, and hears it; frames are what does not fit.
//!
//! Limits: sessions, a frame's length, descriptors beside one frame, frames waiting to be written. Bytes that are no
//! frame end the connection, with a Problem when it can still be said.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use kvferry_client::ring::Violation;
use kvferry_proto::v1::{self, FromDaemon, LOCAL_FRAME_MAX, ToDaemon, from_daemon, to_daemon};
use prost::Message as _;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::clock::Clock;
use super::command::{Command, Process, SessionId};
use super::hop::{self, Completions, Outgoing, Submissions};
use crate::config::Config;

/// How long a connection may stay without a greeting.
const HELLO_MAX: Duration = Duration::from_secs(2);
/// How long one frame may take to be written to a process that does not read.
const WRITE_MAX: Duration = Duration::from_secs(2);
/// Messages to one process that wait to be written.
const OUTBOX_MAX: usize = 4096;
/// Descriptors beside one frame; more end the connection.
const FDS_MAX: usize = 4;
const ENGINE_ID_LENGTH_MAX: usize = 256;
const READ_BYTES: usize = 64 << 10;

/// Binds the socket by renaming it into place, so that a dead daemon's socket is no hindrance and a living one's is.
pub(crate) fn bind(config: &Config) -> Result<UnixListener> {
    let socket = config.socket();
    let directory = &config.attach_directory;
    std::fs::create_dir_all(directory).with_context(|| {
        format!("create attach.directory {}; set it to one that you may write", directory.display())
    })?;
    if std::os::unix::net::UnixStream::connect(&socket).is_ok() {
        bail!("another daemon serves {}; end it first, or set another attach.directory", socket.display());
    }
    let fresh = directory.join(format!(".kvferry.sock.{}", std::process::id()));
    drop(std::fs::remove_file(&fresh));
    let listener = UnixListener::bind(&fresh).with_context(|| format!("bind {}", fresh.display()))?;
    // Who may attach is decided by SO_PEERCRED; the mode must let those users reach the socket at all.
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o666)).context("open the socket to its users")?;
    std::fs::rename(&fresh, &socket).with_context(|| format!("rename the socket to {}", socket.display()))?;
    Ok(listener)
}

/// Removes the socket, unless another daemon has put its own there.
pub(crate) fn unbind(socket: &Path) {
    if std::os::unix::net::UnixStream::connect(socket).is_err() {
        drop(std::fs::remove_file(socket));
    }
}

/// Accepts sessions until `stop`.
pub(crate) async fn serve(
    listener: UnixListener,
    config: Arc<Config>,
    clock: Clock,
    commands: mpsc::Sender<Command>,
    stop: CancellationToken,
) {
    let sessions = Arc::new(Semaphore::new(config.limits.sessions_max));
    let next = AtomicU64::new(1);
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, most likely: wait for some to come back.
                    tracing::warn!("failed to accept an engine: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            () = stop.cancelled() => return,
        };
        let Ok(permit) = Arc::clone(&sessions).try_acquire_owned() else {
            tracing::warn!(max = config.limits.sessions_max, "refused a session: limits.sessions_max");
            continue;
        };
        let session = SessionId(next.fetch_add(1, Ordering::Relaxed));
        let (config, commands, stop) = (Arc::clone(&config), commands.clone(), stop.clone());
        tokio::spawn(async move {
            tokio::select! {
                ended = run(stream, session, &config, clock, &commands) => if let Err(error) = ended {
                    tracing::debug!(session = session.0, "session ended: {error:#}");
                },
                () = stop.cancelled() => {}
            }
            // Sent also when none was opened; the hub knows.
            drop(commands.send(Command::SessionClosed { session }).await);
            drop(permit);
        });
    }
}

/// The reading half, by its descriptor: descriptors arrive beside the bytes, which the runtime's reader would lose.
pub(super) struct FrameReader {
    stream: OwnedReadHalf,
    buffered: VecDeque<u8>,
    fds: Vec<OwnedFd>,
}

/// The writing half.
pub(super) struct FrameWriter(OwnedWriteHalf);

/// One session, from its greeting to its end.
async fn run(
    stream: UnixStream,
    session: SessionId,
    config: &Config,
    clock: Clock,
    commands: &mpsc::Sender<Command>,
) -> Result<()> {
    let process = allowed(&stream, config)?;
    let (read, write) = stream.into_split();
    let mut read = FrameReader::new(read);
    let mut write = FrameWriter(write);

    let greeting = tokio::time::timeout(HELLO_MAX, read.frame()).await.context("no greeting in time")?;
    let hello = match greeting.and_then(|(message, _)| check_hello(message)) {
        Ok(hello) => hello,
        Err(error) => {
            let problem = from_daemon::Body::Problem(v1::Problem { message: format!("{error:#}") });
            let message = FromDaemon { reply_to: 1, body: Some(problem) };
            drop(write.frame(&message.encode_to_vec(), &[]).await);
            return Err(error);
        }
    };
    let engine = hello.engine_id.clone();
    let (outbox, mut inbox) = mpsc::channel::<Outgoing>(OUTBOX_MAX);
    commands.send(Command::SessionOpened { session, process, hello, outbox }).await.context("daemon is stopping")?;
    let writer = async {
        let mut completions: Option<Completions> = None;
        while let Some(outgoing) = inbox.recv().await {
            match (outgoing, &completions) {
                (Outgoing::Open(offer), _) => completions = Some(offer.send(&mut write).await?),
                (Outgoing::Message(message), Some(completions)) => completions.push(&mut write, &message).await?,
                (Outgoing::Message(message), None) => write.frame(&message.encode_to_vec(), &[]).await?,
            }
        }
        // The hub has dropped its end.
        Ok(())
    };
    let reader = async {
        let mut submissions: Option<Submissions> = None;
        loop {
            let (message, fds) = match &mut submissions {
                Some(submissions) => submissions.next(&mut read).await?,
                None => read.frame().await?,
            };
            let body = message.body.context("an empty request")?;
            let said = match (body, &submissions, config.attach_ring) {
                (to_daemon::Body::OpenRing(_), None, Some(ring)) => {
                    let (opened, offer) = hop::open(ring.bytes, clock, ring.spin, message.id)?;
                    submissions = Some(opened);
                    Command::SessionRing { session, offer }
                }
                (body, _, _) => Command::SessionSaid { session, id: message.id, body, fds },
            };
            commands.send(said).await.context("daemon is stopping")?;
        }
    };
    // Either half's end is the session's.
    let ended: Result<()> = tokio::select! {
        ended = writer => ended,
        ended = reader => ended,
    };
    if let Some(violation) = ended.as_ref().err().and_then(|error| error.downcast_ref::<Violation>()) {
        tracing::warn!(engine, pid = process.pid, "closing an engine's session: {violation}");
    }
    ended
}

impl FrameReader {
    pub(super) fn new(stream: OwnedReadHalf) -> Self {
        Self { stream, buffered: VecDeque::new(), fds: Vec::new() }
    }

    /// The next frame, with the descriptors that came beside it.
    pub(super) async fn frame(&mut self) -> Result<(ToDaemon, Vec<OwnedFd>)> {
        loop {
            if let Some(frame) = self.take_frame()? {
                let message = ToDaemon::decode(frame.as_slice()).context("no request")?;
                return Ok((message, std::mem::take(&mut self.fds)));
            }
            if self.receive().await? == 0 {
                bail!("closed by the process");
            }
        }
    }

    /// Whether bytes are here that no frame has taken.
    pub(super) fn has_more(&self) -> bool {
        !self.buffered.is_empty()
    }

    fn take_frame(&mut self) -> Result<Option<Vec<u8>>> {
        let mut length = [0; 4];
        if self.buffered.len() < length.len() {
            return Ok(None);
        }
        for (byte, buffered) in length.iter_mut().zip(&self.buffered) {
            *byte = *buffered;
        }
        let body = usize::try_from(u32::from_le_bytes(length))?;
        if body > LOCAL_FRAME_MAX {
            bail!("a frame of {body} bytes; at most {LOCAL_FRAME_MAX}");
        }
        if self.buffered.len() < length.len() + body {
            return Ok(None);
        }
        self.buffered.drain(..length.len());
        Ok(Some(self.buffered.drain(..body).collect()))
    }

    /// Receives what is there, descriptors too. 0: the end.
    pub(super) async fn receive(&mut self) -> Result<usize> {
        loop {
            self.stream.readable().await?;
            // Not before something is there: with a ring, every sleep waits here, and nearly always in vain.
            let mut bytes = vec![0; READ_BYTES];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
            let stream: &UnixStream = self.stream.as_ref();
            let received = stream.try_io(Interest::READABLE, || {
                let mut ancillary = RecvAncillaryBuffer::new(&mut space);
                let into = &mut [IoSliceMut::new(&mut bytes)];
                let received = recvmsg(stream.as_fd(), into, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
                let fds = ancillary.drain().filter_map(|message| match message {
                    RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                    _ => None,
                });
                Ok((received.bytes, received.flags, fds.flatten().collect::<Vec<OwnedFd>>()))
            });
            match received {
                Ok((count, flags, fds)) => {
                    self.fds.extend(fds);
                    if flags.contains(ReturnFlags::CTRUNC) || self.fds.len() > FDS_MAX {
                        bail!("more than {FDS_MAX} descriptors");
                    }
                    self.buffered.extend(bytes.get(..count).unwrap_or_default());
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Who is there, if they may be.
fn allowed(stream: &UnixStream, config: &Config) -> Result<Process> {
    let credentials = stream.peer_cred().context("ask who is there")?;
    let (uid, pid) = (credentials.uid(), credentials.pid().unwrap_or_default());
    let own = rustix::process::geteuid().as_raw();
    if uid != 0 && uid != own && !config.attach_uids.contains(&uid) {
        tracing::warn!(uid, pid, "refused a process: add its user to attach.uids if it is an engine's");
        bail!("user {uid} may not attach");
    }
    Ok(Process { pid, uid })
}

fn check_hello(message: ToDaemon) -> Result<v1::Hello> {
    let Some(to_daemon::Body::Hello(hello)) = message.body else { bail!("the first request must be Hello") };
    if hello.protocol != v1::PROTOCOL {
        bail!("protocol {} is not {}: install the wheel of the daemon's version", hello.protocol, v1::PROTOCOL);
    }
    match hello.role() {
        v1::Role::Unspecified => bail!("a role is needed"),
        v1::Role::Operator => {}
        v1::Role::Scheduler | v1::Role::Worker => {
            let id = &hello.engine_id;
            if id.is_empty() || id.len() > ENGINE_ID_LENGTH_MAX || id.chars().any(char::is_control) {
                bail!("an engine_id of 1 to {ENGINE_ID_LENGTH_MAX} printable bytes is needed");
            }
        }
    }
    Ok(hello)
}

impl FrameWriter {
    /// Writes one frame whole, with descriptors beside its first byte.
    pub(super) async fn frame(&mut self, body: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        tokio::time::timeout(WRITE_MAX, self.write(body, fds)).await.context("does not read")?
    }

    async fn write(&mut self, body: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        let mut frame = u32::try_from(body.len())?.to_le_bytes().to_vec();
        frame.extend_from_slice(body);
        let mut sent = 0;
        while sent == 0 && !fds.is_empty() {
            self.0.writable().await?;
            let stream: &UnixStream = self.0.as_ref();
            let tried = stream.try_io(Interest::WRITABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
                let mut ancillary = SendAncillaryBuffer::new(&mut space);
                if !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
                    return Err(io::Error::other("no room for so many descriptors"));
                }
                Ok(sendmsg(stream, &[IoSlice::new(&frame)], &mut ancillary, SendFlags::NOSIGNAL)?)
            });
            match tried {
                Ok(count) => sent = count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("write to the process"),
            }
        }
        self.0.write_all(frame.get(sent..).unwrap_or_default()).await.context("write to the process")
    }
}
