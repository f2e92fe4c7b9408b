//! Whose blocks a chunk holds, and which places are free.
//!
//! A class that has no chunk gets one of another, as soon as nothing in it is held or being filled. Where every chunk has
//! something that is, one is closed: it takes no block any more, and is kept for a class that has none.

use kvferry_core::Fingerprint;
use kvferry_memory::Region;
use zerocopy::IntoBytes as _;

use super::geometry::{Cut, Geometry};
use super::record::{self, ChunkEntry, State};
use crate::store::{CLASSES_MAX, ClassId};

/// A slot of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub(super) chunk: u32,
    pub(super) slot: u32,
}

#[derive(Default)]
pub(super) struct Classes {
    classes: Vec<Class>,
    chunks: Vec<Chunk>,
    /// Chunks of no class.
    free: Vec<u32>,
    /// Takes no block any more, and goes to a class that has no chunk.
    closed: Option<u32>,
}

struct Class {
    key: (Fingerprint, u32, u64),
    cut: Cut,
    /// How many it has.
    chunks: u32,
    /// Chunks with a free place; the last one is filled first.
    open: Vec<u32>,
}

/// What a chunk is at the moment.
#[derive(Default)]
struct Chunk {
    class: Option<ClassId>,
    free: Vec<u32>,
    /// Places that are being filled, or whose block is held.
    busy: u32,
}

/// A chunk that has a class.
#[derive(Clone, Copy)]
pub(super) struct Used {
    pub(super) chunk: u32,
    pub(super) class: ClassId,
    /// Places that are not free.
    pub(super) taken: u32,
    /// Of those: being filled, or held.
    pub(super) busy: u32,
}

impl Classes {
    /// As many chunks, all free.
    pub(super) fn new(chunks: u32) -> Self {
        let free = (0..chunks).rev().collect();
        Self { classes: Vec::new(), chunks: (0..chunks).map(|_| Chunk::default()).collect(), free, closed: None }
    }

    pub(super) fn find_or_add(
        &mut self,
        geometry: Geometry,
        fingerprint: Fingerprint,
        group: u32,
        block_bytes: u64,
    ) -> Option<ClassId> {
        let key = (fingerprint, group, block_bytes);
        let known = self.classes.iter().position(|class| class.key == key);
        let place = match known {
            Some(place) => place,
            None if block_bytes == 0 || self.classes.len() >= CLASSES_MAX => return None,
            None => {
                let cut = geometry.cut(block_bytes)?;
                self.classes.push(Class { key, cut, chunks: 0, open: Vec::new() });
                self.classes.len() - 1
            }
        };
        u16::try_from(place).ok().map(ClassId)
    }

    fn class(&self, class: ClassId) -> &Class {
        &self.classes[usize::from(class.0)]
    }

    pub(super) fn fingerprint(&self, class: ClassId) -> Fingerprint {
        self.class(class).key.0
    }

    pub(super) fn block_bytes(&self, class: ClassId) -> u64 {
        self.class(class).key.2
    }

    /// How chunks of this class are cut.
    pub(super) fn class_cut(&self, class: ClassId) -> Cut {
        self.class(class).cut
    }

    /// How a chunk that has a class is cut.
    pub(super) fn cut(&self, chunk: u32) -> Cut {
        let class = self.chunks[chunk as usize].class.unwrap_or(ClassId(0));
        self.class(class).cut
    }

    pub(super) fn has_chunks(&self, class: ClassId) -> bool {
        self.class(class).chunks > 0
    }

    pub(super) fn in_use(&self) -> impl Iterator<Item = Used> + '_ {
        (0..).zip(&self.chunks).filter_map(|(chunk, Chunk { class, free, busy })| {
            let class = (*class)?;
            // A chunk has as many free places at most.
            let free = u32::try_from(free.len()).unwrap_or(u32::MAX);
            Some(Used { chunk, class, taken: self.class(class).cut.slots.saturating_sub(free), busy: *busy })
        })
    }

    /// Chunks that others may have to give to this class: no class's last one, unless this one has none and no other two.
    fn of_others(&self, class: ClassId) -> impl Iterator<Item = Used> + '_ {
        let takes_last = !self.has_chunks(class) && self.classes.iter().all(|class| class.chunks < 2);
        let is_meant = move |used: &Used| used.class != class && (takes_last || self.class(used.class).chunks > 1);
        self.in_use().filter(is_meant)
    }

    /// Of those with no place that is held or being filled, the one with the fewest blocks.
    pub(super) fn idle(&self, class: ClassId) -> Option<Used> {
        self.of_others(class).filter(|used| used.busy == 0).min_by_key(|used| used.taken)
    }

    /// The closed chunk, for a class that has none; one that should be free soon is closed where none is.
    pub(super) fn close(&mut self, class: ClassId) -> Option<Used> {
        if let Some(closed) = self.closed {
            return self.in_use().find(|used| used.chunk == closed);
        }
        let used = self.of_others(class).min_by_key(|used| (used.busy, used.taken))?;
        self.closed = Some(used.chunk);
        self.classes[usize::from(used.class.0)].open.retain(|&open| open != used.chunk);
        Some(used)
    }

    pub(super) const fn has_closed(&self) -> bool {
        self.closed.is_some()
    }

    pub(super) fn is_closed(&self, chunk: u32) -> bool {
        self.closed == Some(chunk)
    }

    /// Nobody waits for the closed chunk any more.
    fn reopen(&mut self) {
        let Some(chunk) = self.closed.take() else { return };
        let Chunk { class, free, .. } = &self.chunks[chunk as usize];
        if let Some(class) = class
            && !free.is_empty()
        {
            self.classes[usize::from(class.0)].open.push(chunk);
        }
    }

    /// A place of the chunk is being filled, or its block is held.
    pub(super) fn busy(&mut self, chunk: u32) {
        self.chunks[chunk as usize].busy += 1;
    }

    /// It is so no more.
    pub(super) fn idles(&mut self, chunk: u32) {
        let busy = &mut self.chunks[chunk as usize].busy;
        debug_assert!(*busy > 0, "said once for each time");
        *busy = busy.saturating_sub(1);
    }

    /// Of a chunk: places that are taken, and those that are busy.
    #[cfg(test)]
    pub(super) fn counts(&self, chunk: u32) -> (usize, usize) {
        let used = self.in_use().find(|used| used.chunk == chunk);
        used.map_or((0, 0), |used| (used.taken as usize, used.busy as usize))
    }

    #[cfg(test)]
    pub(super) fn chunks_are_counted(&self) -> bool {
        let of = |place: usize| self.in_use().filter(|used| usize::from(used.class.0) == place).count();
        self.classes.iter().enumerate().all(|(place, class)| class.chunks as usize == of(place))
    }

    /// A recovered chunk: its class, and the slots that hold no block. With all of them free it stays nobody's.
    pub(super) fn restore(&mut self, chunk: u32, class: ClassId, free: Vec<u32>) {
        let cut = self.class(class).cut;
        if free.len() == cut.slots as usize {
            return;
        }
        self.free.retain(|&other| other != chunk);
        if !free.is_empty() {
            self.classes[usize::from(class.0)].open.push(chunk);
        }
        self.classes[usize::from(class.0)].chunks += 1;
        self.chunks[chunk as usize] = Chunk { class: Some(class), free, busy: 0 };
    }

    /// A chunk of no class, for this one.
    fn take_chunk(&mut self, class: ClassId) -> Option<u32> {
        let is_first = !self.has_chunks(class);
        // The closed one last: it was closed for want of another.
        let place = self.free.iter().rposition(|&chunk| !self.is_closed(chunk));
        let chunk = match place {
            Some(place) => self.free.swap_remove(place),
            None if is_first => self.free.pop()?,
            None => return None,
        };
        if is_first {
            self.reopen();
        }
        self.classes[usize::from(class.0)].chunks += 1;
        Some(chunk)
    }

    /// A free place of this class, in a chunk that is made its own where none has one.
    pub(super) fn take_place(&mut self, region: &Region, geometry: Geometry, class: ClassId) -> Option<Place> {
        let Class { key: (fingerprint, group, block_bytes), cut, .. } = *self.class(class);
        if self.class(class).open.is_empty() {
            let chunk = self.take_chunk(class)?;
            assign(region, geometry, chunk, cut, &ChunkEntry::new(fingerprint, group, block_bytes));
            self.chunks[chunk as usize] = Chunk { class: Some(class), free: (0..cut.slots).rev().collect(), busy: 0 };
            self.classes[usize::from(class.0)].open.push(chunk);
        }
        let open = &mut self.classes[usize::from(class.0)].open;
        let chunk = *open.last()?;
        let free = &mut self.chunks[chunk as usize].free;
        let slot = free.pop()?;
        if free.is_empty() {
            open.pop();
        }
        Some(Place { chunk, slot })
    }

    /// The place is free; its chunk is everybody's once all of it is, or that class's which it is kept for.
    pub(super) fn give_place(&mut self, region: &Region, geometry: Geometry, place: Place) {
        let is_closed = self.is_closed(place.chunk);
        let chunk = &mut self.chunks[place.chunk as usize];
        let Some(class) = chunk.class else { return };
        chunk.free.push(place.slot);
        let of_class = &mut self.classes[usize::from(class.0)];
        if chunk.free.len() == 1 && !is_closed {
            of_class.open.push(place.chunk);
        }
        if chunk.free.len() == of_class.cut.slots as usize {
            *chunk = Chunk::default();
            of_class.open.retain(|&other| other != place.chunk);
            of_class.chunks -= 1;
            clear(region, geometry, place.chunk);
            self.free.push(place.chunk);
        }
    }
}

/// Makes a chunk one of this class, all of its places empty. Who dies on the way leaves one of no class.
fn assign(region: &Region, geometry: Geometry, chunk: u32, cut: Cut, entry: &ChunkEntry) {
    clear(region, geometry, chunk);
    let at = geometry.entry(chunk);
    // What lies there is of another class, perhaps with other records.
    let done = (0..cut.slots)
        .try_for_each(|slot| region.store(geometry.record(chunk, slot) / 8, record::word(State::Empty, 0, &[])))
        .and_then(|()| region.write(at + 8, entry.as_bytes()))
        .and_then(|()| region.store(at / 8, record::word(State::Sealed, 0, entry.as_bytes())));
    debug_assert!(done.is_ok(), "chunks are inside the region");
}

/// The chunk is of no class.
pub(super) fn clear(region: &Region, geometry: Geometry, chunk: u32) {
    let cleared = region.store(geometry.entry(chunk) / 8, record::word(State::Empty, 0, &[]));
    debug_assert!(cleared.is_ok(), "chunks are inside the region");
}
