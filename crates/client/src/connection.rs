//! The thread that keeps one connection to the daemon, and makes it again when it is lost.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kvferry_proto::v1::{self, from_daemon, to_daemon};

use crate::asked::{self, Asked};
use crate::clearing::Clearing;
use crate::client::ClientConfig;
use crate::event::Event;
use crate::frame;
use crate::hop::{Hop, RingSettings, Sent};
use crate::request::{AttachSpec, Role};
use crate::ring;

const BACKOFF_MIN: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// A daemon that is replaced is back by then, and is looked for without a back-off: who waits longer for a path that is
/// not there than the next daemon takes to start adds that to the time for which nobody answers.
const REPLACED_MAX: Duration = Duration::from_secs(5);
/// After a refusal: the reason is unlikely to go away sooner.
const BACKOFF_REFUSED: Duration = Duration::from_secs(1);
/// Events that wait for their poll before news of the tiers are dropped.
const NEWS_MAX: usize = 4096;
/// How long a daemon may take to answer a greeting or an attach.
const GREETING_MAX: Duration = Duration::from_secs(5);

/// What callers and the thread share.
pub(crate) struct Shared {
    pub(crate) config: ClientConfig,
    pub(crate) rings: RingSettings,
    state: Mutex<State>,
    /// Wakes the thread out of its back-off, and whoever waits for a connection.
    changed: Condvar,
}

#[derive(Default)]
pub(crate) struct State {
    /// Open for business: greeted and, for a worker, attached.
    pub(crate) stream: Option<Arc<UnixStream>>,
    /// The rings of that connection, if the daemon offered some.
    pub(crate) hop: Option<Hop>,
    pub(crate) daemon_epoch: Option<u64>,
    pub(crate) attach: Option<AttachSpec>,
    pub(crate) events: VecDeque<Event>,
    /// Calls that wait for their reply. A caller that gave up has taken its entry away.
    pub(crate) calls: HashMap<u64, SyncSender<from_daemon::Body>>,
    /// What waits for its outcome, by key.
    pub(crate) asked: HashMap<u64, Asked>,
    /// Sent by nobody's call, as soon as there is room.
    owed: VecDeque<v1::ToDaemon>,
    /// Orders to clear the tiers, that outlive connections.
    pub(crate) clearing: Clearing,
    /// Every daemon is told to tell what its tiers do.
    pub(crate) watches: bool,
    pub(crate) stopped: bool,
    /// Raised by `attach`, so that a connection made before it is made again.
    pub(crate) attach_again: bool,
    /// A connection that is being made, so that stopping can end it.
    greeting: Option<Arc<UnixStream>>,
}

impl State {
    /// Queues news of the connection in place of older ones, which mean nothing any more. So the queue stays as short
    /// as what was asked for, also when nobody polls while a daemon comes and goes.
    fn tell_connection(&mut self, event: Event) {
        let is_news =
            |event: &Event| matches!(event, Event::Connected { .. } | Event::Disconnected | Event::Refused { .. });
        self.events.retain(|queued| !is_news(queued));
        self.events.push_back(event);
    }
}

impl State {
    /// Sends one message over what the connection has; nowhere, when there is none.
    ///
    /// # Errors
    /// `InvalidInput` for a message that no frame would take, which is not sent. After any other the connection is
    /// dropped.
    pub(crate) fn send(&mut self, message: &v1::ToDaemon) -> io::Result<Sent> {
        let Some(stream) = &self.stream else { return Ok(Sent::Done) };
        let sent = match &mut self.hop {
            Some(hop) => hop.send(stream, message),
            None => frame::write(stream, message, None).map(|()| Sent::Done),
        };
        match &sent {
            Ok(Sent::Done) => self.clearing.sent(message),
            Err(error) if error.kind() != io::ErrorKind::InvalidInput => Shared::drop_connection(self),
            Ok(Sent::Full) | Err(_) => {}
        }
        sent
    }

    /// Takes what the ring holds. A ring that cannot be trusted ends the connection.
    pub(crate) fn drain(&mut self) {
        loop {
            match self.hop.as_mut().map(Hop::receive) {
                Some(Ok(Some(message))) => self.handle(self.daemon_epoch.unwrap_or_default(), message),
                Some(Err(_)) => return Shared::drop_connection(self),
                Some(Ok(None)) | None => break,
            }
        }
        while let Some(owed) = self.owed.pop_front() {
            if let Ok(Sent::Full) = self.send(&owed) {
                return self.owed.push_front(owed);
            }
        }
    }

    fn handle(&mut self, daemon_epoch: u64, message: v1::FromDaemon) {
        let Some(body) = message.body else { return };
        if let from_daemon::Body::Found(found) = &body {
            self.clearing.found(found);
        }
        match body {
            from_daemon::Body::TransferDone(_)
            | from_daemon::Body::Found(_)
            | from_daemon::Body::Loaded(_)
            | from_daemon::Body::Copied(_)
            | from_daemon::Body::Stored(_) => self.events.extend(asked::outcome(&mut self.asked, body)),
            // News for who looks: where nobody does, they do not pile up.
            from_daemon::Body::TierChanged(_) if self.events.len() >= NEWS_MAX => {}
            from_daemon::Body::TierChanged(changed) => self.events.push_back(asked::changed(changed)),
            from_daemon::Body::LeaseEnded(ended) => self.events.push_back(Event::LeaseEnded {
                lease_id: ended.lease_id,
                daemon_epoch,
                request_id: ended.request_id,
                reason: ended.reason,
            }),
            reply => match (self.calls.remove(&message.reply_to), reply) {
                // The caller may have given up between the two; its entry was the last word.
                (Some(caller), reply) => drop(caller.try_send(reply)),
                // A grant that nobody waits for any more must not hold blocks that were never handed over. Should the
                // connection be lost before it is sent, the lease is lost with it.
                (None, from_daemon::Body::Granted(granted)) => {
                    let relinquish = to_daemon::Body::Relinquish(v1::Relinquish { ticket: granted.ticket });
                    self.owed.push_back(v1::ToDaemon { id: 0, body: Some(relinquish) });
                }
                (None, _) => {}
            },
        }
    }

    /// Answers what no daemon will answer.
    pub(crate) fn fail(&mut self, key: u64, failure: &str) {
        if let Some(asked) = self.asked.remove(&key) {
            self.events.push_back(asked.failed(key, failure));
        }
    }
}

impl Shared {
    pub(crate) fn new(config: ClientConfig, rings: RingSettings) -> Self {
        Self { config, rings, state: Mutex::default(), changed: Condvar::new() }
    }

    /// The state. A caller that panicked left it whole: every change is a single assignment or insertion.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn wake(&self) {
        self.changed.notify_all();
    }

    /// Waits until `ready` holds or `timeout` has passed.
    pub(crate) fn wait(&self, timeout: Duration, ready: impl Fn(&State) -> bool) -> bool {
        let waited = self.changed.wait_timeout_while(self.state(), timeout, |state| !ready(state));
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        ready(&state)
    }

    /// Ends the connection, if there is one; the thread sees it and starts again.
    pub(crate) fn drop_connection(state: &State) {
        for stream in [&state.stream, &state.greeting].into_iter().flatten() {
            // Failing means that it is closed already.
            drop(stream.shutdown(std::net::Shutdown::Both));
        }
    }

    /// The thread's whole life.
    pub(crate) fn run(&self) {
        let mut backoff = BACKOFF_MIN;
        let mut lost_at = Instant::now();
        while !self.state().stopped {
            let mut is_absent = false;
            match self.session() {
                Ok(()) => (backoff, lost_at) = (BACKOFF_MIN, Instant::now()),
                Err(Ended::Absent) => is_absent = true,
                Err(Ended::Lost) => {}
                Err(Ended::Refused(message)) => {
                    self.state().tell_connection(Event::Refused { message });
                    backoff = BACKOFF_REFUSED;
                }
            }
            let again = self.wait(backoff, |state| state.stopped || state.attach_again);
            let keeps_looking = is_absent && lost_at.elapsed() < REPLACED_MAX;
            backoff = if again || keeps_looking { BACKOFF_MIN } else { (backoff * 2).min(BACKOFF_MAX) };
        }
    }

    /// One connection, from connect to loss. `Ok` when it was open for business for a while.
    fn session(&self) -> Result<(), Ended> {
        let stream = Arc::new(UnixStream::connect(&self.config.socket).map_err(|_| Ended::Absent)?);
        stream.set_write_timeout(Some(self.config.reply_timeout))?;
        stream.set_read_timeout(Some(GREETING_MAX))?;
        let attach = {
            let mut state = self.state();
            if state.stopped {
                return Ok(());
            }
            state.attach_again = false;
            state.greeting = Some(Arc::clone(&stream));
            state.attach.clone()
        };
        let greeted = self.greet(&stream, attach.as_ref());
        self.state().greeting = None;
        let (daemon_epoch, hop) = greeted?;
        stream.set_read_timeout(None)?;
        // A worker without a region has nothing to say yet: it keeps the connection for questions only.
        {
            let mut state = self.state();
            state.daemon_epoch = Some(daemon_epoch);
            state.stream = Some(Arc::clone(&stream));
            state.hop = hop;
            state.tell_connection(Event::Connected { daemon_epoch });
            if let Some(order) = state.clearing.owed()
                && !matches!(state.send(&order), Ok(Sent::Done))
            {
                // Rings that nothing went through yet have room for it.
                Self::drop_connection(&state);
            }
            if state.watches {
                state.owed.push_back(v1::ToDaemon { id: 0, body: Some(to_daemon::Body::Watch(v1::Watch {})) });
                state.drain();
            }
            if state.stopped || state.attach_again {
                Self::drop_connection(&state);
            }
        }
        self.wake();
        while let Ok(message) = frame::read(&stream) {
            let mut state = self.state();
            match &mut state.hop {
                Some(_) if matches!(message.body, Some(from_daemon::Body::Drain(_))) => {}
                Some(hop) => hop.take_frame(message),
                None => state.handle(daemon_epoch, message),
            }
            state.drain();
            if let Some(sleeper) = state.hop.as_ref().map(Hop::sleeper) {
                // Their replies may be among what came.
                sleeper.wake_all();
            }
        }
        self.lose();
        Ok(())
    }

    fn greet(&self, stream: &UnixStream, attach: Option<&AttachSpec>) -> Result<(u64, Option<Hop>), Ended> {
        let hello = v1::Hello {
            protocol: v1::PROTOCOL,
            role: v1::Role::from(self.config.role).into(),
            engine_id: self.config.engine_id.clone(),
        };
        frame::write(stream, &v1::ToDaemon { id: 1, body: Some(to_daemon::Body::Hello(hello)) }, None)?;
        let (daemon_epoch, ring_bytes) = match frame::read(stream)?.body {
            Some(from_daemon::Body::Welcome(welcome)) => (welcome.daemon_epoch, welcome.ring_bytes),
            Some(from_daemon::Body::Problem(problem)) => return Err(Ended::Refused(problem.message)),
            _ => return Err(Ended::Lost),
        };
        if let (Role::Worker, Some(spec)) = (self.config.role, attach) {
            self.send_region(stream, daemon_epoch, spec)?;
        }
        // A person's one question is not worth the memory.
        if ring_bytes == 0 || !self.rings.enabled || self.config.role == Role::Operator {
            return Ok((daemon_epoch, None));
        }
        Ok((daemon_epoch, self.open_ring(stream, daemon_epoch)?))
    }

    fn send_region(&self, stream: &UnixStream, daemon_epoch: u64, spec: &AttachSpec) -> Result<(), Ended> {
        let attach = v1::Attach {
            rank: spec.rank,
            rank_count: spec.rank_count,
            fingerprint: spec.fingerprint.to_vec(),
            layout: Some((&spec.layout).into()),
            model: spec.model.clone(),
        };
        let message = v1::ToDaemon { id: 2, body: Some(to_daemon::Body::Attach(attach)) };
        frame::write(stream, &message, Some(spec.region.as_fd()))?;
        match self.answer(stream, daemon_epoch)? {
            (from_daemon::Body::Attached(_), _) => Ok(()),
            (from_daemon::Body::Problem(problem), _) => Err(Ended::Refused(problem.message)),
            _ => Err(Ended::Lost),
        }
    }

    /// `None`: the daemon has changed its mind, or cannot, and the socket carries everything.
    fn open_ring(&self, stream: &UnixStream, daemon_epoch: u64) -> Result<Option<Hop>, Ended> {
        let open = to_daemon::Body::OpenRing(v1::OpenRing {});
        frame::write(stream, &v1::ToDaemon { id: 3, body: Some(open) }, None)?;
        match self.answer(stream, daemon_epoch)? {
            (from_daemon::Body::RingOpened(opened), fds) => {
                let [memory, doorbell]: [OwnedFd; 2] = fds.try_into().map_err(|_| Ended::Lost)?;
                // The daemon talks through it from here on, so what cannot be used ends the connection.
                let end = ring::open(memory, opened.ring_bytes).map_err(|error| Ended::Refused(error.to_string()))?;
                Ok(Some(Hop::new(end, doorbell, self.rings.spin)))
            }
            (from_daemon::Body::Problem(_), _) => Ok(None),
            _ => Err(Ended::Lost),
        }
    }

    /// The answer to what was asked, past events that came before it.
    fn answer(&self, stream: &UnixStream, daemon_epoch: u64) -> Result<(from_daemon::Body, Vec<OwnedFd>), Ended> {
        loop {
            let (message, fds) = frame::read_with_fds(stream)?;
            if message.reply_to == 0 {
                self.state().handle(daemon_epoch, message);
                continue;
            }
            return message.body.map(|body| (body, fds)).ok_or(Ended::Lost);
        }
    }

    /// The connection is gone: whoever waits gets an answer now.
    fn lose(&self) {
        let mut state = self.state();
        // What the daemon said before it went is true: its last words are still in the ring.
        state.drain();
        state.stream = None;
        state.owed.clear();
        state.clearing.lost();
        let sleeper = state.hop.take().map(|hop| hop.sleeper());
        state.daemon_epoch = None;
        state.calls.clear();
        for key in state.asked.keys().copied().collect::<Vec<_>>() {
            state.fail(key, "daemon_gone");
        }
        state.tell_connection(Event::Disconnected);
        drop(state);
        if let Some(sleeper) = sleeper {
            sleeper.wake_all();
        }
        self.wake();
    }
}

enum Ended {
    /// Nobody listens.
    Absent,
    Lost,
    Refused(String),
}

impl From<io::Error> for Ended {
    fn from(_: io::Error) -> Self {
        Self::Lost
    }
}
