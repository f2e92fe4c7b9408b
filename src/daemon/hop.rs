//! The rings of one session: what its task reads from the process and writes to it.
//!
//! ```text
//! OpenRing -> open -> memfd, eventfd -> process      (the daemon makes both: nothing about them is to be believed)
//! process: record, doorbell if we sleep -> Submissions::next -> hub
//! hub -> Completions::push_now, a wake-up if the process has asked for one -> process
//!        no room, too long? -> outbox -> the task: Completions::push
//! ```
//!
//! When the ring is empty, the hub runs first and answers what it was handed. Then the task looks again, for as long as
//! that pays ([`Spin`]), and lets other threads and tasks run between two looks. Then it announces its sleep and waits for
//! the doorbell or the socket. The eventfd is never read, because a process could make a read of it wait: it is watched by
//! edges, and every write is one.
//!
//! A full ring: the process is told over the socket, and the session ends when there is no room within two seconds. A
//! process that writes what cannot be loses its session.
//!
//! Why not the data thread: a request is a decision of the hub's, and the hub is a task (docs/adr/0013).

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use kvferry_client::ring::{self, Consumer, Popped, Producer, Pushed};
use kvferry_core::Spin;
use kvferry_proto::v1::{self, FromDaemon, ToDaemon, from_daemon};
use prost::Message as _;
use rustix::event::{EventfdFlags, eventfd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::attach::{FrameReader, FrameWriter};
use super::clock::Clock;

/// How long a process may leave its ring full.
const FULL_MAX: Duration = Duration::from_secs(2);
/// Between two looks at a full ring.
const FULL_PAUSE: Duration = Duration::from_millis(1);

/// The reading half.
pub(super) struct Submissions {
    ring: Consumer,
    doorbell: AsyncFd<OwnedFd>,
    clock: Clock,
    spin: Spin,
    record: Vec<u8>,
    /// The hub has been given something, and no other task has run since.
    handed_over: bool,
}

/// The way to the process. The hub pushes what fits at once; the session's task does the rest, in order.
#[derive(Clone)]
pub(crate) struct Completions(Arc<Mutex<Way>>);

struct Way {
    ring: Producer,
    /// Messages that wait for the session's task; while there are some, all others go behind them.
    waiting: usize,
}

/// What waits for the session's task.
pub(crate) enum Outgoing {
    Message(FromDaemon),
    /// The process is told of its rings; what follows goes through them.
    Open(Offer),
}

/// What the process is told of its rings.
pub(crate) struct Offer {
    pub(crate) completions: Completions,
    reply_to: u64,
    ring_bytes: u32,
    memory: OwnedFd,
    doorbell: OwnedFd,
}

/// Makes the rings of a session.
pub(super) fn open(ring_bytes: u32, clock: Clock, spin: Duration, reply_to: u64) -> Result<(Submissions, Offer)> {
    let (memory, end) = ring::create(ring_bytes)?;
    let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).context("create an eventfd")?;
    let theirs = bell.try_clone().context("duplicate an eventfd")?;
    #[expect(deprecated, reason = "sound for an OwnedFd; this crate forbids what its replacement needs")]
    let doorbell = AsyncFd::with_interest(bell, Interest::READABLE).context("watch an eventfd")?;
    let submissions = Submissions {
        ring: end.submissions,
        doorbell,
        clock,
        spin: Spin::new(spin),
        record: Vec::new(),
        handed_over: false,
    };
    // The offer itself waits first.
    let completions = Completions(Arc::new(Mutex::new(Way { ring: end.completions, waiting: 1 })));
    Ok((submissions, Offer { completions, reply_to, ring_bytes, memory, doorbell: theirs }))
}

impl Submissions {
    /// The next message, with the descriptors that came beside it. Not cancel-safe; the session ends with it.
    pub(super) async fn next(&mut self, socket: &mut FrameReader) -> Result<(ToDaemon, Vec<OwnedFd>)> {
        loop {
            match self.ring.pop(&mut self.record)? {
                Popped::Record => {
                    self.found();
                    let message = ToDaemon::decode(self.record.as_slice()).context("no request")?;
                    return Ok((message, Vec::new()));
                }
                Popped::Socket => {
                    self.found();
                    return socket.frame().await;
                }
                Popped::Empty => {}
            }
            // The record is published before its frame is written.
            if socket.has_more() {
                bail!("a frame on the socket that no record announced");
            }
            if std::mem::take(&mut self.handed_over) {
                // The hub first: its answer does not wait until this task is ready to sleep.
                tokio::task::yield_now().await;
                continue;
            }
            if self.spin.may_spin(self.clock.now()) {
                // First to other threads, among them the very process that is waited for, then to other tasks.
                std::thread::yield_now();
                tokio::task::yield_now().await;
                continue;
            }
            self.ring.announce();
            if !self.ring.is_empty()? {
                continue;
            }
            tokio::select! {
                ready = self.doorbell.readable() => ready?.clear_ready(),
                received = socket.receive() => if received? == 0 {
                    // What was published before the end still counts.
                    if self.ring.is_empty()? {
                        bail!("closed by the process");
                    }
                },
            }
        }
    }

    fn found(&mut self) {
        self.spin.worked();
        self.handed_over = true;
    }
}

impl Completions {
    /// The lock is held for a copy of some hundred bytes, and nobody panics meanwhile.
    fn way(&self) -> MutexGuard<'_, Way> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes one message now; hands it back where it has to wait for the session's task.
    pub(crate) fn push_now(&self, message: FromDaemon) -> Result<(), FromDaemon> {
        let mut way = self.way();
        // A process that lies about its index is the session's task's business.
        if way.waiting == 0 && way.ring.push(&message.encode_to_vec()) == Ok(Pushed::Done) {
            way.ring.rouse();
            return Ok(());
        }
        way.waiting += 1;
        Err(message)
    }

    /// Publishes one message that waited. Not cancel-safe; the session ends with it.
    pub(super) async fn push(&self, socket: &mut FrameWriter, message: &FromDaemon) -> Result<()> {
        let body = message.encode_to_vec();
        let pushed = self.way().ring.push(&body)?;
        match pushed {
            Pushed::Done => {}
            Pushed::Full => self.push_late(socket, Some(&body)).await?,
            Pushed::Unfit => {
                let announced = self.way().ring.push_socket()?;
                if announced != Pushed::Done {
                    self.push_late(socket, None).await?;
                }
                self.way().ring.rouse();
                socket.frame(&body, &[]).await?;
            }
        }
        self.done();
        Ok(())
    }

    fn done(&self) {
        let mut way = self.way();
        way.waiting = way.waiting.saturating_sub(1);
        way.ring.rouse();
    }

    /// Waits for room. `None` announces a frame on the socket.
    async fn push_late(&self, socket: &mut FrameWriter, body: Option<&[u8]>) -> Result<()> {
        self.way().ring.rouse();
        let drain = FromDaemon { reply_to: 0, body: Some(from_daemon::Body::Drain(v1::Drain {})) };
        socket.frame(&drain.encode_to_vec(), &[]).await?;
        let since = Instant::now();
        loop {
            let pushed = match body {
                Some(body) => self.way().ring.push(body)?,
                None => self.way().ring.push_socket()?,
            };
            if pushed != Pushed::Full {
                return Ok(());
            }
            if since.elapsed() > FULL_MAX {
                bail!("does not empty its ring");
            }
            tokio::time::sleep(FULL_PAUSE).await;
        }
    }
}

impl Offer {
    /// Tells the process, over the socket. What follows goes through the ring.
    pub(super) async fn send(self, socket: &mut FrameWriter) -> Result<Completions> {
        let opened = from_daemon::Body::RingOpened(v1::RingOpened { ring_bytes: self.ring_bytes });
        let message = FromDaemon { reply_to: self.reply_to, body: Some(opened) };
        socket.frame(&message.encode_to_vec(), &[self.memory.as_fd(), self.doorbell.as_fd()]).await?;
        self.completions.done();
        Ok(self.completions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvferry_proto::v1::to_daemon;

    /// Otherwise every answer comes later by what it takes to get ready to sleep, and nothing but a clock shows it.
    #[tokio::test]
    async fn the_hub_comes_before_sleep() {
        let (mut submissions, offer) = open(ring::RING_BYTES_MIN, Clock::start(), Duration::ZERO, 1).expect("rings");
        let mut client = ring::open(&offer.memory, ring::RING_BYTES_MIN).expect("the client's end");
        let (ours, _theirs) = tokio::net::UnixStream::pair().expect("a socket pair");
        let mut socket = FrameReader::new(ours.into_split().0);
        let asked = ToDaemon { id: 7, body: Some(to_daemon::Body::Status(v1::StatusQuery {})) };
        assert_eq!(client.submissions.push(&asked.encode_to_vec()), Ok(Pushed::Done));
        let (heard, _) = submissions.next(&mut socket).await.expect("the request");
        assert_eq!(heard, asked);
        // Stands for the hub: ready to run, as after a command. It sees whether the session's task sleeps already.
        let hub = tokio::spawn(async move { (client.submissions.take_sleep(), client) });
        let (asleep, client) = tokio::select! {
            biased;
            next = submissions.next(&mut socket) => panic!("nothing was asked: {next:?}"),
            hub = hub => hub.expect("the hub"),
        };
        assert!(!asleep, "made ready to sleep before the hub had its turn");
        // And then it does sleep: with nothing to do it costs nothing.
        let sleeps = async {
            while !client.submissions.take_sleep() {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            next = submissions.next(&mut socket) => panic!("nothing was asked: {next:?}"),
            () = sleeps => {}
        }
    }
}
