//! The disk store in a folder on the disk that the tests are built on.

mod bits;
mod faults;
mod limits;
mod moving;
mod opening;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kvferry_core::Fingerprint;
use kvferry_memory::{Meter, Region};

use super::*;
use crate::store::{ClassId, Held as _, Refused, Store as _};
use crate::suite::{self, Bench, body, hash};

const LIMITS: Limits =
    Limits { bytes_max: 3 << 20, files_max: 40, extent_bytes: 400 << 10, free_bytes_min: 0, write_errors_max: 4 };
const SETTINGS: Settings = Settings { io: Io::Auto, depth_max: 8, threads: 2, bounce_bytes_max: 1 << 20 };
const REGION_BYTES: u64 = 1 << 20;

/// A store on the disk, what moves its blocks, and memory to move them to.
struct World {
    /// The option is for the moment of opening it again.
    shelf: Option<Shelf>,
    mover: Mover,
    memory: Arc<Region>,
    folder: tempfile::TempDir,
    limits: Limits,
    recovery: Recovery,
}

/// On the disk that holds this program: not every temporary folder is on one.
fn folder() -> tempfile::TempDir {
    let program = std::env::current_exe().expect("this program");
    tempfile::tempdir_in(program.parent().expect("in a folder")).expect("a folder on a disk")
}

fn memory(bytes: u64) -> Arc<Region> {
    let fd = kvferry_memory::create("kvferry-disk-test", bytes).expect("memory");
    Region::map(fd, bytes, &Meter::new()).expect("a region")
}

impl World {
    fn new(limits: Limits, settings: Settings) -> Self {
        let folder = folder();
        let (shelf, recovery) = Shelf::open(&folder.path().join("shelf"), limits).expect("a store");
        let mover = Mover::open(settings).expect("a way to the disk");
        Self { shelf: Some(shelf), mover, memory: memory(REGION_BYTES), folder, limits, recovery }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("shelf")
    }

    fn shelf(&mut self) -> &mut Shelf {
        self.shelf.as_mut().expect("open")
    }

    fn class(&mut self, kind: u8, bytes: u64) -> ClassId {
        self.shelf().class(Fingerprint([kind; 32]), 0, bytes).expect("a class")
    }

    fn span(&self, bytes: u64) -> Span {
        Span { region: Arc::clone(&self.memory), offset: 0, room: bytes.next_multiple_of(4096) }
    }

    /// Ends the one operation that was begun.
    fn finish(&mut self) -> Done {
        finish(&mut self.mover)
    }

    /// Writes a block to its place, whatever comes of it.
    fn write(&mut self, filling: Filling, bytes: &[u8]) -> (Filling, Result<(), DiskError>) {
        self.memory.write(0, bytes).expect("inside");
        let span = self.span(bytes.len() as u64);
        self.mover.write(1, filling, &span).expect("room");
        match self.finish() {
            Done::Written { tag: 1, filling, outcome } => (filling, outcome),
            other => panic!("{other:?}"),
        }
    }

    /// Reads a block.
    fn read(&mut self, block: Block) -> (Block, Result<Vec<u8>, DiskError>) {
        let bytes = block.bytes();
        let span = self.span(bytes);
        self.mover.read(2, block, &span).expect("room");
        match self.finish() {
            Done::Read { tag: 2, block, outcome } => (block, outcome.map(|()| self.bytes(bytes))),
            other => panic!("{other:?}"),
        }
    }

    fn bytes(&self, count: u64) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(count).expect("small")];
        self.memory.read(0, &mut bytes).expect("inside");
        bytes
    }

    /// Stores a block; what refused it, if something did.
    fn put(&mut self, class: ClassId, number: u64) -> Result<(), Refused> {
        suite::put(self, class, number, number.checked_sub(1))
    }

    fn holds(&mut self, class: ClassId, number: u64) -> bool {
        suite::holds(self, class, number)
    }

    /// As [`holds`](Self::holds), where bytes may be damaged: then the block goes.
    fn holds_or_loses(&mut self, class: ClassId, number: u64) -> bool {
        let Some(block) = self.shelf().pin(class, &hash(number)) else { return false };
        let (block, read) = self.read(block);
        assert!(self.shelf().unpin(&block));
        match read {
            Ok(bytes) => assert_eq!(bytes, body(number, block.bytes()), "block {number}"),
            Err(error) => {
                assert!(matches!(error, DiskError::Damaged | DiskError::Short), "{error}");
                assert!(self.shelf().remove(class, &hash(number)));
                return false;
            }
        }
        true
    }

    fn reopen(&mut self) {
        self.shelf = None;
        let (shelf, recovery) = Shelf::open(&self.path(), self.limits).expect("a store");
        (self.shelf, self.recovery) = (Some(shelf), recovery);
    }
}

fn finish(mover: &mut Mover) -> Done {
    let mut done = Vec::new();
    while done.is_empty() {
        mover.wait(Duration::from_secs(1));
        mover.turn(&mut done);
    }
    assert_eq!((done.len(), mover.in_flight()), (1, 0));
    done.remove(0)
}

/// What all files below a folder take of the disk.
fn taken(folder: &Path) -> (u64, usize) {
    let files =
        std::fs::read_dir(folder).expect("a folder").map(|file| file.expect("a file").metadata().expect("its data"));
    files.fold((0, 0), |(bytes, count), data| {
        let allocated = std::os::unix::fs::MetadataExt::blocks(&data) * 512;
        (bytes + allocated.max(data.len()), count + 1)
    })
}

/// The extents' files.
fn extents(folder: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(folder).expect("a folder").map(|file| file.expect("a file").path());
    let mut extents: Vec<PathBuf> =
        files.filter(|path| path.file_name().expect("a name").to_string_lossy().starts_with("extent-")).collect();
    extents.sort();
    extents
}

impl Bench for World {
    type Store = Shelf;

    fn store(&mut self) -> &mut Shelf {
        self.shelf()
    }

    fn fill(&mut self, filling: &mut Filling, bytes: &[u8]) {
        // The suite keeps the filling, the mover wants it for itself: they agree on a copy, in tests alone.
        let (written, outcome) = self.write(filling.twin(), bytes);
        assert_eq!(outcome, Ok(()));
        *filling = written;
    }

    fn body(&mut self, block: &Block) -> Vec<u8> {
        let (_, read) = self.read(block.twin());
        read.expect("whole")
    }

    fn reopen(&mut self) -> bool {
        self.reopen();
        assert_eq!((self.recovery.damaged_records, self.recovery.twice), (0, 0));
        true
    }
}

#[test]
fn the_disk_is_a_store_by_either_way() {
    for io in [Io::Auto, Io::Threads] {
        let mut world = World::new(LIMITS, Settings { io, ..SETTINGS });
        suite::hold_all(&mut world);
        assert!(taken(&world.path()).0 <= LIMITS.bytes_max);
    }
}
