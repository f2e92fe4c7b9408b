//! Every block is read, and goes if it is not what was stored.
//!
//! ```text
//! host memory: poll_check -> [copying thread] -> handle_checked       disk: poll_disk -> [disk thread] -> handle_disk
//! ```
//!
//! A block that is read is held, so that its place stays its own; none is read that is being cleared. Limits:
//! [`CHECK_BYTES`] of host memory at a time, [`READS_MAX`] reads at the disk, one while engines read there too; a read needs
//! memory for one block.

use std::collections::HashMap;
use std::sync::Arc;

use kvferry_core::{Fingerprint, WorkId};
use kvferry_memory::{Meter, Region};

use super::sweeps::LOOKS;
use super::{DiskJob, SweepCount, SweepFilter, SweepProgress, Tier, Tiers};
use crate::cache::{Left, Stored, Walk};
use crate::disk::{self, DiskError, Span};
use crate::host;
use crate::store::{BlockHash, ClassId, Held as _, Store as _};

/// Bytes of host memory that are summed in one job: a fifth of a millisecond. In tests blocks are longer than one.
pub(super) const CHECK_BYTES: u64 = if cfg!(test) { 50_000 } else { 2 << 20 };
/// Reads at the disk at once: while one is summed, the disk is at the other.
const READS_MAX: usize = 2;
const PAGE: u64 = 4096;

/// Bytes of host memory to be summed.
#[derive(Debug)]
pub struct CheckJob {
    tag: u64,
    region: Arc<Region>,
    pieces: Vec<Piece>,
}

#[derive(Clone, Copy, Debug)]
struct Piece {
    /// Of what comes before it in its block.
    sum: u32,
    offset: u64,
    length: u64,
}

/// What became of a job.
#[derive(Debug)]
pub struct Checked {
    tag: u64,
    sums: Vec<u32>,
}

impl CheckJob {
    /// Sums, on the caller's thread.
    #[must_use]
    pub fn run(self) -> Checked {
        let sum = |piece: &Piece| self.region.crc32c(piece.sum, piece.offset, piece.length).ok();
        Checked { tag: self.tag, sums: self.pieces.iter().map_while(sum).collect() }
    }
}

/// The last one, and what it has out.
#[derive(Default)]
pub(super) struct Verifying {
    run: Option<Run>,
    /// Also those of one that has ended.
    summing: HashMap<u64, Vec<Summing>>,
    reading: HashMap<u64, Reading>,
    /// Memory that nobody reads into.
    spare: Vec<Arc<Region>>,
}

struct Run {
    filter: SweepFilter,
    progress: SweepProgress,
    walk: Option<(Tier, Walk)>,
    /// A block of which a part is summed.
    begun: Option<Summing>,
}

struct Summing {
    work: WorkId,
    class: ClassId,
    hash: BlockHash,
    block: host::Block,
    done: u64,
    sum: u32,
}

struct Reading {
    work: WorkId,
    class: ClassId,
    hash: BlockHash,
    region: Arc<Region>,
}

impl Verifying {
    pub(super) fn progress(&self) -> Option<SweepProgress> {
        self.run.as_ref().map(|run| run.progress)
    }

    /// Whether a read with this tag is one of these.
    pub(super) fn is_at(&self, tag: u64) -> bool {
        self.reading.contains_key(&tag)
    }

    /// Also where there is nothing to look at: its end is a slice's matter.
    pub(super) fn has_slice(&self) -> bool {
        self.running().is_some() && self.summing.is_empty() && self.reading.is_empty()
    }

    fn running(&self) -> Option<&Run> {
        self.run.as_ref().filter(|run| !run.progress.is_over)
    }

    fn running_mut(&mut self) -> Option<&mut Run> {
        self.run.as_mut().filter(|run| !run.progress.is_over)
    }

    /// Where a check that this one began is counted, unless it has ended.
    fn count(&mut self, of: WorkId, tier: Tier) -> Option<&mut SweepCount> {
        let run = self.running_mut().filter(|run| run.progress.work == of)?;
        Some(run.progress.count(tier))
    }

    fn whole(&mut self, of: WorkId, tier: Tier, bytes: u64) {
        if let Some(count) = self.count(of, tier) {
            count.blocks += 1;
            count.bytes += bytes;
        }
    }

    fn damaged(&mut self, of: WorkId, tier: Tier) {
        if let Some(count) = self.count(of, tier) {
            count.damaged += 1;
        }
    }

    fn unreadable(&mut self, of: WorkId, tier: Tier) {
        if let Some(count) = self.count(of, tier) {
            count.unreadable += 1;
        }
    }

    /// Whether a block of such a class is held.
    pub(super) fn has(&self, is_of: impl Fn(Tier, ClassId) -> bool) -> bool {
        let begun = self.running().and_then(|run| run.begun.as_ref());
        let mut host = self.summing.values().flatten().chain(begun).map(|of| of.class);
        let mut disk = self.reading.values().map(|of| of.class);
        host.any(|class| is_of(Tier::Host, class)) || disk.any(|class| is_of(Tier::Disk, class))
    }

    /// Memory for one block.
    fn memory(&mut self, bytes: u64) -> Option<Arc<Region>> {
        if let Some(fits) = self.spare.iter().position(|region| region.len() >= bytes) {
            return Some(self.spare.swap_remove(fits));
        }
        self.spare.clear();
        let fd = kvferry_memory::create("kvferry-verify", bytes).ok()?;
        Region::map(fd, bytes, &Meter::new()).ok()
    }
}

impl Tiers {
    pub(super) fn begin_verification(&mut self, progress: SweepProgress, filter: SweepFilter) {
        if let Some(before) = self.verifying.progress() {
            self.end_verification(before.work);
        }
        let first = if filter.is_in(Tier::Host) { Some((Tier::Host, self.host.walk())) } else { None };
        let walk = first.or_else(|| self.disk.as_ref().map(|disk| (Tier::Disk, disk.walk())));
        self.verifying.run = Some(Run { filter, progress, walk, begun: None });
    }

    pub(super) fn end_verification(&mut self, work: WorkId) {
        let Some(run) = self.verifying.running_mut().filter(|run| run.progress.work == work) else { return };
        run.progress.is_over = true;
        if let Some(begun) = run.begun.take() {
            self.host.unpin(&begun.block);
            self.drop_doomed();
        }
        self.verifying.spare.clear();
    }

    /// The next bytes of host memory to sum; every job is to be answered by [`handle_checked`](Self::handle_checked).
    pub fn poll_check(&mut self) -> Option<CheckJob> {
        if !self.verifying.summing.is_empty() {
            return None;
        }
        let (mut looks, mut bytes) = (LOOKS, 0);
        let (mut summing, mut pieces) = (Vec::new(), Vec::new());
        let mut next = self.verifying.running_mut()?.begun.take();
        while bytes < CHECK_BYTES {
            let Some(of) = next.take().or_else(|| self.next_of_host(&mut looks)) else { break };
            let length = (of.block.bytes - of.done).min(CHECK_BYTES - bytes);
            pieces.push(Piece { sum: of.sum, offset: of.block.offset + of.done, length });
            bytes += length;
            summing.push(of);
        }
        if summing.is_empty() {
            return None;
        }
        let tag = self.draw_tag();
        self.verifying.summing.insert(tag, summing);
        Some(CheckJob { tag, region: Arc::clone(self.host.store().region()), pieces })
    }

    fn next_of_host(&mut self, looks: &mut usize) -> Option<Summing> {
        loop {
            let run = self.verifying.running_mut()?;
            let (work, (Tier::Host, walk)) = (run.progress.work, run.walk.as_mut()?) else { return None };
            let Stored { class, hash, tenant } = self.host.step(walk, looks)?;
            if !self.is_to_be_read(Tier::Host, Stored { class, hash, tenant }) {
                continue;
            }
            let Some(block) = self.host.pin(class, &hash) else {
                // Its record is not what was written. It has gone, or goes.
                self.verifying.damaged(work, Tier::Host);
                self.doom(Tier::Host, class, hash, Left::Damaged);
                continue;
            };
            return Some(Summing { work, class, hash, block, done: 0, sum: 0 });
        }
    }

    fn is_to_be_read(&self, tier: Tier, Stored { class, hash, tenant }: Stored) -> bool {
        let fits = self.verifying.running().zip(self.fingerprint(tier, class));
        let is_meant = |(run, of): (&Run, Fingerprint)| run.filter.fits(of, tenant) && !self.is_to_be_cleared(of);
        fits.is_some_and(is_meant) && !self.doomed.contains(tier, class, &hash)
    }

    /// A block of this fingerprint of which a part is summed is held no longer, and not counted.
    pub(super) fn put_down_check(&mut self, fingerprint: Fingerprint) {
        let Some(run) = self.verifying.running_mut() else { return };
        let host = self.host.store();
        if let Some(begun) = run.begun.take_if(|begun| host.fingerprint(begun.class) == fingerprint) {
            self.host.unpin(&begun.block);
            self.drop_doomed();
        }
    }

    /// Bytes of host memory were summed.
    pub fn handle_checked(&mut self, checked: &Checked) {
        let Some(summing) = self.verifying.summing.remove(&checked.tag) else { return };
        let mut bytes = 0;
        for (place, mut of) in summing.into_iter().enumerate() {
            let length = (of.block.bytes - of.done).min(CHECK_BYTES - bytes);
            bytes += length;
            let Some(&sum) = checked.sums.get(place) else {
                self.host.unpin(&of.block);
                self.verifying.unreadable(of.work, Tier::Host);
                continue;
            };
            (of.done, of.sum) = (of.done + length, sum);
            let goes = self.fingerprint(Tier::Host, of.class).is_some_and(|of| self.is_to_be_cleared(of));
            let run = self.verifying.running_mut().filter(|run| run.progress.work == of.work && !goes);
            match run {
                Some(run) if of.done < of.block.bytes => run.begun = Some(of),
                None if of.done < of.block.bytes => {
                    self.host.unpin(&of.block);
                }
                _ if of.sum == of.block.checksum => {
                    self.host.unpin(&of.block);
                    self.verifying.whole(of.work, Tier::Host, of.block.bytes);
                }
                _ => {
                    self.verifying.damaged(of.work, Tier::Host);
                    if !self.host.discard(of.class, &of.hash, &of.block) {
                        self.doomed.insert(Tier::Host, of.class, of.hash, Left::Damaged);
                    }
                }
            }
        }
        self.drop_doomed();
        self.turn_verification();
    }

    /// The next block of the disk to read.
    pub(super) fn next_disk_check(&mut self) -> Option<DiskJob> {
        let reads_max = if self.promotions.reads() > 0 { 1 } else { READS_MAX };
        if self.verifying.reading.len() >= reads_max {
            return None;
        }
        let mut looks = LOOKS;
        loop {
            let run = self.verifying.running_mut()?;
            let (work, (Tier::Disk, walk)) = (run.progress.work, run.walk.as_mut()?) else { return None };
            let stored = self.disk.as_ref()?.step(walk, &mut looks)?;
            if !self.is_to_be_read(Tier::Disk, stored) {
                continue;
            }
            let Stored { class, hash, .. } = stored;
            let disk = self.disk.as_mut()?;
            let Some(block) = disk.pin(class, &hash) else { continue };
            let room = block.bytes().next_multiple_of(PAGE);
            let Some(region) = self.verifying.memory(room) else {
                disk.unpin(&block);
                self.verifying.unreadable(work, Tier::Disk);
                continue;
            };
            let tag = self.draw_tag();
            let span = Span { region: Arc::clone(&region), offset: 0, room };
            self.verifying.reading.insert(tag, Reading { work, class, hash, region });
            return Some(DiskJob::Read { tag, block, span });
        }
    }

    /// The disk has read a block that nobody wanted but to look at it.
    pub(super) fn handle_disk_check(&mut self, tag: u64, block: &disk::Block, outcome: Result<(), DiskError>) {
        let (Some(Reading { work, class, hash, region }), Some(disk)) =
            (self.verifying.reading.remove(&tag), &mut self.disk)
        else {
            return;
        };
        if self.verifying.running().is_some() {
            self.verifying.spare.push(region);
        }
        match outcome {
            Err(DiskError::Damaged | DiskError::Short) => {
                self.verifying.damaged(work, Tier::Disk);
                if !disk.discard(class, &hash, block) {
                    self.doomed.insert(Tier::Disk, class, hash, Left::Damaged);
                }
            }
            Ok(()) => {
                disk.unpin(block);
                self.verifying.whole(work, Tier::Disk, block.bytes());
            }
            Err(DiskError::Io(_) | DiskError::Outside) => {
                disk.unpin(block);
                self.verifying.unreadable(work, Tier::Disk);
            }
        }
        self.drop_doomed();
        self.turn_verification();
    }

    /// Goes from one tier to the next once everything was looked at, and ends behind the last.
    pub(super) fn turn_verification(&mut self) {
        let is_busy = !self.verifying.summing.is_empty() || !self.verifying.reading.is_empty();
        let Some(run) = self.verifying.running_mut().filter(|run| !is_busy && run.begun.is_none()) else { return };
        if let Some((tier, walk)) = run.walk {
            if !walk.is_over() {
                return;
            }
            let disk = self.disk.as_ref().filter(|_| tier == Tier::Host && run.filter.is_in(Tier::Disk));
            run.walk = disk.map(|disk| (Tier::Disk, disk.walk()));
        }
        if run.walk.is_none() {
            let work = run.progress.work;
            self.end_verification(work);
        }
    }
}
