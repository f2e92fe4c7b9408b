//! Memory that outlives the process: a file in memory that is ours alone.
//!
//! ```text
//! open -> lock -> ours? in memory? -> as long as asked, every page there -> Region, which holds the lock
//! ```
//!
//! Every page is allocated before the file is mapped: where memory is short, that is an error here, and no SIGBUS later.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, FileType, FlockOperation, Mode, OFlags, StatFs};
use rustix::io::Errno;

use crate::{KeepError, Meter, REGION_BYTES_MAX, Region};

/// `TMPFS_MAGIC` of `linux/magic.h`.
const TMPFS_MAGIC: u64 = 0x0102_1994;
/// `HUGETLBFS_MAGIC` of `linux/magic.h`.
pub(crate) const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;

/// The unit of `st_blocks` (stat(3type)).
const BLOCK_BYTES: u64 = 512;

/// What [`Region::keep`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// No such file, or one of another length: every byte is 0.
    New,
    /// The file that somebody like us left; what it holds is unknown.
    Found,
}

impl Region {
    /// Maps the file at `path`, which is made, with its length, where it is missing or of another length. No other process
    /// can have it by this method until the region is dropped, or the process ends in whatever way.
    ///
    /// # Errors
    ///
    /// For a file that is in use, that is not in memory, or that somebody else may open; where there is too little memory.
    /// Only a file of ours, in memory and not in use, is ever changed.
    pub fn keep(path: &Path, bytes: u64, meter: &Meter) -> Result<(Arc<Self>, Kept), KeepError> {
        if bytes == 0 || bytes > REGION_BYTES_MAX {
            return Err(KeepError::Bytes { bytes });
        }
        let step = |step: &'static str| move |errno: Errno| KeepError::Io { step, errno };
        // Asked of the directory first: a file that is made on a disk would stay there.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
        let system = rustix::fs::statfs(folder).map_err(step("examine its directory"))?;
        if !is_in_memory(&system) {
            return Err(KeepError::NotInMemory);
        }
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let fd = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR).map_err(|errno| match errno {
            Errno::LOOP | Errno::ISDIR | Errno::NXIO => KeepError::NotRegular,
            errno => KeepError::Io { step: "open it", errno },
        })?;
        let stat = rustix::fs::fstat(&fd).map_err(step("examine it"))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(KeepError::NotRegular);
        }
        if stat.st_uid != rustix::process::geteuid().as_raw() || stat.st_mode & 0o077 != 0 {
            return Err(KeepError::NotOurs);
        }
        let system = rustix::fs::fstatfs(&fd).map_err(step("examine its file system"))?;
        if !is_in_memory(&system) {
            return Err(KeepError::NotInMemory);
        }
        rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive).map_err(|errno| match errno {
            Errno::WOULDBLOCK => KeepError::InUse,
            errno => KeepError::Io { step: "lock it", errno },
        })?;
        // The lock is ours, so the length is no race from here on.
        let stat = rustix::fs::fstat(&fd).map_err(step("examine it"))?;
        let kept = if u64::try_from(stat.st_size) == Ok(bytes) { Kept::Found } else { Kept::New };
        if kept == Kept::New {
            rustix::fs::ftruncate(&fd, 0).map_err(step("empty it"))?;
        }
        // Asked for a second time, tmpfs would also clear every page that nobody has written to yet: seconds for each GiB.
        let allocated = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(BLOCK_BYTES);
        if kept == Kept::New || allocated < bytes {
            allocate(&fd, bytes)?;
        }
        let file = (stat.st_dev, stat.st_ino);
        let mut region =
            Self::map_checked(&fd, bytes, file, meter).map_err(|(step, errno)| KeepError::Io { step, errno })?;
        region.lock = Some(fd);
        Ok((Arc::new(region), kept))
    }
}

fn is_in_memory(system: &StatFs) -> bool {
    u64::try_from(system.f_type).is_ok_and(|kind| kind == TMPFS_MAGIC || kind == HUGETLBFS_MAGIC)
}

/// Gives the file all its pages; those that are there stay as they are.
fn allocate(fd: &OwnedFd, bytes: u64) -> Result<(), KeepError> {
    let allocated = rustix::fs::fallocate(fd, FallocateFlags::empty(), 0, bytes);
    if allocated.is_err() {
        // A file that is half there would take memory that nobody uses.
        let _ = rustix::fs::ftruncate(fd, 0);
    }
    allocated.map_err(|errno| KeepError::Io { step: "allocate its memory", errno })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: u64 = 1 << 20;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir_in("/dev/shm").expect("a folder in memory")
    }

    fn keep(path: &Path) -> Result<(Arc<Region>, Kept), KeepError> {
        Region::keep(path, BYTES, &Meter::new())
    }

    #[test]
    fn what_was_written_is_found_again() {
        let folder = folder();
        let path = folder.path().join("arena");
        let (region, kept) = keep(&path).expect("a new one");
        assert_eq!((kept, region.len()), (Kept::New, BYTES));
        region.write(5000, b"kept").expect("inside");
        region.store(3, 7).expect("inside");
        assert_eq!(keep(&path).expect_err("one at a time"), KeepError::InUse);
        drop(region);
        let (region, kept) = keep(&path).expect("the same");
        let mut bytes = [0; 4];
        region.read(5000, &mut bytes).expect("inside");
        assert_eq!((kept, &bytes, region.load(3).expect("inside")), (Kept::Found, b"kept", 7));
        drop(region);
        let (region, kept) = Region::keep(&path, 2 * BYTES, &Meter::new()).expect("a longer one");
        region.read(5000, &mut bytes).expect("inside");
        assert_eq!((kept, bytes), (Kept::New, [0; 4]));
    }

    #[test]
    fn what_is_not_ours_is_refused_and_left_alone() {
        use std::fs::Permissions;
        use std::os::unix::fs::{PermissionsExt as _, symlink};
        let folder = folder();
        let path = |name: &str| folder.path().join(name);
        let open = path("open");
        std::fs::write(&open, b"something else").expect("write");
        std::fs::set_permissions(&open, Permissions::from_mode(0o640)).expect("set the mode");
        assert_eq!(keep(&open).expect_err("others may read it"), KeepError::NotOurs);
        assert_eq!(std::fs::read(&open).expect("read"), b"something else");
        symlink(&open, path("link")).expect("link");
        assert_eq!(keep(&path("link")).expect_err("a link"), KeepError::NotRegular);
        assert_eq!(keep(folder.path()).expect_err("a directory"), KeepError::NotRegular);
        let said = keep(&path("missing/arena")).expect_err("no directory").to_string();
        assert!(said.contains("examine its directory"), "{said}");
        let elsewhere = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a folder beside this code");
        // Unless that is in memory too.
        if rustix::fs::statfs(elsewhere.path()).is_ok_and(|system| u64::try_from(system.f_type) != Ok(TMPFS_MAGIC)) {
            assert_eq!(keep(&elsewhere.path().join("arena")).expect_err("a disk"), KeepError::NotInMemory);
            assert!(!elsewhere.path().join("arena").exists(), "nothing is left there");
        }
    }

    #[test]
    fn more_memory_than_there_is_is_an_error() {
        let folder = folder();
        let path = folder.path().join("arena");
        // A file system of no size of its own would hand out all memory of the machine first.
        if rustix::fs::statfs(folder.path()).is_ok_and(|system| system.f_blocks > 0) {
            let said = Region::keep(&path, 1 << 43, &Meter::new()).expect_err("8 TiB");
            assert!(matches!(said, KeepError::Io { step: "allocate its memory", .. }), "{said}");
            assert_eq!(std::fs::metadata(&path).expect("it is there").len(), 0);
        }
        for bytes in [0, u64::MAX] {
            assert_eq!(Region::keep(&path, bytes, &Meter::new()).expect_err("no size"), KeepError::Bytes { bytes });
        }
    }

    #[test]
    fn a_hole_is_given_its_pages() {
        let folder = folder();
        let path = folder.path().join("arena");
        drop(keep(&path).expect("a new one"));
        let pages = || std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&path).expect("it is there")) * 512;
        assert_eq!(pages(), BYTES);
        std::fs::OpenOptions::new().write(true).open(&path).expect("open").set_len(BYTES / 2).expect("cut it");
        std::fs::OpenOptions::new().write(true).open(&path).expect("open").set_len(BYTES).expect("leave a hole");
        assert_eq!((pages(), keep(&path).expect("the same").1), (BYTES / 2, Kept::Found));
        assert_eq!(pages(), BYTES);
    }

    #[test]
    fn words_have_bounds() {
        let folder = folder();
        let (region, _) = keep(&folder.path().join("arena")).expect("a new one");
        region.store(BYTES / 8 - 1, 1).expect("the last one");
        for word in [BYTES / 8, u64::MAX] {
            region.store(word, 1).expect_err("outside");
            region.load(word).expect_err("outside");
        }
    }
}
