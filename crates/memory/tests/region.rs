//! Regions against files that lie, ranges that reach outside, and the process's own memory map.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use kvferry_core::plan::Slice;
use kvferry_memory::{CreateError, MapError, Meter, REGION_BYTES_MAX, Region, create};
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};

const KIB: u64 = 1024;

fn mapped(bytes: u64) -> Arc<Region> {
    let fd = create("kvferry-test", bytes).expect("create a memfd");
    Region::map(fd, bytes, &Meter::new()).expect("map what create made")
}

fn memfd(bytes: u64, seals: SealFlags) -> OwnedFd {
    let fd = rustix::fs::memfd_create("kvferry-test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).expect("memfd");
    rustix::fs::ftruncate(&fd, bytes).expect("set the length");
    rustix::fs::fcntl_add_seals(&fd, seals).expect("seal");
    fd
}

/// Maps, and proves that a refusal leaves nothing mapped or counted.
fn refusal(fd: OwnedFd, bytes: u64) -> MapError {
    let meter = Meter::new();
    let error = Region::map(fd, bytes, &meter).expect_err("a file that must be refused");
    assert_eq!((meter.regions(), meter.bytes()), (0, 0), "{error}");
    error
}

const SEALED: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW);

#[test]
fn what_create_makes_can_be_mapped_written_and_read() {
    let region = mapped(64 * KIB);
    assert_eq!(region.len(), 64 * KIB);
    region.write(65_533, b"end").expect("inside");
    let mut back = [9u8; 4];
    region.read(65_532, &mut back).expect("inside");
    assert_eq!(&back, b"\0end");
}

#[test]
fn both_sides_see_one_memory() {
    let fd = create("kvferry-test", 4 * KIB).expect("create");
    let mut engine = File::from(fd.try_clone().expect("duplicate"));
    let region = Region::map(fd, 4 * KIB, &Meter::new()).expect("map");
    engine.seek(SeekFrom::Start(100)).expect("seek");
    engine.write_all(b"written by the engine").expect("write through the file");
    let mut seen = [0u8; 21];
    region.read(100, &mut seen).expect("inside");
    assert_eq!(&seen, b"written by the engine");
}

#[test]
fn create_fixes_the_length_for_good() {
    let fd = create("kvferry-test", 8 * KIB).expect("create");
    assert!(rustix::fs::ftruncate(&fd, 4 * KIB).is_err(), "it must not shrink");
    assert!(rustix::fs::ftruncate(&fd, 16 * KIB).is_err(), "it must not grow");
    assert!(rustix::fs::fcntl_add_seals(&fd, SealFlags::WRITE).is_err(), "nobody may seal writing away");
    let flags = rustix::io::fcntl_getfd(&fd).expect("flags");
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC), "a child process must not inherit KV cache");
}

#[test]
fn create_refuses_what_cannot_be_a_region() {
    assert_eq!(create("kvferry-test", 0).expect_err("zero"), CreateError::Empty);
    let bytes = REGION_BYTES_MAX + 1;
    assert_eq!(create("kvferry-test", bytes).expect_err("huge"), CreateError::TooLarge { bytes });
    assert!(matches!(create("a\0b", 1).expect_err("no name"), CreateError::Io { .. }));
}

#[test]
fn a_file_longer_than_claimed_is_mapped_as_claimed() {
    let region = Region::map(memfd(64 * KIB, SEALED), 5000, &Meter::new()).expect("map a part");
    assert_eq!(region.len(), 5000);
    assert!(region.write(4999, b"xy").is_err());
}

#[test]
fn a_file_shorter_than_claimed_is_refused() {
    let error = refusal(memfd(4 * KIB, SEALED), 4 * KIB + 1);
    assert_eq!(error, MapError::TooShort { bytes: 4 * KIB + 1, file_bytes: 4 * KIB });
    assert_eq!(refusal(memfd(0, SEALED), 1), MapError::TooShort { bytes: 1, file_bytes: 0 });
}

#[test]
fn a_file_that_can_change_its_length_is_refused() {
    for seals in [SealFlags::empty(), SealFlags::SHRINK, SealFlags::GROW, SealFlags::SEAL] {
        assert_eq!(refusal(memfd(4 * KIB, seals), 4 * KIB), MapError::Unsealed, "{seals:?}");
    }
    let plain = rustix::fs::memfd_create("kvferry-test", MemfdFlags::CLOEXEC).expect("memfd that cannot be sealed");
    rustix::fs::ftruncate(&plain, 4 * KIB).expect("set the length");
    assert_eq!(refusal(plain, 4 * KIB), MapError::Unsealed);
}

#[test]
fn what_is_no_memfd_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = File::create_new(directory.path().join("file")).expect("a file");
    file.set_len(4 * KIB).expect("set the length");
    // A file on tmpfs has seals, though ones that can never be set; one on a disk has none.
    let error = refusal(file.into(), 4 * KIB);
    assert!(matches!(error, MapError::NotMemfd | MapError::Unsealed), "{error}");

    let (read_end, write_end) = std::io::pipe().expect("a pipe");
    assert_eq!(refusal(read_end.into(), 4 * KIB), MapError::NotMemfd);
    assert_eq!(refusal(write_end.into(), 4 * KIB), MapError::NotMemfd);
    let (socket, _peer) = std::os::unix::net::UnixStream::pair().expect("a socket");
    assert_eq!(refusal(socket.into(), 4 * KIB), MapError::NotMemfd);
    let device = File::open("/dev/zero").expect("a device");
    assert_eq!(refusal(device.into(), 4 * KIB), MapError::NotMemfd);
    let directory = File::open(directory.path()).expect("a directory");
    assert_eq!(refusal(directory.into(), 4 * KIB), MapError::NotMemfd);
}

#[test]
fn what_cannot_be_written_is_refused() {
    assert_eq!(refusal(memfd(4 * KIB, SEALED | SealFlags::WRITE), 4 * KIB), MapError::NotWritable);
    assert_eq!(refusal(memfd(4 * KIB, SEALED | SealFlags::FUTURE_WRITE), 4 * KIB), MapError::NotWritable);
    let writable = memfd(4 * KIB, SEALED);
    for flags in [OFlags::RDONLY, OFlags::WRONLY, OFlags::PATH] {
        let reopened = reopen(&writable, flags);
        let error = refusal(reopened, 4 * KIB);
        assert!(matches!(error, MapError::NotWritable | MapError::Io { .. }), "{flags:?}: {error}");
    }
}

fn reopen(fd: impl AsFd, flags: OFlags) -> OwnedFd {
    use std::os::fd::AsRawFd as _;
    let path = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty()).expect("open the memfd again")
}

#[test]
fn zero_and_huge_claims_are_refused() {
    assert_eq!(refusal(memfd(4 * KIB, SEALED), 0), MapError::Empty);
    for bytes in [REGION_BYTES_MAX + 1, u64::MAX / 2, u64::MAX] {
        assert_eq!(refusal(memfd(4 * KIB, SEALED), bytes), MapError::TooLarge { bytes });
    }
    // The largest claim there is must be an answer too, whether or not this host has the address space.
    let meter = Meter::new();
    match Region::map(memfd(REGION_BYTES_MAX, SEALED), REGION_BYTES_MAX, &meter) {
        Ok(region) => assert_eq!(region.len(), REGION_BYTES_MAX),
        Err(error) => assert!(matches!(error, MapError::Io { .. }), "{error}"),
    }
    assert_eq!(meter.bytes(), 0);
}

#[test]
fn huge_pages_are_refused_by_name() {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::HUGETLB;
    let Ok(fd) = rustix::fs::memfd_create("kvferry-test", flags) else {
        println!("skipped huge_pages_are_refused_by_name: this kernel makes no hugetlb memfd");
        return;
    };
    if rustix::fs::ftruncate(&fd, 2 * KIB * KIB).is_err() || rustix::fs::fcntl_add_seals(&fd, SEALED).is_err() {
        println!("skipped huge_pages_are_refused_by_name: huge pages cannot be sealed here");
        return;
    }
    assert_eq!(refusal(fd, 2 * KIB * KIB), MapError::HugePages);
}

#[test]
fn every_call_refuses_ranges_outside() {
    let region = mapped(8 * KIB);
    let other = mapped(4 * KIB);
    region.write(0, &[7; 8192]).expect("fill");
    let outside =
        [(8 * KIB, 1), (8 * KIB - 1, 2), (0, 8 * KIB + 1), (u64::MAX, 1), (1, u64::MAX), (u64::MAX, u64::MAX)];
    for (offset, length) in outside {
        let error = region.io_slice(offset, length).expect_err("outside");
        assert_eq!((error.offset, error.length, error.region_bytes), (offset, length, 8 * KIB));
        assert_eq!(region.crc32c(0, offset, length), Err(error));
        assert!(region.copy_from(offset, &other, 0, length).is_err());
        assert!(other.copy_from(0, &region, offset, length).is_err());
        if let Ok(length @ 1..=16384) = usize::try_from(length) {
            assert_eq!(region.write(offset, &vec![1; length]), Err(error));
            let mut into = vec![1; length];
            assert_eq!(region.read(offset, &mut into), Err(error));
            assert!(into.iter().all(|byte| *byte == 1), "a refused read changes nothing");
        }
    }
    // The source is the short one: the target's own bounds are not enough.
    assert!(region.copy_from(0, &other, 1, 4 * KIB).is_err());
    assert!(region.copy_from(0, &other, 4 * KIB, 1).is_err());
    let mut all = vec![0; 8192];
    region.read(0, &mut all).expect("inside");
    assert!(all.iter().all(|byte| *byte == 7), "a refused call changes nothing");
}

#[test]
fn ranges_of_no_bytes_are_fine_up_to_the_end() {
    let region = mapped(4 * KIB);
    assert!(region.io_slice(4 * KIB, 0).expect("the end itself").is_empty());
    assert!(region.io_slice(4 * KIB + 1, 0).is_err());
    assert_eq!(region.crc32c(17, 4 * KIB, 0), Ok(17));
    region.copy_from(4 * KIB, &region, 0, 0).expect("nothing to copy");
    region.write(4 * KIB, &[]).expect("nothing to write");
    region.read(0, &mut []).expect("nothing to read");
}

#[test]
fn copies_within_one_region_may_overlap() {
    let region = mapped(4 * KIB);
    let bytes: Vec<u8> = (0..200).collect();
    region.write(0, &bytes).expect("inside");
    region.copy_from(50, &region, 0, 200).expect("overlapping");
    let mut moved = vec![0; 200];
    region.read(50, &mut moved).expect("inside");
    assert_eq!(moved, bytes);
}

#[test]
fn checksums_are_crc32c_and_can_be_continued() {
    let region = mapped(4 * KIB);
    region.write(10, b"123456789").expect("inside");
    // The check value of CRC-32C (Castagnoli), RFC 3720 appendix B.4's polynomial.
    assert_eq!(region.crc32c(0, 10, 9), Ok(0xe306_9283));
    let first = region.crc32c(0, 10, 4).expect("inside");
    assert_eq!(region.crc32c(first, 14, 5), Ok(0xe306_9283));
}

#[test]
fn a_list_of_ranges_has_the_sum_of_one_after_the_other() {
    let region = mapped(64 * KIB);
    let bytes: Vec<u8> = (0..64 * KIB).map(|place| (place * 31 % 251).to_le_bytes()[0]).collect();
    region.write(0, &bytes).expect("inside");
    let slice = |offset, length| Slice { offset, length };
    // Backwards, overlapping, shorter and longer than what is asked for ahead, empty, and up to the very end.
    let slices =
        [slice(40_000, 9_000), slice(0, 1), slice(100, 300), slice(50, 2_048), slice(7, 0), slice(60_000, 5_536)];
    for first in 0..slices.len() {
        let one_by_one = |sum, slice: &Slice| region.crc32c(sum, slice.offset, slice.length);
        let wanted = slices[first..].iter().try_fold(99, one_by_one);
        assert_eq!(region.crc32c_of(99, &slices[first..]), wanted, "from slice {first}");
    }
    assert_eq!(region.crc32c_of(5, &[]), Ok(5));
    let outside = slice(64 * KIB - 10, 11);
    assert!(region.crc32c_of(0, &[outside]).is_err(), "alone");
    assert!(region.crc32c_of(0, &[slice(0, 10), outside]).is_err(), "behind another");
}

#[test]
fn raw_slices_name_the_bytes() {
    let region = mapped(4 * KIB);
    let slice = region.io_slice(100, 3).expect("inside");
    let start = region.io_slice(0, 1).expect("inside");
    assert_eq!(slice.len(), 3);
    assert_eq!(slice.as_mut_ptr().addr() - start.as_mut_ptr().addr(), 100);
}

#[test]
fn the_last_drop_unmaps_and_the_meter_returns_to_zero() {
    let name = "kvferry-last-drop";
    let meter = Meter::new();
    let map = |bytes| Region::map(create(name, bytes).expect("create"), bytes, &meter).expect("map");
    let (first, second) = (map(12 * KIB), map(5000));
    assert_eq!((meter.regions(), meter.bytes()), (2, 12 * KIB + 5000));
    assert_eq!(lines_of_maps(name), 2);
    let kept = Arc::clone(&first);
    drop(first);
    assert_eq!(meter.regions(), 2, "an owner is left");
    drop(kept);
    assert_eq!((meter.regions(), meter.bytes(), lines_of_maps(name)), (1, 5000, 1));
    std::thread::spawn(move || drop(second)).join().expect("drop elsewhere");
    assert_eq!((meter.regions(), meter.bytes(), lines_of_maps(name)), (0, 0, 0));
}

fn lines_of_maps(name: &str) -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("the process's own map");
    maps.lines().filter(|line| line.contains(name)).count()
}

#[test]
fn kv_cache_stays_out_of_core_dumps() {
    let name = "kvferry-no-dump";
    let region = Region::map(create(name, 8 * KIB).expect("create"), 8 * KIB, &Meter::new()).expect("map");
    let smaps = std::fs::read_to_string("/proc/self/smaps").expect("the process's own map");
    let flags = smaps.split(name).nth(1).and_then(|rest| rest.split("VmFlags:").nth(1)).expect("flags");
    assert!(flags.lines().next().expect("a line").contains(" dd"), "{flags}");
    drop(region);
}

#[test]
fn printing_a_region_shows_no_address() {
    let region = mapped(4 * KIB);
    assert_eq!(format!("{region:?}"), "Region { bytes: 4096, .. }");
}
