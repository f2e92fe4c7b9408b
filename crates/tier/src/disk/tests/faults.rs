//! Disks that fail, and file systems that are full or cannot be written.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::os::fd::BorrowedFd;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::io::Errno;

use super::io::{Backend, Job, Landed};
use super::*;

/// A stand-in for a disk that fails: it does what it is told to in place of each job, and really does every other.
struct Faulty {
    inner: Box<dyn Backend>,
    faults: Arc<std::sync::Mutex<VecDeque<Fault>>>,
    failed: Vec<Landed>,
    /// How often the system takes nothing yet.
    refusals: Arc<AtomicU32>,
    has_unsubmitted: bool,
}

#[derive(Clone, Copy)]
enum Fault {
    Error(Errno),
    /// So many bytes are moved, and no more are asked for.
    Part(u32),
}

impl Backend for Faulty {
    fn post(&mut self, mut job: Job) -> Result<(), Job> {
        match self.faults.lock().expect("one thread").pop_front() {
            Some(Fault::Error(errno)) => {
                self.failed.push(Landed { id: job.id, result: Err(errno) });
                return Ok(());
            }
            Some(Fault::Part(bytes)) => job.length = bytes,
            None => {}
        }
        self.inner.post(job)
    }

    fn submit(&mut self) {
        let fewer = |left: u32| left.checked_sub(1);
        self.has_unsubmitted = self.refusals.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer).is_ok();
        if !self.has_unsubmitted {
            self.inner.submit();
        }
    }

    fn has_unsubmitted(&self) -> bool {
        self.has_unsubmitted
    }

    fn reap(&mut self, landed: &mut Vec<Landed>) {
        landed.append(&mut self.failed);
        self.inner.reap(landed);
    }

    fn wait_fd(&self) -> BorrowedFd<'_> {
        self.inner.wait_fd()
    }
}

type Faults = Arc<std::sync::Mutex<VecDeque<Fault>>>;

fn faulty() -> (World, Faults) {
    let (world, faults, _) = stubborn(Io::Auto);
    (world, faults)
}

/// As [`faulty`], and how often the system is to take nothing.
fn stubborn(io: Io) -> (World, Faults, Arc<AtomicU32>) {
    let mut world = World::new(LIMITS, SETTINGS);
    let (choice, inner) = io::choose(io, 8, 2).expect("a way to the disk");
    let faults = Faults::default();
    let refusals = Arc::new(AtomicU32::new(0));
    let (failed, has_unsubmitted) = (Vec::new(), false);
    let backend =
        Faulty { inner, faults: Arc::clone(&faults), failed, refusals: Arc::clone(&refusals), has_unsubmitted };
    world.mover = Mover::over(Box::new(backend), choice, SETTINGS);
    (world, faults, refusals)
}

fn fails(faults: &Faults, errno: Errno) {
    faults.lock().expect("one thread").push_back(Fault::Error(errno));
}

/// Tries to store a block that the disk does not take.
fn put_in_vain(world: &mut World, class: ClassId, number: u64) -> DiskError {
    let filling = world.shelf().reserve(class, hash(number), Default::default()).expect("room");
    let (filling, outcome) = world.write(filling, &body(number, 5000));
    // Whoever does not look at the outcome does no harm.
    if number.is_multiple_of(2) {
        world.shelf().seal(filling, 0, None).expect_err("it was not written");
    } else {
        world.shelf().abandon(filling);
    }
    assert!(!world.shelf().contains(class, &hash(number)));
    outcome.expect_err("it failed")
}

#[test]
fn a_write_that_fails_costs_its_place_and_the_fourth_in_a_row_all_writing() {
    let (mut world, faults) = faulty();
    let class = world.class(1, 5000);
    world.put(class, 100).expect("room");
    for number in 0..3 {
        fails(&faults, Errno::IO);
        assert_eq!(put_in_vain(&mut world, class, number), DiskError::Io(Errno::IO));
    }
    assert_eq!(world.shelf().read_only(), None);
    // One that goes well begins the count again.
    world.put(class, 101).expect("room");
    for number in 3..7 {
        assert_eq!(world.shelf().read_only(), None);
        fails(&faults, Errno::IO);
        put_in_vain(&mut world, class, number);
    }
    let said = world.shelf().read_only().expect("the disk is broken");
    assert_eq!(said, ReadOnly::Writes { count: 4, last: DiskError::Io(Errno::IO) });
    assert!(said.to_string().starts_with("4 writes in a row failed, the last one with: the disk failed"), "{said}");
    assert_eq!(world.shelf().reserve(class, hash(9), Default::default()).expect_err("no"), Refused::ReadOnly);
    assert_eq!((world.shelf().counts().failed_writes, world.shelf().counts().lost_places), (7, 7));
    // What is there is read, and can be forgotten, also by the next daemon.
    assert!(world.holds(class, 100) && world.holds(class, 101));
    assert!(world.shelf().remove(class, &hash(100)) && !world.shelf().contains(class, &hash(100)));
    world.reopen();
    let class = world.class(1, 5000);
    assert_eq!((world.shelf().blocks(), world.shelf().read_only()), (1, None));
    assert!(!world.holds(class, 100) && world.holds(class, 101));
    assert_eq!(world.put(class, 0), Ok(()), "another try");
}

#[test]
fn a_full_disk_costs_no_place() {
    let (mut world, faults) = faulty();
    let class = world.class(1, 5000);
    fails(&faults, Errno::NOSPC);
    assert_eq!(put_in_vain(&mut world, class, 0), DiskError::Io(Errno::NOSPC));
    assert_eq!((world.shelf().counts().lost_places, world.shelf().counts().failed_writes), (0, 1));
    fails(&faults, Errno::ROFS);
    put_in_vain(&mut world, class, 1);
    assert_eq!(world.shelf().read_only(), Some(ReadOnly::FileSystem));
}

#[test]
fn a_read_that_fails_is_a_miss_and_one_in_parts_is_whole() {
    let (mut world, faults) = faulty();
    let class = world.class(1, 20_000);
    // The write goes in three parts.
    faults.lock().expect("one thread").extend([Fault::Part(4096), Fault::Part(8192)]);
    world.put(class, 1).expect("room");
    faults.lock().expect("one thread").push_back(Fault::Part(12_288));
    assert!(world.holds(class, 1));
    assert_eq!(world.mover.counts(), Moved::default());
    let read = |world: &mut World| {
        let block = world.shelf().pin(class, &hash(1)).expect("there");
        let (block, read) = world.read(block);
        assert!(world.shelf().unpin(&block));
        read.expect_err("it failed")
    };
    fails(&faults, Errno::IO);
    assert_eq!(read(&mut world), DiskError::Io(Errno::IO));
    // Nobody could go on from the middle of a page.
    faults.lock().expect("one thread").push_back(Fault::Part(0));
    assert_eq!(read(&mut world), DiskError::Short);
    assert_eq!((world.mover.counts().failed, world.mover.counts().damaged), (1, 1));
    assert!(world.holds(class, 1), "another try");
}

#[test]
fn a_file_that_is_cut_off_under_a_running_daemon_gives_misses() {
    let mut world = World::new(LIMITS, SETTINGS);
    let class = world.class(1, 20_000);
    for number in 0..8 {
        world.put(class, number).expect("room");
    }
    let path = extents(&world.path()).remove(0);
    let file = OpenOptions::new().write(true).open(path).expect("an extent");
    // In the middle of the fifth block.
    file.set_len(8192 + 4 * 20_480 + 8192).expect("cut off");
    let there = (0..8).filter(|&number| world.holds_or_loses(class, number)).count();
    assert_eq!((there, world.shelf().blocks(), world.mover.counts().damaged), (4, 4, 4));
}

/// A record that cannot be written: every write to this device fails for lack of room, every one to that for the other.
#[test]
fn a_record_that_cannot_be_written_is_no_block() {
    let mut world = World::new(LIMITS, SETTINGS);
    let class = world.class(1, 5000);
    world.put(class, 1).expect("room");
    let records = |world: &mut World, file: File| {
        let extent = world.shelf().extents[0].as_mut().expect("the first");
        std::mem::replace(&mut extent.records, file.into())
    };
    let full = OpenOptions::new().read(true).write(true).open("/dev/full").expect("a device");
    let good = records(&mut world, full);
    let filling = world.shelf().reserve(class, hash(2), Default::default()).expect("room");
    let (filling, outcome) = world.write(filling, &body(2, 5000));
    assert_eq!(outcome, Ok(()));
    world.shelf().seal(filling, crc32c::crc32c(&body(2, 5000)), None).expect_err("not written down");
    assert!(!world.shelf().contains(class, &hash(2)) && world.holds(class, 1));
    // One that cannot be taken back: gone for this daemon, its place used by nobody.
    assert!(world.shelf().remove(class, &hash(1)) && !world.shelf().contains(class, &hash(1)));
    assert_eq!((world.shelf().counts().lost_places, world.shelf().counts().failed_writes), (2, 2));
    records(&mut world, good.into());
    let count = (10..).take_while(|&number| world.put(class, number).is_ok()).count();
    world.reopen();
    let class = world.class(1, 5000);
    assert_eq!((world.shelf().blocks(), world.recovery.damaged_records), (count + 1, 0));
    assert!(world.holds(class, 1), "it is what it was: nobody wrote to its place");
}

#[test]
fn what_is_erased_stays_gone_where_its_record_cannot_be_written() {
    for is_read_only in [false, true] {
        let (mut world, faults) = faulty();
        let class = world.class(1, 5000);
        world.put(class, 0).expect("room");
        let of_first = u64::from(world.shelf().extents[0].as_ref().expect("the first").cut.slots);
        let all = of_first + 5;
        (1..all).for_each(|number| world.put(class, number).expect("room"));
        for number in (all..all + 4).filter(|_| is_read_only) {
            fails(&faults, Errno::IO);
            put_in_vain(&mut world, class, number);
        }
        assert_eq!((world.shelf().read_only().is_some(), extents(&world.path()).len()), (is_read_only, 2));
        let files = world.shelf().write_records_to(Vec::new());
        let held = world.shelf().pin(class, &hash(4)).expect("there");
        assert!(world.shelf().erase(class, &hash(3)) && !world.shelf().contains(class, &hash(3)));
        assert!(!world.shelf().erase(class, &hash(4)) && world.shelf().unpin(&held));
        // This daemon goes on reading the others of that file.
        assert_eq!(extents(&world.path()).len(), 1);
        assert!((4..all).all(|number| world.holds(class, number)));
        drop(held);
        world.shelf().write_records_to(files);
        let there = (of_first..all).chain((!is_read_only).then_some(1000));
        assert_eq!(world.put(class, 1000).is_ok(), !is_read_only, "in a file that stays");
        // What goes from it leaves room in the end, as from any other.
        assert!((4..of_first).all(|number| world.shelf().remove(class, &hash(number))));
        assert!((0..3).all(|number| world.shelf().remove(class, &hash(number))));
        assert_eq!(world.shelf().extents[0].as_ref().map(|extent| extent.taken_count), Some(0));
        world.reopen();
        let class = world.class(1, 5000);
        assert_eq!(world.shelf().blocks(), there.clone().count());
        assert!(there.into_iter().all(|number| world.holds(class, number)));
    }
}

#[test]
fn what_is_in_a_lost_place_can_be_erased() {
    for is_mended in [false, true] {
        let mut world = World::new(LIMITS, SETTINGS);
        let class = world.class(1, 5000);
        (1..4).for_each(|number| world.put(class, number).expect("room"));
        let files = world.shelf().write_records_to(Vec::new());
        assert!(world.shelf().remove(class, &hash(1)));
        if is_mended {
            world.shelf().write_records_to(files);
        }
        world.shelf().erase_lost(|of| of != Fingerprint([1; 32]));
        assert_eq!((world.shelf().lost.len(), extents(&world.path()).len()), (1, 1));
        world.shelf().erase_lost(|of| of == Fingerprint([1; 32]));
        assert!(world.shelf().lost.is_empty() && world.holds(class, 2));
        world.reopen();
        let class = world.class(1, 5000);
        assert_eq!(world.shelf().blocks(), if is_mended { 2 } else { 0 });
        assert!(!world.holds(class, 1));
    }
}

/// Runs one of the tests below in a mount namespace of its own, where a folder is what `mount` makes of it.
fn run_in(mount: &str, test: &str, folder: &Path) -> bool {
    let program = std::env::current_exe().expect("this program");
    let script =
        format!("{mount} || exit 77; cd \"$1\" && exec \"$2\" --exact disk::tests::faults::{test} --nocapture");
    let status = Command::new("unshare")
        .args(["--mount", "--map-root-user", "sh", "-c", &script, "sh"])
        .args([folder, &program])
        .stdout(std::process::Stdio::null())
        .status();
    match status.as_ref().map(|status| status.code()) {
        Ok(Some(0)) => true,
        // No namespaces, no mount, no `unshare`: some containers allow nothing of it.
        Ok(Some(1 | 77 | 127))
            if Command::new("unshare")
                .args(["--mount", "--map-root-user", "true"])
                .status()
                .is_ok_and(|status| !status.success()) =>
        {
            println!("skipped: this machine lets nobody mount");
            false
        }
        Err(_) => {
            println!("skipped: there is no `unshare` here");
            false
        }
        ended => panic!("{test} in a namespace ended with {ended:?}"),
    }
}

#[test]
fn a_file_system_without_room() {
    let folder = folder();
    if run_in("mount -t tmpfs -o size=1m,mode=700 none \"$1\" && touch \"$1\"/small", "small_child", folder.path()) {
        println!("a file system of 1 MiB was filled");
    }
}

/// In a file system of 1 MiB, where the other test starts it. By itself it does nothing.
#[test]
fn small_child() {
    if !Path::new("small").exists() {
        return;
    }
    let path = PathBuf::from("shelf");
    let (shelf, _) = match Shelf::open(&path, LIMITS) {
        Err(OpenError::NoDirect { .. }) => return println!("skipped: tmpfs has no O_DIRECT here"),
        opened => opened.expect("a store"),
    };
    let mover = Mover::open(SETTINGS).expect("a way to the disk");
    let mut world = World {
        shelf: Some(shelf),
        mover,
        memory: memory(REGION_BYTES),
        folder: folder(),
        limits: LIMITS,
        recovery: Recovery::default(),
    };
    let class = world.class(1, 5000);
    let mut count = 0;
    while world.put(class, count).is_ok() {
        count += 1;
    }
    assert!((40..130).contains(&count), "{count} of 8 KiB in 1 MiB");
    assert_eq!((world.put(class, count), world.shelf().read_only()), (Err(Refused::Full), None));
    // By other files it is filled to the last page: fallocate itself says no.
    let other = world.class(2, 5000);
    world.shelf().directory.forget_free_room();
    assert_eq!(world.put(other, 1), Err(Refused::Full));
    assert!((0..count).all(|number| world.holds(class, number)));
    assert!(world.shelf().remove(class, &hash(3)));
    assert_eq!(world.put(class, 1000), Ok(()), "what goes makes room");
    drop(world.shelf.take());
    let (shelf, recovery) = Shelf::open(&path, LIMITS).expect("a store");
    assert_eq!((recovery.blocks, recovery.unfinished_files, shelf.blocks() as u64), (count, 0, count));
}

#[test]
fn a_file_system_that_is_read_only() {
    let mut world = World::new(LIMITS, SETTINGS);
    let class = world.class(1, 5000);
    (0..5).for_each(|number| world.put(class, number).expect("room"));
    world.shelf = None;
    let mount = "mount --bind \"$1\" \"$1\" && mount -o remount,bind,ro \"$1\"";
    std::fs::write(world.folder.path().join("read-only"), b"").expect("write");
    if run_in(mount, "read_only_child", world.folder.path()) {
        println!("a file system that is read-only was read");
    }
    world.reopen();
    assert_eq!((world.recovery.blocks, world.shelf().read_only()), (5, None), "as it was");
}

/// In a file system that is mounted read-only, where the other test starts it. By itself it does nothing.
#[test]
fn read_only_child() {
    if !Path::new("read-only").exists() {
        return;
    }
    let (shelf, recovery) = Shelf::open(Path::new("shelf"), LIMITS).expect("a store that can be read");
    let mover = Mover::open(SETTINGS).expect("a way to the disk");
    let mut world =
        World { shelf: Some(shelf), mover, memory: memory(REGION_BYTES), folder: folder(), limits: LIMITS, recovery };
    assert_eq!((world.recovery.blocks, world.shelf().read_only()), (5, Some(ReadOnly::FileSystem)));
    let class = world.class(1, 5000);
    assert!((0..5).all(|number| world.holds(class, number)));
    assert_eq!(world.put(class, 9), Err(Refused::ReadOnly));
    assert!(world.shelf().remove(class, &hash(3)) && world.shelf().blocks() == 4);
    let other = Shelf::open(Path::new("other"), LIMITS).map(|(_, recovery)| recovery).expect_err("it cannot be made");
    assert!(matches!(other, OpenError::Io { .. }), "{other}");
}

/// With a ring, where only what was taken wakes anybody.
#[test]
fn what_is_refused_for_now_is_handed_over_again_though_nothing_wakes_anybody() {
    let (mut world, _, refusals) = stubborn(Io::Ring);
    let class = world.class(1, 5000);
    assert_eq!(world.mover.wait_max(), None, "who has nothing to do sleeps");
    refusals.store(20, Ordering::Relaxed);
    let filling = world.shelf().reserve(class, hash(1), Default::default()).expect("room");
    world.memory.write(0, &body(1, 5000)).expect("inside");
    let span = world.span(5000);
    world.mover.write(1, filling, &span).expect("room");
    let (mut done, mut sleeps) = (Vec::new(), 0);
    while refusals.load(Ordering::Relaxed) > 0 {
        world.mover.turn(&mut done);
        assert!(done.is_empty());
        if refusals.load(Ordering::Relaxed) > 0 {
            assert!(world.mover.wait_max().is_some(), "it would sleep for good");
            sleeps += 1;
        }
    }
    assert!(sleeps > 3);
    match finish(&mut world.mover) {
        Done::Written { filling, outcome: Ok(()), .. } => world.shelf().abandon(filling),
        other => panic!("{other:?}"),
    }
    assert_eq!(world.mover.wait_max(), None);
}
