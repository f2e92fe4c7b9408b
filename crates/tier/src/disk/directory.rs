//! The directory of a store: whose it is, what lies in it, and how much more may.
//!
//! ```text
//! open -> ours alone? -> lock -> format -> list: extents, half-made ones (removed), others' files (counted, left alone)
//! ```
//!
//! Limits: bytes and files, those of others included, and what the file system must have left; asked before each new file.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, Stat};
use rustix::io::Errno;
use zerocopy::IntoBytes as _;

use super::error::OpenError;
use super::extent::File;
use super::folder::Folder;
use super::format::{Format, VERSION};

const LOCK: &str = "lock";
const FORMAT: &str = "format";
const EXTENT: &str = "extent-";
/// Of a file that is being made.
pub(super) const NEW: &str = ".new";
/// The unit of `st_blocks` (stat(3type)).
const STAT_BLOCK_BYTES: u64 = 512;

/// How much a store may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all files in its directory.
    pub bytes_max: u64,
    /// Files in its directory, its own two included. Each extent takes two file descriptors.
    pub files_max: u32,
    /// Bytes of one file of blocks; blocks that do not fit in one are refused.
    pub extent_bytes: u64,
    /// Bytes that are left to others of the file system.
    pub free_bytes_min: u64,
    /// Writes that may fail one after the other before nothing is written any more.
    pub write_errors_max: u32,
}

pub(super) struct Directory {
    folder: Arc<Folder>,
    path: PathBuf,
    limits: Limits,
    /// What all files take, and how many they are.
    bytes: u64,
    files: u32,
    next_number: u32,
    #[cfg(test)]
    believes_in_room: bool,
}

/// A file that holds blocks, as the directory tells of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Listed {
    pub(super) number: u32,
    pub(super) file_bytes: u64,
    /// What it counts as.
    pub(super) room: u64,
}

/// What lies in a directory.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) extents: Vec<Listed>,
    /// Files that a daemon was making when it ended.
    pub(super) unfinished: u64,
    /// Files of somebody else.
    pub(super) foreign: u64,
}

impl Directory {
    pub(super) fn open(path: &Path, limits: Limits) -> Result<(Self, Listing), OpenError> {
        let error = |step: &'static str| {
            let path = path.to_owned();
            move |errno: Errno| OpenError::Io { path, step, errno }
        };
        match rustix::fs::mkdir(path, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST | Errno::ROFS) => {}
            Err(errno) => return Err(error("make the directory")(errno)),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(error("open the directory"))?;
        let stat = rustix::fs::fstat(&fd).map_err(error("examine the directory"))?;
        if stat.st_uid != rustix::process::geteuid().as_raw() || stat.st_mode & 0o077 != 0 {
            return Err(OpenError::NotOurs { path: path.to_owned() });
        }
        let names = names(&fd).map_err(error("list the files"))?;
        let is = |name: &CString, other: &str| name.to_bytes() == other.as_bytes();
        let has_format = names.iter().any(|name| is(name, FORMAT));
        if !has_format && names.iter().any(|name| !is(name, LOCK) && !is(name, &format!("{FORMAT}{NEW}"))) {
            return Err(OpenError::NotEmpty { path: path.to_owned() });
        }
        let (lock, is_read_only) = lock(&fd, path)?;
        let mut directory = Self {
            folder: Arc::new(Folder::new(fd, lock, is_read_only)),
            path: path.to_owned(),
            limits,
            bytes: 0,
            files: 0,
            next_number: 1,
            #[cfg(test)]
            believes_in_room: false,
        };
        directory.check_format(has_format)?;
        let listing = directory.list().map_err(error("list the files"))?;
        Ok((directory, listing))
    }

    pub(super) fn error(&self, step: &'static str, errno: Errno) -> OpenError {
        OpenError::Io { path: self.path.clone(), step, errno }
    }

    pub(super) const fn limits(&self) -> Limits {
        self.limits
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What all files take of the disk at most, and how many they are.
    pub(super) const fn used(&self) -> (u64, u32) {
        (self.bytes, self.files)
    }

    /// Whether more is there than may be, as after a limit was lowered.
    pub(super) const fn is_over(&self) -> bool {
        self.bytes > self.limits.bytes_max || self.files > self.limits.files_max
    }

    /// Asks the file system what a file of blocks would have to be asked otherwise.
    pub(super) fn probe(&self) -> Result<(), OpenError> {
        match self.folder.open_at(FORMAT, OFlags::RDONLY | OFlags::DIRECT).and_then(File::new) {
            Ok(_) => Ok(()),
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Err(OpenError::NoDirect { path: self.path.clone() }),
            Err(errno) => Err(self.error("open a file past the page cache", errno)),
        }
    }

    fn check_format(&self, is_there: bool) -> Result<(), OpenError> {
        let error = |errno| self.error("read its format", errno);
        if !is_there {
            return self.write_format().map_err(|errno| self.error("write its format", errno));
        }
        let damaged = || OpenError::Damaged { path: self.path.join(FORMAT) };
        let file = self.folder.open_at(FORMAT, OFlags::RDONLY).map_err(error)?;
        let mut bytes = [0; size_of::<Format>()];
        let count = rustix::io::pread(&file, &mut bytes, 0).map_err(error)?;
        match Format::version(&bytes[..count]).map_err(|_| damaged())? {
            VERSION => Ok(()),
            found => Err(OpenError::Version { path: self.path.clone(), found }),
        }
    }

    fn write_format(&self) -> Result<(), Errno> {
        let name = format!("{FORMAT}{NEW}");
        let file = self.folder.open_at(&name, OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC)?;
        write_all(&file, Format::new().as_bytes(), 0)?;
        rustix::fs::fdatasync(&file)?;
        rustix::fs::renameat(self.folder.fd(), &name, self.folder.fd(), FORMAT)?;
        rustix::fs::fsync(self.folder.fd())
    }

    fn list(&mut self) -> Result<Listing, Errno> {
        let mut listing = Listing::default();
        for name in names(self.folder.fd())? {
            let stat = rustix::fs::statat(self.folder.fd(), name.as_c_str(), AtFlags::SYMLINK_NOFOLLOW)?;
            let name = name.to_string_lossy();
            let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
            let is_ours = name == FORMAT
                || name == LOCK
                || (is_file && name.starts_with(EXTENT))
                || name == format!("{FORMAT}{NEW}");
            if is_ours && name.ends_with(NEW) && !self.folder.is_read_only {
                rustix::fs::unlinkat(self.folder.fd(), &*name, AtFlags::empty())?;
                listing.unfinished += 1;
                continue;
            }
            let room = taken(&stat);
            self.bytes = self.bytes.saturating_add(room);
            self.files = self.files.saturating_add(1);
            match name.strip_prefix(EXTENT).filter(|_| is_ours).and_then(number) {
                Some(number) => {
                    let file_bytes = u64::try_from(stat.st_size).unwrap_or(0);
                    listing.extents.push(Listed { number, file_bytes, room });
                    self.next_number = self.next_number.max(number.saturating_add(1));
                }
                None => listing.foreign += u64::from(!is_ours || name.starts_with(EXTENT)),
            }
        }
        listing.extents.sort_by_key(|listed| listed.number);
        Ok(listing)
    }

    /// An extent counts as so much from now on.
    pub(super) const fn recount(&mut self, before: u64, now: u64) {
        self.bytes = self.bytes.saturating_sub(before).saturating_add(now);
    }

    /// Where files are made and removed.
    pub(super) const fn folder(&self) -> &Arc<Folder> {
        &self.folder
    }

    /// Whether our limits and the disk have so much room for one more file, once others of so many bytes are removed, which
    /// do not count any more.
    pub(super) fn has_room(&self, room: u64, going: u64) -> Result<bool, Errno> {
        if self.bytes.saturating_add(room) > self.limits.bytes_max || self.files >= self.limits.files_max {
            return Ok(false);
        }
        Ok(self.free_bytes()?.saturating_add(going) >= self.limits.free_bytes_min.saturating_add(room))
    }

    /// The number of the next extent, if there is one more.
    pub(super) fn draw_number(&mut self) -> Option<u32> {
        let number = self.next_number;
        self.next_number = number.checked_add(1)?;
        Some(number)
    }

    /// An extent takes so much room from now on.
    pub(super) const fn count(&mut self, room: u64) {
        self.bytes += room;
        self.files += 1;
    }

    /// An extent that took so much room is gone, or going.
    pub(super) const fn uncount(&mut self, room: u64) {
        self.bytes = self.bytes.saturating_sub(room);
        self.files = self.files.saturating_sub(1);
    }

    /// What the file system has left.
    fn free_bytes(&self) -> Result<u64, Errno> {
        #[cfg(test)]
        if self.believes_in_room {
            return Ok(u64::MAX);
        }
        let system = rustix::fs::fstatvfs(self.folder.fd())?;
        Ok(system.f_bavail.saturating_mul(system.f_frsize))
    }

    /// As if somebody took the room between the question and the file.
    #[cfg(test)]
    pub(super) const fn forget_free_room(&mut self) {
        self.believes_in_room = true;
    }
}

/// Takes the directory's lock. True: the file system can only be read.
fn lock(folder: &OwnedFd, path: &Path) -> Result<(OwnedFd, bool), OpenError> {
    let error = |step, errno| OpenError::Io { path: path.to_owned(), step, errno };
    let flags = OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let mode = Mode::RUSR | Mode::WUSR;
    let (lock, is_read_only) = match rustix::fs::openat(folder, LOCK, flags | OFlags::RDWR | OFlags::CREATE, mode) {
        Ok(lock) => (lock, false),
        Err(Errno::ROFS) => {
            let lock = rustix::fs::openat(folder, LOCK, flags | OFlags::RDONLY, mode);
            (lock.map_err(|errno| error("find a store on a read-only file system", errno))?, true)
        }
        Err(errno) => return Err(error("open the lock", errno)),
    };
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            let mut text = [0; 10];
            let count = rustix::io::pread(&lock, &mut text, 0).unwrap_or(0);
            let holder = str::from_utf8(&text[..count]).ok().and_then(|text| text.trim().parse().ok());
            return Err(OpenError::InUse { path: path.to_owned(), holder });
        }
        Err(errno) => return Err(error("lock the directory", errno)),
    }
    if !is_read_only {
        let pid = rustix::process::getpid().as_raw_nonzero();
        let written = rustix::fs::ftruncate(&lock, 0).and_then(|()| write_all(&lock, format!("{pid}\n").as_bytes(), 0));
        match written {
            // On a full disk the lock counts all the same; only who has it is not told.
            Ok(()) | Err(Errno::NOSPC | Errno::DQUOT) => {}
            Err(errno) => return Err(error("write the lock", errno)),
        }
    }
    Ok((lock, is_read_only))
}

fn names(folder: impl AsFd) -> Result<Vec<CString>, Errno> {
    let entries: Result<Vec<CString>, Errno> =
        Dir::read_from(folder)?.map(|entry| entry.map(|entry| entry.file_name().to_owned())).collect();
    Ok(entries?.into_iter().filter(|name| !matches!(name.to_bytes(), b"." | b"..")).collect())
}

pub(super) fn extent_name(number: u32) -> String {
    format!("{EXTENT}{number:010}")
}

fn number(digits: &str) -> Option<u32> {
    let is_number = digits.len() == 10 && digits.bytes().all(|digit| digit.is_ascii_digit());
    digits.parse().ok().filter(|_| is_number)
}

/// What a file takes of the disk.
pub(super) fn taken(stat: &Stat) -> u64 {
    let allocated = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(STAT_BLOCK_BYTES);
    allocated.max(u64::try_from(stat.st_size).unwrap_or(0))
}

/// Writes all of these bytes through the page cache.
pub(super) fn write_all(file: impl AsFd, bytes: &[u8], at: u64) -> Result<(), Errno> {
    let mut done = 0;
    while done < bytes.len() {
        match rustix::io::pwrite(&file, &bytes[done..], at + done as u64) {
            Ok(0) => return Err(Errno::NOSPC),
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Reads as many bytes as the file has behind `at`, up to all of these.
pub(super) fn read_all(file: impl AsFd, bytes: &mut [u8], at: u64) -> Result<usize, Errno> {
    let mut done = 0;
    while done < bytes.len() {
        match rustix::io::pread(&file, &mut bytes[done..], at + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(done)
}
