//! What one thread drives: an epoll or a ring, the streams it has of each endpoint, and perhaps the door.
//!
//! ```text
//! turn: epoll (no waiting) -> flags of streams -> callers join endpoints -> each endpoint that has something to do
//! ```
//!
//! Without threads beside it an event loop has all streams of its endpoints; with them its share of the streams
//! ([`Place`]), and callers for the streams of others are passed on.

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use kvferry_core::Time;
use kvferry_transport::{Admission, Dial, EndpointId, Event, Fault};
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData};
use slab::Slab;

use crate::Counters;
use crate::admission::{Caller, Door, Heard};
use crate::endpoint::TcpEndpoint;
use crate::joint::Place;
use crate::settings::{STREAMS_MAX, Settings};
use crate::socket;
use crate::stream::INTEREST;
use crate::token::Token;
use crate::uring::{self, Choice};
use crate::wire::{self, Wire};

/// Events taken from epoll in one turn.
const EVENTS_MAX: usize = 128;

/// What happened to one endpoint, or to a work of it.
pub(crate) struct Report {
    pub(crate) endpoint: EndpointId,
    pub(crate) event: Event,
}

impl Report {
    pub(crate) const fn down(endpoint: EndpointId, fault: Fault) -> Self {
        Self { endpoint, event: Event::EndpointDown(endpoint, fault) }
    }
}

/// See the module.
pub(crate) struct EventLoop {
    epoll: OwnedFd,
    door: Option<Door>,
    settings: Settings,
    endpoints: Slab<TcpEndpoint>,
    ids: HashMap<EndpointId, usize>,
    generation: u32,
    wire: Wire,
    choice: Choice,
    /// Epoll has more to say than was asked.
    has_knocked: bool,
    /// Endpoints that are over, and why, but for operations in flight.
    leaving: Vec<(TcpEndpoint, Fault)>,
    /// What calls between turns have to report.
    pending: Vec<Report>,
    /// Callers for streams that others drive, of endpoints that are known here; empty between turns.
    pub(crate) foreign: Vec<Caller>,
}

impl EventLoop {
    /// With in-range settings, and without a door.
    pub(crate) fn new(settings: &Settings) -> io::Result<Self> {
        let (choice, ring) = uring::choose(settings.io, settings.tls.is_some())?;
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            door: None,
            settings: settings.clone(),
            endpoints: Slab::new(),
            ids: HashMap::new(),
            generation: 0,
            wire: Wire::new(ring),
            choice,
            has_knocked: true,
            leaving: Vec::new(),
            pending: Vec::new(),
            foreign: Vec::new(),
        })
    }

    /// The same, listening.
    pub(crate) fn listening(address: SocketAddr, settings: &Settings) -> io::Result<Self> {
        let new = Self::new(settings)?;
        let door = Door::open(new.epoll.as_fd(), address, settings)?;
        Ok(Self { door: Some(door), ..new })
    }

    pub(crate) const fn door(&self) -> Option<&Door> {
        self.door.as_ref()
    }

    /// What it has counted so far.
    pub(crate) fn counters(&self) -> Counters {
        let (ring_enters, completions_stale) = self.wire.ring.as_ref().map_or((0, 0), |ring| (ring.enters, ring.stale));
        Counters { ring_enters, completions_stale, ..self.wire.counters }
    }

    pub(crate) const fn choice(&self) -> &Choice {
        &self.choice
    }

    /// Whether one more endpoint, of this many streams in all, can be opened.
    pub(crate) fn check_new(&self, id: EndpointId, stream_count: usize) -> Result<(), Fault> {
        if stream_count == 0 || stream_count > STREAMS_MAX || self.is_known(id) {
            return Err(Fault::Refused);
        }
        if self.endpoints.len() + self.leaving.len() >= self.settings.endpoints_max {
            return Err(Fault::Full);
        }
        Ok(())
    }

    fn is_known(&self, id: EndpointId) -> bool {
        self.ids.contains_key(&id) || self.leaving.iter().any(|(endpoint, _)| endpoint.id == id)
    }

    /// Opens the streams from `place` on that the keys are for.
    pub(crate) fn connect(&mut self, now: Time, dial: &Dial, place: Place) -> Result<(), Fault> {
        let open = |_| socket::dial(dial.address, &self.settings);
        let sockets = dial.keys.iter().map(open).collect::<io::Result<Vec<_>>>().map_err(|error| fault(&error));
        let sockets = match sockets {
            Ok(sockets) => sockets,
            // No way there right now (no route, say): that is an endpoint that went down, not a wrong call.
            Err(Fault::PeerClosed) => {
                self.pending.push(Report::down(dial.endpoint, Fault::PeerClosed));
                return Ok(());
            }
            Err(fault) => return Err(fault),
        };
        self.generation = self.generation.wrapping_add(1);
        let entry = self.endpoints.vacant_entry();
        let slot = entry.key();
        let mut endpoint = TcpEndpoint::dialing(dial, place, sockets, self.generation, &self.settings, now)?;
        for index in 0..endpoint.streams().len() {
            if let Some(ring) = &mut self.wire.ring {
                endpoint.ride(ring, slot, index).map_err(|error| fault(&error))?;
                continue;
            }
            let token = Token::Stream { slot, stream: index, generation: self.generation };
            epoll::add(&self.epoll, endpoint.streams()[index].socket(), EventData::new_u64(token.to_u64()), INTEREST)
                .map_err(wire::fault)?;
        }
        entry.insert(endpoint);
        self.ids.insert(dial.endpoint, slot);
        Ok(())
    }

    /// Lets the streams from `place` on in that the keys are for.
    pub(crate) fn admit(&mut self, admission: &Admission, place: Place) {
        self.generation = self.generation.wrapping_add(1);
        let endpoint = TcpEndpoint::joining(admission, place, self.generation, &self.settings);
        let slot = self.endpoints.insert(endpoint);
        self.ids.insert(admission.endpoint, slot);
    }

    /// Ends an endpoint, and with this fault all its works; an unknown one is ignored.
    pub(crate) fn close(&mut self, endpoint: EndpointId, fault: Fault) {
        let Some(&slot) = self.ids.get(&endpoint) else { return };
        let closed = self.remove(slot);
        let mut reports = std::mem::take(&mut self.pending);
        self.let_go(closed, fault, &mut reports);
        self.pending = reports;
    }

    /// The endpoint of this name, while it is up.
    pub(crate) fn endpoint(&mut self, id: EndpointId) -> Option<&mut TcpEndpoint> {
        let endpoint = &mut self.endpoints[*self.ids.get(&id)?];
        endpoint.is_up().then_some(endpoint)
    }

    /// See [`Transport::turn`](kvferry_transport::Transport::turn).
    pub(crate) fn turn(&mut self, now: Time, reports: &mut Vec<Report>) -> bool {
        reports.append(&mut self.pending);
        let mut busy = self.reap();
        self.hear(now);
        if let Some(door) = &mut self.door {
            busy |= door.turn(self.epoll.as_fd(), now, &mut self.wire.counters);
        }
        let mut ended = None;
        for (slot, endpoint) in &mut self.endpoints {
            if !endpoint.wants_turn(now) {
                continue;
            }
            match endpoint.turn(&mut self.wire, now) {
                Ok(turned) => {
                    busy |= turned.busy;
                    if turned.came_up {
                        let event = Event::EndpointUp(endpoint.id);
                        reports.push(Report { endpoint: endpoint.id, event });
                    }
                }
                // One a turn is rare enough; the others keep what they found and end in the next.
                Err(fault) => {
                    ended = Some((slot, fault));
                    break;
                }
            }
            take_done(endpoint, reports);
        }
        if let Some((slot, fault)) = ended {
            let endpoint = self.remove(slot);
            self.let_go(endpoint, fault, reports);
            busy = true;
        }
        self.end_turn(reports) || busy
    }

    /// See [`Transport::next_deadline`](kvferry_transport::Transport::next_deadline).
    pub(crate) fn next_deadline(&self) -> Option<Time> {
        // Who leaves has recalled operations, which a turn hands to the ring.
        if !self.pending.is_empty() || !self.leaving.is_empty() {
            return Some(Time::default());
        }
        let endpoints = self.endpoints.iter().map(|(_, endpoint)| endpoint.next_deadline());
        let door = self.door.as_ref().map(Door::next_deadline);
        endpoints.chain(door).min().filter(|&first| first < Time::NEVER)
    }

    /// Readable when a turn has something to do.
    pub(crate) fn wait_fd(&self) -> BorrowedFd<'_> {
        match &self.wire.ring {
            Some(ring) => ring.wait_fd(),
            None => self.epoll.as_fd(),
        }
    }
    /// Takes in what the ring has completed, and what epoll has to say if the ring tells so. True: there may be more.
    fn reap(&mut self) -> bool {
        let Self { wire, endpoints, .. } = self;
        let Some(ring) = &mut wire.ring else { return self.poll() };
        let knocked = ring.reap(|token, direction| {
            if let Token::Stream { slot, stream, generation } = token
                && let Some(endpoint) = endpoints.get_mut(slot).filter(|endpoint| endpoint.generation == generation)
            {
                endpoint.handle_done(stream, direction);
            }
        });
        self.has_knocked |= knocked;
        if self.has_knocked {
            self.has_knocked = self.poll();
        }
        self.has_knocked
    }

    /// Reports an endpoint that is over, now or once nothing of it is in flight.
    fn let_go(&mut self, mut endpoint: TcpEndpoint, fault: Fault, reports: &mut Vec<Report>) {
        endpoint.end(fault);
        if endpoint.part(self.wire.ring.as_mut()) {
            farewell(endpoint, fault, reports);
        } else {
            self.leaving.push((endpoint, fault));
        }
    }

    /// Reports who has left, and hands over to the ring what this turn has posted. True: it has completed some of it.
    fn end_turn(&mut self, reports: &mut Vec<Report>) -> bool {
        let Some(ring) = &mut self.wire.ring else { return false };
        for (mut endpoint, fault) in std::mem::take(&mut self.leaving) {
            if endpoint.part(Some(ring)) {
                farewell(endpoint, fault, reports);
            } else {
                self.leaving.push((endpoint, fault));
            }
        }
        if !self.has_knocked {
            ring.watch_door(self.epoll.as_fd());
        }
        ring.commit()
    }

    /// Asks epoll what happened. True: it may have more to tell.
    fn poll(&mut self) -> bool {
        let no_wait = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut room = [MaybeUninit::uninit(); EVENTS_MAX];
        // It fails for a signal alone, which the next turn makes good, or for a wrong fd, which ours is not.
        let Ok((ready, _)) = epoll::wait(&self.epoll, &mut room, Some(&no_wait)) else { return true };
        for event in &*ready {
            let (flags, data) = (event.flags, event.data);
            match Token::from_u64(data.u64()) {
                Some(Token::Door) => {
                    if let Some(door) = &mut self.door {
                        door.handle_knock();
                    }
                }
                Some(Token::HalfOpen { slot, generation }) => {
                    if let Some(door) = &mut self.door {
                        door.handle_bytes(slot, generation);
                    }
                }
                Some(Token::Stream { slot, stream, generation }) => {
                    let endpoint = self.endpoints.get_mut(slot);
                    if let Some(endpoint) = endpoint.filter(|endpoint| endpoint.generation == generation) {
                        endpoint.handle_flags(stream, flags);
                    }
                }
                None => {}
            }
        }
        ready.len() == EVENTS_MAX
    }

    /// Hears those who have something to say at the door.
    fn hear(&mut self, now: Time) {
        let Some(heard_max) = self.door.as_ref().map(Door::hears_max) else { return };
        for _ in 0..heard_max {
            let Some(door) = &mut self.door else { return };
            match door.hear_next(&mut self.wire) {
                Heard::Caller(caller) => {
                    // Whoever takes it over asks an epoll of its own about it.
                    if epoll::delete(&self.epoll, &caller.socket).is_ok() {
                        self.welcome(caller, now);
                    }
                }
                Heard::More => {}
                Heard::Nobody => return,
            }
        }
    }

    /// Lets a caller with a good key in. Any other is closed without a word.
    pub(crate) fn welcome(&mut self, caller: Caller, now: Time) {
        let Some(&slot) = self.ids.get(&caller.endpoint) else { return self.refuse() };
        let endpoint = &mut self.endpoints[slot];
        let Some(stream) = endpoint.own_stream(caller.stream) else {
            // The transport knows whose it is, and refuses what is nobody's.
            self.foreign.push(caller);
            return;
        };
        if !endpoint.take_key(stream, &caller.key, now) {
            return self.refuse();
        }
        let token = Token::Stream { slot, stream, generation: endpoint.generation };
        if self.wire.ring.is_none()
            && epoll::add(&self.epoll, &caller.socket, EventData::new_u64(token.to_u64()), INTEREST).is_err()
        {
            return self.refuse();
        }
        endpoint.join(stream, caller, now);
        // Should the socket not do as it is told, its endpoint expires.
        let rides = self.wire.ring.as_mut().is_none_or(|ring| endpoint.ride(ring, slot, stream).is_ok());
        if !rides {
            self.refuse();
        }
    }

    /// Counts a caller that was not let in.
    pub(crate) const fn refuse(&mut self) {
        self.wire.counters.hellos_refused += 1;
    }

    fn remove(&mut self, slot: usize) -> TcpEndpoint {
        // Its sockets close with it, and a closed socket leaves epoll by itself.
        let endpoint = self.endpoints.remove(slot);
        self.ids.remove(&endpoint.id);
        endpoint
    }
}

/// The last reports of an endpoint.
fn farewell(mut endpoint: TcpEndpoint, fault: Fault, reports: &mut Vec<Report>) {
    take_done(&mut endpoint, reports);
    reports.push(Report::down(endpoint.id, fault));
}

fn take_done(endpoint: &mut TcpEndpoint, reports: &mut Vec<Report>) {
    let id = endpoint.id;
    reports.extend(endpoint.done.drain(..).map(|done| Report { endpoint: id, event: Event::Completed(done) }));
}

fn fault(error: &io::Error) -> Fault {
    error.raw_os_error().map_or(Fault::Io(0), |errno| wire::fault(rustix::io::Errno::from_raw_os_error(errno)))
}
