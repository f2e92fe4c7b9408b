//! The holding side of an endpoint: serves parts of plans to the reader that fetches them.
//!
//! ```text
//! post -> (Fetch on a stream) -> ready -> piece: sum, then send while hot -> ready -> ... -> closing
//!                                                                                              |
//!       Completion Ok: every part's trailer said live  <--- Trailer, lease asked in a later turn
//!
//! pushed: post -> Offer on each stream with a part, ready at once -> ... as above ... -> Trailers -> (Receipts) -> Completion
//! ```
//!
//! The trailer is made in a later turn than the one in which the last byte left: that turn's `now` was read after the
//! byte left, so no clock is needed here. A work that ends early completes at once and its memory is not read again:
//! zeros fill the piece that was cut short, and the trailer says why.
//!
//! Limits: `works_max` works; as many early fetches a stream, each for `fetch_ahead_max`, then it is refused. Failure:
//! a reader that breaks the rules is [`Fault::Protocol`], which ends the endpoint.

mod push;
mod stop;

use std::collections::{HashMap, VecDeque};

use kvferry_core::plan::{Cursor, Side};
use kvferry_core::{Time, WorkId};
use kvferry_transport::{Completion, Fault, ServeWork, Start, Work, plan_fits};
use slab::Slab;

use crate::early::{EarlyFetches, Fetch};
use crate::frame::{Frame, HEADER_BYTES, Outcome, Tag};
use crate::outflow::{COPY_BYTES_MAX, Closing, Outflow, Outgoing};
use crate::pace::Pace;
use crate::serve::{Part, Serve};
use crate::settings::Settings;
use crate::share::Shares;
use crate::stream::Stream;
use crate::wire::{Body, Wire};

/// All serving of one endpoint.
pub(crate) struct HolderSide {
    serves: Slab<Serve>,
    ids: HashMap<WorkId, usize>,
    /// Fetches whose work has not been posted yet.
    early: EarlyFetches,
    /// Works that ended here because of what another thread met, before all parts were fetched: a fetch that comes late
    /// hears why. The oldest is forgotten first, and is unknown then.
    called_off: VecDeque<(WorkId, Outcome)>,
    outflows: Vec<Outflow>,
    pace: Pace,
    /// The stream to begin a turn with: the one behind the stream that began the last piece, so that a pace which
    /// lets one piece go at a time is shared by all.
    first: usize,
    /// Counts turns, to tell a later one.
    turn: u64,
    works_max: usize,
    piece_bytes: u64,
    checksums: bool,
    /// Answers a reader may leave unread on a stream before it is not listened to any more.
    control_bytes_max: usize,
}

impl HolderSide {
    /// Nothing to serve yet.
    pub(crate) fn new(stream_count: usize, settings: &Settings) -> Self {
        Self {
            serves: Slab::new(),
            ids: HashMap::new(),
            early: EarlyFetches::new(stream_count, settings),
            called_off: VecDeque::new(),
            outflows: (0..stream_count).map(|_| Outflow::new()).collect(),
            pace: Pace::new(settings.endpoint_bytes_per_second_max),
            first: 0,
            turn: 0,
            works_max: settings.works_max,
            piece_bytes: u64::from(settings.piece_bytes),
            checksums: settings.checksums,
            control_bytes_max: settings.works_max * 2 * HEADER_BYTES,
        }
    }

    /// Works that have not completed.
    pub(crate) fn open_count(&self) -> usize {
        self.serves.len()
    }

    /// Whether this stream has bytes to send, now or in the next turn.
    pub(crate) fn has_output(&self, stream: usize) -> bool {
        self.outflows[stream].has_output()
    }

    /// Whether this stream could send in the next turn; not while its next piece waits for the pace.
    pub(crate) fn can_send(&self, stream: usize) -> bool {
        let outflow = &self.outflows[stream];
        outflow.piece.is_some() || !outflow.closing.is_empty() || !outflow.ready.is_empty() && !self.pace.is_waiting
    }

    /// When a piece that waits for the pace may begin.
    pub(crate) const fn paced_until(&self) -> Time {
        self.pace.wakes_at()
    }

    /// Whether a trailer must be made in the next turn.
    pub(crate) fn has_trailer_due(&self, stream: usize) -> bool {
        !self.outflows[stream].closing.is_empty()
    }

    /// Whether a fetch waits for its work.
    pub(crate) fn has_early(&self) -> bool {
        !self.early.is_empty()
    }

    /// The earliest moment at which something here ends by itself.
    pub(crate) fn next_deadline(&self) -> Time {
        let works = self.serves.iter().map(|(_, serve)| serve.deadline);
        works.chain([self.early.next_deadline()]).min().unwrap_or(Time::NEVER)
    }

    /// Takes a work on, or as much of it as these streams carry; its bytes leave when the reader fetches them, or at
    /// once.
    pub(crate) fn post(
        &mut self,
        streams: &mut [Stream],
        serve: ServeWork,
        shares: Shares,
    ) -> Result<(), (Fault, Work)> {
        let refusal = if self.ids.contains_key(&serve.id) {
            Some(Fault::Refused)
        } else if self.serves.len() >= self.works_max {
            Some(Fault::Full)
        } else if !plan_fits(&serve.plan, Side::Source, &serve.source) {
            Some(Fault::OutOfBounds)
        } else {
            None
        };
        if let Some(fault) = refusal {
            return Err((fault, Work::Serve(serve)));
        }

        let bytes = shares.iter().flatten().map(|plan| plan.bytes()).sum();
        let parts_open = shares.iter().flatten().count();
        let part = |plan| Part {
            cursor: Cursor::new(plan, Side::Source),
            tag: None,
            sequence: 0,
            sent: 0,
            ended: false,
            received: false,
        };
        let slot = self.serves.insert(Serve {
            id: serve.id,
            source: serve.source,
            lease: serve.lease,
            deadline: serve.deadline,
            digest: serve.plan.digest(),
            bytes,
            parts: shares.into_iter().map(|share| share.map(part)).collect(),
            parts_open,
            is_pushed: serve.start == Start::Pushed,
        });
        self.ids.insert(serve.id, slot);
        match serve.start {
            Start::Fetched => {
                for fetch in self.early.take(serve.id) {
                    self.start(streams, slot, &fetch);
                }
            }
            Start::Pushed => self.offer(streams, slot),
        }
        Ok(())
    }

    /// Ends the works whose deadline has passed and refuses the fetches that waited too long.
    pub(crate) fn expire(&mut self, streams: &mut [Stream], now: Time, done: &mut Vec<Completion>) {
        let late = |(slot, serve): (usize, &Serve)| (serve.deadline <= now).then_some(slot);
        let slots: Vec<usize> = self.serves.iter().filter_map(late).collect();
        for slot in slots {
            self.end(streams, slot, Outcome::Deadline, Fault::Deadline, done);
        }
        self.early.expire(now, |fetch| streams[fetch.stream].push(&fetch.refusal()));
    }

    /// Ends every work: the endpoint is gone.
    pub(crate) fn end_all(&mut self, fault: Fault, done: &mut Vec<Completion>) {
        self.ids.clear();
        done.extend(self.serves.drain().map(|serve| Completion { id: serve.id, result: Err(fault) }));
    }

    /// The streams in the order in which they may send in this turn; there are none before the endpoint is up.
    pub(crate) fn stream_order(&self, stream_count: usize) -> impl Iterator<Item = usize> + use<> {
        let first = self.first.min(stream_count);
        (first..stream_count).chain(0..first)
    }

    /// A turn has begun, with a `now` that was read after everything of the last turn.
    pub(crate) const fn begin_turn(&mut self) {
        self.turn += 1;
        self.pace.is_waiting = false;
    }

    /// Whether the reader of this stream is listened to: not while it leaves too many answers unread.
    pub(crate) fn is_listening(&self, stream: &Stream) -> bool {
        stream.control().len() < self.control_bytes_max
    }

    /// Receives on one stream until it has no more, or `calls` system calls were made.
    pub(crate) fn receive(
        &mut self,
        streams: &mut [Stream],
        index: usize,
        wire: &mut Wire,
        now: Time,
        calls: u32,
        done: &mut Vec<Completion>,
    ) -> Result<(), Fault> {
        for _ in 0..calls {
            if !streams[index].is_readable() || !self.is_listening(&streams[index]) {
                break;
            }
            streams[index].receive(wire, &Body::None, 0, true, now)?;
            while let Some(frame) = streams[index].next_frame()? {
                self.handle_frame(streams, index, frame, now, done)?;
            }
        }
        Ok(())
    }

    fn handle_frame(
        &mut self,
        streams: &mut [Stream],
        index: usize,
        frame: Frame,
        now: Time,
        done: &mut Vec<Completion>,
    ) -> Result<(), Fault> {
        if streams[index].take_welcome(&frame)? {
            return Ok(());
        }
        match frame {
            Frame::Fetch { work, tag, digest } => {
                let fetch = Fetch { stream: index, work, tag, digest };
                if let Some(&slot) = self.ids.get(&work) {
                    self.start(streams, slot, &fetch);
                } else if let Some(&(_, outcome)) = self.called_off.iter().find(|(id, _)| *id == work) {
                    streams[index].push(&Frame::Trailer { work, tag, bytes: 0, digest, outcome }.encode());
                } else if !self.early.wait(fetch, now) {
                    streams[index].push(&fetch.refusal());
                }
                Ok(())
            }
            Frame::Cancel { work, tag } => {
                if self.early.cancel(index, work, tag) {
                    streams[index].push(&Frame::Refuse { work, tag }.encode());
                } else if let Some(&slot) = self.ids.get(&work) {
                    // A trailer may have crossed it, then there is nothing left to stop.
                    let part = self.serves[slot].parts[index].as_ref();
                    if part.is_some_and(|part| part.tag == Some(tag) && !part.ended) {
                        self.end(streams, slot, Outcome::Stopped, Fault::Cancelled, done);
                    }
                }
                Ok(())
            }
            Frame::Receipt { work, outcome } => self.handle_receipt(streams, index, work, outcome, done),
            Frame::Refuse { work, tag } if tag == Tag::PUSHED => {
                if let Some(slot) = self.pushed(work) {
                    self.end(streams, slot, Outcome::Stopped, Fault::Refused, done);
                }
                Ok(())
            }
            Frame::Hello { .. }
            | Frame::Offer { .. }
            | Frame::Piece { .. }
            | Frame::Refuse { .. }
            | Frame::Trailer { .. }
            | Frame::Welcome => Err(Fault::Protocol),
        }
    }

    /// Sends on one stream until it takes no more, or `calls` system calls were made.
    pub(crate) fn send(
        &mut self,
        streams: &mut [Stream],
        index: usize,
        wire: &mut Wire,
        now: Time,
        calls: u32,
        done: &mut Vec<Completion>,
    ) -> Result<(), Fault> {
        for _ in 0..calls {
            let has_closed = self.close_parts(streams, index, now, done);
            if !streams[index].is_writable() {
                return Ok(());
            }
            if self.outflows[index].piece.is_none() {
                self.begin_piece(streams, index, now, done)?;
            } else if let Some(slot) = self.outflows[index].piece.as_ref().and_then(|piece| piece.slot)
                && !self.serves[slot].lease.is_live(now)
            {
                self.end(streams, slot, Outcome::LeaseEnded, Fault::LeaseEnded, done);
            }
            let outflow = &mut self.outflows[index];
            if outflow.piece.is_none() && !streams[index].has_output() {
                return Ok(());
            }
            // The Offer of a small push goes with its bytes, one turn later; nothing waits for a second turn.
            if outflow.piece.is_none() && !has_closed && outflow.has_copies() {
                return Ok(());
            }
            let source = outflow.piece.as_ref().and_then(|piece| piece.slot).map(|slot| &self.serves[slot].source);
            if let Some(finished) = outflow.send(&mut streams[index], source, wire, now)? {
                self.handle_piece_sent(index, finished);
            }
        }
        Ok(())
    }

    /// Begins a part whose fetch and work have both come.
    fn start(&mut self, streams: &mut [Stream], slot: usize, fetch: &Fetch) {
        let (serve, outflow) = (&mut self.serves[slot], &mut self.outflows[fetch.stream]);
        match &mut serve.parts[fetch.stream] {
            Some(part) if part.tag.is_none() && fetch.tag != Tag::PUSHED && serve.digest == fetch.digest => {
                part.tag = Some(fetch.tag);
                outflow.enqueue(slot, part, self.turn);
            }
            // Another plan than ours, a part that this stream does not carry, or one that was fetched before.
            _ => streams[fetch.stream].push(&fetch.refusal()),
        }
    }

    /// Makes the next piece of whichever work's turn it is.
    fn begin_piece(
        &mut self,
        streams: &mut [Stream],
        index: usize,
        now: Time,
        done: &mut Vec<Completion>,
    ) -> Result<(), Fault> {
        if self.outflows[index].ready.is_empty() || !self.pace.admits(now) {
            return Ok(());
        }
        while let Some(slot) = self.outflows[index].ready.pop_front() {
            if !self.serves[slot].lease.is_live(now) {
                self.end(streams, slot, Outcome::LeaseEnded, Fault::LeaseEnded, done);
                continue;
            }
            let serve = &mut self.serves[slot];
            let Some(part) = &mut serve.parts[index] else { continue };
            let Some(tag) = part.tag else { continue };
            let outflow = &mut self.outflows[index];
            if part.cursor.remaining() <= COPY_BYTES_MAX {
                if !outflow.can_copy() {
                    outflow.ready.push_front(slot);
                    break;
                }
                let (copy, checksum) = outflow.copy(&mut part.cursor, &serve.source, self.checksums)?;
                let length = u32::try_from(copy.len() - HEADER_BYTES).map_err(|_| Fault::OutOfBounds)?;
                let piece = Frame::Piece { work: serve.id, tag, sequence: part.sequence, length, checksum };
                outflow.head(&copy, &piece.encode());
                outflow.closing.push_back(Closing { slot, turn: self.turn, copied: Some(copy) });
                self.pace.spend(now, length);
                if !self.pace.admits(now) {
                    break;
                }
                continue;
            }
            let length = self.outflows[index].load(&mut part.cursor, self.piece_bytes)?;
            let checksum = self.checksums.then(|| self.outflows[index].sum(&serve.source)).transpose()?;
            let piece = Frame::Piece { work: serve.id, tag, sequence: part.sequence, length, checksum };
            self.pace.spend(now, length);
            self.first = (index + 1) % self.outflows.len();
            part.sequence = part.sequence.wrapping_add(1);
            part.sent += u64::from(length);
            self.outflows[index].piece = Some(Outgoing {
                slot: Some(slot),
                header: piece.encode(),
                header_sent: 0,
                left: u64::from(length),
                is_posted: false,
            });
            break;
        }
        Ok(())
    }

    fn handle_piece_sent(&mut self, index: usize, slot: usize) {
        let Some(part) = &self.serves[slot].parts[index] else { return };
        self.outflows[index].enqueue(slot, part, self.turn);
    }

    /// Queues the trailers of the parts whose last byte left in an earlier turn. Whether there were any.
    fn close_parts(&mut self, streams: &mut [Stream], index: usize, now: Time, done: &mut Vec<Completion>) -> bool {
        let mut has_closed = false;
        while let Some(closing) = self.outflows[index].closing.pop_front_if(|closing| closing.turn < self.turn) {
            has_closed = true;
            let slot = closing.slot;
            // The bytes were read before this, on whatever processor: the gate must not be looked at any earlier.
            std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
            let serve = &mut self.serves[slot];
            if !serve.lease.is_live(now) {
                self.end(streams, slot, Outcome::LeaseEnded, Fault::LeaseEnded, done);
                continue;
            }
            if let Some(copy) = closing.copied
                && let Some(part) = &mut serve.parts[index]
            {
                part.sent += (copy.len() - HEADER_BYTES) as u64;
                streams[index].push(self.outflows[index].copied(copy));
            }
            streams[index].push(&serve.trailer(index, Outcome::Live));
            if !serve.is_pushed {
                self.close_part(slot, done);
            }
        }
        has_closed
    }

    /// One part has come to a good end; the last one completes the work.
    fn close_part(&mut self, slot: usize, done: &mut Vec<Completion>) {
        self.serves[slot].parts_open -= 1;
        if self.serves[slot].parts_open > 0 {
            return;
        }
        let serve = self.serves.remove(slot);
        self.ids.remove(&serve.id);
        done.push(Completion { id: serve.id, result: Ok(serve.bytes) });
    }

    /// Completes a work with a fault. Its memory is not read from here on.
    fn end(&mut self, streams: &mut [Stream], slot: usize, outcome: Outcome, fault: Fault, done: &mut Vec<Completion>) {
        let mut serve = self.serves.remove(slot);
        self.ids.remove(&serve.id);
        done.push(Completion { id: serve.id, result: Err(fault) });
        for (index, (stream, outflow)) in streams.iter_mut().zip(&mut self.outflows).enumerate() {
            outflow.forget(slot);
            let fetched = |part: &Part| part.tag.is_some() && !part.ended;
            if serve.parts[index].as_ref().is_some_and(fetched) {
                stream.push(&serve.trailer(index, outcome));
            }
        }
    }
}
