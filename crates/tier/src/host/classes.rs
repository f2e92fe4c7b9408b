//! Whose blocks a chunk holds, and which places are free.

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
}

struct Class {
    key: (Fingerprint, u32, u64),
    cut: Cut,
    /// Chunks with a free place; the last one is filled first.
    open: Vec<u32>,
}

/// What a chunk is at the moment.
#[derive(Default)]
struct Chunk {
    class: Option<ClassId>,
    free: Vec<u32>,
}

impl Classes {
    /// As many chunks, all free.
    pub(super) fn new(chunks: u32) -> Self {
        let free = (0..chunks).rev().collect();
        Self { classes: Vec::new(), chunks: (0..chunks).map(|_| Chunk::default()).collect(), free }
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
                self.classes.push(Class { key, cut, open: Vec::new() });
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

    /// Chunks that have a class, that, and how many of their places are taken.
    pub(super) fn in_use(&self) -> impl Iterator<Item = (u32, ClassId, usize)> + '_ {
        (0..).zip(&self.chunks).filter_map(|(number, chunk)| {
            let class = chunk.class?;
            Some((number, class, self.class(class).cut.slots as usize - chunk.free.len()))
        })
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
        self.chunks[chunk as usize] = Chunk { class: Some(class), free };
    }

    /// A free place of this class, in a chunk that is made its own where none has one.
    pub(super) fn take_place(&mut self, region: &Region, geometry: Geometry, class: ClassId) -> Option<Place> {
        let Class { key: (fingerprint, group, block_bytes), cut, .. } = *self.class(class);
        if self.class(class).open.is_empty() {
            let chunk = self.free.pop()?;
            assign(region, geometry, chunk, cut, &ChunkEntry::new(fingerprint, group, block_bytes));
            self.chunks[chunk as usize] = Chunk { class: Some(class), free: (0..cut.slots).rev().collect() };
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

    /// The place is free; its chunk is everybody's once all of it is.
    pub(super) fn give_place(&mut self, region: &Region, geometry: Geometry, place: Place) {
        let chunk = &mut self.chunks[place.chunk as usize];
        let Some(class) = chunk.class else { return };
        chunk.free.push(place.slot);
        let of_class = &mut self.classes[usize::from(class.0)];
        if chunk.free.len() == 1 {
            of_class.open.push(place.chunk);
        }
        if chunk.free.len() == of_class.cut.slots as usize {
            *chunk = Chunk::default();
            of_class.open.retain(|&other| other != place.chunk);
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
