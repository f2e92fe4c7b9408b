//! One connected path to one peer: its streams, and the side of the transfer that this end is.
//!
//! ```text
//! dialler:  Dialing -- every stream welcomed --> Up -- any fault --> every work completes, EndpointDown
//! admitter: Joining -- every key was shown ----> Up -- any fault --> every work completes, EndpointDown
//! ```
//!
//! Either of them reads and the other serves. A fault of one stream ends the whole endpoint: its works are spread over all
//! of them.

use std::net::TcpStream;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kvferry_core::{Time, WorkId};
use kvferry_transport::{Admission, Completion, Dial, Endpoint, EndpointId, Fault, Key, Role, Work};
use rustix::event::epoll::EventFlags;

use crate::admission::{Caller, keys_match};
use crate::frame::Frame;
use crate::holder::HolderSide;
use crate::joint::Place;
use crate::reader::ReaderSide;
use crate::settings::Settings;
use crate::share::{Shares, shares};
use crate::stream::Stream;
use crate::tls::Channel;
use crate::token::Token;
use crate::uring::{Direction, Parting, Ring};
use crate::wire::Wire;

/// One endpoint of a [`TcpTransport`](crate::TcpTransport).
pub(crate) struct TcpEndpoint {
    pub(crate) id: EndpointId,
    /// Goes into the tokens of its streams.
    pub(crate) generation: u32,
    place: Place,
    phase: Phase,
    streams: Vec<Stream>,
    side: Side,
    /// Completions that no turn has reported yet.
    pub(crate) done: Vec<Completion>,
    /// Completions that wait until the ring has given memory back.
    parting: Parting,
    /// No deadline or stall before this.
    alarm: Time,
    /// There may be something to do.
    attention: bool,
    stall_max: Duration,
    /// How soon something can fall due that was not due before.
    notice_max: Duration,
    stream_calls_max: u32,
}

enum Phase {
    Dialing { deadline: Time },
    Joining { keys: Vec<Option<Key>>, streams: Vec<Option<Stream>>, expires: Time },
    Up,
}

enum Side {
    Holder(HolderSide),
    Reader(ReaderSide),
}

impl Side {
    fn new(role: Role, stream_count: usize, settings: &Settings) -> Self {
        match role {
            Role::Reads => Self::Reader(ReaderSide::new(stream_count, settings)),
            Role::Serves => Self::Holder(HolderSide::new(stream_count, settings)),
        }
    }
}

/// What a turn of an endpoint came to.
pub(crate) struct Turned {
    pub(crate) came_up: bool,
    pub(crate) busy: bool,
}

impl TcpEndpoint {
    /// The dialler's end, with sockets that may not be connected yet; they are the streams from `place` on.
    pub(crate) fn dialing(
        dial: &Dial,
        place: Place,
        sockets: Vec<TcpStream>,
        generation: u32,
        settings: &Settings,
        now: Time,
    ) -> Result<Self, Fault> {
        let mut streams = Vec::with_capacity(sockets.len());
        for ((index, socket), key) in (place.first..).zip(sockets).zip(&dial.keys) {
            let channel = settings.tls.as_ref().map(|tls| Channel::client(tls).map(Box::new)).transpose()?;
            let mut stream = Stream::new(socket, channel, false, now);
            // Leaves as soon as the socket is connected, which is when it first is writable.
            stream.push(&Frame::hello(dial.endpoint, index, key));
            streams.push(stream);
        }
        let side = Side::new(dial.role, streams.len(), settings);
        let phase = Phase::Dialing { deadline: dial.deadline };
        Ok(Self { alarm: dial.deadline, place, ..Self::new(dial.endpoint, generation, phase, streams, side, settings) })
    }

    /// The admitter's end, before anybody came; the streams from `place` on.
    pub(crate) fn joining(admission: &Admission, place: Place, generation: u32, settings: &Settings) -> Self {
        let count = admission.keys.len();
        let phase = Phase::Joining {
            keys: admission.keys.iter().copied().map(Some).collect(),
            streams: (0..count).map(|_| None).collect(),
            expires: admission.expires,
        };
        let side = Side::new(admission.role, count, settings);
        Self {
            alarm: admission.expires,
            place,
            ..Self::new(admission.endpoint, generation, phase, Vec::new(), side, settings)
        }
    }

    fn new(
        id: EndpointId,
        generation: u32,
        phase: Phase,
        streams: Vec<Stream>,
        side: Side,
        settings: &Settings,
    ) -> Self {
        Self {
            id,
            generation,
            place: Place::default(),
            phase,
            streams,
            side,
            done: Vec::new(),
            parting: Parting::default(),
            alarm: Time::NEVER,
            attention: true,
            stall_max: settings.stall_max,
            notice_max: settings.stall_max.min(settings.fetch_ahead_max),
            stream_calls_max: settings.stream_calls_max,
        }
    }

    pub(crate) const fn is_up(&self) -> bool {
        matches!(self.phase, Phase::Up)
    }

    /// Streams to register with epoll when dialling.
    pub(crate) fn streams(&self) -> &[Stream] {
        &self.streams
    }

    /// Puts streams that are not on the ring yet there: all of a dialler, or the one that has just joined.
    pub(crate) fn ride(&mut self, ring: &mut Ring, slot: usize, index: usize) -> std::io::Result<()> {
        let token = Token::Stream { slot, stream: index, generation: self.generation };
        match self.stream_mut(index) {
            Some(stream) => stream.ride(ring, token),
            None => Ok(()),
        }
    }

    /// Takes in that an operation of one stream has completed.
    pub(crate) fn handle_done(&mut self, index: usize, direction: Direction) {
        self.attention = true;
        if let Some(stream) = self.stream_mut(index) {
            stream.handle_done(direction);
        }
    }

    /// The endpoint has ended: true once nothing of it is in flight; then every completion is in `done`.
    pub(crate) fn part(&mut self, ring: Option<&mut Ring>) -> bool {
        let Some(ring) = ring else { return true };
        let mut lanes: Vec<usize> = self.streams.iter().flat_map(Stream::lanes).collect();
        if let Phase::Joining { streams, .. } = &self.phase {
            lanes.extend(streams.iter().flatten().flat_map(Stream::lanes));
        }
        self.parting.release(ring, &lanes, &mut self.done)
    }

    fn stream_mut(&mut self, index: usize) -> Option<&mut Stream> {
        match &mut self.phase {
            Phase::Joining { streams, .. } => streams.get_mut(index)?.as_mut(),
            Phase::Dialing { .. } | Phase::Up => self.streams.get_mut(index),
        }
    }

    /// Whether a turn has something to do.
    pub(crate) fn wants_turn(&self, now: Time) -> bool {
        self.attention || self.alarm <= now
    }

    /// When the next turn is due; the beginning of time if it is due now.
    pub(crate) fn next_deadline(&self) -> Time {
        if self.attention { Time::default() } else { self.alarm }
    }

    /// Takes in what epoll says of one stream.
    pub(crate) fn handle_flags(&mut self, index: usize, flags: EventFlags) {
        self.attention = true;
        if let Some(stream) = self.stream_mut(index) {
            stream.handle_flags(flags);
        }
    }

    /// Where a stream of the whole endpoint is in here, if it is.
    pub(crate) fn own_stream(&self, stream: u32) -> Option<usize> {
        let count = match &self.phase {
            Phase::Joining { keys, .. } => keys.len(),
            Phase::Dialing { .. } | Phase::Up => self.streams.len(),
        };
        usize::try_from(stream.checked_sub(self.place.first)?).ok().filter(|&index| index < count)
    }

    /// Whether this key opens this stream now; if so, it is used up.
    pub(crate) fn take_key(&mut self, index: usize, key: &Key, now: Time) -> bool {
        let Phase::Joining { keys, expires, .. } = &mut self.phase else { return false };
        let Some(slot) = keys.get_mut(index) else { return false };
        let is_good = *expires > now && slot.as_ref().is_some_and(|expected| keys_match(expected, key));
        if is_good {
            *slot = None;
        }
        is_good
    }

    /// A caller with a good key becomes a stream.
    pub(crate) fn join(&mut self, index: usize, caller: Caller, now: Time) {
        self.attention = true;
        if let Phase::Joining { streams, .. } = &mut self.phase {
            let mut stream = Stream::new(caller.socket, caller.tls, true, now);
            stream.put_ahead(&caller.ahead);
            stream.welcomed = true;
            stream.push(&Frame::Welcome.encode());
            streams[index] = Some(stream);
        }
    }

    /// Expires, receives, sends. A fault ends the endpoint.
    pub(crate) fn turn(&mut self, wire: &mut Wire, now: Time) -> Result<Turned, Fault> {
        self.attention = false;
        let was_up = self.is_up();
        self.advance_phase(wire, now)?;
        let alarmed = self.alarm <= now;
        if alarmed {
            match &mut self.side {
                Side::Holder(holder) => holder.expire(&mut self.streams, now, &mut self.done),
                Side::Reader(reader) => reader.expire(&mut self.streams, now, &mut self.done),
            }
        }
        self.move_bytes(wire, now)?;
        self.advance_phase(wire, now)?;
        if alarmed {
            self.check_stalls(now)?;
            self.alarm = self.next_alarm();
        }
        if let Some(ring) = &mut wire.ring {
            self.parting.hold(ring, self.streams.iter().flat_map(Stream::lanes), &mut self.done);
        }
        if let Side::Reader(reader) = &self.side {
            self.place.draining.store(reader.draining(), Ordering::Release);
        }
        self.attention = self.is_busy();
        Ok(Turned { came_up: self.is_up() && !was_up, busy: self.attention })
    }

    /// The endpoint is gone: every work completes.
    pub(crate) fn end(&mut self, fault: Fault) {
        match &mut self.side {
            Side::Holder(holder) => holder.end_all(fault, &mut self.done),
            Side::Reader(reader) => reader.end_all(fault, &mut self.done),
        }
    }

    fn advance_phase(&mut self, wire: &mut Wire, now: Time) -> Result<(), Fault> {
        match &mut self.phase {
            Phase::Up => return Ok(()),
            Phase::Dialing { deadline } => {
                if *deadline <= now {
                    return Err(Fault::Deadline);
                }
                if !self.streams.iter().all(|stream| stream.welcomed) {
                    return Ok(());
                }
                self.place.ups.fetch_add(1, Ordering::Release);
            }
            Phase::Joining { streams, expires, .. } => {
                if *expires <= now {
                    return Err(Fault::Deadline);
                }
                let is_whole = streams.iter().all(Option::is_some);
                // The last welcome, below, may bring a work that another thread is told of.
                self.place.ups.fetch_add(usize::from(is_whole), Ordering::Release);
                for stream in streams.iter_mut().flatten() {
                    if stream.is_hung_up() {
                        return Err(Fault::PeerClosed);
                    }
                    stream.flush(wire, now)?;
                    stream.watch(wire)?;
                }
                if !is_whole {
                    return Ok(());
                }
                self.streams = streams.drain(..).flatten().collect();
            }
        }
        self.phase = Phase::Up;
        self.alarm = Time::NEVER;
        Ok(())
    }

    fn move_bytes(&mut self, wire: &mut Wire, now: Time) -> Result<(), Fault> {
        let (streams, done, calls) = (&mut self.streams, &mut self.done, self.stream_calls_max);
        match &mut self.side {
            Side::Holder(holder) => {
                holder.begin_turn();
                for index in holder.stream_order(streams.len()) {
                    holder.receive(streams, index, wire, now, calls, done)?;
                    holder.send(streams, index, wire, now, calls, done)?;
                }
            }
            Side::Reader(reader) => {
                reader.begin_turn();
                for index in 0..streams.len() {
                    streams[index].flush(wire, now)?;
                    reader.receive(streams, index, wire, now, calls, done)?;
                }
                // Cancels of reads that failed on the way.
                for stream in streams {
                    stream.flush(wire, now)?;
                }
            }
        }
        if let Side::Holder(holder) = &self.side {
            self.alarm = self.alarm.min(holder.paced_until());
        }
        if self.has_open_business() {
            self.alarm = self.alarm.min(now.after(self.notice_max));
        }
        Ok(())
    }

    fn has_open_business(&self) -> bool {
        (0..self.streams.len()).any(|index| self.stall_at(index).is_some())
            || match &self.side {
                Side::Holder(holder) => holder.has_early(),
                Side::Reader(_) => false,
            }
    }

    /// When this stream counts as stalled unless bytes move; `None` if none are due.
    fn stall_at(&self, index: usize) -> Option<Time> {
        let stream = &self.streams[index];
        let has_output = stream.has_output();
        match &self.side {
            Side::Holder(holder) => {
                (has_output || holder.has_output(index)).then(|| stream.spoke.after(self.stall_max))
            }
            Side::Reader(reader) => reader.is_due(index).then(|| stream.heard.after(self.stall_max)),
        }
    }

    fn check_stalls(&mut self, now: Time) -> Result<(), Fault> {
        for index in 0..self.streams.len() {
            let is_late = self.is_up() && self.stall_at(index).is_some_and(|at| at <= now);
            let stream = &mut self.streams[index];
            // What the socket has ready was not looked at yet: that is our own delay.
            let ready = match self.side {
                Side::Holder(_) => stream.is_writable(),
                Side::Reader(_) => stream.is_readable(),
            };
            if is_late && !ready && !stream.look_for_any()? {
                return Err(Fault::Stalled);
            }
        }
        Ok(())
    }

    fn next_alarm(&self) -> Time {
        let side = match &self.side {
            Side::Holder(holder) => holder.next_deadline().min(holder.paced_until()),
            Side::Reader(reader) => reader.next_deadline(),
        };
        let stalls = (0..self.streams.len()).filter_map(|index| self.stall_at(index));
        let phase = match &self.phase {
            Phase::Dialing { deadline } => *deadline,
            Phase::Joining { expires, .. } => *expires,
            Phase::Up => Time::NEVER,
        };
        stalls.chain([side, phase]).min().unwrap_or(Time::NEVER)
    }

    fn is_busy(&self) -> bool {
        self.streams.iter().enumerate().any(|(index, stream)| {
            let has_control = stream.is_writable() && stream.has_output();
            has_control
                || match &self.side {
                    Side::Holder(holder) => {
                        stream.is_readable() && holder.is_listening(stream)
                            || holder.has_trailer_due(index)
                            || stream.is_writable() && holder.can_send(index)
                    }
                    Side::Reader(reader) => stream.is_readable() || reader.is_in_doubt(index),
                }
        })
    }
}

impl TcpEndpoint {
    /// Takes on as much of a work as its streams carry.
    pub(crate) fn post_shares(&mut self, now: Time, work: Work, shares: Shares) -> Result<(), (Fault, Work)> {
        let deadline = work.deadline();
        match (&mut self.side, work) {
            (Side::Holder(holder), Work::Serve(serve)) => holder.post(&mut self.streams, serve, shares)?,
            (Side::Reader(reader), Work::Read(read)) => reader.post(&mut self.streams, now, read, shares)?,
            (_, work) => return Err((Fault::Unsupported, work)),
        }
        self.attention = true;
        self.alarm = self.alarm.min(deadline);
        Ok(())
    }

    /// Ends a work early, for this reason; an id that is not in flight is ignored.
    pub(crate) fn stop(&mut self, id: WorkId, fault: Fault) {
        match &mut self.side {
            Side::Holder(holder) => holder.stop(&mut self.streams, id, fault, &mut self.done),
            Side::Reader(reader) => reader.stop(&mut self.streams, id, fault, &mut self.done),
        }
        self.attention = true;
    }
}

impl Endpoint for TcpEndpoint {
    fn post(&mut self, now: Time, work: Work) -> Result<(), (Fault, Work)> {
        let shares = shares(work.plan(), self.streams.len());
        self.post_shares(now, work, shares)
    }

    fn cancel(&mut self, _now: Time, id: WorkId) {
        self.stop(id, Fault::Cancelled);
    }

    fn in_flight(&self) -> usize {
        let open = match &self.side {
            Side::Holder(holder) => holder.open_count(),
            Side::Reader(reader) => reader.open_count(),
        };
        open + self.done.len() + self.parting.len()
    }
}
