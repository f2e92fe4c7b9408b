//! The calls.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use kvferry_proto::v1::{self, from_daemon, to_daemon};
use thiserror::Error;

use crate::connection::{Shared, State};
use crate::event::Event;
use crate::frame;
use crate::request::{AttachSpec, Granted, Role, WantedBlocks};

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
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    next_id: AtomicU64,
}

impl Client {
    /// Starts to connect in the background.
    ///
    /// # Errors
    /// Only when no thread can be had.
    pub fn start(config: ClientConfig) -> io::Result<Self> {
        let shared = Arc::new(Shared::new(config));
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("kvferry-client".to_owned()).spawn(move || for_thread.run())?;
        // 1 and 2 are the greeting's.
        Ok(Self { shared, thread: Some(thread), next_id: AtomicU64::new(3) })
    }

    /// Whether the daemon would hear a call now; for a worker with a region, whether the daemon has it.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.shared.state().stream.is_some()
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
        let key = self.id();
        let wanted = |g: &WantedBlocks| v1::WantedBlocks { positions: g.positions.clone(), targets: g.targets.clone() };
        let redeem = v1::Redeem {
            key,
            request_id: request_id.to_owned(),
            ticket: ticket.to_owned(),
            groups: groups.iter().map(wanted).collect(),
            deadline_ms,
            binding: binding.to_vec(),
        };
        let mut state = self.shared.state();
        state.redeems.insert(key, request_id.to_owned());
        if state.stream.is_none() {
            state.fail_redeem(key, "daemon_gone");
        }
        // When it is lost on the way, losing the connection answers it.
        if self.send(state, key, to_daemon::Body::Redeem(redeem)).is_err() {
            self.shared.state().fail_redeem(key, "request");
        }
        key
    }

    /// Gives a redeem up. Its [`Event::TransferDone`] still follows, when nothing can write into its blocks any more.
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
        self.shared.state().events.drain(..).collect()
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

    fn id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    fn surprised() -> ClientError {
        ClientError::Refused("the reply does not fit the request; do both sides have the same version?".to_owned())
    }

    fn not_connected(&self) -> ClientError {
        ClientError::NotConnected(self.shared.config.socket.clone())
    }

    fn call(&self, body: to_daemon::Body) -> Result<from_daemon::Body, ClientError> {
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
        match reply.recv_timeout(self.shared.config.reply_timeout) {
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

    /// Sends under the lock, so that frames do not mix. A connection that cannot take it is dropped; a request that no
    /// connection would take is not sent.
    fn send(&self, state: MutexGuard<'_, State>, id: u64, body: to_daemon::Body) -> Result<(), TooLong> {
        let Some(stream) = &state.stream else { return Ok(()) };
        match frame::write(stream, &v1::ToDaemon { id, body: Some(body) }, None) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Err(TooLong),
            Err(_) => Shared::drop_connection(&state),
        }
        drop(state);
        Ok(())
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
