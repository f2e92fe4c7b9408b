//! The threads of the tiers: one that decides, some that copy.
//!
//! ```text
//! hub -> TierCommand -> [inbox] -> Tiers -> CopyJob -> [loads, stores] -> copying threads -> Copied -> [inbox]
//!                                   |-> DiskJob -> disk thread -> Done -> [inbox]
//!                                   |-> Chore -> one thread for what nobody waits for -> ChoreDone -> [inbox]
//!                                    \-> TierEvent -> hub
//! ```
//!
//! The hub never waits for the inbox: it has room for all that may be open ([`COMMANDS_PER_WORK`]), for a Forget of
//! each claim that was answered, for a Clear of each session's fingerprint, and for the jobs that are out. Processes
//! that come and go faster than it is emptied may fill it all the same: what cannot be heard is refused, and a Clear is
//! owed. Engines wait for loads, and nobody for a store: one thread of the normal class carries those out, whatever
//! class the others are in, and sums what is only looked at; chores have another of that class. While a sweep or a
//! long list goes on, the thread takes a slice of it every [`SLICE_PAUSE`]: it is real-time where that is allowed, and
//! must not keep a core busy. Shutdown: no new jobs, those that are out are waited for.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};
use kvferry_core::{Time, WorkId};
use kvferry_tier::disk::Done;
use kvferry_tier::tiers::{
    CHORES_MAX, CheckJob, Checked, Chore, ChoreDone, Copied, CopyJob, Device, LoadRequest, Lookup, StoreRequest, Sweep,
    SweepFilter, SweepProgress, TierEvent, Tiers,
};
use kvferry_tier::{Departures, Left};
use tokio::sync::mpsc;

use super::super::clock::Clock;
use super::super::scheduling::Scheduling;
use super::disk::{self, DiskHandle};

/// Jobs of a copying thread: the one that it is at, and the next. What comes later may go before the others.
const JOBS_PER_THREAD: usize = 2;
/// Of the thread that stores: its own, and a piece of host memory that is checked.
const STORE_JOBS: usize = JOBS_PER_THREAD + 1;

/// Pieces of what is to be cleared between two messages. Chosen: a fraction of a millisecond each.
const PIECES_AT_ONCE: usize = 8;
/// Between two slices of a sweep, each of which takes a fifth of that.
const SLICE_PAUSE: Duration = Duration::from_millis(1);

/// What the hub says of one work at most: that there is one, a commit or a forget, and an abort.
pub(crate) const COMMANDS_PER_WORK: usize = 3;

/// What the hub asks for.
pub(crate) enum TierCommand {
    Abort(WorkId),
    Clear(Vec<Arc<Device>>),
    Commit(WorkId),
    EndSweep(WorkId),
    Forget(WorkId),
    List(WorkId),
    Load(WorkId, LoadRequest),
    Lookup(WorkId, Lookup),
    Store(WorkId, StoreRequest),
    Sweep(WorkId, Sweep, SweepFilter),
}

enum Message {
    Chore(ChoreDone),
    Command(TierCommand),
    /// Whether it was a load.
    Copied(Copied, bool),
    Checked(Checked),
    Disk(Done),
    Stop,
}

/// What a copying thread is handed.
enum Job {
    Check(CheckJob),
    Copy(CopyJob),
}

/// What there is, for people: as it was at the last turn.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Inventory {
    pub(crate) blocks: usize,
    pub(crate) left: Departures,
    pub(crate) claims: usize,
    pub(crate) loads: usize,
    pub(crate) stores: usize,
    pub(crate) disk: Option<DiskInventory>,
    evicting: Option<SweepProgress>,
    verifying: Option<SweepProgress>,
}

impl Inventory {
    /// How far this one has come; none where the tiers have not begun it.
    pub(crate) fn sweep(&self, sweep: Sweep, work: WorkId) -> Option<SweepProgress> {
        let last = match sweep {
            Sweep::Evict => self.evicting,
            Sweep::Verify => self.verifying,
        };
        last.filter(|last| last.work == work)
    }
}

/// Of the disk.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct DiskInventory {
    pub(crate) blocks: usize,
    pub(crate) bytes: u64,
    pub(crate) files: u32,
    pub(crate) left: Departures,
    pub(crate) failed_writes: u64,
    pub(crate) is_read_only: bool,
}

/// The hub's end. Dropping it ends the threads.
pub(crate) struct TierHandle {
    inbox: SyncSender<Message>,
    inventory: Arc<Mutex<Inventory>>,
    /// Of the arena.
    pub(crate) bytes: u64,
    pub(crate) has_disk: bool,
}

impl TierHandle {
    /// False: there are more commands than were counted on, and this one is not heard.
    pub(crate) fn send(&self, command: TierCommand) -> bool {
        // The thread ends only after this handle is dropped.
        let sent = self.inbox.try_send(Message::Command(command)).is_ok();
        if !sent {
            tracing::error!("the tiers do not keep up: a command was dropped");
        }
        sent
    }

    /// Without threads: commands stay until the other end is asked to take one, which says whether there was one.
    #[cfg(test)]
    pub(super) fn unheard(room: usize) -> (Self, impl Fn() -> bool) {
        let (inbox, messages) = sync_channel(room);
        (Self { inbox, inventory: Arc::default(), bytes: 0, has_disk: false }, move || messages.try_recv().is_ok())
    }

    pub(crate) fn inventory(&self) -> Inventory {
        *self.inventory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for TierHandle {
    fn drop(&mut self) {
        // The thread takes all that is before it, and waits for nobody but the hub, which is gone.
        drop(self.inbox.send(Message::Stop));
    }
}

/// Starts the threads over what host memory holds; the hub has no more than `commands_max` commands under way.
pub(crate) fn start(
    clock: Clock,
    tiers: Tiers,
    load_threads: usize,
    commands_max: usize,
    scheduling: &Scheduling,
    outbox: mpsc::Sender<TierEvent>,
) -> Result<(TierHandle, JoinHandle<()>)> {
    let loads_max = load_threads * JOBS_PER_THREAD;
    let jobs_max = loads_max + STORE_JOBS + disk::DEPTH_MAX as usize + CHORES_MAX;
    let (inbox, messages) = sync_channel(commands_max + jobs_max + 1);
    let (loads, waiting_loads) = sync_channel::<Job>(loads_max);
    let (stores, waiting_stores) = sync_channel::<Job>(STORE_JOBS);
    let waiting_loads = Arc::new(Mutex::new(waiting_loads));
    let mut copiers = Vec::new();
    for number in 0..load_threads {
        let (waiting, done) = (Arc::clone(&waiting_loads), inbox.clone());
        copiers.push(spawn(&format!("kvferry-load-{number}"), move || copy(&waiting, &done))?);
    }
    let (done, of_stores, of_chores) = (inbox.clone(), scheduling.clone(), scheduling.clone());
    copiers.push(spawn("kvferry-store", move || {
        of_stores.stand_back();
        copy(&Mutex::new(waiting_stores), &done);
    })?);
    let (chores, waiting_chores) = sync_channel::<Chore>(CHORES_MAX);
    let done = inbox.clone();
    copiers.push(spawn("kvferry-chores", move || {
        of_chores.stand_back();
        // Nobody listens any more: nothing that comes later counts.
        while let Ok(chore) = waiting_chores.recv()
            && done.send(Message::Chore(chore.run())).is_ok()
        {}
    })?);
    let mut disk = None;
    if tiers.disk().is_some() {
        let done = inbox.clone();
        let (handle, thread) = disk::start(move |landed| done.send(Message::Disk(landed)).is_ok())?;
        copiers.push(thread);
        disk = Some(handle);
    }
    let inventory = Arc::new(Mutex::new(Inventory::default()));
    let (bytes, has_disk) = (tiers.host().store().region().len(), tiers.disk().is_some());
    let mut thread = TierThread {
        clock,
        tiers,
        messages,
        copying: Some(Copying { loads, stores, disk, chores }),
        is_behind: false,
        loads_out: 0,
        loads_max,
        stores_out: 0,
        checks_out: 0,
        next_slice: clock.now(),
        disk_out: 0,
        chores_out: 0,
        outbox,
        inventory: Arc::clone(&inventory),
    };
    let thread = spawn("kvferry-tier", move || {
        thread.run();
        for copier in copiers {
            // It panicked if this fails, and has said so.
            drop(copier.join());
        }
    })?;
    Ok((TierHandle { inbox, inventory, bytes, has_disk }, thread))
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run);
    thread.with_context(|| format!("start the thread {name}"))
}

/// A copying thread's whole life.
fn copy(jobs: &Mutex<Receiver<Job>>, done: &SyncSender<Message>) {
    loop {
        // Whoever waits for a job holds the lock; the others wait for the lock.
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        let message = match job {
            Job::Check(job) => Message::Checked(job.run()),
            Job::Copy(job) => {
                let is_load = job.is_load();
                Message::Copied(job.run(), is_load)
            }
        };
        if done.send(message).is_err() {
            return;
        }
    }
}

struct Copying {
    loads: SyncSender<Job>,
    stores: SyncSender<Job>,
    disk: Option<DiskHandle>,
    chores: SyncSender<Chore>,
}

struct TierThread {
    clock: Clock,
    tiers: Tiers,
    messages: Receiver<Message>,
    /// Gone once it is to stop.
    copying: Option<Copying>,
    loads_out: usize,
    loads_max: usize,
    stores_out: usize,
    checks_out: usize,
    next_slice: Time,
    disk_out: usize,
    chores_out: usize,
    /// There is more to tidy, and nobody will say so.
    is_behind: bool,
    outbox: mpsc::Sender<TierEvent>,
    inventory: Arc<Mutex<Inventory>>,
}

impl TierThread {
    fn run(&mut self) {
        self.observe();
        while self.copying.is_some() || self.jobs_out() > 0 {
            match self.wait() {
                Ok(message) => {
                    self.handle(message);
                    while let Ok(message) = self.messages.try_recv() {
                        self.handle(message);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                // The copying threads have gone, and they never do by themselves.
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.turn();
        }
    }

    const fn jobs_out(&self) -> usize {
        self.loads_out + self.stores_out + self.checks_out + self.disk_out + self.chores_out
    }

    fn wait(&self) -> Result<Message, RecvTimeoutError> {
        let slice = if self.copying.is_some() && self.tiers.has_slice() { Some(self.next_slice) } else { None };
        match slice.into_iter().chain(self.tiers.poll_deadline()).min() {
            _ if self.is_behind => self.messages.recv_timeout(Duration::ZERO),
            Some(deadline) => self.messages.recv_timeout(deadline.until(self.clock.now())),
            None => self.messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
        }
    }

    fn handle(&mut self, message: Message) {
        let now = self.clock.now();
        match message {
            Message::Chore(done) => {
                self.chores_out -= 1;
                self.tiers.handle_chore(done);
            }
            Message::Command(command) => self.carry_out(now, command),
            Message::Copied(copied, is_load) => {
                *if is_load { &mut self.loads_out } else { &mut self.stores_out } -= 1;
                self.tiers.handle_copied(now, &copied);
            }
            Message::Checked(checked) => {
                self.checks_out -= 1;
                self.tiers.handle_checked(&checked);
            }
            Message::Disk(done) => {
                self.disk_out -= 1;
                self.tiers.handle_disk(done);
            }
            Message::Stop => self.copying = None,
        }
    }

    /// What is little to clear has gone before the next message, which may be the first store after it, is looked at. The
    /// rest of what is much goes between messages, and is refused meanwhile.
    fn clear_at_once(&mut self, now: Time) {
        for _ in 0..PIECES_AT_ONCE {
            if !self.tiers.tidy(now) {
                break;
            }
        }
    }

    fn carry_out(&mut self, now: Time, command: TierCommand) {
        match command {
            TierCommand::Abort(work) => self.tiers.abort(now, work),
            TierCommand::Clear(devices) => {
                self.tiers.clear(now, &devices);
                self.clear_at_once(now);
            }
            TierCommand::Commit(work) => self.tiers.commit(now, work),
            TierCommand::EndSweep(work) => self.tiers.end_sweep(work),
            TierCommand::Forget(claim) => self.tiers.forget(claim),
            TierCommand::List(work) => self.tiers.list(work),
            TierCommand::Load(work, request) => self.tiers.load(work, &request),
            TierCommand::Lookup(claim, lookup) => self.tiers.lookup(now, claim, &lookup),
            TierCommand::Store(work, request) => self.tiers.store(work, &request),
            TierCommand::Sweep(work, sweep, filter) => self.tiers.sweep(work, sweep, filter),
        }
    }

    fn turn(&mut self) {
        let now = self.clock.now();
        self.tiers.handle_timeout(now);
        self.is_behind = self.copying.is_some() && self.tiers.tidy(now);
        if now >= self.next_slice {
            self.tiers.slice();
            self.next_slice = self.clock.now().after(SLICE_PAUSE);
        }
        self.hand_out();
        self.observe();
        while let Some(event) = self.tiers.poll_event() {
            // The hub is gone, and with it whoever asked.
            if self.outbox.blocking_send(event).is_err() {
                self.copying = None;
            }
        }
    }

    fn hand_out(&mut self) {
        let Some(Copying { loads, stores, disk, chores }) = &self.copying else { return };
        while self.loads_out < self.loads_max
            && let Some(job) = self.tiers.poll_load()
        {
            self.loads_out += usize::from(loads.send(Job::Copy(job)).is_ok());
        }
        while self.stores_out < JOBS_PER_THREAD
            && let Some(job) = self.tiers.poll_store(self.clock.now())
        {
            self.stores_out += usize::from(stores.send(Job::Copy(job)).is_ok());
        }
        if self.checks_out == 0
            && let Some(job) = self.tiers.poll_check()
        {
            self.checks_out += usize::from(stores.send(Job::Check(job)).is_ok());
        }
        while let Some(disk) = disk
            && self.disk_out < disk::DEPTH_MAX as usize
            && let Some(job) = self.tiers.poll_disk(self.clock.now())
        {
            disk.send(job);
            self.disk_out += 1;
        }
        while self.chores_out < CHORES_MAX
            && let Some(chore) = self.tiers.poll_chore()
        {
            self.chores_out += usize::from(chores.send(chore).is_ok());
        }
    }

    fn observe(&self) {
        let host = self.tiers.host();
        let (claims, loads, stores) = self.tiers.open();
        let now = Inventory {
            blocks: host.blocks(),
            left: host.departures(),
            claims,
            loads,
            stores,
            disk: self.tiers.disk().map(|disk| {
                let (bytes, files) = disk.store().used();
                DiskInventory {
                    blocks: disk.blocks(),
                    bytes,
                    files,
                    left: disk.departures(),
                    failed_writes: disk.store().counts().failed_writes,
                    is_read_only: disk.store().read_only().is_some(),
                }
            }),
            evicting: self.tiers.sweeps(Sweep::Evict),
            verifying: self.tiers.sweeps(Sweep::Verify),
        };
        let mut inventory = self.inventory.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *inventory, now);
        drop(inventory);
        tell_damaged("host", before.left.of(Left::Damaged), now.left.of(Left::Damaged));
        let on_disk = |inventory: Inventory| inventory.disk.map_or(0, |disk| disk.left.of(Left::Damaged));
        tell_damaged("disk", on_disk(before), on_disk(now));
    }
}

/// Says once of each block that was damaged that it is gone: memory or a disk that does this does it again.
fn tell_damaged(tier: &'static str, before: u64, now: u64) {
    if now > before {
        tracing::warn!(tier, blocks = now - before, since_start = now, "blocks were not what was stored, and are gone");
    }
}
