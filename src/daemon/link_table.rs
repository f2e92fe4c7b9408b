//! Which peers are known, and the state of the link to each, without any I/O.
//!
//! ```text
//! configured, named by a ticket, or calling us --> learn --> poll: Open --> handle_opened --> handle_up  --> Up
//!          ^                                                   |                |                            |
//!          |                                        handle_failed   handle_down (an endpoint that broke) <---+
//!          +-- waits (doubled each time, with jitter; a sign of life ends the wait) <----+
//! ```
//!
//! A link is opened when its peer is learnt and kept open, so that a transfer finds it standing. Who is learnt, and not
//! configured, is forgotten when nothing has wanted the link for `idle_max`. A transfer that finds no link waits for
//! the try that it sets off, or, when one is under way that may have begun too early, for one more behind that; it
//! never waits for a third. At the limit a link that is down makes room, the longest unwanted first; else the newcomer
//! is refused.
//!
//! Why not one connection for each transfer, or at the first one: it costs a round of calls and wake-ups at the moment
//! when a request waits for its first token.

use std::collections::HashMap;
use std::time::Duration;

use kvferry_core::{Time, WorkId};
use kvferry_transport::{EndpointId, Fault};

/// What a link's state is called.
pub(super) const LINK_STATES: [&str; 4] = ["connecting", "down", "opening", "up"];

/// What the table refuses to exceed, and how patient it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct LinkLimits {
    pub(super) links_max: usize,
    /// The first wait after a failure.
    pub(super) retry_min: Duration,
    /// The longest wait between two tries.
    pub(super) retry_max: Duration,
    /// How long a learnt peer is kept that nothing wants.
    pub(super) idle_max: Duration,
}

/// How a peer came to be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// By the config: never forgotten.
    Configured,
    /// By a ticket, by its own call, or by an earlier life of this daemon.
    Learnt,
}

/// What the shell must do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LinkAction {
    /// Ask this peer for an endpoint; answer with `handle_opened` or `handle_failed`.
    Open(String),
    /// Nothing wanted this link for long: `forget` it, or `touch` it if something does after all.
    Idle(String),
}

/// What a transfer finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Up,
    /// Its work is among those that `handle_up`, `handle_failed` or `handle_down` return.
    Waits,
    /// No room for one more peer.
    Full,
}

/// What to do with an endpoint that a peer has opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opening {
    /// Connect it, after closing the one it takes the place of.
    Connect { replaces: Option<EndpointId> },
    /// The link stands already, or nobody wants it any more.
    Ignore,
}

/// One link, for people.
pub(super) struct LinkView<'a> {
    pub(super) address: &'a str,
    pub(super) origin: Origin,
    pub(super) state: &'static str,
    pub(super) since: Time,
    /// Tries since it was last up.
    pub(super) tries: u32,
    pub(super) fault: &'a str,
    /// The life of the peer that last let us in; 0 before.
    pub(super) epoch: u64,
}

struct Path<C> {
    channel: C,
    endpoint: EndpointId,
}

enum State<C> {
    Down { retry_at: Time },
    Opening,
    Connecting(Path<C>),
    Up(Path<C>),
}

struct Link<C> {
    origin: Origin,
    state: State<C>,
    since: Time,
    tries: u32,
    fault: String,
    epoch: u64,
    /// The last time that something wanted it.
    wanted: Time,
    /// The wait after the next failure.
    wait: Duration,
    /// A call for an endpoint is under way; also while the link is up and the peer is said to be another.
    asking: bool,
    /// The peer has shown itself after the try that is under way began.
    alive: bool,
    /// Transfers that wait for the try that is under way, and those that came after it began.
    waiting: Vec<WorkId>,
    late: Vec<WorkId>,
}

/// See the module's text. `C` is how a peer is called.
pub(super) struct LinkTable<C> {
    limits: LinkLimits,
    links: HashMap<String, Link<C>>,
    /// A peer was learnt or forgotten since somebody asked.
    changed: bool,
}

impl<C: Clone> LinkTable<C> {
    pub(super) fn new(limits: LinkLimits) -> Self {
        Self { limits, links: HashMap::new(), changed: false }
    }

    /// Whether a peer was learnt or forgotten since the last question.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// The channel and the endpoint to a peer, when both stand.
    pub(super) fn up(&self, address: &str) -> Option<(C, EndpointId)> {
        match &self.links.get(address)?.state {
            State::Up(path) => Some((path.channel.clone(), path.endpoint)),
            _ => None,
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = LinkView<'_>> {
        self.links.iter().map(|(address, link)| LinkView {
            address,
            origin: link.origin,
            state: link.state.word(),
            since: link.since,
            tries: link.tries,
            fault: &link.fault,
            epoch: link.epoch,
        })
    }

    /// Takes a peer in, or sees that one that is known lives. `false`: there is no room.
    ///
    /// `epoch` is the life that the peer says it is in. If the link stands to another one it is asked anew, and
    /// replaced only if the peer's own answer confirms it: whoever calls may say anything.
    pub(super) fn learn(&mut self, now: Time, address: &str, origin: Origin, epoch: Option<u64>) -> bool {
        if let Some(link) = self.links.get_mut(address) {
            link.see(now, epoch);
            return true;
        }
        if self.links.len() >= self.limits.links_max {
            return false;
        }
        self.links.insert(address.to_owned(), Link::new(now, origin, self.limits.retry_min));
        self.changed = true;
        true
    }

    /// A transfer wants the link.
    pub(super) fn want(&mut self, now: Time, address: &str, work: WorkId) -> Found {
        if !self.links.contains_key(address) && self.links.len() >= self.limits.links_max {
            self.make_room();
        }
        if !self.learn(now, address, Origin::Learnt, None) {
            return Found::Full;
        }
        let Some(link) = self.links.get_mut(address) else { return Found::Full };
        link.wanted = now;
        match link.state {
            State::Up(_) => return Found::Up,
            State::Down { .. } if !link.asking => link.waiting.push(work),
            State::Down { .. } | State::Opening | State::Connecting(_) => link.late.push(work),
        }
        Found::Waits
    }

    /// Something uses the link.
    pub(super) fn touch(&mut self, now: Time, address: &str) {
        if let Some(link) = self.links.get_mut(address) {
            link.wanted = now;
        }
    }

    /// Forgets a peer; returns the endpoint to close.
    pub(super) fn forget(&mut self, address: &str) -> Option<EndpointId> {
        self.changed = true;
        self.links.remove(address)?.state.endpoint()
    }

    /// Call until `None`, and again no later than [`Self::poll_deadline`].
    pub(super) fn poll(&mut self, now: Time) -> Option<LinkAction> {
        let idle_max = self.limits.idle_max;
        self.links.iter_mut().find_map(|(address, link)| match link.due(idle_max)? {
            (due, _) if due > now => None,
            (_, true) => Some(LinkAction::Idle(address.clone())),
            (_, false) => {
                link.ask(now);
                Some(LinkAction::Open(address.clone()))
            }
        })
    }

    pub(super) fn poll_deadline(&self) -> Option<Time> {
        self.links.values().filter_map(|link| link.due(self.limits.idle_max)).map(|(due, _)| due).min()
    }

    /// The peer has let us in, in its life `epoch`.
    pub(super) fn handle_opened(
        &mut self,
        now: Time,
        address: &str,
        channel: C,
        endpoint: EndpointId,
        epoch: u64,
    ) -> Opening {
        let Some(link) = self.links.get_mut(address) else { return Opening::Ignore };
        link.asking = false;
        if matches!(link.state, State::Up(_)) && link.epoch == epoch {
            return Opening::Ignore;
        }
        let replaces = link.state.endpoint();
        if replaces.is_some() {
            "the peer started anew".clone_into(&mut link.fault);
        }
        link.epoch = epoch;
        link.turn(now, State::Connecting(Path { channel, endpoint }));
        Opening::Connect { replaces }
    }

    /// The peer did not let us in. Returns the transfers that must not wait any longer.
    pub(super) fn handle_failed(&mut self, now: Time, address: &str, fault: &str, dice: u64) -> Vec<WorkId> {
        let retry_max = self.limits.retry_max;
        let Some(link) = self.links.get_mut(address) else { return Vec::new() };
        link.asking = false;
        if matches!(link.state, State::Up(_)) {
            // It was asked whether it is another one by now. If it is, the endpoint breaks by itself.
            return Vec::new();
        }
        link.fail(now, fault, retry_max, dice)
    }

    /// The peer must not be called. Returns all transfers that wait for it; only the config's own peers are kept, so
    /// that people see why.
    pub(super) fn handle_forbidden(&mut self, now: Time, address: &str, fault: &str) -> Vec<WorkId> {
        let mut works = self.handle_failed(now, address, fault, u64::MAX);
        let Some(link) = self.links.get_mut(address) else { return works };
        works.append(&mut link.waiting);
        if link.origin == Origin::Learnt {
            self.forget(address);
        } else {
            link.wait = self.limits.retry_max;
            link.turn(now, State::Down { retry_at: now.after(link.wait) });
        }
        works
    }

    /// All data connections stand. Returns the peer, and the transfers that go on.
    pub(super) fn handle_up(&mut self, now: Time, endpoint: EndpointId) -> Option<(String, Vec<WorkId>)> {
        let (address, link) = self.by_endpoint(endpoint)?;
        let State::Connecting(path) = &link.state else { return None };
        let path = Path { channel: path.channel.clone(), endpoint };
        link.turn(now, State::Up(path));
        (link.tries, link.alive) = (0, false);
        link.fault.clear();
        let mut works = std::mem::take(&mut link.waiting);
        works.append(&mut link.late);
        Some((address, works))
    }

    /// The endpoint broke, or never stood. Returns the peer, and the transfers that must not wait any longer.
    pub(super) fn handle_down(
        &mut self,
        now: Time,
        endpoint: EndpointId,
        fault: Fault,
        dice: u64,
    ) -> Option<(String, Vec<WorkId>)> {
        let LinkLimits { retry_min, retry_max, .. } = self.limits;
        let (address, link) = self.by_endpoint(endpoint)?;
        if matches!(link.state, State::Up(_)) && now.until(link.since) >= retry_max {
            // One that stood for a while starts from the beginning; one that breaks again and again does not.
            link.wait = retry_min;
        }
        let works = link.fail(now, &fault.to_string(), retry_max, dice);
        Some((address, works))
    }

    fn by_endpoint(&mut self, endpoint: EndpointId) -> Option<(String, &mut Link<C>)> {
        let mut links = self.links.iter_mut();
        let (address, link) = links.find(|(_, link)| link.state.endpoint() == Some(endpoint))?;
        Some((address.clone(), link))
    }

    /// Drops the learnt link that is down and was not wanted for the longest time.
    fn make_room(&mut self) {
        let can_go = |link: &Link<C>| {
            link.origin == Origin::Learnt
                && matches!(link.state, State::Down { .. })
                && link.waiting.is_empty()
                && link.late.is_empty()
        };
        let oldest = self.links.iter().filter(|(_, link)| can_go(link)).min_by_key(|(_, link)| link.wanted);
        if let Some(address) = oldest.map(|(address, _)| address.clone()) {
            self.forget(&address);
        }
    }
}

impl<C> Link<C> {
    fn new(now: Time, origin: Origin, wait: Duration) -> Self {
        Self {
            origin,
            state: State::Down { retry_at: now },
            since: now,
            tries: 0,
            fault: String::new(),
            epoch: 0,
            wanted: now,
            wait,
            asking: false,
            alive: false,
            waiting: Vec::new(),
            late: Vec::new(),
        }
    }

    fn turn(&mut self, now: Time, state: State<C>) {
        (self.state, self.since) = (state, now);
    }

    /// The peer lives.
    fn see(&mut self, now: Time, epoch: Option<u64>) {
        match &mut self.state {
            State::Down { retry_at } => *retry_at = now.min(*retry_at),
            State::Opening | State::Connecting(_) => self.alive = true,
            State::Up(_) => self.alive |= epoch.is_some_and(|epoch| epoch != self.epoch),
        }
    }

    /// When something is to be done, and whether that is to forget it.
    fn due(&self, idle_max: Duration) -> Option<(Time, bool)> {
        if self.asking {
            return None;
        }
        let idle = (self.origin == Origin::Learnt).then(|| (self.wanted.after(idle_max), true));
        match self.state {
            State::Down { retry_at } if !self.waiting.is_empty() => Some((retry_at, false)),
            State::Down { retry_at } => Some(idle.filter(|(due, _)| *due < retry_at).unwrap_or((retry_at, false))),
            State::Up(_) if self.alive => Some((self.since, false)),
            State::Up(_) => idle,
            State::Opening | State::Connecting(_) => None,
        }
    }

    fn ask(&mut self, now: Time) {
        (self.asking, self.alive) = (true, false);
        if !matches!(self.state, State::Up(_)) {
            self.tries = self.tries.saturating_add(1);
            self.turn(now, State::Opening);
        }
    }

    fn fail(&mut self, now: Time, fault: &str, retry_max: Duration, dice: u64) -> Vec<WorkId> {
        fault.clone_into(&mut self.fault);
        let refused = std::mem::replace(&mut self.waiting, std::mem::take(&mut self.late));
        let again = self.alive || !self.waiting.is_empty();
        let retry_at = if again { now } else { now.after(jittered(self.wait, dice)) };
        if !again {
            self.wait = (self.wait * 2).min(retry_max);
        }
        self.alive = false;
        self.turn(now, State::Down { retry_at });
        refused
    }
}

impl<C> State<C> {
    fn endpoint(&self) -> Option<EndpointId> {
        match self {
            Self::Connecting(path) | Self::Up(path) => Some(path.endpoint),
            Self::Down { .. } | Self::Opening => None,
        }
    }

    fn word(&self) -> &'static str {
        match self {
            Self::Down { .. } => "down",
            Self::Opening => "opening",
            Self::Connecting(_) => "connecting",
            Self::Up(_) => "up",
        }
    }
}

/// Between half of `wait` and all of it, so that many daemons do not come at the same moment.
fn jittered(wait: Duration, dice: u64) -> Duration {
    let half = wait / 2;
    let share = u32::try_from(dice >> 44).unwrap_or(u32::MAX);
    half + half * share / (1 << 20)
}

#[cfg(test)]
mod tests;
