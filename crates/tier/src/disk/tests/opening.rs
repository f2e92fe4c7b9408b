//! What a directory may be, and what comes of it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::FlockOperation;

use super::*;

fn open(world: &World) -> Result<Recovery, OpenError> {
    Shelf::open(&world.path(), world.limits).map(|(_, recovery)| recovery)
}

/// A store with a block in each of two classes, closed.
fn closed() -> World {
    let mut world = World::new(LIMITS, SETTINGS);
    assert_eq!(world.recovery, Recovery::default());
    for kind in [1, 2] {
        let class = world.class(kind, 5000);
        world.put(class, 7).expect("room");
    }
    world.shelf = None;
    world
}

#[test]
fn two_daemons_need_a_directory_each() {
    let mut world = World::new(LIMITS, SETTINGS);
    let said = open(&world).expect_err("in use");
    assert_eq!(said, OpenError::InUse { path: world.path(), holder: Some(std::process::id()) });
    assert!(said.to_string().contains(&format!("by process {}", std::process::id())), "{said}");
    world.shelf = None;
    assert_eq!(open(&world), Ok(Recovery::default()));
}

/// The disk may still write what a killed daemon has given it: the next one has the file only once that is over.
#[test]
fn a_file_in_use_is_waited_for() {
    let world = closed();
    let file = fs::File::open(&extents(&world.path())[0]).expect("an extent");
    rustix::fs::flock(&file, FlockOperation::LockExclusive).expect("locked");
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(60));
            is_over.store(true, Ordering::SeqCst);
            drop(file);
        });
        assert_eq!(open(&world).expect("a store").blocks, 2);
        assert!(is_over.load(Ordering::SeqCst));
    });
}

#[test]
fn another_version_and_no_version_are_refused_and_left_alone() {
    let world = closed();
    let path = world.path().join("format");
    let good = fs::read(&path).expect("the format");
    let mut later = good.clone();
    later[8] = 2;
    let sum = crc32c::crc32c(&later[..60]);
    later[60..].copy_from_slice(&sum.to_le_bytes());
    fs::write(&path, &later).expect("write");
    let said = open(&world).expect_err("another version");
    assert_eq!(said, OpenError::Version { path: world.path(), found: 2 });
    assert!(said.to_string().contains("version 2, and this daemon has version 1"), "{said}");
    for damaged in [&later[..63], &[0; 64], b"", &[&good[..20], &[1; 44]].concat()] {
        fs::write(&path, damaged).expect("write");
        assert_eq!(open(&world), Err(OpenError::Damaged { path: path.clone() }));
    }
    fs::write(&path, &good).expect("write");
    assert_eq!(open(&world).expect("as it was").blocks, 2);
}

#[test]
fn what_is_not_ours_is_refused() {
    let folder = folder();
    let path = folder.path().join("shelf");
    let open = |path: &Path| Shelf::open(path, LIMITS).map(|(_, recovery)| recovery);
    fs::create_dir(&path).expect("a folder");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o750)).expect("a mode");
    assert_eq!(open(&path), Err(OpenError::NotOurs { path: path.clone() }));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("a mode");
    fs::write(path.join("letters"), b"dear").expect("write");
    assert_eq!(open(&path), Err(OpenError::NotEmpty { path: path.clone() }));
    assert_eq!(taken(&path).1, 1, "nothing was put beside them");
    let missing = folder.path().join("no/shelf");
    let said = open(&missing).expect_err("no folder to make it in").to_string();
    assert!(said.contains("make the directory"), "{said}");
    for limits in [Limits { extent_bytes: 4096, ..LIMITS }, Limits { bytes_max: 4096, ..LIMITS }] {
        let said = Shelf::open(&folder.path().join("small"), limits).map(|(_, recovery)| recovery);
        let OpenError::Limits { .. } = said.expect_err("no room for a block") else { panic!("another reason") };
    }
}

#[test]
fn files_of_others_and_half_made_ones() {
    let mut world = closed();
    let folder = world.path();
    fs::write(folder.join("extent-0000000009.new"), [1; 5000]).expect("write");
    fs::write(folder.join("extent-9"), b"not one of ours").expect("write");
    fs::write(folder.join("letters"), [1; 9000]).expect("write");
    fs::create_dir(folder.join("extent-0000000008")).expect("a folder");
    world.reopen();
    assert_eq!((world.recovery.blocks, world.recovery.unfinished_files, world.recovery.foreign_files), (2, 1, 3));
    assert!(!folder.join("extent-0000000009.new").exists() && folder.join("letters").exists());
    let (bytes, files) = world.shelf().used();
    assert!(bytes >= taken(&folder).0 && files as usize == taken(&folder).1, "{bytes} in {files} files");
}

#[test]
fn a_damaged_file_is_set_aside_and_the_others_are_used() {
    type Damage = fn(&Path);
    let damages: [Damage; 4] = [
        |path| {
            let mut bytes = fs::read(path).expect("an extent");
            bytes[50] ^= 4;
            fs::write(path, bytes).expect("write");
        },
        |path| fs::OpenOptions::new().write(true).open(path).expect("an extent").set_len(8192).expect("cut off"),
        |path| fs::write(path, []).expect("emptied"),
        // The header of another number.
        |path| {
            let other = path.with_file_name("extent-0000000002");
            fs::copy(other, path).expect("copied over");
        },
    ];
    for damage in damages {
        let mut world = closed();
        let path = extents(&world.path()).remove(0);
        damage(&path);
        world.reopen();
        let recovery = world.recovery.clone();
        assert_eq!((recovery.blocks, recovery.damaged_files), (1, vec!["extent-0000000001".to_owned()]));
        assert!(path.exists(), "not ours to remove");
        let (one, two) = (world.class(1, 5000), world.class(2, 5000));
        assert!(!world.shelf().contains(one, &hash(7)) && world.holds(two, 7));
        assert!(world.shelf().used().0 >= taken(&world.path()).0, "it counts");
        // Nothing is written over it.
        world.put(one, 7).expect("room elsewhere");
        assert_eq!(extents(&world.path()).len(), 3);
    }
}
