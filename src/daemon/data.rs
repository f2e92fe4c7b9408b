//! The data thread: owns the transports, posts what the hub asks for, reports what completes.
//!
//! ```text
//! hub -> DataCommand -> [inbox, eventfd] -> post, cancel, connect ... turn -> Event -> hub
//! ```
//!
//! The loop allocates nothing per piece, takes no lock besides the inbox's, logs nothing and awaits nothing. It spins
//! for a while after the last progress ([`Spin`]: as long as that pays) and then sleeps in poll(2) on the eventfd and the transports' own
//! descriptors. The outbox has room for all that can be in flight; should it still be full, events wait here and none
//! is lost. It ends when the hub is gone, after every endpoint is closed.

use std::collections::VecDeque;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};
use kvferry_core::{Spin, Time, WorkId};
use kvferry_memory::Region;
use kvferry_transport::{Admission, Completion, Dial, EndpointId, Event, Fault, Transport, Work};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::time::Timespec;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;

use super::clock::Clock;

/// Commands that may wait for the thread; the hub waits when it is full.
const INBOX_MAX: usize = 4096;

/// Which of the thread's transports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Via {
    Copy,
    Tcp,
}

pub(crate) enum DataCommand {
    Admit(Admission),
    Cancel { via: Via, endpoint: EndpointId, work: WorkId },
    Close(EndpointId),
    Connect(Dial),
    Deregister(Arc<Region>),
    Post { via: Via, endpoint: EndpointId, work: Work },
    Register(Arc<Region>),
}

/// The hub's end.
pub(crate) struct DataHandle {
    inbox: mpsc::Sender<DataCommand>,
    wake: Arc<OwnedFd>,
}

impl DataHandle {
    pub(crate) async fn send(&self, command: DataCommand) {
        // The thread ends only after this handle is dropped.
        drop(self.inbox.send(command).await);
        wake(&self.wake);
    }
}

impl Drop for DataHandle {
    fn drop(&mut self) {
        // Closes the inbox first, so that the woken thread sees it closed.
        drop(std::mem::replace(&mut self.inbox, mpsc::channel(1).0));
        wake(&self.wake);
    }
}

fn wake(eventfd: &OwnedFd) {
    // Fails only when the counter is full, and then it is readable anyway.
    let _ = rustix::io::write(eventfd, &1_u64.to_ne_bytes());
}

/// Starts the thread over the two transports.
pub(crate) fn start(
    clock: Clock,
    spin: Duration,
    copy: Box<dyn Transport>,
    tcp: Box<dyn Transport>,
    outbox: mpsc::Sender<Event>,
) -> Result<(DataHandle, JoinHandle<()>)> {
    let wake =
        eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).context("create the data thread's eventfd")?;
    let wake = Arc::new(wake);
    let (sender, inbox) = mpsc::channel(INBOX_MAX);
    let mut thread = DataThread {
        clock,
        spin: Spin::new(spin),
        copy,
        tcp,
        inbox,
        wake: Arc::clone(&wake),
        outbox,
        events: Vec::with_capacity(256),
        backlog: VecDeque::new(),
    };
    let thread = std::thread::Builder::new().name("kvferry-data".to_owned()).spawn(move || thread.run());
    Ok((DataHandle { inbox: sender, wake }, thread.context("start the data thread")?))
}

struct DataThread {
    clock: Clock,
    spin: Spin,
    copy: Box<dyn Transport>,
    tcp: Box<dyn Transport>,
    inbox: mpsc::Receiver<DataCommand>,
    wake: Arc<OwnedFd>,
    outbox: mpsc::Sender<Event>,
    events: Vec<Event>,
    backlog: VecDeque<Event>,
}

impl DataThread {
    fn run(&mut self) {
        loop {
            let now = self.clock.now();
            let commands = match self.take_commands(now) {
                Ok(any) => any,
                Err(HubGone) => return,
            };
            let mut busy = self.copy.turn(now, &mut self.events);
            busy |= self.tcp.turn(now, &mut self.events);
            busy |= commands || !self.events.is_empty();
            self.report();
            if busy {
                self.spin.worked();
            } else if self.tcp.may_spin() && self.spin.may_spin(now) {
                std::hint::spin_loop();
            } else {
                self.sleep();
            }
        }
    }

    /// Drains the inbox; says whether there was anything.
    fn take_commands(&mut self, now: Time) -> Result<bool, HubGone> {
        let mut any = false;
        for _ in 0..INBOX_MAX {
            match self.inbox.try_recv() {
                Ok(command) => self.carry_out(now, command),
                Err(TryRecvError::Empty) => return Ok(any),
                Err(TryRecvError::Disconnected) => return Err(HubGone),
            }
            any = true;
        }
        Ok(any)
    }

    fn transport(&mut self, via: Via) -> &mut dyn Transport {
        match via {
            Via::Copy => self.copy.as_mut(),
            Via::Tcp => self.tcp.as_mut(),
        }
    }

    fn carry_out(&mut self, now: Time, command: DataCommand) {
        match command {
            DataCommand::Admit(admission) => {
                let endpoint = admission.endpoint;
                if let Err(fault) = self.tcp.admit(now, admission) {
                    self.events.push(Event::EndpointDown(endpoint, fault));
                }
            }
            DataCommand::Cancel { via, endpoint, work } => {
                if let Some(endpoint) = self.transport(via).endpoint(endpoint) {
                    endpoint.cancel(now, work);
                }
            }
            DataCommand::Close(endpoint) => self.tcp.close(now, endpoint),
            DataCommand::Connect(dial) => {
                let endpoint = dial.endpoint;
                if let Err(fault) = self.tcp.connect(now, dial) {
                    self.events.push(Event::EndpointDown(endpoint, fault));
                }
            }
            DataCommand::Deregister(region) => {
                self.copy.deregister(&region);
                self.tcp.deregister(&region);
            }
            DataCommand::Post { via, endpoint, work } => {
                let id = work.id();
                let posted = match self.transport(via).endpoint(endpoint) {
                    Some(endpoint) => endpoint.post(now, work).map_err(|(fault, _)| fault),
                    None => Err(Fault::PeerClosed),
                };
                if let Err(fault) = posted {
                    self.events.push(Event::Completed(Completion { id, result: Err(fault) }));
                }
            }
            // Neither transport can refuse: registering is for transports that pin memory.
            DataCommand::Register(region) => {
                let _ = self.copy.register(&region);
                let _ = self.tcp.register(&region);
            }
        }
    }

    fn report(&mut self) {
        self.backlog.extend(self.events.drain(..));
        while let Some(event) = self.backlog.pop_front() {
            if let Err(mpsc::error::TrySendError::Full(event)) = self.outbox.try_send(event) {
                self.backlog.push_front(event);
                return;
            }
        }
    }

    /// Sleeps until a command, a socket or a deadline.
    fn sleep(&mut self) {
        let deadlines = [self.copy.next_deadline(), self.tcp.next_deadline()];
        let mut timeout = deadlines.into_iter().flatten().min().map(|deadline| deadline.until(self.clock.now()));
        if !self.backlog.is_empty() {
            timeout = Some(Duration::from_millis(1));
        }
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        {
            let mut fds = vec![PollFd::new(&self.wake, PollFlags::IN)];
            let own = [self.copy.wait_fd(), self.tcp.wait_fd()];
            fds.extend(own.iter().flatten().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)));
            // An interrupted sleep is a short one.
            let _ = poll(&mut fds, timeout.as_ref());
        }
        let mut count = [0; 8];
        // Not readable: somebody else's event woke the thread.
        let _ = rustix::io::read(self.wake.as_fd(), &mut count);
    }
}

struct HubGone;
