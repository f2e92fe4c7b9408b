//! The reading side of an endpoint: fetches parts of plans and lands their bytes in the target region.
//!
//! ```text
//! post -> Fetch on each stream with a part -> Piece -> bytes into the target, summed while hot -> ... -> Trailer
//!                                                                                                         |
//!                      Completion Ok: every part's trailer live, all bytes, all checksums, same plan  <---+
//!
//! pushed: post -> (Offer on a stream) -> Piece -> ... as above ... -> a Receipt for each part, and Completion
//! ```
//!
//! A read that failed or was cancelled completes at once and lets go of its region. Its slot stays until each of its
//! parts has ended on the wire; what still comes for it is thrown away, so that the streams stay in step.
//!
//! A push that nobody waits for is refused, and a slot without an owner throws its bytes away. It is looked for once
//! more in the next turn first: a read that was posted on another thread may be on its way here.
//!
//! Limits: `works_max` slots, and as many for refused pushes. Failure: a peer that breaks the rules is [`Fault::Protocol`], which ends the endpoint.

use std::collections::HashMap;

use kvferry_core::plan::{Cursor, Side};
use kvferry_core::{Time, WorkId};
use kvferry_transport::{Completion, Fault, ReadWork, Source, Work, plan_fits};
use slab::Slab;

use crate::frame::{Frame, Outcome, Tag};
use crate::inflow::Inflow;
use crate::read::{Part, Phase, Read, receipt_of};
use crate::settings::Settings;
use crate::share::Shares;
use crate::stream::Stream;
use crate::wire::{Body, Wire};

/// All reads of one endpoint.
pub(crate) struct ReaderSide {
    reads: Slab<Read>,
    /// Reads that have not completed.
    ids: HashMap<WorkId, usize>,
    /// Goes into every tag, so that a slot's next read is not taken for its last.
    generation: u32,
    inflows: Vec<Inflow>,
    /// Counts turns, to tell a later one.
    turn: u64,
    /// Slots of reads that are pushed, by the holder's work; refused ones too.
    pushed: HashMap<WorkId, usize>,
    works_max: usize,
    /// Pieces without a checksum are a fault.
    checksums: bool,
}

impl ReaderSide {
    /// No reads yet.
    pub(crate) fn new(stream_count: usize, settings: &Settings) -> Self {
        Self {
            reads: Slab::new(),
            ids: HashMap::new(),
            generation: 0,
            inflows: (0..stream_count).map(|_| Inflow::new()).collect(),
            turn: 0,
            pushed: HashMap::new(),
            works_max: settings.works_max,
            checksums: settings.checksums,
        }
    }

    /// Reads that have not completed.
    pub(crate) fn open_count(&self) -> usize {
        self.ids.len()
    }

    /// Reads that have completed, of which bytes may still come.
    pub(crate) fn draining(&self) -> usize {
        self.reads.len() - self.ids.len()
    }

    /// A turn has begun, after all that was posted before it.
    pub(crate) const fn begin_turn(&mut self) {
        self.turn += 1;
    }

    /// Whether an offer on this stream is looked at again in the next turn.
    pub(crate) fn is_in_doubt(&self, stream: usize) -> bool {
        self.inflows[stream].doubted.is_some()
    }

    /// Whether bytes must come on this stream.
    pub(crate) fn is_due(&self, stream: usize) -> bool {
        self.inflows[stream].due > 0
    }

    /// The earliest deadline of a read.
    pub(crate) fn next_deadline(&self) -> Time {
        self.ids.values().map(|&slot| self.reads[slot].deadline).min().unwrap_or(Time::NEVER)
    }

    /// Takes a read on, or as much of it as these streams carry, and asks the holder for it.
    pub(crate) fn post(
        &mut self,
        streams: &mut [Stream],
        now: Time,
        read: ReadWork,
        shares: Shares,
    ) -> Result<(), (Fault, Work)> {
        let (work, is_pushed) = match read.source {
            Source::Peer { work } => (work, false),
            Source::Pushed { work } => (work, true),
            Source::Region { .. } => return Err((Fault::Unsupported, Work::Read(read))),
        };
        let refusal = if self.ids.contains_key(&read.id) || is_pushed && self.pushed.contains_key(&work) {
            Some(Fault::Refused)
        } else if self.reads.len() >= self.works_max {
            Some(Fault::Full)
        } else if !plan_fits(&read.plan, Side::Target, &read.target) {
            Some(Fault::OutOfBounds)
        } else {
            None
        };
        if let Some(fault) = refusal {
            return Err((fault, Work::Read(read)));
        }

        self.generation = self.generation.wrapping_add(1);
        let entry = self.reads.vacant_entry();
        let slot = entry.key();
        let tag = if is_pushed { Tag::PUSHED } else { Tag(u64::from(self.generation) << 32 | slot as u64) };
        let parts_left = shares.iter().flatten().count();
        let digest = read.plan.digest();
        let mut parts = Vec::with_capacity(streams.len());
        for ((share, stream), inflow) in shares.into_iter().zip(streams).zip(&mut self.inflows) {
            let phase = match share {
                None => Phase::Closed,
                Some(_) if is_pushed => Phase::Expected,
                Some(_) => {
                    stream.push(&Frame::Fetch { work, tag, digest }.encode());
                    inflow.owe(stream, now);
                    Phase::Open
                }
            };
            let bytes = share.as_ref().map_or(0, |plan| plan.bytes());
            parts.push(Part {
                phase,
                bytes,
                unannounced: bytes,
                sequence: 0,
                corrupt: false,
                cursor: share.map(|plan| Cursor::new(plan, Side::Target)),
            });
        }
        entry.insert(Read {
            id: read.id,
            work,
            tag,
            digest,
            bytes: parts.iter().map(|part| part.bytes).sum(),
            deadline: read.deadline,
            target: Some(read.target),
            is_refused: false,
            parts,
            parts_left,
        });
        self.ids.insert(read.id, slot);
        if is_pushed {
            self.pushed.insert(work, slot);
        }
        Ok(())
    }

    /// Ends a read early, for this reason, if it has not ended.
    pub(crate) fn stop(&mut self, streams: &mut [Stream], id: WorkId, fault: Fault, done: &mut Vec<Completion>) {
        if let Some(&slot) = self.ids.get(&id) {
            self.fail(streams, slot, fault, done);
        }
    }

    /// Ends the reads whose deadline has passed.
    pub(crate) fn expire(&mut self, streams: &mut [Stream], now: Time, done: &mut Vec<Completion>) {
        let late = |slot: &usize| self.reads[*slot].deadline <= now;
        let slots: Vec<usize> = self.ids.values().copied().filter(late).collect();
        for slot in slots {
            self.fail(streams, slot, Fault::Deadline, done);
        }
    }

    /// Ends every read: the endpoint is gone.
    pub(crate) fn end_all(&mut self, fault: Fault, done: &mut Vec<Completion>) {
        done.extend(self.ids.drain().map(|(id, _)| Completion { id, result: Err(fault) }));
        self.reads.clear();
        self.pushed.clear();
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
            self.use_ahead(streams, index, now, done)?;
            if self.is_in_doubt(index) {
                return Ok(());
            }
            let stream = &mut streams[index];
            if !stream.is_readable() {
                return stream.gather(self.inflows[index].left());
            }
            let inflow = &mut self.inflows[index];
            let Some(slot) = inflow.slot() else {
                stream.receive(wire, &Body::None, 0, true, now)?;
                continue;
            };
            let read = &mut self.reads[slot];
            let part = &mut read.parts[index];
            let left = inflow.left();
            if let Some(target) = &read.target {
                inflow.refill(part.cursor.as_mut());
                let (slices, bytes) = inflow.slices();
                let landed = stream.receive(wire, &Body::Region(target, slices), bytes, bytes == left, now)?;
                inflow.land(target, landed)?;
            } else {
                let dropped = stream.receive(wire, &Body::Void(left), left, true, now)?;
                inflow.drop_bytes(dropped);
            }
            part.corrupt |= inflow.end_piece() == Some(false);
        }
        self.use_ahead(streams, index, now, done)?;
        streams[index].gather(self.inflows[index].left())
    }

    /// Acts on everything that was read ahead.
    fn use_ahead(
        &mut self,
        streams: &mut [Stream],
        index: usize,
        now: Time,
        done: &mut Vec<Completion>,
    ) -> Result<(), Fault> {
        loop {
            let inflow = &mut self.inflows[index];
            let Some(slot) = inflow.slot() else {
                let Some(frame) = streams[index].next_frame()? else { return Ok(()) };
                if self.doubts(index, &frame) {
                    streams[index].unread_frame();
                    return Ok(());
                }
                self.handle_frame(streams, index, frame, now, done)?;
                continue;
            };
            if !streams[index].has_ahead() {
                return Ok(());
            }
            let read = &mut self.reads[slot];
            let part = &mut read.parts[index];
            if let Some(target) = &read.target {
                inflow.refill(part.cursor.as_mut());
                let Some(slice) = inflow.slices().0.first().copied() else { return Err(Fault::Protocol) };
                let bytes = streams[index].take_ahead(slice.length);
                target.write(slice.offset, bytes).map_err(|_| Fault::OutOfBounds)?;
                let length = bytes.len() as u64;
                inflow.land(target, length)?;
            } else {
                let dropped = streams[index].take_ahead(inflow.left()).len() as u64;
                inflow.drop_bytes(dropped);
            }
            part.corrupt |= inflow.end_piece() == Some(false);
        }
    }

    /// Whether a frame offers what nobody waits for, and is seen in this turn for the first time.
    fn doubts(&mut self, index: usize, frame: &Frame) -> bool {
        let unknown = matches!(frame, Frame::Offer { work, .. } if !self.pushed.contains_key(work));
        let doubted = &mut self.inflows[index].doubted;
        let first_seen = unknown.then(|| doubted.unwrap_or(self.turn));
        *doubted = first_seen.filter(|&turn| turn == self.turn);
        doubted.is_some()
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
            Frame::Offer { work, digest } => self.handle_offer(streams, index, (work, digest), now, done),
            Frame::Piece { work, tag, sequence, length, checksum } => {
                let slot = self.open_part(index, work, tag)?;
                let part = &mut self.reads[slot].parts[index];
                let length = u64::from(length);
                let is_unsummed = self.checksums && checksum.is_none();
                if sequence != part.sequence || length == 0 || length > part.unannounced || is_unsummed {
                    return Err(Fault::Protocol);
                }
                part.sequence = part.sequence.wrapping_add(1);
                part.unannounced -= length;
                self.inflows[index].begin(slot, length, checksum);
                Ok(())
            }
            Frame::Trailer { work, tag, bytes, digest, outcome } => {
                let slot = self.open_part(index, work, tag)?;
                let fault = self.reads[slot].judge(index, bytes, digest, outcome)?;
                self.close_part(streams, index, slot, fault, done);
                Ok(())
            }
            Frame::Refuse { work, tag } => {
                let slot = self.open_part(index, work, tag)?;
                self.close_part(streams, index, slot, Some(Fault::Refused), done);
                Ok(())
            }
            Frame::Cancel { .. }
            | Frame::Fetch { .. }
            | Frame::Hello { .. }
            | Frame::Receipt { .. }
            | Frame::Welcome => Err(Fault::Protocol),
        }
    }

    /// The holder begins to push on this stream: into the read that expects it, or into the void.
    fn handle_offer(
        &mut self,
        streams: &mut [Stream],
        index: usize,
        (work, digest): (WorkId, u64),
        now: Time,
        done: &mut Vec<Completion>,
    ) -> Result<(), Fault> {
        let slot = match self.pushed.get(&work) {
            Some(&slot) => slot,
            None if self.reads.len() >= self.works_max * 2 => return Err(Fault::Protocol),
            None => {
                let slot = self.reads.insert(Read::refused(work, streams.len()));
                self.pushed.insert(work, slot);
                slot
            }
        };
        let read = &mut self.reads[slot];
        let is_refused = read.is_refused;
        let part = &mut read.parts[index];
        match part.phase {
            Phase::Expected => {}
            Phase::Closed if is_refused => read.parts_left += 1,
            Phase::Closed | Phase::Open => return Err(Fault::Protocol),
        }
        part.phase = Phase::Open;
        self.inflows[index].owe(&mut streams[index], now);
        if is_refused {
            streams[index].push(&Frame::Refuse { work, tag: Tag::PUSHED }.encode());
        } else if read.target.is_none() {
            streams[index].push(&Frame::Receipt { work, outcome: Outcome::Withdrawn }.encode());
        } else if digest != read.digest {
            self.fail(streams, slot, Fault::Refused, done);
        }
        Ok(())
    }

    /// The read a frame is about, if this stream still owes it something.
    fn open_part(&self, index: usize, work: WorkId, tag: Tag) -> Result<usize, Fault> {
        let slot = if tag == Tag::PUSHED {
            *self.pushed.get(&work).ok_or(Fault::Protocol)?
        } else {
            usize::try_from(tag.0 & u64::from(u32::MAX)).map_err(|_| Fault::Protocol)?
        };
        let known = |read: &&Read| read.tag == tag && read.work == work && read.parts[index].phase == Phase::Open;
        self.reads.get(slot).filter(known).map(|_| slot).ok_or(Fault::Protocol)
    }

    fn close_part(
        &mut self,
        streams: &mut [Stream],
        index: usize,
        slot: usize,
        fault: Option<Fault>,
        done: &mut Vec<Completion>,
    ) {
        self.inflows[index].due -= 1;
        let read = &mut self.reads[slot];
        read.parts[index].phase = Phase::Closed;
        read.parts_left -= 1;
        if read.tag == Tag::PUSHED && read.target.is_some() {
            let outcome = fault.map_or(Outcome::Live, receipt_of);
            streams[index].push(&Frame::Receipt { work: read.work, outcome }.encode());
        }
        if let Some(fault) = fault {
            self.fail(streams, slot, fault, done);
        }
        if self.reads.get(slot).is_some_and(|read| read.parts_left == 0) {
            let read = self.remove(slot);
            if read.target.is_some() {
                self.ids.remove(&read.id);
                done.push(Completion { id: read.id, result: Ok(read.bytes) });
            }
        }
    }

    /// Completes a read with a fault, unless it has completed, and lets go of its memory. What it is still owed comes
    /// to nothing.
    fn fail(&mut self, streams: &mut [Stream], slot: usize, fault: Fault, done: &mut Vec<Completion>) {
        let read = &mut self.reads[slot];
        if read.target.take().is_none() {
            return;
        }
        self.ids.remove(&read.id);
        done.push(Completion { id: read.id, result: Err(fault) });
        for part in &mut read.parts {
            part.cursor = None;
        }
        if read.tag == Tag::PUSHED && read.parts.iter().all(|part| part.phase == Phase::Expected || part.bytes == 0) {
            // The holder has said nothing of it; should it begin, nobody waits for it here.
            self.remove(slot);
            return;
        }
        let word = if read.tag == Tag::PUSHED {
            Frame::Receipt { work: read.work, outcome: receipt_of(fault) }
        } else {
            Frame::Cancel { work: read.work, tag: read.tag }
        };
        for (part, stream) in read.parts.iter().zip(streams) {
            if part.phase == Phase::Open {
                stream.push(&word.encode());
            }
        }
    }

    fn remove(&mut self, slot: usize) -> Read {
        let read = self.reads.remove(slot);
        if read.tag == Tag::PUSHED {
            self.pushed.remove(&read.work);
        }
        read
    }
}
