//! The calls.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvferry_proto::v1::{self, from_daemon, to_daemon};
use thiserror::Error;

use crate::asked::{Asked, Kind};
use crate::connection::{Shared, State};
use crate::event::Event;
use crate::hop::{RingSettings, Sent};
use crate::request::{AttachSpec, Granted, Role, WantedBlocks};
use crate::ring::Spin;

/// Looks of a waiting caller between two offers of its core to others.
const YIELD_EVERY: u32 = 16;
/// How long a caller waits before it tries a full ring again.
const FULL_PAUSE: Duration = Duration::from_micros(100);

/// How to reach the daemon, and as whom.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// The daemon's socket.
    pub socket: PathBuf,
    /// The same for all processes of one engine, different between engines; empty for an operator.
    pub engine_id: String,
    /// Which process this is.
    pub role: Role,
    /// The longest that a call blocks its caller.
    pub reply_timeout: Duration,
}

/// Why a call got no answer.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ClientError {
    /// There is no connection; the client tries again by itself.
    #[error("no daemon answers at {0}; is `kvferry serve` running with this attach directory?")]
    NotConnected(PathBuf),
    /// The daemon said no.
    #[error("daemon refused: {0}")]
    Refused(String),
    /// The daemon did not answer in time.
    #[error("daemon did not answer within {0:?}")]
    Timeout(Duration),
}

/// A connection to the daemon that repairs itself. Dropping it ends the connection, and with it all that the daemon
/// holds for this process.
pub struct Client {
    pub(crate) shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    next_id: AtomicU64,
}

impl Client {
    /// Starts to connect in the background.
    ///
    /// # Errors
    /// Only when no thread can be had.
    pub fn start(config: ClientConfig) -> io::Result<Self> {
        Self::start_with(config, RingSettings::default())
    }

    /// As [`Self::start`], and says how to use the rings that the daemon offers.
    ///
    /// # Errors
    /// Only when no thread can be had.
    pub fn start_with(config: ClientConfig, rings: RingSettings) -> io::Result<Self> {
        let shared = Arc::new(Shared::new(config, rings));
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("kvferry-client".to_owned()).spawn(move || for_thread.run())?;
        // 1 to 3 are the greeting's.
        Ok(Self { shared, thread: Some(thread), next_id: AtomicU64::new(4) })
    }

    /// Whether the daemon would hear a call now; for a worker with a region, whether the daemon has it.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.shared.state().stream.is_some()
    }

    /// Whether messages travel through rings in shared memory; over the socket, when the daemon offers none.
    #[must_use]
    pub fn is_on_ring(&self) -> bool {
        self.shared.state().hop.is_some()
    }

    /// The life of the daemon that is connected.
    #[must_use]
    pub fn daemon_epoch(&self) -> Option<u64> {
        self.shared.state().daemon_epoch
    }

    /// Waits until the daemon is there; `false` when `timeout` passed first.
    #[must_use]
    pub fn wait_connected(&self, timeout: Duration) -> bool {
        self.shared.wait(timeout, |state| state.stream.is_some() && !state.attach_again)
    }

    /// Shares a worker's cache with the daemon, now and after each reconnect. [`Event::Connected`] or
    /// [`Event::Refused`] follows.
    pub fn attach(&self, spec: AttachSpec) {
        let mut state = self.shared.state();
        state.attach = Some(spec);
        state.attach_again = true;
        Shared::drop_connection(&state);
        drop(state);
        self.shared.wake();
    }

    /// Leases blocks (a list for each cache group) for `lease_ms`, to be redeemed only by who names the same
    /// `binding`: what the blocks were computed from, at most 64 bytes. An empty one binds to nothing.
    ///
    /// # Errors
    /// [`ClientError`]; nothing is leased then.
    pub fn grant(
        &self,
        request_id: &str,
        groups: &[Vec<u32>],
        lease_ms: u64,
        binding: &[u8],
    ) -> Result<Granted, ClientError> {
        let daemon_epoch = self.daemon_epoch();
        let groups = groups.iter().map(|blocks| v1::BlockList { blocks: blocks.clone() }).collect();
        let grant = v1::Grant { request_id: request_id.to_owned(), groups, lease_ms, binding: binding.to_vec() };
        match (self.call(to_daemon::Body::Grant(grant))?, daemon_epoch) {
            (from_daemon::Body::Granted(granted), Some(daemon_epoch)) => Ok(Granted {
                lease_id: granted.lease_id,
                daemon_epoch,
                ticket: granted.ticket,
                lease_ms: granted.lease_ms,
                host: granted.host,
                port: u16::try_from(granted.port).unwrap_or_default(),
            }),
            _ => Err(Self::surprised()),
        }
    }

    /// Asks for the blocks of a ticket. [`Event::TransferDone`] with the returned key follows, exactly once. The
    /// ticket must have been granted with the same `binding`, which the caller takes from its own prompt.
    pub fn redeem(
        &self,
        request_id: &str,
        ticket: &str,
        groups: &[WantedBlocks],
        deadline_ms: u64,
        binding: &[u8],
    ) -> u64 {
        let redeem = self.wanted(request_id, ticket, groups, deadline_ms, binding);
        self.submit(redeem, None)
    }

    /// As [`Self::redeem`], and waits until the daemon has taken and checked the request, or refused it. The
    /// event follows in either case.
    pub fn redeem_acknowledged(
        &self,
        request_id: &str,
        ticket: &str,
        groups: &[WantedBlocks],
        deadline_ms: u64,
        binding: &[u8],
    ) -> (u64, Result<(), ClientError>) {
        let redeem = v1::Redeem { acknowledge: true, ..self.wanted(request_id, ticket, groups, deadline_ms, binding) };
        let (caller, reply) = sync_channel(1);
        let key = self.submit(redeem, Some(caller));
        (key, self.reply(key, &reply).map(|_| ()))
    }

    fn wanted(
        &self,
        request_id: &str,
        ticket: &str,
        groups: &[WantedBlocks],
        deadline_ms: u64,
        binding: &[u8],
    ) -> v1::Redeem {
        let wanted = |g: &WantedBlocks| v1::WantedBlocks { positions: g.positions.clone(), targets: g.targets.clone() };
        v1::Redeem {
            key: self.id(),
            request_id: request_id.to_owned(),
            ticket: ticket.to_owned(),
            groups: groups.iter().map(wanted).collect(),
            deadline_ms,
            binding: binding.to_vec(),
            acknowledge: false,
        }
    }

    /// Sends a redeem under its key, and notes who waits for it to be accepted.
    fn submit(&self, redeem: v1::Redeem, caller: Option<SyncSender<from_daemon::Body>>) -> u64 {
        let key = redeem.key;
        let mut state = self.shared.state();
        state.asked.insert(key, Asked { kind: Kind::Redeem, request_id: redeem.request_id.clone() });
        if let Some(caller) = caller.filter(|_| state.stream.is_some()) {
            state.calls.insert(key, caller);
        }
        if state.stream.is_none() {
            state.fail(key, "daemon_gone");
        }
        // When it is lost on the way, losing the connection answers it.
        if self.send(state, key, to_daemon::Body::Redeem(redeem)).is_err() {
            let mut state = self.shared.state();
            state.fail(key, "request");
            state.calls.remove(&key);
        }
        key
    }

    /// Gives a redeem, a load or a store up. Its event still follows, when nothing touches its blocks any more. A store whose
    /// [`Event::Copied`] came already is not found by anybody.
    pub fn abort(&self, key: u64) {
        let state = self.shared.state();
        // As short as this, it fits a frame.
        let _ = self.send(state, self.id(), to_daemon::Body::Abort(v1::Abort { key }));
    }

    /// Tells the holder that nobody will redeem `ticket`. Best effort: the lease's deadline stands behind it.
    pub fn relinquish(&self, ticket: &str) {
        let state = self.shared.state();
        let relinquish = v1::Relinquish { ticket: ticket.to_owned() };
        // What is too long for a frame is no ticket.
        let _ = self.send(state, self.id(), to_daemon::Body::Relinquish(relinquish));
    }

    /// What has happened since the last call.
    #[must_use]
    pub fn poll(&self) -> Vec<Event> {
        let mut state = self.shared.state();
        state.drain();
        state.events.drain(..).collect()
    }

    /// The daemon's status as a JSON document.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn status(&self) -> Result<String, ClientError> {
        match self.call(to_daemon::Body::Status(v1::StatusQuery {}))? {
            from_daemon::Body::Status(status) => Ok(status.json),
            _ => Err(Self::surprised()),
        }
    }

    /// CRC-32C of each of the blocks of an attached engine, layer after layer.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn checksums(&self, engine_id: &str, rank: u32, group: u32, blocks: &[u32]) -> Result<Vec<u32>, ClientError> {
        let query = v1::ChecksumQuery { engine_id: engine_id.to_owned(), rank, group, blocks: blocks.to_vec() };
        match self.call(to_daemon::Body::Checksums(query))? {
            from_daemon::Body::Checksums(reply) => Ok(reply.crc32c),
            _ => Err(Self::surprised()),
        }
    }

    /// Sends what is answered by an event under `key`, at once where there is no daemon.
    pub(crate) fn ask(&self, key: u64, asked: Asked, body: to_daemon::Body) {
        let mut state = self.shared.state();
        state.asked.insert(key, asked);
        if state.stream.is_none() {
            state.fail(key, "daemon_gone");
        } else if matches!(body, to_daemon::Body::Lookup(_)) && state.clearing.is_untold() {
            return state.fail(key, "cleared");
        }
        // When it is lost on the way, losing the connection answers it.
        if self.send(state, key, body).is_err() {
            self.shared.state().fail(key, "request");
        }
    }

    /// Sends what nobody answers.
    pub(crate) fn tell(&self, body: to_daemon::Body) {
        let state = self.shared.state();
        // Nothing so short is too long for a frame.
        let _ = self.send(state, self.id(), body);
    }

    /// Orders to clear the tiers. Where there is no daemon, the next one hears of it.
    pub(crate) fn order_clear(&self) {
        let mut state = self.shared.state();
        // Not drawn before the lock is held: lookups with a higher one come after the order.
        let id = self.id();
        state.clearing.order(id);
        // Nothing so short is too long for a frame.
        let _ = self.send(state, id, to_daemon::Body::Clear(v1::Clear {}));
    }

    pub(crate) fn id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn surprised() -> ClientError {
        ClientError::Refused("the reply does not fit the request; do both sides have the same version?".to_owned())
    }

    fn not_connected(&self) -> ClientError {
        ClientError::NotConnected(self.shared.config.socket.clone())
    }

    pub(crate) fn call(&self, body: to_daemon::Body) -> Result<from_daemon::Body, ClientError> {
        let id = self.id();
        let (caller, reply) = sync_channel(1);
        let mut state = self.shared.state();
        if state.stream.is_none() {
            return Err(self.not_connected());
        }
        state.calls.insert(id, caller);
        if let Err(TooLong) = self.send(state, id, body) {
            self.shared.state().calls.remove(&id);
            return Err(ClientError::Refused("the request is longer than a frame may be; ask for less".to_owned()));
        }
        self.reply(id, &reply)
    }

    /// Waits for the reply to a call that was sent.
    fn reply(&self, id: u64, reply: &Receiver<from_daemon::Body>) -> Result<from_daemon::Body, ClientError> {
        match self.wait_reply(reply) {
            Ok(from_daemon::Body::Problem(problem)) => Err(ClientError::Refused(problem.message)),
            Ok(body) => Ok(body),
            Err(RecvTimeoutError::Disconnected) => Err(self.not_connected()),
            Err(RecvTimeoutError::Timeout) => {
                self.shared.state().calls.remove(&id);
                // It may have come between the two.
                match reply.try_recv() {
                    Ok(from_daemon::Body::Problem(problem)) => Err(ClientError::Refused(problem.message)),
                    Ok(body) => Ok(body),
                    Err(_) => Err(ClientError::Timeout(self.shared.config.reply_timeout)),
                }
            }
        }
    }

    /// Over a ring the caller looks for the reply itself, awake at first and then asleep on the ring's word; over the
    /// socket the connection's thread brings it.
    fn wait_reply(&self, reply: &Receiver<from_daemon::Body>) -> Result<from_daemon::Body, RecvTimeoutError> {
        let deadline = Instant::now() + self.shared.config.reply_timeout;
        let look = || match reply.try_recv() {
            Ok(body) => Some(Ok(body)),
            Err(TryRecvError::Disconnected) => Some(Err(RecvTimeoutError::Disconnected)),
            Err(TryRecvError::Empty) => None,
        };
        let mut spin: Option<Spin> = None;
        let mut looks = 0_u32;
        loop {
            let mut state = self.shared.state();
            state.drain();
            let now = Instant::now();
            if let Some(found) = look() {
                if let (Some(hop), Some(mut spin)) = (&mut state.hop, spin) {
                    spin.found(now);
                    hop.spin = spin;
                }
                return found;
            }
            let Some(hop) = &state.hop else {
                drop(state);
                return reply.recv_timeout(deadline.saturating_duration_since(now));
            };
            if now >= deadline {
                return Err(RecvTimeoutError::Timeout);
            }
            if spin.get_or_insert(hop.spin).go_on(now) {
                drop(state);
                looks += 1;
                if looks.is_multiple_of(YIELD_EVERY) {
                    std::thread::yield_now();
                }
                std::hint::spin_loop();
                continue;
            }
            let sleeper = hop.sleeper();
            hop.announce();
            // Once more, for what came before the announcement.
            state.drain();
            if let Some(found) = look() {
                return found;
            }
            drop(state);
            sleeper.sleep(deadline.saturating_duration_since(now));
        }
    }

    /// Sends under the lock, so that messages keep their order. A full ring is waited for. A connection that cannot take
    /// the request is dropped; a request that no connection would take is not sent.
    fn send<'a>(&'a self, mut state: MutexGuard<'a, State>, id: u64, body: to_daemon::Body) -> Result<(), TooLong> {
        let message = v1::ToDaemon { id, body: Some(body) };
        let Some(connection) = state.stream.clone() else { return Ok(()) };
        let mut deadline = None;
        loop {
            match state.send(&message) {
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Err(TooLong),
                Ok(Sent::Done) | Err(_) => return Ok(()),
                Ok(Sent::Full) => {}
            }
            // The daemon may wait for room in turn.
            state.drain();
            if Instant::now() >= *deadline.get_or_insert_with(|| Instant::now() + self.shared.config.reply_timeout) {
                Shared::drop_connection(&state);
                return Ok(());
            }
            drop(state);
            std::thread::sleep(FULL_PAUSE);
            state = self.shared.state();
            // Another connection has never heard of what this one was asked.
            if !state.stream.as_ref().is_some_and(|stream| Arc::ptr_eq(stream, &connection)) {
                return Ok(());
            }
        }
    }
}

/// A request that does not fit a frame.
struct TooLong;

impl Drop for Client {
    fn drop(&mut self) {
        {
            let mut state = self.shared.state();
            state.stopped = true;
            Shared::drop_connection(&state);
        }
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            // It panicked if this fails, and has said so.
            drop(thread.join());
        }
    }
}
