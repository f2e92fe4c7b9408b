//! The transport: one epoll, a door for callers, and the endpoints.
//!
//! ```text
//! turn: epoll (no waiting) -> flags of streams -> callers join endpoints -> each endpoint that has something to do
//! ```

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use kvferry_core::Time;
use kvferry_memory::Region;
use kvferry_transport::{Admission, Dial, Endpoint, EndpointId, Event, Fault, Transport};
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData};
use slab::Slab;

use crate::Counters;
use crate::admission::{Caller, Door, Heard};
use crate::endpoint::TcpEndpoint;
use crate::settings::{STREAMS_MAX, Settings};
use crate::socket;
use crate::stream::INTEREST;
use crate::token::Token;
use crate::uring::{self, Choice};
use crate::wire::{self, Wire};

/// Events taken from epoll in one turn.
const EVENTS_MAX: usize = 128;

/// Moves bytes over TCP. See the crate's documentation.
pub struct TcpTransport {
    epoll: OwnedFd,
    door: Door,
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
    /// Events of calls between turns.
    pending: Vec<Event>,
}

impl TcpTransport {
    /// Listens on `address`; port 0 lets the kernel choose, see [`local_addr`](Self::local_addr).
    ///
    /// # Errors
    ///
    /// What the operating system says to the address, to the settings' socket buffers or congestion control;
    /// `Unsupported` where [`Io::Uring`](crate::Io::Uring) was asked for and does not work, with the step that failed.
    pub fn bind(address: SocketAddr, settings: &Settings) -> io::Result<Self> {
        let settings = settings.clamped();
        let (choice, ring) = uring::choose(settings.io, settings.tls.is_some())?;
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let door = Door::open(epoll.as_fd(), address, &settings)?;
        Ok(Self {
            epoll,
            door,
            settings,
            endpoints: Slab::new(),
            ids: HashMap::new(),
            generation: 0,
            wire: Wire::new(ring),
            choice,
            has_knocked: true,
            leaving: Vec::new(),
            pending: Vec::new(),
        })
    }

    /// Where it listens.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.door.local_addr()
    }

    /// The congestion control that data connections begin with.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    pub fn congestion(&self) -> io::Result<String> {
        self.door.congestion()
    }

    /// What it has counted so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let (ring_enters, completions_stale) = self.wire.ring.as_ref().map_or((0, 0), |ring| (ring.enters, ring.stale));
        Counters { ring_enters, completions_stale, ..self.wire.counters }
    }

    /// What moves the bytes, and why.
    #[must_use]
    pub const fn choice(&self) -> &Choice {
        &self.choice
    }

    fn check_new(&self, id: EndpointId, stream_count: usize) -> Result<(), Fault> {
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
    fn let_go(&mut self, mut endpoint: TcpEndpoint, fault: Fault, events: &mut Vec<Event>) {
        endpoint.end(fault);
        if endpoint.part(self.wire.ring.as_mut()) {
            farewell(endpoint, fault, events);
        } else {
            self.leaving.push((endpoint, fault));
        }
    }

    /// Reports who has left, and hands over to the ring what this turn has posted. True: it has completed some of it.
    fn end_turn(&mut self, events: &mut Vec<Event>) -> bool {
        let Some(ring) = &mut self.wire.ring else { return false };
        for (mut endpoint, fault) in std::mem::take(&mut self.leaving) {
            if endpoint.part(Some(ring)) {
                farewell(endpoint, fault, events);
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
                Some(Token::Door) => self.door.handle_knock(),
                Some(Token::HalfOpen { slot, generation }) => self.door.handle_bytes(slot, generation),
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
        for _ in 0..self.door.hears_max() {
            match self.door.hear_next(&mut self.wire) {
                Heard::Caller(caller) => {
                    let is_welcome = self.welcome(caller, now);
                    self.wire.counters.hellos_refused += u64::from(!is_welcome);
                }
                Heard::More => {}
                Heard::Nobody => return,
            }
        }
    }

    /// Lets a caller with a good key in. False: closed without a word.
    fn welcome(&mut self, caller: Caller, now: Time) -> bool {
        let Some(&slot) = self.ids.get(&caller.endpoint) else { return false };
        let Ok(stream) = usize::try_from(caller.stream) else { return false };
        let endpoint = &mut self.endpoints[slot];
        if !endpoint.take_key(stream, &caller.key, now) {
            return false;
        }
        let token = Token::Stream { slot, stream, generation: endpoint.generation };
        let moved = match self.wire.ring {
            Some(_) => epoll::delete(&self.epoll, &caller.socket),
            None => epoll::modify(&self.epoll, &caller.socket, EventData::new_u64(token.to_u64()), INTEREST),
        };
        if moved.is_err() {
            return false;
        }
        endpoint.join(stream, caller, now);
        // Should the socket not do as it is told, its endpoint expires.
        self.wire.ring.as_mut().is_none_or(|ring| endpoint.ride(ring, slot, stream).is_ok())
    }

    fn remove(&mut self, slot: usize) -> TcpEndpoint {
        // Its sockets close with it, and a closed socket leaves epoll by itself.
        let endpoint = self.endpoints.remove(slot);
        self.ids.remove(&endpoint.id);
        endpoint
    }
}

impl Transport for TcpTransport {
    fn name(&self) -> &'static str {
        "tcp"
    }

    fn register(&mut self, _region: &Arc<Region>) -> Result<(), Fault> {
        // A socket reads and writes any mapped memory.
        Ok(())
    }

    fn deregister(&mut self, _region: &Arc<Region>) {}

    fn connect(&mut self, now: Time, dial: Dial) -> Result<(), Fault> {
        self.check_new(dial.endpoint, dial.keys.len())?;
        let open = |_| socket::dial(dial.address, &self.settings);
        let sockets = dial.keys.iter().map(open).collect::<io::Result<Vec<_>>>().map_err(|error| fault(&error));
        let sockets = match sockets {
            Ok(sockets) => sockets,
            // No way there right now (no route, say): that is an endpoint that went down, not a wrong call.
            Err(Fault::PeerClosed) => {
                self.pending.push(Event::EndpointDown(dial.endpoint, Fault::PeerClosed));
                return Ok(());
            }
            Err(fault) => return Err(fault),
        };
        self.generation = self.generation.wrapping_add(1);
        let entry = self.endpoints.vacant_entry();
        let slot = entry.key();
        let mut endpoint = TcpEndpoint::dialing(&dial, sockets, self.generation, &self.settings, now)?;
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

    fn admit(&mut self, _now: Time, admission: Admission) -> Result<(), Fault> {
        self.check_new(admission.endpoint, admission.keys.len())?;
        self.generation = self.generation.wrapping_add(1);
        let endpoint = TcpEndpoint::joining(&admission, self.generation, &self.settings);
        let slot = self.endpoints.insert(endpoint);
        self.ids.insert(admission.endpoint, slot);
        Ok(())
    }

    fn close(&mut self, _now: Time, endpoint: EndpointId) {
        let Some(&slot) = self.ids.get(&endpoint) else { return };
        let closed = self.remove(slot);
        let mut events = std::mem::take(&mut self.pending);
        self.let_go(closed, Fault::Cancelled, &mut events);
        self.pending = events;
    }

    fn endpoint(&mut self, id: EndpointId) -> Option<&mut dyn Endpoint> {
        let endpoint = &mut self.endpoints[*self.ids.get(&id)?];
        if endpoint.is_up() { Some(endpoint) } else { None }
    }

    fn turn(&mut self, now: Time, events: &mut Vec<Event>) -> bool {
        events.append(&mut self.pending);
        let mut busy = self.reap();
        self.hear(now);
        busy |= self.door.turn(self.epoll.as_fd(), now, &mut self.wire.counters);
        let mut ended = None;
        for (slot, endpoint) in &mut self.endpoints {
            if !endpoint.wants_turn(now) {
                continue;
            }
            match endpoint.turn(&mut self.wire, now) {
                Ok(turned) => {
                    busy |= turned.busy;
                    if turned.came_up {
                        events.push(Event::EndpointUp(endpoint.id));
                    }
                }
                // One a turn is rare enough; the others keep what they found and end in the next.
                Err(fault) => {
                    ended = Some((slot, fault));
                    break;
                }
            }
            events.extend(endpoint.done.drain(..).map(Event::Completed));
        }
        if let Some((slot, fault)) = ended {
            let endpoint = self.remove(slot);
            self.let_go(endpoint, fault, events);
            busy = true;
        }
        self.end_turn(events) || busy
    }

    fn next_deadline(&self) -> Option<Time> {
        // Who leaves has recalled operations, which a turn hands to the ring.
        if !self.pending.is_empty() || !self.leaving.is_empty() {
            return Some(Time::default());
        }
        let endpoints = self.endpoints.iter().map(|(_, endpoint)| endpoint.next_deadline());
        endpoints.chain([self.door.next_deadline()]).min().filter(|&first| first < Time::NEVER)
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(match &self.wire.ring {
            Some(ring) => ring.wait_fd(),
            None => self.epoll.as_fd(),
        })
    }
}

impl fmt::Debug for TcpTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpTransport")
            .field("door", &self.local_addr())
            .field("choice", &self.choice)
            .field("endpoints", &self.endpoints.len())
            .field("counters", &self.counters())
            .finish_non_exhaustive()
    }
}

/// The last events of an endpoint.
fn farewell(mut endpoint: TcpEndpoint, fault: Fault, events: &mut Vec<Event>) {
    events.extend(endpoint.done.drain(..).map(Event::Completed));
    events.push(Event::EndpointDown(endpoint.id, fault));
}

fn fault(error: &io::Error) -> Fault {
    error.raw_os_error().map_or(Fault::Io(0), |errno| wire::fault(rustix::io::Errno::from_raw_os_error(errno)))
}
