//! Blocks on their way from host memory to the disk, which stay in host memory too.
//!
//! ```text
//! used a second time, or likely to be -> wanted -> held, a place on the disk -> written -> sealed
//! ```
//!
//! Never everything: a disk has few writes in it, and a block that is used once is the common one. What host memory gives
//! up before it was used twice is gone. Limits: [`WANTED_MAX`] wait, and what comes beyond is not written;
//! [`WRITES_MAX`] at the disk, so that whoever reads waits behind few. Failure: the block is not on the disk.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use kvferry_core::Time;

use super::promotions::Name;
use super::{DiskJob, Kind, Tiers};
use crate::cache::NotAdmitted;
use crate::disk::{self, DiskError, Span};
use crate::host;
use crate::store::{BlockHash, Held as _};

/// Writes of blocks at the disk at once.
const WRITES_MAX: usize = 4;
/// Blocks that wait for the disk.
const WANTED_MAX: usize = 1 << 16;
const PAGE: u64 = 4096;

/// See the module.
#[derive(Default)]
pub(super) struct Demotions {
    turns: VecDeque<(Name, Option<BlockHash>)>,
    wanted: HashSet<Name>,
    writing: HashMap<u64, Writing>,
}

struct Writing {
    name: Name,
    block: host::Block,
    parent: Option<BlockHash>,
    /// What the disk has is to be forgotten.
    is_void: bool,
}

impl Demotions {
    fn want(&mut self, name: Name, parent: Option<BlockHash>) {
        if self.turns.len() < WANTED_MAX && self.wanted.insert(name) {
            self.turns.push_back((name, parent));
        }
    }

    /// Whether something of such a kind is at the disk.
    pub(super) fn has(&self, is_of: impl Fn(&Kind) -> bool) -> bool {
        self.writing.values().any(|writing| is_of(&writing.name.0))
    }

    /// What is on its way of such blocks is to be forgotten.
    pub(super) fn void(&mut self, is_of: impl Fn(&Name) -> bool) {
        self.turns.retain(|(name, _)| !is_of(name));
        self.wanted.retain(|name| !is_of(name));
        self.writing.values_mut().for_each(|writing| writing.is_void |= is_of(&writing.name));
    }

    /// Whether something is at the disk that is to be forgotten.
    pub(super) fn has_void(&self) -> bool {
        self.writing.values().any(|writing| writing.is_void)
    }
}

impl Tiers {
    /// A block that is in host memory was used again, or is likely to be.
    pub(super) fn want_on_disk(&mut self, name: Name, parent: Option<BlockHash>) {
        if let (Some(disk), Some(class)) = (&self.disk, name.0.disk)
            && !disk.contains(class, &name.1)
        {
            self.demotions.want(name, parent);
        }
    }

    /// The next block to write.
    pub(super) fn next_write(&mut self, now: Time) -> Option<DiskJob> {
        while self.demotions.writing.len() < WRITES_MAX {
            let (name, parent) = self.demotions.turns.pop_front()?;
            self.demotions.wanted.remove(&name);
            let (kind, hash) = name;
            if self.is_kept_from_disk(kind.host, &hash) {
                continue;
            }
            let (Some(disk), Some(class)) = (&mut self.disk, kind.disk) else { continue };
            // It may have left host memory.
            let Some(block) = self.host.pin(kind.host, &hash) else { continue };
            let tenant = self.host.owner(kind.host, &hash).unwrap_or_default();
            let filling = match disk.admit(now, class, hash, parent, tenant) {
                Ok(filling) => filling,
                Err(refused) => {
                    self.host.unpin(&block);
                    if refused == NotAdmitted::NotYet {
                        // A file is being made. Who stands behind this block must not go first.
                        self.demotions.wanted.insert(name);
                        self.demotions.turns.push_front((name, parent));
                        return None;
                    }
                    continue;
                }
            };
            let region = Arc::clone(self.host.store().region());
            let span = Span { region, offset: block.offset, room: block.bytes.next_multiple_of(PAGE) };
            let tag = self.draw_tag();
            self.demotions.writing.insert(tag, Writing { name, block, parent, is_void: false });
            return Some(DiskJob::Write { tag, filling, span });
        }
        None
    }

    /// The disk has taken a block, or not.
    pub(super) fn handle_written(&mut self, tag: u64, filling: disk::Filling, outcome: Result<(), DiskError>) {
        let Some(Writing { block, parent, is_void, .. }) = self.demotions.writing.remove(&tag) else { return };
        self.host.unpin(&block);
        if let Some(disk) = &mut self.disk {
            match outcome {
                Ok(()) if !is_void => {
                    disk.seal(filling, block.checksum(), parent);
                }
                _ => disk.abandon(filling),
            }
        }
        self.drop_doomed();
    }
}
